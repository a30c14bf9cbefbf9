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

// out [G, n] of one row: scale * query . key for n keys `stride` apart.
template <class T>
inline void exact(const float* query, int64_t padded, int heads, const T* keys, int64_t stride, int64_t from,
                  int64_t to, int64_t n, int size, float scale, float* out) {
  Frame frame;
  float* dots = frame.take<float>(int64_t(heads) * kTile);
  Fetcher none(nullptr, 0, 0);
  for (int64_t t = from; t < to; t++) {
    dot_any(keys + t * stride, keys + t * stride, query, padded, size, heads, none, dots);
    for (int g = 0; g < heads; g++) out[g * n + t] = dots[g * kTile] * scale;
  }
}

}  // namespace kh
