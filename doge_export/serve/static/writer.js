// One answer being written: from the request to the last token, with what is known of its speed.

import { Failure, answer, bodyOf } from "./client.js";

const CHARACTERS_A_TOKEN = 4; // until an answer has told
const SHORTEST = 0.05; // seconds; a rate over less would be chance

/**
 * Have the server write `turn`, which may have begun already, and call `changed()` with every piece.
 *
 * Never throws: what went wrong is the turn's `error` then. Returns the Failure, if there was one.
 */
export async function write(conversation, turn, settings, signal, changed) {
  const begun = turn.content, started = performance.now();
  const density = charactersAToken(conversation);
  const body = bodyOf(conversation, given(conversation, turn), settings);
  const note = { exact: false };
  if (settings.model) note.model = settings.model;
  let first = null;
  delete turn.error;
  turn.note = note;

  const measure = tokens => {
    const now = performance.now(), writing = (now - first) / 1000;
    note.seconds = (now - started) / 1000;
    note.tokens = tokens;
    note.rate = writing > SHORTEST ? (tokens - 1) / writing : tokens / note.seconds;
  };
  try {
    for await (const piece of answer(body, settings.key, signal)) {
      if (piece.text) {
        first ??= performance.now();
        note.first ??= (first - started) / 1000;
        turn.content += piece.text;
        measure(Math.max(1, Math.round((turn.content.length - begun.length) / density)));
      }
      if (piece.reason) note.reason = piece.reason;
      if (piece.usage) {
        first ??= performance.now();
        measure(piece.usage.completion_tokens);
        note.read = piece.usage.prompt_tokens;
        note.exact = true;
        note.characters = turn.content.length - begun.length;
      }
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

function charactersAToken(conversation) {
  const known = conversation.turns.findLast(turn => turn.note?.characters && turn.note.tokens);
  return known ? known.note.characters / known.note.tokens : CHARACTERS_A_TOKEN;
}
