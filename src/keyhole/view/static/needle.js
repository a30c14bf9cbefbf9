import { Grid } from "./canvases.js";
import { counted, element } from "./elements.js";
import { occurrences, tokensOf, whoRead } from "./reading.js";

// Was a span read, at which steps, by which layers and heads?

export class Needle {
  constructor(record, { onFind, onPick }) {
    this.record = record;
    this.onFind = onFind;
    this.found = [];
    this.at = 0;
    this.input = element("input", { type: "search", placeholder: "Type, or select text in the document", "aria-label": "Find a span of the text", spellcheck: "false" });
    this.input.addEventListener("input", () => this.find(this.input.value));
    this.input.addEventListener("keydown", event => { if (event.key === "Enter") this.next(); });
    this.more = element("button", { type: "button", onclick: () => this.next() }, "Next");
    this.said = element("p", { class: "needle-said", "aria-live": "polite" });
    this.grid = new Grid("Steps by layers that read the span; arrow keys move, Enter chooses", "steps \u2192, layers \u2193", (...cell) => this.saysCell(...cell), (step, layer) => onPick(step, layer));
    this.node = element("section", { class: "needle-pane", "aria-label": "Was it read?" },
      element("h2", {}, "Was it read?"), element("div", { class: "row" }, this.input, this.more), this.said, this.grid.node);
    this.find("");
  }

  find(text) {
    this.found = occurrences(this.record, text);
    this.at = 0;
    this.wanted = text.trim();
    this.show();
  }

  choose(begin, end) {
    const text = this.record.text.slice(begin, end);
    this.input.value = this.wanted = text.replace(/\s+/g, " ").trim();
    this.found = [[begin, end]];
    this.at = 0;
    this.show(false);
  }

  next() {
    if (this.found.length > 1) { this.at = (this.at + 1) % this.found.length; this.show(); }
  }

  show(scrolls = true) {
    const any = this.found.length > 0;
    this.more.hidden = this.found.length < 2;
    this.grid.node.hidden = !any;
    if (!any) {
      this.said.textContent = this.wanted ? "The text does not have it." : "";
      this.onFind(null, false);
      return;
    }
    const span = tokensOf(this.record, ...this.found[this.at]);
    this.read = whoRead(this.record, span.start, span.stop);
    this.onFind(span, scrolls);
    this.paint(span);
  }

  paint({ start, stop }) {
    const { record, read } = this, steps = record.steps.length, layers = record.layers.length;
    const perStep = [...Array(steps).keys()].map(step => read.heads.slice(step * layers, (step + 1) * layers).reduce((a, b) => a + b, 0));
    const reading = perStep.filter(Boolean).length, most = Math.max(...perStep), best = perStep.indexOf(most);
    const which = this.found.length > 1 ? `Place ${this.at + 1} of ${this.found.length}, ` : "";
    const where = `${which}tokens ${counted(start)}\u2013${counted(stop - 1)}: `;
    this.said.textContent = reading
      ? `${where}read at ${reading} of ${steps} steps; most at step ${best + 1}, by ${most} of ${record.each} heads, ${read.tokens[best]} of its ${stop - start} tokens.`
      : `${where}never read.`;
    const shares = new Float32Array(steps * layers);
    for (let step = 0; step < steps; step++) {
      for (let layer = 0; layer < layers; layer++) shares[layer * steps + step] = read.heads[step * layers + layer] / record.heads;
    }
    this.grid.focus = [Math.max(0, best), 0];
    this.grid.show(steps, layers, shares, "--needle", () => false);
  }

  saysCell(step, layer) {
    const { record, read } = this, heads = read.heads[step * record.layers.length + layer], { token } = record.steps[step];
    const what = token === null ? "question" : JSON.stringify(record.tokenText(token));
    return `step ${step + 1} (${what}), layer ${record.layers[layer]}: ${heads} of ${record.heads} heads`;
  }
}
