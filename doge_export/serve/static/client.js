// The server's routes. Whatever goes wrong becomes a Failure, whose message is a sentence for people.

export class Failure extends Error {
  /** `status` is that of the response, or 0 where there was none. */
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

const UNREACHABLE = "The server cannot be reached. Is it still running?";
const NO_KEY = "The server asks for an API key. Settings has a field for it.";
const WRONG_KEY = "The server did not accept the API key. It can be changed in Settings.";

/** The names by which the server calls its models, without aliases. */
export async function modelNames(key) {
  const response = await ask("v1/models", { headers: authorized(key) });
  return (await response.json()).data.filter(({ id, root }) => id === root).map(({ id }) => id);
}

/** The body of a request: the settings' fields that are not empty, and what the conversation is. */
export function bodyOf(conversation, turns, settings) {
  const body = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  if (settings.model) body.model = settings.model;
  for (const [field, value] of Object.entries(settings.sampling)) {
    if (value !== "" && value !== undefined) body[field] = Number(value);
  }
  const stop = settings.stop.split("\n").filter(line => line !== "").map(unescaped);
  if (stop.length) body.stop = stop;
  const ids = words(settings.stop_token_ids), bias = words(settings.logit_bias);
  if (ids.length) body.stop_token_ids = ids.map(numberOr);
  if (bias.length) body.logit_bias = pairs(bias);
  if (settings.ignore_eos) body.ignore_eos = true;
  if (conversation.mode === "completion") return { ...body, prompt: turns };
  const system = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  return { ...body, messages: [...system, ...turns.map(({ role, content }) => ({ role, content }))] };
}

function words(text) {
  return text.split(/[\s,:=]+/).filter(Boolean);
}

/** Each token id with the number behind it. */
function pairs(bias) {
  return Object.fromEntries(bias.flatMap((id, at) => (at % 2 ? [] : [[id, numberOr(bias[at + 1] ?? "")]])));
}

/** The number that a word says; what says none goes as it is, since the server has a sentence for it. */
function numberOr(word) {
  return word === "" || Number.isNaN(Number(word)) ? word : Number(word);
}

function unescaped(line) {
  return line.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

/**
 * Yield the pieces of an answer as they come: {text, reason, usage}, of which the reason comes once it ends,
 * and the usage is what was made so far.
 *
 * Throws a Failure, or the signal's AbortError.
 */
export async function* answer(body, key, signal) {
  const path = body.messages ? "v1/chat/completions" : "v1/completions";
  const headers = { "Content-Type": "application/json", ...authorized(key) };
  const response = await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message);
    const choice = chunk.choices[0]; // the only one that was asked for, or none in the last chunk
    const text = choice?.delta?.content ?? choice?.text ?? "";
    yield { text, reason: choice?.finish_reason, usage: chunk.usage };
  }
  throw new Failure("The connection ended before the answer was whole.");
}

async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const line of parts.flatMap(part => part.split("\n"))) {
        // Others are comments, which keep a connection open.
        if (line.startsWith("data: ")) yield line.slice("data: ".length);
      }
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Failure("The connection broke before the answer was whole.");
  } finally {
    reader.cancel().catch(() => {}); // it may have broken already
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(UNREACHABLE);
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Failure(options.headers.Authorization ? WRONG_KEY : NO_KEY, 401);
  let said;
  try {
    said = (await response.json()).error.message;
  } catch {
    // Not from our server, perhaps from a proxy before it.
  }
  const sentence = said || `The server answered with status ${response.status} and no reason.`;
  throw new Failure(sentence, response.status);
}

function authorized(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}
