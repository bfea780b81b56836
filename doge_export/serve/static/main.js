// The page: which conversation is open, and what its buttons and keys do.

import { by, fit, icon, notify } from "./dom.js";
import { showList } from "./list.js";
import { Log } from "./log.js";
import { Models } from "./models.js";
import { follower } from "./scroll.js";
import { watchSettings } from "./settings.js";
import * as store from "./store.js";
import { write } from "./writer.js";

const WORDS = {
  chat: ["Ask something", "A conversation: the model reads all of it before each answer."],
  completion: ["A text to go on with", "The model goes on with your text, which stays in grey before it."],
};
const SAVING = 1000; // milliseconds between two copies of an answer that still comes

const settings = store.settings();
const running = new Map(); // id -> {conversation, turn, controller}
const prompt = by("prompt");
let conversations = store.all();
let current = store.fresh("chat", settings.system);

const scroll = follower(by("scroll"), by("latest"));
const log = new Log(by("log"), {
  edit: editTurn,
  regenerate: turn => writeAgain(turn),
  proceed: turn => run(turn),
  openSystem: () => openSettings("system"),
});
const openSettings = watchSettings(settings, () => current, () => {
  settings.system = current.system;
  store.keepSettings(settings);
  if (current.turns.length) save(current);
  if (log.markdown !== settings.markdown) showLog();
});
const models = new Models(settings, showFrame, () => openSettings("key"));

// --- What is seen ------------------------------------------------------------------------------------------

function showAll() {
  showLog();
  showFrame();
  scroll.jump();
}

function showLog() {
  log.markdown = settings.markdown;
  log.model = models.chosen;
  log.show(current, running.get(current.id)?.turn);
}

function showFrame() {
  const busy = running.has(current.id), empty = !current.turns.length;
  const [placeholder, explained] = WORDS[current.mode];
  by("title").textContent = store.titleOf(current);
  document.title = [store.titleOf(current), models.chosen].filter(Boolean).join(" – ");
  models.show();
  by("empty").hidden = !empty;
  by("explained").textContent = explained;
  document.querySelector(`#mode [value=${current.mode}]`).checked = true;
  prompt.placeholder = placeholder;
  by("send").replaceChildren(icon(busy ? "stop" : "send"));
  by("send").classList.toggle("busy", busy);
  for (const name of ["aria-label", "title"]) by("send").setAttribute(name, busy ? "Stop" : "Send");
  by("send").disabled = !busy && !prompt.value.trim();
  showList(conversations, current, each => running.has(each.id), { rename, remove });
}

// --- Conversations -----------------------------------------------------------------------------------------

/** Open what the address says; nothing behind # is a new conversation. */
function openAddressed() {
  const id = location.hash.slice(1);
  if (id !== current.id) {
    const found = conversations.find(each => each.id === id);
    current = found ?? store.fresh(current.mode, settings.system);
    if (id && !found) history.replaceState(null, "", location.pathname);
  }
  closeSide();
  showAll();
  if (matchMedia("(hover: hover)").matches) prompt.focus(); // else a keyboard would cover half of the phone
}

function save(conversation) {
  if (store.keep(conversation)) return;
  notify("This browser keeps no more: its storage is full or closed to this page. Delete a conversation.");
}

function touch(conversation) {
  conversation.changed = Date.now();
  conversations = [conversation, ...conversations.filter(each => each !== conversation)];
  save(conversation);
}

function rename(conversation, title) {
  conversation.title = title;
  save(conversation);
  showFrame();
}

function remove(conversation) {
  running.get(conversation.id)?.controller.abort();
  store.forget(conversation);
  conversations = conversations.filter(each => each !== conversation);
  if (conversation === current) {
    history.replaceState(null, "", location.pathname);
    openAddressed();
  }
  showFrame();
  notify(`“${store.titleOf(conversation)}” is deleted.`, "Undo", () => {
    touch(conversation);
    location.hash = conversation.id;
    showFrame();
  });
}

// --- Turns -------------------------------------------------------------------------------------------------

function send() {
  const content = prompt.value;
  if (!content.trim() || running.has(current.id)) return;
  prompt.value = "";
  fit(prompt);
  current.turns.push({ role: "user", content });
  if (location.hash !== `#${current.id}`) history.pushState(null, "", `#${current.id}`);
  answerLast();
}

/** Add an answer to the last turn, and have it written. */
function answerLast() {
  const turn = { role: "assistant", content: "" };
  current.turns.push(turn);
  run(turn);
}

function editTurn(turn, content) {
  if (running.has(current.id)) return;
  const at = current.turns.indexOf(turn);
  if (turn.role === "assistant") {
    turn.content = content;
    delete turn.note;
    delete turn.error;
    touch(current);
    showAll();
    return;
  }
  const last = current.mode === "chat" ? current.turns.length : at + 2;
  replaceTurns(at, last, [{ ...turn, content }, { role: "assistant", content: "" }]);
}

/** Write an answer anew. In a chat what came after it goes; completions do not know of each other. */
function writeAgain(turn) {
  if (running.has(current.id)) return;
  const at = current.turns.indexOf(turn);
  const last = current.mode === "chat" ? current.turns.length : at + 1;
  replaceTurns(at, last, [{ role: "assistant", content: "" }]);
}

/** Put these turns in the place of others, of which the last is an answer to be written. It can be undone. */
function replaceTurns(from, to, turns) {
  const conversation = current, before = [...conversation.turns], lost = to - from - turns.length;
  conversation.turns.splice(from, to - from, ...turns);
  run(turns.at(-1));
  if (!before.slice(from, to).some(turn => turn.role === "assistant" && turn.content)) return;
  const sentence = lost > 0 ? `The turns after it are gone (${lost}).` : "The answer is written again.";
  notify(sentence, "Undo", () => {
    running.get(conversation.id)?.controller.abort();
    conversation.turns = before;
    touch(conversation);
    showAll();
  });
}

/** Have `turn` of the open conversation written, or written on. */
async function run(turn) {
  const conversation = current, controller = new AbortController();
  if (running.has(conversation.id)) return;
  running.set(conversation.id, { conversation, turn, controller });
  touch(conversation);
  showLog();
  showFrame();
  if (turn === conversation.turns.at(-1)) scroll.jump();
  by("spoken").textContent = "The answer is being written.";

  let drawing = false, saved = performance.now();
  const draw = () => {
    drawing = false;
    log.update(turn, running.get(conversation.id)?.turn === turn);
    if (conversation === current) scroll.follow();
  };
  const failure = await write(conversation, turn, models.added(settings), controller.signal, () => {
    if (!drawing) requestAnimationFrame(draw); // however fast tokens come, once a picture of the screen
    drawing = true;
    if (performance.now() - saved < SAVING) return;
    saved = performance.now();
    if (conversations.includes(conversation)) save(conversation);
  });
  running.delete(conversation.id);
  if (conversations.includes(conversation)) save(conversation);
  draw();
  showFrame();
  by("spoken").textContent = failure ? "" : turn.content || "The answer is empty.";
  if (failure?.status === 401) openSettings("key");
}

function stop() {
  running.get(current.id)?.controller.abort();
}

// --- Buttons and keys --------------------------------------------------------------------------------------

function openSide() {
  document.body.classList.add("listed");
  by("open-side").setAttribute("aria-expanded", "true");
  by("close-side").focus();
}

function closeSide() {
  if (!document.body.classList.contains("listed")) return;
  document.body.classList.remove("listed");
  by("open-side").setAttribute("aria-expanded", "false");
  by("open-side").focus();
}

by("form").addEventListener("submit", event => {
  event.preventDefault();
  if (running.has(current.id)) stop();
  else send();
});
prompt.addEventListener("input", () => {
  fit(prompt);
  by("send").disabled = !running.has(current.id) && !prompt.value.trim();
});
prompt.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || by("settings").open) return;
  if (document.body.classList.contains("listed")) closeSide();
  else stop();
});
by("mode").addEventListener("change", event => {
  current.mode = event.target.value;
  showAll();
  prompt.focus();
});
by("new").addEventListener("click", () => {
  if (location.hash) history.pushState(null, "", location.pathname);
  openAddressed();
});
by("open-side").addEventListener("click", openSide);
by("close-side").addEventListener("click", closeSide);
by("shade").addEventListener("click", closeSide);
by("settings").addEventListener("close", () => models.ask()); // there may be a key now
addEventListener("popstate", openAddressed); // a link behind # is one, too
addEventListener("pagehide", () => running.forEach(each => store.keep(each.conversation)));
store.onChangeElsewhere(id => {
  Object.assign(settings, store.settings());
  const here = each => (each.id === current.id && each.id !== id ? current : each);
  conversations = store.all().map(each => running.get(each.id)?.conversation ?? here(each));
  const found = conversations.find(each => each.id === current.id);
  if (found && found !== current) {
    current = found;
    showLog();
  }
  showFrame();
});

openAddressed();
models.ask();
