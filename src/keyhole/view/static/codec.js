// A record as Python writes it (docs/reference/record.md), and what it says of each step.

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

function* varints(bytes) {
  let value = 0, scale = 1;
  for (const byte of bytes) {
    value += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) { yield value; value = 0; scale = 1; }
  }
}

function numbers(base64, kind) {
  return base64 === null ? null : new kind(bytesOf(base64).buffer);
}

// Where the bytes of coded sets begin, one more than there are sets, and which are bitmaps.
function indexOfSets(bytes, count) {
  const starts = new Uint32Array(count), stops = new Uint32Array(count), bitmaps = new Uint8Array(count);
  let at = 0;
  for (let set = 0; set < count; set++) {
    let head = 0, scale = 1, byte;
    do { byte = bytes[at++]; head += (byte & 127) * scale; scale *= 128; } while (byte >= 128);
    bitmaps[set] = head & 1;
    starts[set] = at;
    stops[set] = at += head >>> 1;
  }
  if (at !== bytes.length) throw new Error("the record is damaged: its sets do not fit");
  return { bytes, starts, stops, bitmaps };
}

// Calls `each(start, stop)` for the runs of a set, ascending; it ends early where that returns true.
function eachRun(sets, set, each) {
  const { bytes, starts, stops, bitmaps } = sets;
  let at = starts[set], end = stops[set];
  if (bitmaps[set]) {
    const last = (end - at) * 8;
    for (let bit = 0; bit < last; bit++) {
      if (!(bytes[at + (bit >> 3)] >> (bit & 7) & 1)) continue;
      const from = bit;
      while (bit < last && bytes[at + (bit >> 3)] >> (bit & 7) & 1) bit++;
      if (each(from, bit)) return;
    }
    return;
  }
  let stop = 0;
  const next = () => {
    let value = 0, scale = 1, byte;
    do { byte = bytes[at++]; value += (byte & 127) * scale; scale *= 128; } while (byte >= 128);
    return value;
  };
  while (at < end) {
    const value = next(), longer = value % 2;
    const start = stop + (value - longer) / 2;
    stop = start + (longer ? next() + 2 : 1);
    if (each(start, stop)) return;
  }
}

export class RunRecord {
  constructor(held) {
    if (held.format !== "keyhole-record" || held.version !== 1) throw new Error("this is no record of version 1");
    if (!held.steps.length) throw new Error("it has no steps");
    Object.assign(this, held);
    this.tokens = 0;
    const starts = [...varints(bytesOf(held.starts))], lengths = [...varints(bytesOf(held.lengths))];
    this.tokens = starts.length;
    this.begins = new Uint32Array(this.tokens);
    this.ends = new Uint32Array(this.tokens);
    for (let token = 0, at = 0; token < this.tokens; token++) {
      at += starts[token];
      this.begins[token] = at;
      this.ends[token] = at + lengths[token];
    }
    this.each = held.layers.length * held.heads;
    this.setsOf = indexOfSets(bytesOf(held.sets), held.steps.length * this.each);
    this.unionsOf = indexOfSets(bytesOf(held.unions), held.steps.length);
    for (const name of ["counts", "held"]) this[name] = numbers(held[name], Uint32Array);
    for (const name of ["missed", "exact", "cached"]) this[name] = numbers(held[name], Float32Array);
    this.nbytes = numbers(held.nbytes, Float64Array);
  }

  lengthAt(step) { return this.steps[step].first + this.steps[step].queries; }

  tokenText(token) { return this.text.slice(this.begins[token], this.ends[token]); }

  // Runs of positions that one KV head of a layer (by its place) read.
  eachRead(step, layer, head, each) {
    const length = this.lengthAt(step), block = this.block;
    const set = step * this.each + layer * this.heads + head;
    eachRun(this.setsOf, set, (start, stop) => each(start * block, Math.min(stop * block, length)));
  }

  eachOfUnion(step, each) { eachRun(this.unionsOf, step, each); }

  // How many of the chosen layers and heads read each position; null stands for all of them.
  readers(step, layer, head) {
    const edges = new Int32Array(this.tokens + 1);
    let pairs = 0;
    for (let l = 0; l < this.layers.length; l++) {
      if (layer !== null && l !== layer) continue;
      for (let h = 0; h < this.heads; h++) {
        if (head !== null && h !== head) continue;
        pairs++;
        this.eachRead(step, l, h, (start, stop) => { edges[start]++; edges[stop]--; });
      }
    }
    const counts = new Uint16Array(this.tokens);
    for (let token = 0, now = 0; token < this.tokens; token++) counts[token] = now += edges[token];
    if (this.block > 1 && layer === null && head === null) this.keepUnion(step, counts);
    return { counts, pairs };
  }

  // Blocks say too much; the union is known token by token.
  keepUnion(step, counts) {
    let done = 0;
    this.eachOfUnion(step, (start, stop) => { counts.fill(0, done, start); done = stop; });
    counts.fill(0, done);
  }

  // Sums over the chosen layers and heads of a step.
  totals(step, layer, head) {
    const found = { read: 0, held: 0, missed: 0, exact: 0, pairs: 0, bytes: 0, cached: 0, tiers: new Set() };
    for (let l = 0; l < this.layers.length; l++) {
      if (layer !== null && l !== layer) continue;
      const bytes = this.nbytes[step * this.layers.length + l] * (head === null ? 1 : 1 / this.heads);
      found.bytes += bytes;
      found.cached += bytes * this.cached[step * this.layers.length + l];
      found.tiers.add(this.tiers[l]);
      for (let h = 0; h < this.heads; h++) {
        if (head !== null && h !== head) continue;
        const at = step * this.each + l * this.heads + h;
        found.read += this.counts[at];
        found.held += this.held[at];
        found.missed += this.missed[at];
        if (this.exact) found.exact += this.exact[at];
        found.pairs++;
      }
    }
    return found;
  }
}
