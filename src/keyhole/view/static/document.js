import { element } from "./elements.js";

// The text by paragraphs. Each is plain text until it comes near the screen; only then its tokens are marked.

const SHORT = 240, LONG = 1400, NEAR = "500px";

// Parts of the text, by tokens: what comes before the document, the document, the question, the answer.
export function partsOf(record) {
  const { begins, prompt, tokens, document: [begin, end] } = record;
  const before = firstFrom(begins, begin, prompt), after = firstFrom(begins, end, prompt);
  return [["before", 0, before], ["document", before, after], ["question", after, prompt], ["answer", prompt, tokens]]
    .filter(([, start, stop]) => stop > start);
}

function firstFrom(begins, character, limit) {
  let token = 0;
  while (token < limit && begins[token] < character) token++;
  return token;
}

// Tokens at which paragraphs of a part begin: after line ends, and within what is very long before a word.
function breaks(record, start, stop) {
  const found = [start];
  let from = start;
  for (let token = start; token < stop - 1; token++) {
    const size = record.ends[token] - record.begins[from], text = record.tokenText(token);
    const ends = text.includes("\n") && (size > SHORT || /\n\s*\n/.test(text) || startsLine(record, token + 1));
    if (ends || (size > LONG && /^\s/.test(record.tokenText(token + 1))) || size > 2 * LONG) {
      found.push(from = token + 1);
    }
  }
  return [...found, stop];
}

function startsLine(record, token) { return record.text.startsWith("\n", record.begins[token]); }

export class DocumentPane {
  constructor(record, onSelect) {
    this.record = record;
    this.strengths = new Uint8Array(record.tokens);
    this.needle = null;
    this.paragraphs = [];
    this.near = new Set();
    this.node = element("div", { class: "pane", tabindex: "0", role: "region", "aria-label": "Prompt and answer, with what was read marked" });
    this.observer = new IntersectionObserver(entries => this.seen(entries), { root: this.node, rootMargin: NEAR });
    for (const [part, start, stop] of partsOf(record)) this.addPart(part, start, stop);
    this.node.addEventListener("mouseup", () => this.selected(onSelect));
  }

  addPart(part, start, stop) {
    const section = element("section", { class: `part part-${part}`, "aria-label": part });
    section.append(element("h3", { class: "part-name" }, part === "before" ? "prompt" : part));
    const starts = breaks(this.record, start, stop);
    for (let at = 0; at + 1 < starts.length; at++) {
      const node = element("p", { "data-tokens": `${starts[at]}-${starts[at + 1]}` });
      const paragraph = { node, start: starts[at], stop: starts[at + 1], begin: this.edge(starts[at]), end: this.edge(starts[at + 1]) };
      node.textContent = this.record.text.slice(paragraph.begin, paragraph.end);
      node.paragraph = paragraph;
      this.paragraphs.push(paragraph);
      this.observer.observe(node);
      section.append(node);
    }
    this.node.append(section);
  }

  // Where a token begins, such that pieces between edges are all of the text.
  edge(token) {
    if (token >= this.record.tokens) return this.record.text.length;
    return token === 0 ? 0 : this.record.begins[token];
  }

  seen(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { this.near.add(target.paragraph); this.paint(target.paragraph); }
      else if (this.near.delete(target.paragraph)) {
        target.textContent = this.record.text.slice(target.paragraph.begin, target.paragraph.end);
      }
    }
  }

  show(strengths, needle) {
    this.strengths = strengths;
    this.needle = needle;
    for (const paragraph of this.near) this.paint(paragraph);
  }

  paint({ node, start, stop, end }) {
    const pieces = document.createDocumentFragment();
    for (let token = start; token < stop;) {
      const level = this.strengths[token], sought = this.isSought(token), from = token;
      while (token < stop && this.strengths[token] === level && this.isSought(token) === sought) token++;
      const text = this.record.text.slice(this.edge(from), token < stop ? this.edge(token) : end);
      if (!level && !sought) { pieces.append(text); continue; }
      const options = { "data-level": level, "data-from": from, "data-to": token };
      pieces.append(element(level ? "mark" : "span", sought ? { ...options, class: "needle" } : options, text));
    }
    node.replaceChildren(pieces);
  }

  isSought(token) { return this.needle !== null && token >= this.needle.start && token < this.needle.stop; }

  paragraphAt(token) {
    let low = 0, high = this.paragraphs.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.paragraphs[middle].start <= token) low = middle; else high = middle - 1;
    }
    return this.paragraphs[low];
  }

  // Bring a token to the upper third; paragraphs off the screen only have estimated heights, so it is done twice.
  scrollTo(token) {
    const paragraph = this.paragraphAt(token);
    const go = () => {
      const box = this.box(paragraph, token), pane = this.node.getBoundingClientRect();
      this.node.scrollTop += box.top - pane.top - pane.height / 3;
    };
    go();
    requestAnimationFrame(go);
  }

  box({ node, begin, end }, token) {
    const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    let left = Math.min(this.edge(token), end) - begin, text = walker.nextNode();
    while (text && left >= text.length) { left -= text.length; text = walker.nextNode(); }
    if (!text) return node.getBoundingClientRect();
    const range = document.createRange();
    range.setStart(text, left);
    range.setEnd(text, left + 1);
    return range.getBoundingClientRect();
  }

  // The tokens on the screen, [first, last).
  visible() {
    const pane = this.node.getBoundingClientRect();
    let first = this.record.tokens, last = 0;
    for (const { node, start, stop } of this.near) {
      const box = node.getBoundingClientRect();
      if (box.bottom < pane.top || box.top > pane.bottom || !box.height) continue;
      const at = y => start + (stop - start) * Math.min(1, Math.max(0, (y - box.top) / box.height));
      first = Math.min(first, at(pane.top));
      last = Math.max(last, at(pane.bottom));
    }
    return [first, last];
  }

  selected(onSelect) {
    const selection = getSelection();
    if (selection.isCollapsed || !this.node.contains(selection.anchorNode) || !this.node.contains(selection.focusNode)) return;
    const range = selection.getRangeAt(0);
    const begin = this.character(range.startContainer, range.startOffset);
    const end = this.character(range.endContainer, range.endOffset);
    if (begin !== null && end !== null && end > begin) onSelect(begin, end);
  }

  character(node, offset) {
    const host = (node.nodeType === Node.TEXT_NODE ? node.parentElement : node).closest("p");
    if (!host || !host.paragraph) return null;
    const before = document.createRange();
    before.setStart(host, 0);
    before.setEnd(node, offset);
    return host.paragraph.begin + before.toString().length;
  }
}
