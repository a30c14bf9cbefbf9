// Exact attention of a tile of 64 queries over listed keys, with a running softmax (SALE).
//
// Queries are lanes here, too: softmax needs no sums across a vector, and rows of keys and values are read where
// they lie. Logits are base 2.
#pragma once

#include "sale_estimate.hpp"

namespace kh::sale {

constexpr int kSlice = 2 * kLanes;              // queries worked on together
constexpr int kSlices = kTileRows / kSlice;
constexpr int kStrips = 6;                      // rows worked on together
constexpr int kPack = 96;                       // keys listed before they are attended to
constexpr float kMasked = -INFINITY;

// out[r][slice] for R rows: products of rows [size] with a slice [size][kSlice].
template <int R>
inline void multiply(const float* const* rows, const float* slice, int size, float* out) {
  vf left[R], right[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) left[r] = right[r] = vf{};
  for (int d = 0; d < size; d++, slice += kSlice) {
    vf a = load<vf>(slice), b = load<vf>(slice + kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      left[r] += a * rows[r][d];
      right[r] += b * rows[r][d];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    store(out + r * kSlice, left[r]);
    store(out + r * kSlice + kLanes, right[r]);
  }
}

// acc[r][slice] = acc * decay + sum over rows j of rows[j][at + r] * weights[j][slice], for R columns.
template <int R>
inline void accumulate(const float* const* rows, int count, const float* weights, int at, const vf* decay,
                       float* acc) {
  vf left[R], right[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    left[r] = load<vf>(acc + r * kSlice) * decay[0];
    right[r] = load<vf>(acc + r * kSlice + kLanes) * decay[1];
  }
  for (int j = 0; j < count; j++, weights += kSlice) {
    const float* row = rows[j] + at;
    vf a = load<vf>(weights), b = load<vf>(weights + kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      left[r] += a * row[r];
      right[r] += b * row[r];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    store(acc + r * kSlice, left[r]);
    store(acc + r * kSlice + kLanes, right[r]);
  }
}

// Calls body(from, width) with widths of at most 6 and as equal as can be: narrow strips would wait for each other.
template <class Body>
inline void strips(int count, const Body& body) {
  int pieces = (count + kStrips - 1) / kStrips;
  for (int i = 0; i < pieces; i++) {
    int from = int(int64_t(count) * i / pieces), to = int(int64_t(count) * (i + 1) / pieces);
    switch (to - from) {
      case 6: body(from, std::integral_constant<int, 6>()); break;
      case 5: body(from, std::integral_constant<int, 5>()); break;
      case 4: body(from, std::integral_constant<int, 4>()); break;
      case 3: body(from, std::integral_constant<int, 3>()); break;
      case 2: body(from, std::integral_constant<int, 2>()); break;
      default: body(from, std::integral_constant<int, 1>());
    }
  }
}

inline void products(const float* const* rows, int count, const float* slice, int size, float* out) {
  strips(count, [&](int from, auto width) { multiply<width()>(rows + from, slice, size, out + from * kSlice); });
}

// A tile of queries at work: positions first .. first + rows - 1 of a sequence.
struct Tile64 {
  int64_t first;
  int rows, key_size, value_size;
  float *queries, *acc;   // [slices][size][kSlice]
  float *most, *total;    // [64], running maximum and denominator
  SmallQueries small;
  int32_t pending[kPack + kBlockKeys];
  int waiting = 0;

  void take(int keys, int values, Frame& frame) {
    key_size = keys, value_size = values;
    queries = frame.take<float>(int64_t(keys) * kTileRows);
    acc = frame.take<float>(int64_t(values) * kTileRows);
    most = frame.take<float>(kTileRows);
    total = frame.take<float>(kTileRows);
    small = SmallQueries(keys, frame);
  }

  void start(int64_t at, int count) {
    first = at, rows = count, waiting = 0;
    memset(queries, 0, sizeof(float) * key_size * kTileRows);
    memset(acc, 0, sizeof(float) * value_size * kTileRows);
    for (int i = 0; i < kTileRows; i++) most[i] = -INFINITY, total[i] = 0;
  }

  const float* slice(int s) const { return queries + int64_t(s) * key_size * kSlice; }

  float& query(int row, int d) { return queries[(int64_t(row / kSlice) * key_size + d) * kSlice + row % kSlice]; }
  float& sum(int row, int d) { return acc[(int64_t(row / kSlice) * value_size + d) * kSlice + row % kSlice]; }
};

// Positions of the queries of half a slice; rows beyond the last stand where the last one does.
inline vi positions(const Tile64& tile, int s, int half) {
  vi at = iota() + (s * kSlice + half * kLanes);
  vi last = vi{} + (tile.rows - 1);
  return (at < last ? at : last) + int32_t(tile.first);
}

// Hides keys that come after a query.
inline void hide_later(const Tile64& tile, int s, const int32_t* slots, int count, float* logits) {
  vi left = positions(tile, s, 0), right = positions(tile, s, 1);
  for (int j = 0; j < count; j++, logits += kSlice) {
    if (slots[j] <= tile.first) continue;
    vi slot = vi{} + slots[j];
    store(logits, slot > left ? splat(kMasked) : load<vf>(logits));
    store(logits + kLanes, slot > right ? splat(kMasked) : load<vf>(logits + kLanes));
  }
}

// Turns logits into weights and updates the running softmax; `decay` is what earlier sums are to be multiplied by.
inline void weigh(Tile64& tile, int s, int count, float* logits, vf* decay) {
  for (int half = 0; half < 2; half++) {
    float *column = logits + half * kLanes, *most = tile.most + s * kSlice + half * kLanes;
    float* total = tile.total + s * kSlice + half * kLanes;
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
    decay[half] = exp2(before - high);
    store(total, load<vf>(total) * decay[half] + sum + other);
    store(most, high);
  }
}

// Attends to `count` keys and values [count] at positions `slots`.
inline void attend_rows(Tile64& tile, const int32_t* slots, const float* const* keys, const float* const* values,
                        int count) {
  alignas(64) float logits[kPack * kSlice];
  bool later = slots[count - 1] > tile.first;
  for (int s = 0; s < kSlices; s++) {
    vf decay[2];
    products(keys, count, tile.slice(s), tile.key_size, logits);
    if (later) hide_later(tile, s, slots, count, logits);
    weigh(tile, s, count, logits, decay);
    float* acc = tile.acc + int64_t(s) * tile.value_size * kSlice;
    strips(tile.value_size, [&](int from, auto width) {
      accumulate<width()>(values, count, logits, from, decay, acc + int64_t(from) * kSlice);
    });
  }
}

// Rows of one KV head as float32: where they lie, or copies of those asked for.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  int size;
  float* copies;  // [kPack][size], unless T is float

  Rows(const T* data, int64_t stride, int size, Frame& frame) : data(data), stride(stride), size(size) {
    copies = std::is_same<T, float>::value ? nullptr : frame.take<float>(int64_t(kPack) * round_up(size, 16));
  }

  void find(const int32_t* slots, int count, const float** out) const {
    for (int j = 0; j < count; j++) {
      const T* row = data + slots[j] * stride;
      if constexpr (std::is_same<T, float>::value) {
        out[j] = row;
      } else {
        float* copy = copies + j * round_up(size, 16);
        int d = 0;
        for (; d + kLanes <= size; d += kLanes) store(copy + d, load_float(row + d));
        for (; d < size; d++) copy[d] = to_float(row[d]);
        out[j] = copy;
      }
    }
  }
};

template <class T>
inline void attend_slots(Tile64& tile, const int32_t* slots, int count, const Rows<T>& keys, const Rows<T>& values) {
  const float *key_rows[kPack], *value_rows[kPack];
  keys.find(slots, count, key_rows);
  values.find(slots, count, value_rows);
  attend_rows(tile, slots, key_rows, value_rows, count);
}

// Puts slots on the tile's list, and attends whenever it is full.
template <class T>
inline void add_slots(Tile64& tile, int64_t from, uint32_t word, const Rows<T>& keys, const Rows<T>& values) {
  for (; word; word &= word - 1) tile.pending[tile.waiting++] = int32_t(from + __builtin_ctz(word));
  if (tile.waiting < kPack) return;
  attend_slots(tile, tile.pending, kPack, keys, values);
  tile.waiting -= kPack;
  memmove(tile.pending, tile.pending + kPack, sizeof(int32_t) * tile.waiting);
}

template <class T>
inline void add_range(Tile64& tile, int64_t from, int64_t to, const Rows<T>& keys, const Rows<T>& values) {
  for (; from < to; from += kBlockKeys) {
    int64_t left = to - from;
    add_slots(tile, from, left >= kBlockKeys ? ~uint32_t(0) : (uint32_t(1) << left) - 1, keys, values);
  }
}

template <class T>
inline void flush(Tile64& tile, const Rows<T>& keys, const Rows<T>& values) {
  if (tile.waiting) attend_slots(tile, tile.pending, tile.waiting, keys, values);
  tile.waiting = 0;
}

}  // namespace kh::sale
