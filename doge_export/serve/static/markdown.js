// Markdown to elements: what models write of it, and no HTML. A text that is not Markdown stays as it is.
// It runs again with every piece of a stream, on a text that nobody checked, so nothing here takes more than
// a few passes over it: searches that found nothing are not repeated, and nesting has an end.

import { copyButton, make } from "./dom.js";
import { inline } from "./inline.js";

const DEEPEST = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( {1,4}|$)/;
const SEPARATOR = /^:?-+:?$/;

const shown = new WeakMap(); // element -> the sources of the blocks in it

/** Show `text` in `place`. Blocks that it showed before stay, and with them selections and scrolled code. */
export function render(place, text) {
  const found = blocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
  const before = shown.get(place) ?? [];
  let same = 0;
  while (same < found.length && before[same] === found[same].source) same++;
  while (place.childNodes.length > same) place.lastChild.remove();
  for (const block of found.slice(same)) place.append(block.build());
  shown.set(place, found.map(block => block.source));
}

/** The blocks of these lines, each with its source and how to build its element. */
function blocks(lines, depth) {
  const found = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const kind = depth < DEEPEST ? KINDS.find(each => each.begins(lines, at)) : null;
    const [end, build] = (kind ?? PARAGRAPH).read(lines, at, depth);
    found.push({ source: lines.slice(at, end).join("\n"), build, paragraph: !kind });
    at = end;
  }
  return found;
}

function build(lines, depth) {
  return blocks(lines, depth).map(block => block.build());
}

const CODE = {
  begins: (lines, at) => FENCE.test(lines[at]),
  read(lines, at) {
    const [, fence, language] = FENCE.exec(lines[at]);
    const indent = indentOf(lines[at]);
    let end = at + 1;
    while (end < lines.length && !closes(lines[end], fence)) end++;
    const inner = lines.slice(at + 1, end).map(line => line.slice(Math.min(indent, indentOf(line))));
    const code = inner.join("\n");
    return [Math.min(end + 1, lines.length), () => make(
      "figure",
      { className: "code" },
      make("figcaption", {}, make("span", {}, language || "text"), copyButton(() => code, "Copy the code")),
      make("pre", { tabIndex: 0 }, make("code", {}, code)),
    )];
  },
};

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length) && indentOf(line) < 4;
}

const TITLE = {
  begins: (lines, at) => HEADING.test(lines[at]),
  read(lines, at) {
    const [start, marks] = HEADING.exec(lines[at]);
    let text = lines[at].slice(start.length).trim();
    const end = text.length - /#*$/.exec(text.slice(-9))[0].length;
    if (end === 0 || text[end - 1] === " ") text = text.slice(0, end).trimEnd();
    const level = Math.min(marks.length + 2, 6); // the page's own are h1 and h2
    return [at + 1, () => make(`h${level}`, { className: `h${marks.length}` }, inline(text))];
  },
};

const LINE = {
  begins: (lines, at) => RULE.test(lines[at]),
  read: (lines, at) => [at + 1, () => make("hr")],
};

const QUOTED = {
  begins: (lines, at) => QUOTE.test(lines[at]),
  read(lines, at, depth) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end])) end++;
    const inner = lines.slice(at, end).map(line => line.replace(QUOTE, ""));
    return [end, () => make("blockquote", {}, build(inner, depth + 1))];
  },
};

const LIST = {
  begins: (lines, at) => ITEM.test(lines[at]),
  read(lines, at, depth) {
    const [, , first] = ITEM.exec(lines[at]);
    const base = indentOf(lines[at]), ordered = /\d/.test(first), items = [];
    let end = at, width = 0, loose = false, blank = false;
    for (; end < lines.length; end++) {
      const line = lines[end], indent = indentOf(line), item = ITEM.exec(line);
      if (!line.trim()) {
        blank = true;
        items.at(-1).push("");
        continue;
      }
      if (item && indent < base + 2 && !RULE.test(line)) {
        if (/\d/.test(item[2]) !== ordered) break;
        loose ||= blank && items.length > 0;
        width = item[0].length;
        items.push([line.slice(width)]);
      } else if (indent >= Math.min(width, base + 2)) {
        items.at(-1).push(line.slice(Math.min(width, indent)));
      } else if (!blank && !starts(lines, end)) {
        items.at(-1).push(line); // of the same paragraph, without its indent
      } else break;
      blank = false;
    }
    while (!lines[end - 1].trim()) end--;
    return [end, () => {
      const list = make(ordered ? "ol" : "ul", {}, items.map(each => itemOf(each, loose, depth)));
      if (ordered) list.start = parseInt(first, 10);
      return list;
    }];
  },
};

function itemOf(lines, loose, depth) {
  const parts = blocks(lines, depth + 1).flatMap(block => {
    const element = block.build();
    return block.paragraph && !loose ? [...element.childNodes] : [element];
  });
  return make("li", {}, parts);
}

const TABLE = {
  begins: (lines, at) => {
    if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
    const separators = cells(lines[at + 1]);
    return separators.every(cell => SEPARATOR.test(cell)) && separators.length === cells(lines[at]).length;
  },
  read(lines, at) {
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end++;
    const sides = cells(lines[at + 1]).map(each => {
      const [left, right] = [each.startsWith(":"), each.endsWith(":")];
      return right ? (left ? "middle" : "right") : "left";
    });
    const row = (kind, line) => {
      const found = cells(line);
      return make("tr", {}, sides.map((side, column) =>
        make(kind, { className: side }, inline(found[column] ?? ""))));
    };
    return [end, () => make("div", { className: "table", tabIndex: 0 }, make(
      "table",
      {},
      make("thead", {}, row("th", lines[at])),
      make("tbody", {}, lines.slice(at + 2, end).map(line => row("td", line))),
    ))];
  },
};

/** The cells of a table's line; a pipe behind a backslash or in code is no border. */
function cells(line) {
  const found = [""];
  let code = false;
  for (let at = 0; at < line.length; at++) {
    if (line[at] === "`") code = !code;
    if (line[at] === "\\" && line[at + 1] === "|") found[found.length - 1] += line[++at];
    else if (line[at] === "|" && !code) found.push("");
    else found[found.length - 1] += line[at];
  }
  const texts = found.map(cell => cell.trim());
  if (texts[0] === "") texts.shift();
  if (texts.at(-1) === "") texts.pop();
  return texts;
}

const KINDS = [CODE, TITLE, LINE, QUOTED, LIST, TABLE];

const PARAGRAPH = {
  read(lines, at) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !starts(lines, end)) end++;
    const text = lines.slice(at, end).map(line => line.trim()).join("\n");
    return [end, () => make("p", {}, inline(text))];
  },
};

/** Whether a block begins there in the middle of a paragraph. A number does not, save 1: it may be a year. */
function starts(lines, at) {
  const item = ITEM.exec(lines[at]);
  if (item && !RULE.test(lines[at])) return item[3] !== "" && [NaN, 1].includes(parseInt(item[2], 10));
  return KINDS.some(kind => kind !== LIST && kind.begins(lines, at));
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}
