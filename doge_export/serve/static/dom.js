// Small tools for elements. Texts become text nodes and nothing else; no HTML is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

export const by = id => document.getElementById(id);

/** A new element with these properties, which holds these nodes and texts, or lists of them. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  for (const child of children.flat()) element.append(child); // there may be more than a call has room for
  return element;
}

/** One of the drawings at the beginning of page.html. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("aria-hidden", "true");
  drawing.appendChild(document.createElementNS(SVG, "use")).setAttribute("href", `#i-${name}`);
  return drawing;
}

/** A button that shows a drawing, and has words for who cannot see it or waits with the mouse on it. */
export function iconButton(name, words, onclick) {
  const properties = { type: "button", className: "icon", title: words, "aria-label": words, onclick };
  return make("button", properties, icon(name));
}

/** A button that copies what `text()` is then. */
export function copyButton(text, words = "Copy") {
  const button = iconButton("copy", words, async () => {
    const copied = await copy(text());
    button.replaceChildren(icon(copied ? "done" : "close"));
    button.setAttribute("aria-label", copied ? "Copied" : "This browser does not let the page copy");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", words);
    }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no clipboard but the old one.
  }
  const field = make("textarea", { value: text, className: "unseen" });
  const before = document.activeElement;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  before?.focus();
  return copied;
}

/** Make a field as high as its text; the style sheet has the limit. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

let hiding;

/** Say a sentence above the field to write in, perhaps with something to do about it, for some seconds. */
export function notify(sentence, words, action) {
  const place = by("notice");
  const hide = () => { place.hidden = true; };
  clearTimeout(hiding);
  place.replaceChildren(make("span", {}, sentence));
  if (words) place.append(make("button", { type: "button", onclick: () => { hide(); action(); } }, words));
  place.append(iconButton("close", "Close", hide));
  place.hidden = false;
  hiding = setTimeout(hide, 12000);
}
