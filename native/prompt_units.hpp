// Products of blocks of keys and of values with a slice of 16 queries, by what the CPU multiplies bfloat16 with.
//
// Operands are words: a float32 number, or a pair of bfloat16 numbers. A slice is [words][16], so that queries are
// lanes; rows of keys lie as they come. Widened reads values [keys][width], Squares transposed.
#pragma once

#include "amx.hpp"
#include "strided.hpp"
#include "transpose.hpp"

namespace kh::prompt {

constexpr int kKeys = 64;   // of a block: it stays in the first cache, beside sums and logits of a slice
constexpr int kStep = 32;   // keys that are always worked on together

// c[r][slice] (+)= sum over words k of a[r * row + k * word] with b[k][slice], for R rows.
template <int R, bool Add>
inline void multiply(const uint32_t* a, int64_t row, int64_t word, int words, const uint32_t* b, float* c) {
  vf sums[R][kParts];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) sums[r][p] = Add ? load<vf>(c + r * kSlice + p * kLanes) : vf{};
  for (int k = 0; k < words; k++, a += word, b += kSlice) {
    vf x[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) x[p] = load<vf>(b + p * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; p++) sums[r][p] += x[p] * as<float>(a[r * row]);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < kParts; p++) store(c + r * kSlice + p * kLanes, sums[r][p]);
}

struct Widened {
  static constexpr int kGroup = 1;  // numbers of a word
  static int words(int size) { return size; }

  // out[key][slice] of so many keys.
  static void logits(const uint32_t* keys, const uint32_t* queries, int words, int count, float* out) {
    strips(count, [&](int from, auto rows) {
      multiply<rows(), false>(keys + int64_t(from) * words, words, 1, words, queries, out + from * kSlice);
    });
  }
  // acc[channel][slice] += values of so many keys by their weights.
  static void add_values(const uint32_t* values, const uint32_t* weights, int width, int count, float* acc) {
    strips(width, [&](int from, auto rows) {
      multiply<rows(), true>(values + from, 1, width, count, weights, acc + int64_t(from) * kSlice);
    });
  }

  template <class T>
  static void load_row(const T* row, int size, uint32_t* out) {
    int d = 0;
    for (; d + kLanes <= size; d += kLanes) store(out + d, load_float(row + d));
    for (; d < size; d++) out[d] = as<uint32_t>(to_float(row[d]));
  }
  // Values of `count` keys, and zeros up to kKeys.
  template <class T>
  static void load_values(const T* rows, int64_t stride, int count, int size, int width, uint32_t* out) {
    memset(out, 0, sizeof(uint32_t) * kKeys * width);
    for (int j = 0; j < count; j++) load_row(rows + j * stride, size, out + int64_t(j) * width);
  }
  // Weights as words; they may lie where the result is written.
  static void set_weights(int j, int part, vf even, vf odd, uint32_t* out) {
    store(out + j * kSlice + part * kLanes, even), store(out + (j + 1) * kSlice + part * kLanes, odd);
  }
};

#if defined(KH_TILES)

// Tiles of AMX: 16 rows of 16 words, which are pairs of neighbours in rows of numbers.
struct Squares {
  static constexpr int kGroup = 2;
  static int words(int size) { return int(round_up(size, kStep)) / 2; }

  static void load_row(const bf16* row, int size, uint32_t* out) { memcpy(out, row, sizeof(bf16) * size); }
  static void set_weights(int j, int, vf even, vf odd, uint32_t* out) { store(out + j / 2 * kSlice, to_pairs(even, odd)); }

  // Channels [d, d + 16) of two keys, of which one may be missing, as are those from `size` on.
  static vu two_keys(const bf16* rows, int64_t stride, int j, int count, int d, int size) {
    auto channels = [&](int key) {
      if (key >= count) return vu{};
      const bf16* from = rows + key * stride + d;
      if (d + kSlice <= size) return widen(&from->bits);
      uint16_t part[kSlice] = {};
      memcpy(part, from, sizeof(bf16) * (size - d));
      return widen(part);
    };
    return channels(j) | channels(j + 1) << 16;
  }

  static void load_values(const bf16* rows, int64_t stride, int count, int size, int width, uint32_t* out) {
    alignas(64) uint32_t square[kSquare * kSquare];
    for (int j = 0; j < kKeys; j += kStep)
      for (int d = 0; d < width; d += kSquare) {
        for (int i = 0; i < kSquare; i++)
          store(square + i * kSquare, two_keys(rows, stride, j + 2 * i, count, d, size));
        transpose(square, kSquare, out + int64_t(d) * (kKeys / 2) + j / 2, kKeys / 2);
      }
  }

  static void logits(const uint32_t* keys, const uint32_t* queries, int words, int count, float* out) {
    for (int from = 0; from < count; from += 2 * kSquare)
      some_logits(keys + int64_t(from) * words, queries, words, out + from * kSlice);
  }

  static void add_values(const uint32_t* values, const uint32_t* weights, int width, int count, float* acc) {
    int d = 0;
    for (; d + 4 * kSquare <= width; d += 4 * kSquare) add_some<4>(values + d * (kKeys / 2), weights, count, acc + d * kSlice);
    for (; d < width; d += kSquare) add_some<1>(values + d * (kKeys / 2), weights, count, acc + d * kSlice);
  }

 private:
  static constexpr int64_t kRow = kSlice * 4;  // bytes of a slice's words

  static void some_logits(const uint32_t* keys, const uint32_t* queries, int words, float* out) {
    const int64_t row = int64_t(words) * 4;
    tile_zero<0>(), tile_zero<1>();
    for (int k = 0; k < words; k += kSquare) {
      tile_load<4>(queries + k * kSlice, kRow);
      tile_load<5>(keys + k, row), tile_load<6>(keys + kSquare * words + k, row);
      tile_multiply<0, 5, 4>(), tile_multiply<1, 6, 4>();
    }
    tile_store<0>(out, kRow), tile_store<1>(out + kSquare * kSlice, kRow);
  }

  template <int N>
  static void add_some(const uint32_t* values, const uint32_t* weights, int count, float* acc) {
    constexpr int64_t row = kKeys / 2 * 4;
    constexpr int square = kSquare * kSlice, step = kSquare * kKeys / 2;
    tile_load<0>(acc, kRow);
    if (N == 4) tile_load<1>(acc + square, kRow), tile_load<2>(acc + 2 * square, kRow), tile_load<3>(acc + 3 * square, kRow);
    for (int k = 0; k < count / 2; k += kSquare) {
      tile_load<4>(weights + k * kSlice, kRow);
      tile_load<5>(values + k, row), tile_multiply<0, 5, 4>();
      if (N == 4) {
        tile_load<6>(values + step + k, row), tile_multiply<1, 6, 4>();
        tile_load<7>(values + 2 * step + k, row), tile_multiply<2, 7, 4>();
        tile_load<5>(values + 3 * step + k, row), tile_multiply<3, 5, 4>();
      }
    }
    tile_store<0>(acc, kRow);
    if (N == 4) tile_store<1>(acc + square, kRow), tile_store<2>(acc + 2 * square, kRow), tile_store<3>(acc + 3 * square, kRow);
  }
};

#endif

}  // namespace kh::prompt
