// What outlives a reload: every conversation under a key of its own, so that two tabs do not write over
// each other's, and the settings under one.

const PREFIX = "doge_export.conversation.";
const SETTINGS = "doge_export.settings";

export const DEFAULTS = {
  sampling: { max_tokens: "512" },
  stop: "",
  stop_token_ids: "",
  logit_bias: "",
  ignore_eos: false,
  theme: "auto",
  markdown: true,
  key: "",
  model: "",
};

/** A conversation without turns. They are {role, content}, and answers have {note, error}, too. */
export function fresh(mode, system = "") {
  const bytes = crypto.getRandomValues(new Uint8Array(8)); // there is no randomUUID without HTTPS
  const id = Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
  return { id, mode, system, title: "", turns: [], changed: Date.now() };
}

/** The conversation's name: the one it was given, else how it begins. */
export function titleOf(conversation) {
  const first = conversation.turns.find(turn => turn.content.trim())?.content ?? "";
  const line = first.trim().replace(/\s+/g, " ");
  return conversation.title || (line.length > 60 ? `${line.slice(0, 59)}…` : line) || "New conversation";
}

/** Keep it; returns false where the browser does not. */
export function keep(conversation) {
  return write(PREFIX + conversation.id, conversation);
}

export function forget(conversation) {
  try {
    localStorage.removeItem(PREFIX + conversation.id);
  } catch {
    // There was no storage to keep it in.
  }
}

/** The conversation of that id as it is kept, or null. */
export function recall(id) {
  const found = read(PREFIX + id);
  const known = ["chat", "completion"].includes(found?.mode) && Array.isArray(found.turns);
  return known && found.turns.every(turn => typeof turn?.content === "string") ? found : null;
}

/** All conversations, the one that changed last first. */
export function all() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter(key => key.startsWith(PREFIX));
  } catch {
    return [];
  }
  const found = keys.map(key => recall(key.slice(PREFIX.length))).filter(each => each !== null);
  return found.sort((a, b) => b.changed - a.changed);
}

export function settings() {
  return { ...DEFAULTS, ...read(SETTINGS) };
}

export function keepSettings(changed) {
  return write(SETTINGS, changed);
}

/** Call it whenever another tab has changed something; with the id of the conversation, or null. */
export function onChangeElsewhere(listener) {
  addEventListener("storage", event => {
    listener(event.key?.startsWith(PREFIX) ? event.key.slice(PREFIX.length) : null);
  });
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
