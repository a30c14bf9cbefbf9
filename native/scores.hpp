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
template <class T>
inline void products(const float* query, int64_t padded, int heads, const T* keys, int64_t stride, int64_t from,
                     int64_t to, int size, float scale, float* out, int64_t out_stride) {
  Frame frame;
  float* dots = frame.take<float>(int64_t(heads) * kTile);
  Span next[kTile];
  for (int64_t start = from; start < to; start += kTile) {
    int count = int(std::min<int64_t>(kTile, to - start)), after = int(std::min<int64_t>(kTile, to - start - count));
    for (int i = 0; i < after; i++) next[i] = {keys + (start + kTile + i) * stride, int64_t(size * sizeof(T))};
    Fetcher fetch(next, after);
    for (int i = 0; i < count; i += 2) {
      const T* key = keys + (start + i) * stride;
      dot_any(key, i + 1 < count ? key + stride : key, query, padded, size, heads, fetch, dots + i);
    }
    for (int g = 0; g < heads; g++)
      for (int i = 0; i < count; i++) out[g * out_stride + start + i] = dots[g * kTile + i] * scale;
  }
}

}  // namespace kh
