import { AnswerPane } from "./answer.js";
import { Minimap } from "./canvases.js";
import { Details } from "./details.js";
import { DocumentPane } from "./document.js";
import { counted, element } from "./elements.js";
import { Needle } from "./needle.js";
import { strengths } from "./reading.js";

// One record: document, answer and details, kept in step. `beside` is another run of the same text, if any.

export class Run {
  constructor(record, name) {
    this.record = record;
    this.beside = null;
    this.step = Math.max(0, record.steps.findIndex(step => step.token !== null));
    this.filter = { layer: null, head: null };
    this.needle = null;
    this.pane = new DocumentPane(record, (begin, end) => this.seek(begin, end));
    this.minimap = new Minimap(share => this.go({ start: Math.floor(share * (record.tokens - 1)) }));
    this.answer = new AnswerPane(record, step => this.toStep(step));
    this.details = new Details(record, { onFilter: filter => this.toFilter(filter), onGo: span => this.go(span) });
    this.find = new Needle(record, { onFind: (span, scrolls) => this.toNeedle(span, scrolls), onPick: (step, layer) => this.pick(step, layer) });
    this.find.input.addEventListener("input", () => { if (this.beside) this.beside.follow(this.find.input.value); });
    this.pane.node.addEventListener("scroll", () => this.scrolled(), { passive: true });
    const blocks = record.block > 1 ? `, recorded in blocks of ${record.block}` : "";
    this.node = element("article", { class: "run", "aria-label": name },
      element("header", { class: "run-head" }, element("strong", { class: "method" }, record.method),
        element("span", { class: "facts" }, `${record.model} \u00b7 ${counted(record.prompt)} tokens in the prompt${blocks}`)),
      element("div", { class: "text-pane" }, this.pane.node, this.minimap.node),
      this.answer.node,
      element("div", { class: "details" }, ...this.details.nodes, this.find.node));
    new ResizeObserver(() => this.paint()).observe(this.node);
  }

  toStep(step, together = true) {
    this.step = step;
    this.refresh();
    const other = this.beside;
    if (together && other) other.toStep(Math.min(step, other.record.steps.length - 1), false);
  }

  toFilter(filter, together = true) {
    this.filter = this.details.filter = filter;
    this.refresh();
    const other = this.beside;
    if (together && other && other.record.each === this.record.each) other.toFilter(filter, false);
  }

  toNeedle(span, scrolls) {
    this.needle = span;
    if (!this.strengths) return;
    this.pane.show(this.strengths, span);
    if (span && scrolls) this.pane.scrollTo(span.start);
    this.paintMap();
  }

  seek(begin, end) {
    this.find.choose(begin, end);
    if (this.beside && this.beside.record.text.startsWith(this.record.text.slice(0, end))) this.beside.find.choose(begin, end);
  }

  follow(text) {
    this.find.input.value = text;
    this.find.find(text);
  }

  pick(step, layer) {
    this.toStep(step);
    this.toFilter({ layer, head: null });
  }

  go(span) {
    this.pane.scrollTo(span.start);
    this.paintMap();
  }

  refresh() {
    const { record, step, filter } = this, readers = record.readers(step, filter.layer, filter.head);
    this.strengths = strengths(record, step, readers);
    this.pane.show(this.strengths, this.needle);
    this.answer.show(step);
    this.details.show(step, readers);
    this.paintMap();
  }

  paint() {
    if (!this.strengths) this.refresh();
    this.details.paintMap();
    if (!this.find.grid.node.hidden) this.find.grid.paint();
    this.paintMap();
  }

  paintMap() {
    cancelAnimationFrame(this.due);
    this.due = requestAnimationFrame(() => this.minimap.show(this.strengths, this.needle, this.pane.visible()));
  }

  scrolled() {
    this.paintMap();
    if (this.beside && this.pane.node.matches(":hover, :focus")) this.beside.pane.node.scrollTop = this.pane.node.scrollTop;
  }
}
