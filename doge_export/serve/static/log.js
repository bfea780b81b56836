// The conversation as it is seen. Its parts are redrawn one by one: while an answer comes, the rest stays.

import { copyButton, fit, iconButton, make } from "./dom.js";
import { render } from "./markdown.js";

/**
 * A log in `place`. `actions` has edit(turn, text), regenerate(turn), proceed(turn), openSystem().
 *
 * What is shown together is an entry: in a chat a turn, in a completion the prompt with what follows it.
 */
export class Log {
  #entries = new Map(); // the turn that an entry ends with -> its element

  constructor(place, actions) {
    Object.assign(this, { place, actions, model: "", markdown: true });
  }

  /** Show all of it; `running` is the turn that is being written, if any is. */
  show(conversation, running) {
    this.conversation = conversation;
    this.#entries.clear();
    this.place.className = conversation.mode;
    this.place.replaceChildren();
    if (conversation.mode === "chat" && conversation.system.trim() && conversation.turns.length) {
      const open = () => this.actions.openSystem();
      const properties = { type: "button", className: "system", onclick: open };
      this.place.append(make("button", properties, make("b", {}, "System prompt"), conversation.system));
    }
    for (const turn of conversation.turns) {
      if (conversation.mode === "chat" || turn.role === "assistant") this.#append(turn, turn === running);
    }
  }

  /** Show a turn anew, if it is here. */
  update(turn, running) {
    const entry = this.#entries.get(turn);
    if (entry) this.#fill(entry, turn, running);
  }

  #append(turn, running) {
    const entry = make("article", { className: `turn ${turn.role}` });
    const speaker = turn.role === "user" ? "You" : turn.note?.model || this.model || "The model";
    entry.append(
      make("h3", { className: "unseen" }, this.conversation.mode === "chat" ? speaker : "Text"),
      make("div", { className: "content" }),
      make("div", { className: "error", hidden: true }),
      make("div", { className: "tools" }),
    );
    this.#entries.set(turn, entry);
    this.place.append(entry);
    this.#fill(entry, turn, running);
  }

  #fill(entry, turn, running) {
    const [, content, error, tools] = entry.children;
    entry.classList.toggle("running", running);
    entry.setAttribute("aria-busy", running);
    if (this.conversation.mode === "completion") {
      const parts = [make("span", { className: "given" }, this.#promptOf(turn).content), turn.content];
      if (content.childNodes.length !== 2) content.replaceChildren(...parts);
      else if (content.lastChild.data !== turn.content) content.lastChild.data = turn.content;
    } else if (turn.role === "assistant" && this.markdown) {
      render(content, turn.content);
    } else if (content.textContent !== turn.content) content.textContent = turn.content;
    entry.classList.toggle("bare", !turn.content && !running && this.conversation.mode === "chat");
    this.#fillError(error, turn);
    this.#fillTools(tools, entry, turn, running);
  }

  #fillError(place, turn) {
    if (place.dataset.shown === (turn.error ?? "")) return;
    place.dataset.shown = turn.error ?? "";
    place.hidden = !turn.error;
    place.replaceChildren();
    if (!turn.error) return;
    const again = () => this.actions.regenerate(turn);
    place.append(make("span", { role: "alert" }, turn.error));
    place.append(make("button", { type: "button", onclick: again }, "Try again"));
  }

  #fillTools(place, entry, turn, running) {
    if (!place.childNodes.length || place.dataset.running !== String(running)) {
      place.dataset.running = running;
      const buttons = running ? [] : this.#buttons(entry, turn);
      place.replaceChildren(make("span", { className: "note" }), ...buttons);
    }
    const [words, explained] = turn.note ? wordsOf(turn.note, running) : ["", ""];
    Object.assign(place.firstChild, { textContent: words, title: explained });
  }

  #buttons(entry, turn) {
    const completion = this.conversation.mode === "completion";
    const edited = completion ? this.#promptOf(turn) : turn;
    const whole = () => (completion ? edited.content : "") + turn.content;
    const buttons = [copyButton(whole), iconButton("edit", "Edit", () => this.#edit(entry, turn, edited))];
    if (turn.role === "user") return buttons;
    buttons.push(iconButton("again", "Write it again", () => this.actions.regenerate(turn)));
    if (completion) buttons.push(iconButton("more", "Go on from here", () => this.actions.proceed(turn)));
    return buttons;
  }

  #promptOf(turn) {
    return this.conversation.turns[this.conversation.turns.indexOf(turn) - 1];
  }

  #edit(entry, turn, edited) {
    const field = make("textarea", { value: edited.content, rows: 1, "aria-label": "New text" });
    const leave = () => {
      editor.remove();
      entry.classList.remove("edited");
      entry.querySelector(".tools button")?.focus();
    };
    const save = () => {
      leave();
      this.actions.edit(edited, field.value);
    };
    const sends = edited.role === "user";
    const editor = make(
      "div",
      { className: "editor" },
      field,
      make("button", { type: "button", className: "main", onclick: save }, sends ? "Send" : "Keep"),
      make("button", { type: "button", onclick: leave }, "Cancel"),
      make("span", { className: "hint" }, sends ? "What follows it is written again." : ""),
    );
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", event => {
      if (event.isComposing) return;
      if (event.key === "Enter" && sends && !event.shiftKey) {
        event.preventDefault();
        save();
      }
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      }
    });
    entry.classList.add("edited");
    entry.append(editor);
    fit(field);
    field.focus();
  }
}

const REASONS = { length: "the limit of tokens is reached", stopped: "stopped" };

/** What stands below an answer, and the same in more words. */
function wordsOf(note, running) {
  const words = [], more = [];
  if (note.rate) words.push(`${Math.round(note.rate).toLocaleString("en")} tokens/s`);
  if (note.first !== undefined) words.push(`first after ${duration(note.first)}`);
  if (note.tokens && !running) {
    words.push(`${note.tokens.toLocaleString("en")} ${note.tokens === 1 ? "token" : "tokens"}`);
    more.push(`Written in ${duration(note.seconds)}.`);
  }
  if (note.read !== undefined) more.push(`${note.read.toLocaleString("en")} tokens were read before it.`);
  if (REASONS[note.reason]) words.push(REASONS[note.reason]);
  if (note.model) words.push(note.model);
  return [words.join(" · "), more.join(" ")];
}

function duration(seconds) {
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}
