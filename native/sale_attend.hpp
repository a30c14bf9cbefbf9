// Exact attention of a tile of 64 queries over listed keys, with a running softmax (SALE).
//
// Queries are lanes here, too: softmax needs no sums across a vector, and rows of keys and values are read where
// they lie. Logits are base 2.
#pragma once

#include "sale_estimate.hpp"

namespace kh::sale {

constexpr int kParts = kSlice / kLanes;  // vectors of a slice
constexpr int kStrips = 12 / kParts;     // rows worked on together
constexpr int kPack = 128;               // entries listed at most before they are attended to
constexpr float kMasked = -INFINITY;

// out[r][slice] for R rows: products of rows [size] with a slice [size][kSlice].
template <int R>
inline void multiply(const float* const* rows, const float* slice, int size, float* out) {
  vf sums[R][kParts];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) sums[r][p] = vf{};
  for (int d = 0; d < size; d++, slice += kSlice) {
    vf x[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) x[p] = load<vf>(slice + p * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; p++) sums[r][p] += x[p] * rows[r][d];
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) store(out + r * kSlice + p * kLanes, sums[r][p]);
}

// acc[r][slice] = acc * decay + sum over rows j of rows[j][at + r] * weights[j][slice], for R columns.
template <int R>
inline void accumulate(const float* const* rows, int count, const float* weights, int at, const vf* decay,
                       float* acc) {
  vf sums[R][kParts];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) sums[r][p] = load<vf>(acc + r * kSlice + p * kLanes) * decay[p];
  for (int j = 0; j < count; j++, weights += kSlice) {
    const float* row = rows[j] + at;
    vf x[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) x[p] = load<vf>(weights + p * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; p++) sums[r][p] += x[p] * row[r];
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) store(acc + r * kSlice + p * kLanes, sums[r][p]);
}

// Calls body(from, width) with widths of at most kStrips and as equal as can be: narrow strips would wait for each
// other.
template <int Width = kStrips, class Body>
inline void strip(int from, int width, const Body& body) {
  if constexpr (Width > 1)
    if (width < Width) return strip<Width - 1>(from, width, body);
  body(from, std::integral_constant<int, Width>());
}
template <class Body>
inline void strips(int count, const Body& body) {
  int pieces = (count + kStrips - 1) / kStrips;
  for (int i = 0; i < pieces; i++) {
    int from = int(int64_t(count) * i / pieces), to = int(int64_t(count) * (i + 1) / pieces);
    strip(from, to - from, body);
  }
}

inline void products(const float* const* rows, int count, const float* slice, int size, float* out) {
  strips(count, [&](int from, auto width) { multiply<width()>(rows + from, slice, size, out + from * kSlice); });
}

// What a slice attends to: one key, or, where bits are set, the mean of those keys of the block that begins at `slot`.
struct Entry {
  int32_t slot;
  uint32_t left_out;
};

// A tile of queries at work: positions first .. first + rows - 1 of a sequence.
struct Tile64 {
  int64_t first;
  int rows, key_size, value_size;
  float *queries, *acc;   // [slices][size][kSlice]
  float *most, *total;    // [64], running maximum and denominator
  SmallQueries small;
  Entry pending[kSlices][kPack];
  int waiting[kSlices];

  void take(int keys, int values, Frame& frame) {
    key_size = keys, value_size = values;
    queries = frame.take<float>(int64_t(keys) * kTileRows);
    acc = frame.take<float>(int64_t(values) * kTileRows);
    most = frame.take<float>(kTileRows);
    total = frame.take<float>(kTileRows);
    small = SmallQueries(keys, frame);
  }

  void start(int64_t at, int count) {
    first = at, rows = count;
    memset(waiting, 0, sizeof waiting);
    memset(queries, 0, sizeof(float) * key_size * kTileRows);
    memset(acc, 0, sizeof(float) * value_size * kTileRows);
    for (int i = 0; i < kTileRows; i++) most[i] = -INFINITY, total[i] = 0;
  }

  int slices() const { return (rows + kSlice - 1) / kSlice; }

  const float* slice(int s) const { return queries + int64_t(s) * key_size * kSlice; }

  float& query(int row, int d) { return queries[(int64_t(row / kSlice) * key_size + d) * kSlice + row % kSlice]; }
  float& sum(int row, int d) { return acc[(int64_t(row / kSlice) * value_size + d) * kSlice + row % kSlice]; }
};

// Hides keys that come after a query; rows beyond the last stand where the last one does.
inline void hide_later(const Tile64& tile, int s, const Entry* entries, int count, float* logits) {
  vi at[kParts];
  for (int p = 0; p < kParts; p++) {
    vi row = iota() + (s * kSlice + p * kLanes), last = vi{} + (tile.rows - 1);
    at[p] = (row < last ? row : last) + int32_t(tile.first);
  }
  for (int j = 0; j < count; j++, logits += kSlice) {
    if (entries[j].slot <= tile.first) continue;
    vi slot = vi{} + entries[j].slot;
    for (int p = 0; p < kParts; p++) {
      float* part = logits + p * kLanes;
      store(part, slot > at[p] ? splat(kMasked) : load<vf>(part));
    }
  }
}

// A mean counts as often as it has keys.
inline void count_means(const Entry* entries, int count, float* logits) {
  for (int j = 0; j < count; j++, logits += kSlice) {
    if (!entries[j].left_out) continue;
    const vf more = splat(std::log2(float(__builtin_popcount(entries[j].left_out))));
    for (int d = 0; d < kSlice; d += kLanes) store(logits + d, load<vf>(logits + d) + more);
  }
}

// Turns logits into weights and updates the running softmax; `decay` is what earlier sums are to be multiplied by.
inline void weigh(Tile64& tile, int s, int count, float* logits, vf* decay) {
  for (int part = 0; part < kParts; part++) {
    float *column = logits + part * kLanes, *most = tile.most + s * kSlice + part * kLanes;
    float* total = tile.total + s * kSlice + part * kLanes;
    vf before = load<vf>(most), high = before;
    for (int j = 0; j < count; j++) high = largest(high, load<vf>(column + j * kSlice));
    vf sum{}, other{};
    int j = 0;
    for (; j + 2 <= count; j += 2) {
      vf p = exp2(load<vf>(column + j * kSlice) - high), q = exp2(load<vf>(column + (j + 1) * kSlice) - high);
      store(column + j * kSlice, p), store(column + (j + 1) * kSlice, q);
      sum += p, other += q;
    }
    if (j < count) {
      vf p = exp2(load<vf>(column + j * kSlice) - high);
      store(column + j * kSlice, p);
      sum += p;
    }
    decay[part] = exp2(before - high);
    store(total, load<vf>(total) * decay[part] + sum + other);
    store(most, high);
  }
}

// Rows of one KV head as float32: where they lie, or copies of those asked for; `means` [blocks][size, padded].
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  int size;
  int64_t padded;
  const float* means;
  float* copies;  // [kPack][padded]

  Rows(const T* data, int64_t stride, int size, const float* means, Frame& frame)
      : data(data), stride(stride), size(size), padded(round_up(size, 16)), means(means) {
    copies = frame.take<float>(kPack * padded);
  }

  void find(const Entry* entries, int count, const float** out) const {
    for (int j = 0; j < count; j++) {
      const T* row = data + entries[j].slot * stride;
      float* copy = copies + j * padded;
      if (entries[j].left_out)
        out[j] = mean(entries[j], copy);
      else if constexpr (std::is_same<T, float>::value)
        out[j] = row;
      else
        out[j] = convert(copy, row);
    }
  }

 private:
  float* convert(float* to, const T* row) const {
    int d = 0;
    for (; d + kLanes <= size; d += kLanes) store(to + d, load_float(row + d));
    for (; d < size; d++) to[d] = to_float(row[d]);
    return to;
  }

  // From the keys left out or, where those are most, from all of the block and those that are not.
  const float* mean(Entry entry, float* copy) const {
    const float* all = means + entry.slot / kBlockKeys * padded;
    const float count = float(__builtin_popcount(entry.left_out));
    if (count == kBlockKeys) return all;
    bool most = count > kBlockKeys / 2;
    const uint32_t word = most ? ~entry.left_out : entry.left_out;
    const float whole = most ? kBlockKeys / count : 0.0f, each = (most ? -1.0f : 1.0f) / count;
    int d = 0;
    for (; d + 4 * kLanes <= size; d += 4 * kLanes) combine<4>(entry.slot, word, whole, each, all + d, d, copy + d);
    for (; d + kLanes <= size; d += kLanes) combine<1>(entry.slot, word, whole, each, all + d, d, copy + d);
    for (; d < size; d++) {
      float sum = all[d] * whole;
      for (uint32_t bits = word; bits; bits &= bits - 1)
        sum += to_float(data[(entry.slot + __builtin_ctz(bits)) * stride + d]) * each;
      copy[d] = sum;
    }
    return copy;
  }

  // out = all * whole + the sum of rows of the block that begins at `slot` * each, for V vectors of columns.
  template <int V>
  void combine(int64_t slot, uint32_t word, float whole, float each, const float* all, int at, float* out) const {
    vf sums[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[v] = load<vf>(all + v * kLanes) * whole;
    for (; word; word &= word - 1) {
      const T* row = data + (slot + __builtin_ctz(word)) * stride + at;
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[v] += load_float(row + v * kLanes) * each;
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(out + v * kLanes, sums[v]);
  }
};

// A slice attends to what is on its list.
template <class T>
inline void flush(Tile64& tile, int s, const Rows<T>& keys, const Rows<T>& values) {
  const Entry* entries = tile.pending[s];
  const int count = tile.waiting[s];
  tile.waiting[s] = 0;
  if (!count) return;
  const float* rows[kPack];
  alignas(64) float logits[kPack * kSlice];
  keys.find(entries, count, rows);
  products(rows, count, tile.slice(s), tile.key_size, logits);
  count_means(entries, count, logits);
  if (entries[count - 1].slot > tile.first) hide_later(tile, s, entries, count, logits);
  vf decay[kParts];
  weigh(tile, s, count, logits, decay);
  values.find(entries, count, rows);
  float* acc = tile.acc + int64_t(s) * tile.value_size * kSlice;
  strips(tile.value_size, [&](int from, auto width) {
    accumulate<width()>(rows, count, logits, from, decay, acc + int64_t(from) * kSlice);
  });
}

template <class T>
inline void flush(Tile64& tile, const Rows<T>& keys, const Rows<T>& values) {
  for (int s = 0; s < tile.slices(); s++) flush(tile, s, keys, values);
}

// Puts keys of the block that begins at `from` on a slice's list, and the mean of others; attends before it is full.
template <class T>
inline void add_slots(Tile64& tile, int s, int64_t from, uint32_t word, uint32_t left_out, const Rows<T>& keys,
                      const Rows<T>& values) {
  if (tile.waiting[s] + kBlockKeys > kPack) flush(tile, s, keys, values);
  Entry* to = tile.pending[s] + tile.waiting[s];
  if (left_out) *to++ = {int32_t(from), left_out};
  for (; word; word &= word - 1) *to++ = {int32_t(from + __builtin_ctz(word)), 0};
  tile.waiting[s] = int(to - tile.pending[s]);
}

template <class T>
inline void add_range(Tile64& tile, int64_t from, int64_t to, const Rows<T>& keys, const Rows<T>& values) {
  for (; from < to; from += kBlockKeys) {
    int64_t left = to - from;
    uint32_t word = left >= kBlockKeys ? ~uint32_t(0) : (uint32_t(1) << left) - 1;
    for (int s = 0; s < tile.slices(); s++) add_slots(tile, s, from, word, 0, keys, values);
  }
}

}  // namespace kh::sale
