// The list of conversations: each a link to its address, with a name that can be changed.

import { by, iconButton, make } from "./dom.js";
import { titleOf } from "./store.js";

/** Show them. `actions` has rename(conversation, title) and remove(conversation). */
export function showList(conversations, current, isRunning, actions) {
  const place = by("list");
  if (place.querySelector("input")) return; // a name is being written
  const items = conversations.map(each => item(each, each.id === current.id, isRunning(each), actions));
  place.replaceChildren(...items);
}

function item(conversation, isCurrent, running, actions) {
  const title = titleOf(conversation);
  const link = make("a", { href: `#${conversation.id}`, title }, title);
  if (isCurrent) link.setAttribute("aria-current", "page");
  const row = make(
    "li",
    { className: running ? "running" : "" },
    link,
    iconButton("edit", `Rename “${title}”`, () => rename(row, conversation, actions)),
    iconButton("delete", `Delete “${title}”`, () => actions.remove(conversation)),
  );
  return row;
}

function rename(row, conversation, actions) {
  const field = make("input", { value: titleOf(conversation), "aria-label": "New name", maxLength: 200 });
  let over = false;
  const end = kept => {
    if (over) return; // Enter takes the field away, which loses it the focus
    over = true;
    const title = field.value.trim();
    field.remove();
    actions.rename(conversation, kept ? title : conversation.title);
    by("list").querySelector(`[href="#${conversation.id}"]`)?.focus();
  };
  field.addEventListener("keydown", event => {
    if (event.isComposing) return;
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") {
      event.stopPropagation();
      end(false);
    }
  });
  field.addEventListener("blur", () => end(true));
  row.replaceChildren(field);
  field.focus();
  field.select();
}
