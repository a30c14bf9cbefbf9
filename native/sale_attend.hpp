// Exact attention of a tile of 64 queries over listed keys, with a running softmax (SALE).
//
// Queries are lanes here, too: softmax needs no sums across a vector, and rows of keys and values are read where
// they lie. Logits are base 2.
#pragma once

#include "sale_estimate.hpp"

namespace kh::sale {

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

inline void products(const float* const* rows, int count, const float* slice, int size, float* out) {
  strips(count, [&](int from, auto width) { multiply<width()>(rows + from, slice, size, out + from * kSlice); });
}

// What a slice attends to: one key or, before the keys that it reads of a block, those `left` out, as their mean.
struct Entry {
  int32_t slot, left;
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

// Calls body(left, kept, at) for each entry that stands for `left` keys of a block: those `kept` follow it.
template <class Body>
inline void each_rest(const Entry* entries, int count, float* numbers, const Body& body) {
  for (int j = 0; j < count; j++) {
    const int left = entries[j].left;
    if (!left) continue;
    body(float(left), kBlockKeys - left, numbers + j * kSlice);
    j += kBlockKeys - left;
  }
}

// Logits of sums of whole blocks become those of the mean of what is left out, which counts as often as it has keys.
inline void take_kept_off(const Entry* entries, int count, float* logits) {
  each_rest(entries, count, logits, [](float left, int kept, float* logit) {
    vf sums[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) sums[p] = load<vf>(logit + p * kLanes);
    for (int i = 1; i <= kept; i++)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; p++) sums[p] -= load<vf>(logit + i * kSlice + p * kLanes);
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) store(logit + p * kLanes, sums[p] * splat(1.0f / left) + splat(std::log2(left)));
  });
}

// Weights of means of what is left out become those of sums of whole blocks, less what is kept.
inline void spread_rest(const Entry* entries, int count, float* weights) {
  each_rest(entries, count, weights, [](float left, int kept, float* weight) {
    vf each[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) {
      each[p] = load<vf>(weight + p * kLanes) * splat(1.0f / left);
      store(weight + p * kLanes, each[p]);
    }
    for (int i = 1; i <= kept; i++)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; p++) {
        float* part = weight + i * kSlice + p * kLanes;
        store(part, load<vf>(part) - each[p]);
      }
  });
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

constexpr int kSumBlocks = 32;  // whose sums are held

// Rows of one KV head as float32: where they lie, or copies of those asked for; and sums of the newest blocks.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  int size;
  int64_t padded;
  float* copies;  // [kPack][padded], but for float32
  float* sums;    // [kSumBlocks][padded]

  Rows(const T* data, int64_t stride, int size, Frame& frame)
      : data(data), stride(stride), size(size), padded(round_up(size, 16)), copies(nullptr) {
    if (!std::is_same<T, float>::value) copies = frame.take<float>(kPack * padded);
    sums = frame.take<float>(kSumBlocks * padded);
  }

  void find(const Entry* entries, int count, const float** out) const {
    for (int j = 0; j < count; j++) {
      const T* row = data + entries[j].slot * stride;
      const float* sum = sum_of(entries[j].slot);
      if constexpr (std::is_same<T, float>::value)
        out[j] = entries[j].left ? sum : row;
      else
        out[j] = entries[j].left ? sum : convert(copies + j * padded, row);
    }
  }

  // Sums of the blocks from one slot to another; those of kSumBlocks before are lost.
  void add_up(int64_t from, int64_t to) const {
    for (; from < to; from += kBlockKeys) add_up(data + from * stride, kBlockKeys, sum_of(from));
  }

  // out [padded] = the sum of `count` rows.
  void add_up(const T* rows, int64_t count, float* out) const {
    std::fill(out, out + padded, 0.0f);
    int d = 0;
    for (; d + 4 * kLanes <= size; d += 4 * kLanes) add_columns<4>(rows + d, count, out + d);
    for (; d + kLanes <= size; d += kLanes) add_columns<1>(rows + d, count, out + d);
    for (; d < size; d++)
      for (int64_t j = 0; j < count; j++) out[d] += to_float(rows[j * stride + d]);
  }

 private:
  float* sum_of(int64_t slot) const { return sums + slot / kBlockKeys % kSumBlocks * padded; }

  // V vectors of columns at once, so that sums need not wait for each other.
  template <int V>
  void add_columns(const T* rows, int64_t count, float* out) const {
    vf sums[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[v] = vf{};
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sums[v] += load_float(rows + j * stride + v * kLanes);
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) store(out + v * kLanes, sums[v]);
  }

  float* convert(float* to, const T* row) const {
    int d = 0;
    for (; d + kLanes <= size; d += kLanes) store(to + d, load_float(row + d));
    for (; d < size; d++) to[d] = to_float(row[d]);
    return to;
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
  take_kept_off(entries, count, logits);
  if (entries[count - 1].slot > tile.first) hide_later(tile, s, entries, count, logits);
  vf decay[kParts];
  weigh(tile, s, count, logits, decay);
  spread_rest(entries, count, logits);
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

// Attends to what is listed of blocks whose sums are lost once those before `to` are held.
template <class T>
inline void flush_old(Tile64& tile, int64_t to, const Rows<T>& keys, const Rows<T>& values) {
  for (int s = 0; s < tile.slices(); s++)
    if (tile.waiting[s] && tile.pending[s]->slot < to - kSumBlocks * kBlockKeys) flush(tile, s, keys, values);
}

// Puts keys of the block that begins at `from` on a slice's list, and the mean of others; attends before it is full.
template <class T>
inline void add_slots(Tile64& tile, int s, int64_t from, uint32_t word, bool means, const Rows<T>& keys,
                      const Rows<T>& values) {
  if (tile.waiting[s] + kBlockKeys > kPack) flush(tile, s, keys, values);
  Entry* to = tile.pending[s] + tile.waiting[s];
  if (means && ~word) *to++ = {int32_t(from), kBlockKeys - __builtin_popcount(word)};
  for (; word; word &= word - 1) *to++ = {int32_t(from + __builtin_ctz(word)), 0};
  tile.waiting[s] = int(to - tile.pending[s]);
}

template <class T>
inline void add_range(Tile64& tile, int64_t from, int64_t to, const Rows<T>& keys, const Rows<T>& values) {
  for (; from < to; from += kBlockKeys) {
    int64_t left = to - from;
    uint32_t word = left >= kBlockKeys ? ~uint32_t(0) : (uint32_t(1) << left) - 1;
    for (int s = 0; s < tile.slices(); s++) add_slots(tile, s, from, word, false, keys, values);
  }
}

}  // namespace kh::sale
