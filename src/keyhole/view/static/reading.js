// What follows from a record: strength of each token, passages, whether a span was read.

const STRENGTHS = 6, ALWAYS = 7, JOINED = 4, SHOWN = 8;

// For each token 0 (not read), 1 to 6 by how many of the readers read it, or 7 where it is always read.
export function strengths(record, step, readers) {
  const { counts, pairs } = readers, found = new Uint8Array(record.tokens);
  for (let token = 0; token < record.tokens; token++) {
    if (!counts[token]) continue;
    const share = pairs > 1 ? (counts[token] - 1) / (pairs - 1) : 1;
    found[token] = isAlways(record, step, token) ? ALWAYS : 1 + Math.min(STRENGTHS - 1, Math.floor(STRENGTHS * share ** 0.6));
  }
  return found;
}

function isAlways(record, step, token) {
  // A method that reads everything, or drops, has neither sinks nor window. Queries that ask together have their own.
  const window = record.window > 0 ? record.window + record.steps[step].queries - 1 : 0;
  return token < record.sinks || token >= record.lengthAt(step) - window;
}

// Spans of the document that most readers read, without what is always read.
export function passagesByReaders(record, step, readers) {
  const { counts } = readers, histogram = new Map();
  const competes = token => counts[token] && !isAlways(record, step, token) && token < record.prompt;
  let total = 0;
  for (let token = 0; token < record.tokens; token++) {
    if (competes(token)) { histogram.set(counts[token], (histogram.get(counts[token]) || 0) + 1); total++; }
  }
  let least = 1, seen = 0;
  for (const [count, tokens] of [...histogram].sort((a, b) => b[0] - a[0])) {
    seen += tokens;
    if (seen > Math.max(40, total * 0.08) && least > 1) break;
    least = count;
  }
  const spans = joined([...Array(record.tokens).keys()].filter(token => competes(token) && counts[token] >= least));
  for (const span of spans) {
    span.weight = 0;
    span.most = 0;
    for (let token = span.start; token < span.stop; token++) {
      span.weight += counts[token];
      span.most = Math.max(span.most, counts[token]);
    }
    span.weight /= Math.sqrt(span.stop - span.start);
  }
  return ranked(spans);
}

// Spans of positions whose share of attention is known, `[position, share]`, without what is always read.
export function passagesByAttention(record, step, shares) {
  const known = new Map(shares.filter(([token]) => !isAlways(record, step, token)));
  const spans = joined([...known.keys()].sort((a, b) => a - b));
  for (const span of spans) {
    span.weight = 0;
    for (let token = span.start; token < span.stop; token++) span.weight += known.get(token) || 0;
  }
  return ranked(spans);
}

function joined(tokens) {
  const spans = [];
  for (const token of tokens) {
    const last = spans[spans.length - 1];
    if (last && token - last.stop < JOINED) last.stop = token + 1;
    else spans.push({ start: token, stop: token + 1 });
  }
  return spans;
}

function ranked(spans) { return spans.sort((a, b) => b.weight - a.weight || a.start - b.start).slice(0, SHOWN); }

// For each step and layer, how many KV heads read any token of [start, stop); `tokens` were read by any, per step.
export function whoRead(record, start, stop) {
  const heads = new Uint16Array(record.steps.length * record.layers.length);
  const tokens = new Uint32Array(record.steps.length);
  for (let step = 0; step < record.steps.length; step++) {
    for (let layer = 0; layer < record.layers.length; layer++) {
      for (let head = 0; head < record.heads; head++) {
        let found = false;
        record.eachRead(step, layer, head, (from, to) => {
          if (to > start && from < stop) found = true;
          return found || from >= stop;
        });
        if (found) heads[step * record.layers.length + layer]++;
      }
    }
    record.eachOfUnion(step, (from, to) => {
      tokens[step] += Math.max(0, Math.min(to, stop) - Math.max(from, start));
      return from >= stop;
    });
  }
  return { heads, tokens };
}

// The tokens that have any character of [begin, end) of the text.
export function tokensOf(record, begin, end) {
  let low = 0, high = record.tokens;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (record.ends[middle] > begin) high = middle; else low = middle + 1;
  }
  let stop = low;
  while (stop < record.tokens && record.begins[stop] < end) stop++;
  return { start: low, stop };
}

// Where a text stands, as spans of characters; capital letters and white space do not matter.
export function occurrences(record, wanted, most = 200) {
  const words = wanted.trim().split(/\s+/).filter(Boolean).map(word => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!words.length) return [];
  const found = [], end = record.begins[record.prompt] ?? record.text.length;
  for (const match of record.text.slice(0, end).matchAll(new RegExp(words.join("\\s+"), "gi"))) {
    found.push([match.index, match.index + match[0].length]);
    if (found.length >= most) break;
  }
  // Those of the document before those of the question about it.
  const inside = ([begin]) => begin >= record.document[0] && begin < record.document[1];
  return [...found.filter(inside), ...found.filter(span => !inside(span))];
}
