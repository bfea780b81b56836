// One answer being written: from the request to the last token, with what is known of its speed.

import { Failure, answer, bodyOf } from "./client.js";

const SHORTEST = 0.05; // seconds; a rate over less would be chance

/**
 * Have the server write `turn`, which may have begun already, and call `changed()` with every piece.
 *
 * Never throws: what went wrong is the turn's `error` then. Returns the Failure, if there was one.
 */
export async function write(conversation, turn, settings, signal, changed) {
  const started = performance.now(), note = {};
  const body = bodyOf(conversation, given(conversation, turn), settings);
  let first = null; // when, and how many tokens had come with it
  delete turn.error;
  turn.note = note;
  if (settings.model) note.model = settings.model;

  const measure = tokens => {
    const now = performance.now();
    first ??= { now, tokens };
    const writing = (now - first.now) / 1000;
    note.first ??= (now - started) / 1000;
    note.seconds = (now - started) / 1000;
    note.tokens = tokens;
    note.rate = writing > SHORTEST ? (tokens - first.tokens) / writing : tokens / note.seconds;
  };
  try {
    for await (const piece of answer(body, settings.key, signal)) {
      turn.content += piece.text;
      if (piece.usage) {
        measure(piece.usage.completion_tokens);
        note.read = piece.usage.prompt_tokens;
      }
      if (piece.reason) note.reason = piece.reason;
      changed();
    }
  } catch (error) {
    if (signal.aborted) {
      note.reason = "stopped";
      return null;
    }
    turn.error = error instanceof Failure ? error.message : `This page has made a mistake: ${error.message}`;
    return error;
  }
  return null;
}

/** What a request says before `turn`: the messages of a chat, or the text that is to go on. */
function given(conversation, turn) {
  const before = conversation.turns.slice(0, conversation.turns.indexOf(turn));
  if (conversation.mode === "completion") return before.at(-1).content + turn.content;
  return before.filter(each => each.content !== "");
}
