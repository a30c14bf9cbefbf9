import { Grid, bar } from "./canvases.js";
import { bytesSaid, counted, element, percent } from "./elements.js";
import { passagesByAttention, passagesByReaders } from "./reading.js";

// What one step read: numbers, the heat map that chooses layers and heads, and passages.

const AROUND = 28; // characters shown beside a passage

export class Details {
  constructor(record, { onFilter, onGo }) {
    this.record = record;
    this.onGo = onGo;
    this.filter = { layer: null, head: null };
    this.onFilter = filter => { this.filter = filter; onFilter(filter); };
    this.measures = element("div", { class: "measures" });
    this.layer = this.select("Layer", record.layers, "layer");
    this.head = this.select("KV head", [...Array(record.heads).keys()], "head");
    this.metric = element("select", { "aria-label": "What the heat map shows" });
    for (const [value, name] of this.metrics()) this.metric.append(element("option", { value }, name));
    this.metric.value = this.usualMetric();
    this.metric.addEventListener("change", () => this.paintMap());
    this.map = new Grid("Layers by KV heads; arrow keys move, Enter chooses", "layers \u2192, KV heads \u2193", (...cell) => this.saysCell(...cell), (...cell) => this.pick(...cell));
    this.order = element("select", { "aria-label": "Order of passages" });
    for (const [value, name] of this.orders()) this.order.append(element("option", { value }, name));
    this.order.addEventListener("change", () => this.showPassages());
    this.passages = element("ol", { class: "passages" });
    this.all = element("button", { type: "button", onclick: () => this.onFilter({ layer: null, head: null }) }, "All");
    this.nodes = [
      element("section", { "aria-label": "How much was read", "aria-live": "polite" }, this.measures),
      element("section", { "aria-label": "Layers and heads" },
        element("div", { class: "row" }, element("h2", {}, "Layers \u00d7 KV heads"), this.metric), this.map.node,
        element("div", { class: "row filters" }, this.layer.node, this.head.node, this.all)),
      element("section", { "aria-label": "Passages" },
        element("div", { class: "row" }, element("h2", {}, "Top passages"), this.order), this.passages),
    ];
  }

  metrics() {
    const found = [["read", "share read"], ["missed", "mass missed, estimated"]];
    return this.record.exact ? [...found, ["exact", "mass missed, exact"]] : found;
  }

  // What differs between heads: with a budget of tokens all of them read as many.
  usualMetric() {
    const { counts, missed } = this.record;
    const alike = counts.every((count, at) => at % this.record.each === 0 || count === counts[at - 1]);
    return alike && missed.some(share => share > 0) ? "missed" : "read";
  }

  orders() {
    const found = [["readers", "by heads that read them"]];
    if (!this.record.exact) return found;
    return [["best", "by attention"], ...found, ["absent", "missed, by attention"]];
  }

  select(name, values, key) {
    const node = element("select", { "aria-label": name }, element("option", { value: "" }, "all"));
    values.forEach((value, place) => node.append(element("option", { value: place }, String(value))));
    node.addEventListener("change", () => this.onFilter({ ...this.filter, [key]: node.value === "" ? null : Number(node.value) }));
    return { node: element("label", {}, `${name} `, node), set: value => { node.value = value === null ? "" : value; } };
  }

  pick(column, row) {
    const { layer, head } = this.filter, again = layer === column && head === row;
    this.onFilter(again ? { layer: null, head: null } : { layer: column, head: row });
  }

  show(step, readers) {
    this.step = step;
    this.readers = readers;
    this.layer.set(this.filter.layer);
    this.head.set(this.filter.head);
    this.all.disabled = this.filter.layer === null && this.filter.head === null;
    this.showMeasures();
    this.paintMap();
    this.showPassages();
  }

  showMeasures() {
    const { record, step, filter } = this, sums = record.totals(step, filter.layer, filter.head);
    const all = record.lengthAt(step), each = sums.read / sums.pairs, read = each / all, dropped = all - sums.held / sums.pairs;
    const touched = this.readers.counts.reduce((total, count) => total + (count > 0), 0);
    const rows = [bar("Read", `${counted(each)} of ${counted(all)} tokens, ${percent(read)}`, [{ share: read, name: "read" }])];
    if (sums.pairs > 1) {
      rows.push(bar("By any", `${counted(touched)} tokens, ${percent(touched / all)}`, [{ share: touched / all, name: "read" }]));
    }
    const missed = sums.missed / sums.pairs;
    const of = dropped >= 1 ? " of what is kept" : "";
    rows.push(bar("Mass read", `${percent(1 - missed)}${of}, estimated`, [{ share: 1 - missed, name: "mass" }]));
    if (record.exact) {
      const exact = sums.exact / sums.pairs;
      rows.push(bar("", `${percent(1 - exact)}${of}, exact`, [{ share: 1 - exact, name: "mass" }]));
    }
    const tiers = [...sums.tiers].join(", ");
    const cached = sums.cached > 0 ? `, ${percent(sums.cached / sums.bytes)} from the block cache` : "";
    rows.push(element("p", { class: "bytes" }, `${bytesSaid(sums.bytes)} of keys, values and index read from ${tiers}${cached}`));
    if (dropped >= 1) rows.push(element("p", { class: "bytes" }, `${counted(dropped)} tokens had been dropped; nothing can read them any more`));
    this.measures.replaceChildren(...rows);
  }

  shareOf(metric, layer, head) {
    const { record, step } = this, at = step * record.each + layer * record.heads + head;
    return metric === "read" ? record.counts[at] / record.lengthAt(step) : record[metric][at];
  }

  paintMap() {
    const { record, filter } = this, metric = this.metric.value, shares = new Float32Array(record.each);
    for (let layer = 0; layer < record.layers.length; layer++) {
      for (let head = 0; head < record.heads; head++) {
        // Small shares are told apart, too.
        shares[head * record.layers.length + layer] = Math.sqrt(this.shareOf(metric, layer, head));
      }
    }
    const picked = (layer, head) => (filter.layer !== null || filter.head !== null)
      && (filter.layer === null || filter.layer === layer) && (filter.head === null || filter.head === head);
    this.map.show(record.layers.length, record.heads, shares, metric === "read" ? "--read" : "--missed", picked);
  }

  saysCell(layer, head) {
    const { record } = this, at = this.step * record.each + layer * record.heads + head;
    const exact = record.exact ? ` (${percent(record.exact[at])} exact)` : "";
    return `layer ${record.layers[layer]}, KV head ${head}: ${counted(record.counts[at])} tokens, ${percent(record.missed[at])} missed${exact}`;
  }

  showPassages() {
    const { record, step, readers } = this, order = this.order.value, facts = record.steps[step];
    const spans = order === "readers" ? passagesByReaders(record, step, readers) : passagesByAttention(record, step, facts[order]);
    this.passages.replaceChildren(...spans.map(span => this.passage(span, order)));
    if (!spans.length) this.passages.append(element("li", { class: "none" }, order === "absent" ? "Nothing else was missed." : "Only what is always read."));
  }

  passage({ start, stop, weight, most }, order) {
    const { record } = this, begin = record.begins[start], end = record.ends[stop - 1];
    const where = stop - start === 1 ? `token ${counted(start)}` : `tokens ${counted(start)}\u2013${counted(stop - 1)}`;
    const said = `${order === "readers" ? `read by up to ${most} of ${this.readers.pairs}` : `${percent(weight)} of the attention`}, ${where}`;
    const before = record.text.slice(Math.max(0, begin - AROUND), begin), after = record.text.slice(end, end + AROUND);
    // Whole words only, where there are any.
    const text = [before.replace(/^\S*\s(?=.)/s, "\u2026"), element("b", {}, record.text.slice(begin, end)), after.replace(/\s\S*$/, "\u2026")];
    return element("li", {}, element("button", { type: "button", class: "passage", onclick: () => this.onGo({ start, stop }) },
      element("span", { class: "snippet" }, ...text), element("span", { class: "why" }, said)));
  }
}
