// Logits of every slot: estimated from codes, or exact for small indexes.
#pragma once

#include "attention.hpp"
#include "select.hpp"

namespace kh {

// out [G, n] of one row: estimated logits of slots [from, to).
inline int estimate(const float* query, int heads, int64_t row, const Codebook& shape, const Codes& codes,
                    int64_t from, int64_t to, double scale, double softcap, float* out, int64_t stride) {
  Frame frame;
  Tables tables;
  int status = make_tables(query, heads, row, shape, scale, frame, tables);
  if (status != kOk) return status;
  uint16_t* sums = frame.take<uint16_t>(int64_t(heads) * kChunk);
  for (int64_t base = from; base < to; base += kChunk) {
    int64_t count = std::min<int64_t>(kChunk, to - base);
    scan(codes.data + row * codes.row_stride + base / kBlock * codes.block_stride, codes.block_stride,
         int((count + kBlock - 1) / kBlock), tables, shape, sums, kChunk);
    for (int g = 0; g < heads; g++) {
      double step = tables.step[g], zero = tables.base[g];
      float* to_row = out + g * stride + base;
      for (int64_t i = 0; i < count; i++) to_row[i] = float(zero + step * sums[g * kChunk + i]);
      for (int64_t i = 0; softcap > 0 && i < count; i++)
        to_row[i] = float(softcap * std::tanh((zero + step * sums[g * kChunk + i]) / softcap));
    }
  }
  return kOk;
}

// out[g * out_stride + t] = scale * query g . key t, for the keys [from, to) of one row, which are `stride` apart.
// `ahead`, where given, is the first of kTile keys that are asked for next.
template <class T>
inline void products(const float* query, int64_t padded, int heads, const T* keys, int64_t stride, int64_t from,
                     int64_t to, int size, float scale, float* out, int64_t out_stride, const T* ahead = nullptr) {
  Frame frame;
  float* dots = frame.take<float>(int64_t(heads + kBeyond) * kTile);
  Span next[kTile];
  for (int64_t start = from; start < to; start += kTile) {
    int count = int(std::min<int64_t>(kTile, to - start)), after = int(std::min<int64_t>(kTile, to - start - count));
    const T* following = after || !ahead ? keys + (start + kTile) * stride : ahead;
    after = after || !ahead ? after : kTile;
    for (int i = 0; i < after; i++) next[i] = {following + i * stride, int64_t(size * sizeof(T))};
    Fetcher fetch(next, after);
    for (int i = 0; i < count; i += 2) {
      const T* key = keys + (start + i) * stride;
      dot_any(key, i + 1 < count ? key + stride : key, query, padded, size, heads, fetch, dots + i);
    }
    for (int g = 0; g < heads; g++)
      for (int i = 0; i < count; i++) out[g * out_stride + start + i] = dots[g * kTile + i] * scale;
  }
}

// Keys of one row, `slot_stride` apart: in one piece, or in the blocks that a table names.
template <class T>
struct KeyRow {
  const T* data;
  int64_t slot_stride, block_stride;
  const int32_t* table;  // null: in one piece
  int64_t block_size, blocks;
};

// `products` of the keys [from, to) of a row; false where one lies outside the cache.
template <class T>
inline bool products(const float* query, int64_t padded, int heads, const KeyRow<T>& row, int64_t from, int64_t to,
                     int size, float scale, float* out, int64_t out_stride) {
  if (!row.table) {
    products(query, padded, heads, row.data, row.slot_stride, from, to, size, scale, out, out_stride);
    return true;
  }
  for (int64_t at = from, end; at < to; at = end) {
    int64_t index = at / row.block_size, block = row.table[index];
    if (block < 0 || block >= row.blocks) return false;
    end = std::min(to, (index + 1) * row.block_size);
    const T* keys = row.data + (block * row.block_stride - index * row.block_size * row.slot_stride);
    const bool more = to - end >= kTile && row.block_size >= kTile;
    const T* ahead = more ? row.data + row.table[index + 1] * row.block_stride : nullptr;
    products(query, padded, heads, keys, row.slot_stride, at, end, size, scale, out, out_stride, ahead);
  }
  return true;
}

struct Scores {
  const float* query;  // [R, G, D]
  int64_t rows;
  int heads, size;
  Side keys;
  int type;
  Pages pages;
  int64_t first, count;  // slots
  float scale;
  float* out;  // [R, G, count]
};

template <class T>
inline KeyRow<T> key_row(const Scores& s, int64_t row) {
  const int64_t inner = s.pages.table ? row % s.pages.heads : row;
  const int32_t* table = s.pages.table ? s.pages.table + row / s.pages.heads * s.pages.table_stride : nullptr;
  return {static_cast<const T*>(s.keys.data) + inner * s.keys.row_stride, s.keys.slot_stride, s.keys.block_stride,
          table, s.pages.block_size, s.pages.blocks};
}

inline int exact_scores(const Scores& s, Frame& frame, int threads) {
  const int64_t padded = round_up(s.size, 16), step = 1024, pieces = (s.count + step - 1) / step;
  const float* queries = padded_queries(s.query, s.rows * s.heads, s.size, padded, frame);
  return parallel(s.rows * pieces, threads, [&](int64_t i) {
    int64_t row = i / pieces, from = i % pieces * step, to = std::min(s.count, from + step);
    float* out = s.out + row * s.heads * s.count;
    auto run = [&](const auto& keys) {
      bool inside = products(queries + row * s.heads * padded, padded, s.heads, keys, s.first + from, s.first + to,
                             s.size, s.scale, out - s.first, s.count);
      return int(inside ? kOk : kBadSlot);
    };
    if (s.type == kFloat32) return run(key_row<float>(s, row));
    if (s.type == kBFloat16) return run(key_row<bf16>(s, row));
    return run(key_row<fp16>(s, row));
  });
}

}  // namespace kh
