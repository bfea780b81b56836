// What stands in a line of Markdown: code, emphasis, links. Markup that is never closed is text.

import { make } from "./dom.js";

const DEEPEST = 8;
const LONGEST_LABEL = 1000; // characters in which a link's ] is looked for
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const TARGET = /\(\s*(?:<([^<>\n]*)>|([^\s()]*(?:\([^\s()]*\)[^\s()]*)*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const ANGLED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const BARE = /https?:\/\/[^\s<>"`\\]+/y;
const EMPHASIS = { "***": ["strong", "em"], "**": ["strong"], "*": ["em"], "~~": ["del"] };
EMPHASIS.___ = EMPHASIS["***"];
EMPHASIS.__ = EMPHASIS["**"];
EMPHASIS._ = EMPHASIS["*"];

/** The nodes that show this text. */
export function inline(text, depth = 0, linked = false) {
  const reader = new Reader(text, depth, linked);
  while (reader.at < text.length) reader.step();
  return reader.nodes();
}

class Reader {
  constructor(text, depth, linked) {
    Object.assign(this, { text, depth, linked, at: 0, plain: "", found: [], never: new Set() });
  }

  nodes() {
    if (this.plain) this.found.push(document.createTextNode(this.plain));
    this.plain = "";
    return this.found;
  }

  step() {
    const { text, at } = this, sign = text[at];
    if (sign === "\\" && PUNCTUATION.test(text[at + 1] ?? "")) return this.take(text[at + 1], at + 2);
    if (sign === "\n") return this.put(make("br"), at + 1);
    if (sign === "`") return this.code();
    if (this.depth < DEEPEST) {
      if ("*_~".includes(sign)) return this.emphasis();
      if (!this.linked && "![<h".includes(sign) && this.link()) return undefined;
    }
    return this.take(sign, at + 1);
  }

  /** The text is itself, up to `end`. */
  take(text, end) {
    this.plain += text;
    this.at = end;
  }

  put(node, end) {
    this.nodes().push(node);
    this.at = end;
  }

  code() {
    const run = runAt(this.text, this.at), start = this.at + run.length;
    const end = this.closingTicks(run, start);
    if (end < 0) return this.take(run, start);
    const inner = this.text.slice(start, end).replace(/\n/g, " ");
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    return this.put(make("code", {}, padded ? inner.slice(1, -1) : inner), end + run.length);
  }

  closingTicks(run, from) {
    if (this.never.has(run)) return -1;
    for (let at = this.text.indexOf("`", from); at >= 0;) {
      const other = runAt(this.text, at);
      if (other.length === run.length) return at;
      at = this.text.indexOf("`", at + other.length);
    }
    this.never.add(run);
    return -1;
  }

  emphasis() {
    const run = runAt(this.text, this.at);
    const kinds = EMPHASIS[run], start = this.at + run.length;
    const end = kinds && this.opens(run) ? this.closing(run, start) : -1;
    if (end < 0) return this.take(run, start);
    const inner = inline(this.text.slice(start, end), this.depth + 1, this.linked);
    const built = kinds.reduceRight((nodes, kind) => [make(kind, {}, nodes)], inner);
    return this.put(built[0], end + run.length);
  }

  opens(run) {
    const next = this.text[this.at + run.length] ?? " ", before = this.text[this.at - 1] ?? " ";
    return next.trim() && !(run[0] === "_" && WORD.test(before));
  }

  /** Where the same run closes what was opened, or -1. Other runs in between are others' business. */
  closing(run, from) {
    if (this.never.has(run)) return -1;
    for (let at = from; at < this.text.length;) {
      const sign = this.text[at];
      if (sign === "\\") at += 2;
      else if (sign === "`") {
        const ticks = runAt(this.text, at), end = this.closingTicks(ticks, at + ticks.length);
        at = (end < 0 ? at : end) + ticks.length;
      } else if (sign === run[0]) {
        const other = runAt(this.text, at), after = this.text[at + other.length] ?? " ";
        const closes = this.text[at - 1].trim() && !(sign === "_" && WORD.test(after));
        if (closes && other === run && at > from) return at;
        // What was opened last closes first.
        if (closes && other === "***" && run.length < 3) return at + 3 - run.length;
        at += other.length;
      } else at++;
    }
    this.never.add(run);
    return -1;
  }

  /** Whether a link or a picture stands here, which is then shown as a link. */
  link() {
    const { text, at } = this, picture = text.startsWith("![", at);
    if (text[at] === "[" || picture) {
      const start = at + (picture ? 2 : 1), end = this.closingBracket(start);
      const target = end < 0 ? null : matchAt(TARGET, text, end + 1);
      const url = target && safe(target[1] ?? target[2]);
      if (!url) return false;
      const label = text.slice(start, end) || url;
      this.put(anchor(url, inline(label, this.depth + 1, true)), end + 1 + target[0].length);
      return true;
    }
    const angled = matchAt(ANGLED, text, at);
    if (angled && safe(angled[1])) {
      this.put(anchor(safe(angled[1]), [angled[1]]), at + angled[0].length);
      return true;
    }
    const bare = WORD.test(text[at - 1] ?? " ") ? null : matchAt(BARE, text, at);
    const address = bare && withoutEnd(bare[0]);
    if (!address || !safe(address)) return false;
    this.put(anchor(safe(address), [address]), at + address.length);
    return true;
  }

  closingBracket(from) {
    let open = 1;
    for (let at = from; at < Math.min(this.text.length, from + LONGEST_LABEL); at++) {
      const sign = this.text[at];
      if (sign === "\\") at++;
      else if (sign === "[") open++;
      else if (sign === "]" && --open === 0) return at;
    }
    return -1;
  }
}

function anchor(url, nodes) {
  return make("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, nodes);
}

/** The address in full if a click on it can only open a page or a letter; else null. */
function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** An address in a sentence, without what belongs to the sentence. */
function withoutEnd(address) {
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last === ")" && address.slice(0, end).includes("(")) break;
    if (!".,;:!?'*_~)]}".includes(last)) break;
  }
  return address.slice(0, end);
}

function runAt(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return text.slice(at, end);
}

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}
