// Exact attention over selected slots: all query heads of a KV head in one pass over the rows it reads.
#pragma once

#include "simd.hpp"

namespace kh {

// Keys or values of all rows. Row r, slot s is at data + row(r) + slot(s), in elements; with a block table, slot
// s lives in block table[r / heads][s / block_size], and row strides step over the heads inside a block.
struct Side {
  const void* data;
  const float* scales;  // one for each slot of int8 data, or null
  int64_t row_stride, slot_stride, block_stride;
  int64_t scale_row, scale_slot, scale_block;
};

struct Pages {
  const int32_t* table;  // null: slots are contiguous
  int64_t table_stride, block_size, blocks, heads;
};

struct Attention {
  const float* query;  // [R, G, D]
  Side keys, values;
  int type;
  Pages pages;
  const int32_t *slots, *counts;  // [R, slots_stride], [R]
  int64_t slots_stride, capacity;
  const float* sinks;  // [R, G] or null
  int64_t rows;
  int heads, size;
  float scale, softcap;
  float *out, *lse;  // [R, G, D], [R, G]
  float* logits;     // [R, G, width] or null
  int64_t width;
};

constexpr int kTile = 16;  // slots handled together: keys of one tile and values of another fit the first cache

// Fetches rows into the cache, a line at each step, so that misses overlap with the arithmetic between steps.
class Fetcher {
 public:
  Fetcher(const void* const* rows, int count, int64_t bytes) : rows_(rows), last_(rows + count), bytes_(bytes) {
    open();
  }
  void step() {
    if (at_ >= end_) return;
    __builtin_prefetch(at_);
    at_ += 64;
    if (at_ >= end_) rows_++, open();
  }
  void finish() {
    while (at_ < end_) step();
  }

 private:
  void open() {
    at_ = end_ = nullptr;
    if (rows_ < last_) at_ = static_cast<const char*>(*rows_), end_ = at_ + bytes_;
  }
  const void* const* rows_;
  const void* const* last_;
  int64_t bytes_;
  const char *at_, *end_;
};

// Adds the products of one stretch of two keys with H queries, `stride` floats apart.
template <int H>
inline void dot_step(vf k, vf l, const float* q, int64_t stride, vf& a0, vf& a1, vf& a2, vf& a3, vf& b0, vf& b1,
                     vf& b2, vf& b3) {
  vf q0 = load<vf>(q);
  a0 += k * q0, b0 += l * q0;
  if (H > 1) {
    vf q1 = load<vf>(q + stride);
    a1 += k * q1, b1 += l * q1;
  }
  if (H > 2) {
    vf q2 = load<vf>(q + 2 * stride);
    a2 += k * q2, b2 += l * q2;
  }
  if (H > 3) {
    vf q3 = load<vf>(q + 3 * stride);
    a3 += k * q3, b3 += l * q3;
  }
}

// Products of two keys with H queries, which are `stride` floats apart and zero padded: out[h * kTile] and beside.
template <class T, int H>
inline void dot_pair(const T* key, const T* other, const float* q, int64_t stride, int size, Fetcher& fetch,
                     float* out) {
  vf a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    fetch.step();
    dot_step<H>(load_float(key + i), load_float(other + i), q + i, stride, a0, a1, a2, a3, b0, b1, b2, b3);
  }
  if (i < size)
    dot_step<H>(load_float(key + i, size - i), load_float(other + i, size - i), q + i, stride, a0, a1, a2, a3, b0, b1,
                b2, b3);
  if (H == 4) {
    sum4(a0, a1, a2, a3, out, kTile);
    sum4(b0, b1, b2, b3, out + 1, kTile);
    return;
  }
  out[0] = sum(a0), out[1] = sum(b0);
  if (H > 1) out[kTile] = sum(a1), out[kTile + 1] = sum(b1);
  if (H > 2) out[2 * kTile] = sum(a2), out[2 * kTile + 1] = sum(b2);
}

template <class T>
inline void dot_any(const T* key, const T* other, const float* q, int64_t stride, int size, int heads, Fetcher& fetch,
                    float* out) {
  for (; heads >= 4; heads -= 4, q += 4 * stride, out += 4 * kTile)
    dot_pair<T, 4>(key, other, q, stride, size, fetch, out);
  if (heads == 1) dot_pair<T, 1>(key, other, q, stride, size, fetch, out);
  if (heads == 2) dot_pair<T, 2>(key, other, q, stride, size, fetch, out);
  if (heads == 3) dot_pair<T, 3>(key, other, q, stride, size, fetch, out);
}

// acc[h] = acc[h] * alpha[h] + sum over the tile of p[h][i] * value[i], for H heads and V vectors from d on.
template <class T, int H, int V, bool Tail>
inline void add_stretch(const T* const* values, int count, const float* p, const float* alpha, float* acc,
                        int64_t stride, int d, int size, Fetcher& fetch) {
  auto value = [&](int i, int at) {
    return Tail ? load_float(values[i] + at, size - at) : load_float(values[i] + at);
  };
  vf a[H], b[H];
  for (int h = 0; h < H; h++) {
    a[h] = load<vf>(acc + h * stride + d) * alpha[h];
    if (V > 1) b[h] = load<vf>(acc + h * stride + d + kLanes) * alpha[h];
  }
  for (int i = 0; i < count; i++) {
    fetch.step();
    vf v = value(i, d), w = V > 1 ? value(i, d + kLanes) : v;
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) {
      a[h] += v * p[h * kTile + i];
      if (V > 1) b[h] += w * p[h * kTile + i];
    }
  }
  for (int h = 0; h < H; h++) {
    store(acc + h * stride + d, a[h]);
    if (V > 1) store(acc + h * stride + d + kLanes, b[h]);
  }
}

template <class T, int H>
inline void add_values(const T* const* values, int count, const float* p, const float* alpha, float* acc,
                       int64_t stride, int size, Fetcher& fetch) {
  int d = 0;
  for (; d + 2 * kLanes <= size; d += 2 * kLanes)
    add_stretch<T, H, 2, false>(values, count, p, alpha, acc, stride, d, size, fetch);
  for (; d + kLanes <= size; d += kLanes)
    add_stretch<T, H, 1, false>(values, count, p, alpha, acc, stride, d, size, fetch);
  if (d < size) add_stretch<T, H, 1, true>(values, count, p, alpha, acc, stride, d, size, fetch);
}

template <class T>
inline void add_any(const T* const* values, int count, const float* p, const float* alpha, float* acc,
                    int64_t stride, int size, int heads, Fetcher& fetch) {
  for (; heads >= 4; heads -= 4, p += 4 * kTile, alpha += 4, acc += 4 * stride)
    add_values<T, 4>(values, count, p, alpha, acc, stride, size, fetch);
  if (heads == 1) add_values<T, 1>(values, count, p, alpha, acc, stride, size, fetch);
  if (heads == 2) add_values<T, 2>(values, count, p, alpha, acc, stride, size, fetch);
  if (heads == 3) add_values<T, 3>(values, count, p, alpha, acc, stride, size, fetch);
}

// Partial result of a row: unnormalised output with its running maximum and denominator, for each head.
struct Partial {
  float *acc, *most, *total;  // [G, stride], [G], [G]
};

template <class T>
class Reader {
 public:
  Reader(const Attention& a, int64_t row) : a_(a) {
    const Pages& pages = a.pages;
    int64_t inner = pages.table ? row % pages.heads : row;
    table_ = pages.table ? pages.table + row / pages.heads * pages.table_stride : nullptr;
    key_ = static_cast<const T*>(a.keys.data) + inner * a.keys.row_stride;
    value_ = static_cast<const T*>(a.values.data) + inner * a.values.row_stride;
    key_scale_ = a.keys.scales ? a.keys.scales + inner * a.keys.scale_row : nullptr;
    value_scale_ = a.values.scales ? a.values.scales + inner * a.values.scale_row : nullptr;
  }

  // Addresses (and scales) of one slot; false if it lies outside the cache.
  bool find(int64_t slot, const T** key, const T** value, float* key_scale, float* value_scale) const {
    if (slot < 0 || slot >= a_.capacity) return false;
    int64_t block = 0;
    if (table_) {
      block = table_[slot / a_.pages.block_size];
      slot %= a_.pages.block_size;
      if (block < 0 || block >= a_.pages.blocks) return false;
    }
    *key = key_ + block * a_.keys.block_stride + slot * a_.keys.slot_stride;
    *value = value_ + block * a_.values.block_stride + slot * a_.values.slot_stride;
    *key_scale = key_scale_ ? key_scale_[block * a_.keys.scale_block + slot * a_.keys.scale_slot] : 1.0f;
    *value_scale = value_scale_ ? value_scale_[block * a_.values.scale_block + slot * a_.values.scale_slot] : 1.0f;
    return true;
  }

 private:
  const Attention& a_;
  const int32_t* table_;
  const T *key_, *value_;
  const float *key_scale_, *value_scale_;
};

// Turns a tile of raw products into weights exp(logit - most), and updates the running softmax. `told`, where given,
// gets the logits.
inline void weigh_tile(const Attention& a, float* logits, const float* key_scale, const float* value_scale, int count,
                       int g, float* alpha, Partial& part, float* told) {
  float high = part.most[g];
  for (int i = 0; i < count; i++) {
    logits[i] *= a.scale * key_scale[i];
    if (a.softcap > 0) logits[i] = a.softcap * std::tanh(logits[i] / a.softcap);
    high = logits[i] > high ? logits[i] : high;
  }
  if (told) memcpy(told, logits, sizeof(float) * count);
  alpha[g] = high == -INFINITY ? 1.0f : std::exp(part.most[g] - high);
  float total = part.total[g] * alpha[g], base = high == -INFINITY ? 0.0f : high;
  for (int i = count; i < kTile; i++) logits[i] = -INFINITY;
  for (int i = 0; i < kTile; i += kLanes)
    store(logits + i, exp2((load<vf>(logits + i) - base) * splat(1.44269504f)));
  for (int i = 0; i < count; i++) {
    total += logits[i];
    logits[i] *= value_scale[i];
  }
  part.most[g] = high;
  part.total[g] = total;
}

template <class T>
struct Tile {
  int count = 0;
  const T *keys[kTile], *values[kTile];
  float key_scale[kTile], value_scale[kTile];

  // Looks up the slots; false if one lies outside the cache. Rows beyond the count repeat the last one.
  bool fill(const Reader<T>& reader, const int32_t* slots, int64_t left) {
    count = int(std::min<int64_t>(kTile, left));
    for (int i = 0; i < count; i++)
      if (!reader.find(slots[i], &keys[i], &values[i], &key_scale[i], &value_scale[i])) return false;
    for (int i = count; i < kTile; i++) keys[i] = keys[count - 1];
    return true;
  }

  Fetcher fetch(const T* const* rows, int64_t bytes) const {
    return {reinterpret_cast<const void* const*>(rows), count, bytes};
  }
};

// Attends over slots[from, to) of one row. While the keys of a tile are multiplied its values are fetched, and
// while its values are added the keys of the next tile.
template <class T>
inline int attend(const Attention& a, const float* q, int64_t stride, int64_t row, int64_t from, int64_t to,
                  Partial& part) {
  if (from >= to) return kOk;
  Frame frame;
  float* logits = frame.take<float>(int64_t(a.heads) * kTile);
  float* alpha = frame.take<float>(a.heads);
  Reader<T> reader(a, row);
  const int32_t* slots = a.slots + row * a.slots_stride;
  const int64_t bytes = int64_t(a.size) * sizeof(T);
  Tile<T> tiles[2], *tile = tiles, *next = tiles + 1;
  if (!tile->fill(reader, slots + from, to - from)) return kBadSlot;
  tile->fetch(tile->keys, bytes).finish();
  for (int64_t start = from; start < to; start += kTile, std::swap(tile, next)) {
    int64_t left = to - start - kTile;
    if (left > 0 && !next->fill(reader, slots + start + kTile, left)) return kBadSlot;
    Fetcher fetch = tile->fetch(tile->values, bytes);
    for (int i = 0; i < tile->count; i += 2)
      dot_any(tile->keys[i], tile->keys[i + 1], q, stride, a.size, a.heads, fetch, logits + i);
    fetch.finish();
    for (int g = 0; g < a.heads; g++)
      weigh_tile(a, logits + g * kTile, tile->key_scale, tile->value_scale, tile->count, g, alpha, part,
                 a.logits ? a.logits + (row * a.heads + g) * a.width + start : nullptr);
    fetch = next->fetch(next->keys, left > 0 ? bytes : 0);
    add_any(tile->values, tile->count, logits, alpha, part.acc, stride, a.size, a.heads, fetch);
  }
  return kOk;
}

inline int attend_any(const Attention& a, const float* q, int64_t stride, int64_t row, int64_t from, int64_t to,
                      Partial& part) {
  if (a.type == kFloat32) return attend<float>(a, q, stride, row, from, to, part);
  if (a.type == kBFloat16) return attend<bf16>(a, q, stride, row, from, to, part);
  if (a.type == kFloat16) return attend<fp16>(a, q, stride, row, from, to, part);
  return attend<int8_t>(a, q, stride, row, from, to, part);
}

// Merges the partial results of a row and divides.
inline void finish(const Attention& a, const Partial* parts, int64_t count, int64_t stride, int64_t row) {
  for (int g = 0; g < a.heads; g++) {
    float* out = a.out + (row * a.heads + g) * a.size;
    float sink = a.sinks ? a.sinks[row * a.heads + g] : -INFINITY, high = sink, total = 0;
    for (int64_t i = 0; i < count; i++) high = std::max(high, parts[i].most[g]);
    memset(out, 0, sizeof(float) * a.size);
    a.lse[row * a.heads + g] = -INFINITY;
    if (high == -INFINITY) continue;
    total = std::exp(sink - high);
    for (int64_t i = 0; i < count; i++) total += parts[i].total[g] * std::exp(parts[i].most[g] - high);
    for (int64_t i = 0; i < count; i++) {
      float weight = std::exp(parts[i].most[g] - high) / total;
      if (weight == 0) continue;
      for (int d = 0; d < a.size; d++) out[d] += weight * parts[i].acc[g * stride + d];
    }
    a.lse[row * a.heads + g] = high + std::log(total);
  }
}

inline int gather_attention(const Attention& a, int64_t longest, int threads) {
  Frame frame;
  int64_t stride = round_up(a.size, 16), cuts = pieces(a.rows, threads, longest, 128);
  float* queries = frame.take<float>(a.rows * a.heads * stride);
  memset(queries, 0, sizeof(float) * a.rows * a.heads * stride);
  for (int64_t i = 0; i < a.rows * a.heads; i++)
    memcpy(queries + i * stride, a.query + i * a.size, sizeof(float) * a.size);
  Partial* parts = frame.take<Partial>(a.rows * cuts);
  for (int64_t i = 0; i < a.rows * cuts; i++) {
    parts[i] = {frame.take<float>(a.heads * stride), frame.take<float>(a.heads), frame.take<float>(a.heads)};
    memset(parts[i].acc, 0, sizeof(float) * a.heads * stride);
    for (int g = 0; g < a.heads; g++) parts[i].most[g] = -INFINITY, parts[i].total[g] = 0;
  }
  return parallel(a.rows * cuts, threads, [&](int64_t i) {
    int64_t row = i / cuts, count = a.counts[row];
    if (count < 0 || count > longest) return int(kBadRange);
    for (int g = 0; a.logits && i % cuts == 0 && g < a.heads; g++)
      std::fill_n(a.logits + (row * a.heads + g) * a.width + count, a.width - count, -INFINITY);
    int64_t step = round_up((count + cuts - 1) / cuts, kTile), from = std::min(i % cuts * step, count);
    int status = attend_any(a, queries + row * a.heads * stride, stride, row, from, std::min(from + step, count),
                            parts[i]);
    if (status == kOk && cuts == 1) finish(a, parts + i, 1, stride, row);
    return status;
  }) |
         (cuts == 1 ? kOk : parallel(a.rows, threads, [&](int64_t row) {
            finish(a, parts + row * cuts, cuts, stride, row);
            return int(kOk);
          }));
}

}  // namespace kh
