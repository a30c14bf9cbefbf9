import { cssColour, element, percent, sized } from "./elements.js";

// Strips and grids that are painted: the minimap, the heat map of layers and heads, when a span was read.

export class Minimap {
  constructor(onGo) {
    this.node = element("canvas", { class: "minimap", role: "img", "aria-label": "Where in the text was read" });
    const go = event => {
      const box = this.node.getBoundingClientRect();
      onGo((event.clientY - box.top) / box.height);
    };
    this.node.addEventListener("pointerdown", event => { go(event); this.node.setPointerCapture(event.pointerId); });
    this.node.addEventListener("pointermove", event => { if (event.buttons) go(event); });
  }

  show(strengths, needle, [first, last]) {
    const { clientWidth: width, clientHeight: height } = this.node;
    if (!height) return;
    const context = sized(this.node, width, height), tokens = strengths.length;
    const rows = Math.max(1, Math.floor(height)), always = cssColour("--always"), read = cssColour("--read");
    for (let row = 0; row < rows; row++) {
      const from = Math.floor(row / rows * tokens), to = Math.max(from + 1, Math.floor((row + 1) / rows * tokens));
      let sum = 0, most = 0, fixed = 0;
      for (let token = from; token < to; token++) {
        const strength = strengths[token];
        if (strength === 7) { fixed++; continue; }
        sum += strength;
        most = Math.max(most, strength);
      }
      // One token that all heads read shows among many that few did.
      context.globalAlpha = fixed > (to - from) / 2 ? 1 : Math.min(1, sum / (to - from) / 6 * 0.6 + (most / 6) ** 3 * 0.9);
      context.fillStyle = fixed > (to - from) / 2 ? always : read;
      context.fillRect(0, row, width, 1);
    }
    context.globalAlpha = 1;
    if (needle) {
      context.fillStyle = cssColour("--needle");
      context.fillRect(0, needle.start / tokens * height - 1, width, Math.max(3, (needle.stop - needle.start) / tokens * height));
    }
    context.strokeStyle = cssColour("--ink");
    context.lineWidth = 1.5;
    context.strokeRect(0.75, first / tokens * height, width - 1.5, Math.max(4, (last - first) / tokens * height));
  }
}

// A grid of shares with one cell that has the focus; `onPick(column, row)` is called for a click or Enter.
export class Grid {
  constructor(label, axes, says, onPick) {
    this.says = says;
    this.focus = [0, 0];
    this.canvas = element("canvas", { class: "grid", tabindex: "0", role: "application", "aria-label": label });
    this.said = element("output", { class: "said" });
    this.node = element("div", { class: "grid-box" }, element("p", { class: "axes", "aria-hidden": "true" }, axes), this.canvas, this.said);
    this.canvas.addEventListener("mousemove", event => this.move(this.cellAt(event)));
    this.canvas.addEventListener("click", event => { this.move(this.cellAt(event)); onPick(...this.focus); });
    this.canvas.addEventListener("keydown", event => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (event.key in steps) this.move(this.focus.map((at, axis) => at + steps[event.key][axis]));
      else if (event.key === "Enter" || event.key === " ") onPick(...this.focus);
      else return;
      event.preventDefault();
    });
  }

  // `shares[row * columns + column]` from 0 to 1; `picked(column, row)` says what is chosen.
  show(columns, rows, shares, colour, picked) {
    Object.assign(this, { columns, rows, shares, colour, picked });
    this.paint();
  }

  move([column, row]) {
    const within = (at, count) => Math.min(count - 1, Math.max(0, at));
    this.focus = [within(column, this.columns), within(row, this.rows)];
    this.paint();
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return [Math.floor((event.clientX - box.left) / box.width * this.columns), Math.floor((event.clientY - box.top) / box.height * this.rows)];
  }

  paint() {
    const width = this.canvas.clientWidth;
    if (!width || !this.columns) return;
    const cell = Math.min(22, Math.max(7, 96 / this.rows)), height = Math.round(cell * this.rows);
    this.canvas.style.height = `${height}px`;
    const context = sized(this.canvas, width, height), across = width / this.columns, gap = across > 4 ? 1 : 0;
    for (let row = 0; row < this.rows; row++) {
      for (let column = 0; column < this.columns; column++) {
        context.globalAlpha = 1;
        context.fillStyle = cssColour("--empty");
        context.fillRect(column * across, row * cell, across - gap, cell - gap);
        context.globalAlpha = Math.min(1, this.shares[row * this.columns + column]);
        context.fillStyle = cssColour(this.colour);
        context.fillRect(column * across, row * cell, across - gap, cell - gap);
        if (!this.picked(column, row)) continue;
        context.globalAlpha = 1;
        context.strokeStyle = cssColour("--ink");
        context.lineWidth = 2;
        context.strokeRect(column * across + 1, row * cell + 1, across - gap - 2, cell - gap - 2);
      }
    }
    const [column, row] = this.focus;
    context.globalAlpha = 1;
    context.strokeStyle = cssColour("--focus");
    context.lineWidth = 1;
    context.strokeRect(column * across + 0.5, row * cell + 0.5, across - gap - 1, cell - gap - 1);
    this.said.textContent = this.says(column, row);
  }
}

// A labelled bar of one or more shares.
export function bar(label, said, parts) {
  const track = element("div", { class: "track", "aria-hidden": "true" });
  for (const { share, name } of parts) {
    const part = element("span", { class: `fill ${name}` });
    part.style.width = percent(Math.min(1, share));
    track.append(part);
  }
  return element("div", { class: "measure" }, element("span", { class: "label" }, label), track, element("span", { class: "value" }, said));
}
