// Markdown as models write it, as DOM nodes: text becomes text nodes and nothing else, so that no answer can be markup.
// Images become links: a page that loads what a model names would tell strangers what was asked.

const MOST_LEVELS = 8;
const LONGEST_INLINE = 20_000; // characters of one paragraph; a longer one is plain text

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|(\d{1,9})[.)])(?: +|$)(.*)$/;
const TABLE = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

// Every repetition that looks for an end has a limit: else a text of many beginnings takes the square of its length.
const INLINE = new RegExp(
  [
    String.raw`\\([\\\`*_{}\[\]()#+\-.!|>~])`, // 1: escaped
    String.raw`(?<!\`)(\`{1,9})(?!\`)(.{1,2000}?)(?<!\`)\2(?!\`)`, // 2, 3: code
    String.raw`!?\[([^\[\]]{0,500})\]\(\s{0,9}<?([^\s<>()]{1,2000}(?:\([^\s<>()]{0,500}\)[^\s<>()]{0,500})?)>?(?:\s+"[^"]{0,500}")?\s{0,9}\)`, // 4, 5: link
    String.raw`(\*\*|__)(?=\S)(.{1,2000}?)(?<=\S)\6`, // 6, 7: strong
    String.raw`(?<!\w)_(?=\S)([^_]{1,2000}?)(?<=\S)_(?!\w)`, // 8: emphasis
    String.raw`\*(?=[^\s*])([^*]{1,2000}?)(?<=\S)\*`, // 9: emphasis
    String.raw`~~(?=\S)(.{1,2000}?)(?<=\S)~~`, // 10: struck
    String.raw`(https?:\/\/[^\s<>"\`]{0,2000}[^\s<>"\`.,;:!?)\]'*_])`, // 11: address
  ].join("|"),
  "gs",
);

/** Return an answer's text as nodes. */
export function render(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

function node(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function blocks(lines, level) {
  const made = document.createDocumentFragment();
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
    } else if (level >= MOST_LEVELS) {
      made.append(node("p", lines.slice(at).join("\n")));
      break;
    } else {
      const [block, next] = blockAt(lines, at, level);
      made.append(block);
      at = next;
    }
  }
  return made;
}

function blockAt(lines, at, level) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return fenced(lines, at, found[1], found[2]);
  if ((found = HEADING.exec(line))) return [node(`h${Math.min(found[1].length + 2, 6)}`, inline(found[2])), at + 1];
  if (RULE.test(line)) return [node("hr"), at + 1];
  if (QUOTE.test(line)) {
    const end = endOf(lines, at, (next) => QUOTE.test(next));
    return [node("blockquote", blocks(lines.slice(at, end).map((one) => one.replace(QUOTE, "")), level + 1)), end];
  }
  if (ITEM.test(line)) return list(lines, at, level);
  if (line.includes("|") && TABLE.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !beginsBlock(lines[end])) end += 1;
  return [node("p", inline(lines.slice(at, end).map((one) => one.trimStart()).join("\n"))), end];
}

function beginsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

function endOf(lines, at, belongs) {
  let end = at + 1;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

function fenced(lines, at, fence, language) {
  const closes = new RegExp(`^ {0,3}\\${fence[0]}{${fence.length},}\\s*$`);
  const end = endOf(lines, at, (line) => !closes.test(line));
  const code = node("code", lines.slice(at + 1, end).join("\n"));
  const block = node("pre", code);
  if (language) block.dataset.language = language;
  return [block, end + 1];
}

function list(lines, at, level) {
  const [, indent, mark, number] = ITEM.exec(lines[at]);
  const made = node(number === undefined ? "ul" : "ol");
  if (number !== undefined) made.start = Number(number);
  const kind = mark.at(-1);
  let end = at;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || found[1].length !== indent.length || found[2].at(-1) !== kind || RULE.test(lines[end])) break;
    const own = [found[4]];
    const inset = indent.length + found[2].length + 1;
    end += 1;
    // What is set in belongs to the item, also behind an empty line.
    while (end < lines.length) {
      const line = lines[end];
      const after = lines[end + 1] ?? "";
      const within = /^ */.exec(line)[0].length;
      if (!line.trim() ? !(after.trim() && /^ */.exec(after)[0].length > indent.length) : within <= indent.length) break;
      own.push(line.slice(Math.min(within, inset)));
      end += 1;
    }
    made.append(item(own, level));
    if (!lines[end]?.trim() && ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  return [made, end];
}

function item(lines, level) {
  const content = blocks(lines, level + 1);
  const first = content.firstElementChild;
  if (first?.localName === "p") first.replaceWith(...first.childNodes);
  return node("li", content);
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const row = (line, name) => node("tr", ...cells(line).map((cell) => node(name, inline(cell))));
  const end = endOf(lines, at + 1, (line) => line.includes("|"));
  const body = node("tbody", ...lines.slice(at + 2, end).map((line) => row(line, "td")));
  const made = node("div", node("table", node("thead", row(lines[at], "th")), body));
  made.className = "wide";
  return [made, end];
}

function inline(text, level = 0) {
  const made = document.createDocumentFragment();
  if (level >= MOST_LEVELS || text.length > LONGEST_INLINE) {
    made.append(text);
    return made;
  }
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    made.append(text.slice(at, found.index));
    made.append(span(found, level + 1));
    at = found.index + found[0].length;
  }
  made.append(text.slice(at));
  return made;
}

function span(found, level) {
  const [all, escaped, , code, label, target, , strong, emphasis, slanted, struck, address] = found;
  if (escaped !== undefined) return escaped;
  if (code !== undefined) return node("code", code.replace(/^ (.*) $/s, "$1"));
  if (target !== undefined) return link(target, label ? inline(label, level) : target) ?? all;
  if (strong !== undefined) return node("strong", inline(strong, level));
  if (struck !== undefined) return node("del", inline(struck, level));
  if (address !== undefined) return link(address, address) ?? all;
  return node("em", inline(emphasis ?? slanted, level));
}

/** Return a link, or null if it leads anywhere but to another site or to a mail address. */
function link(target, label) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const made = node("a", label);
  made.href = url.href;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}
