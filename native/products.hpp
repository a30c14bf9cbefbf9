// Products of a matrix of weights, in the form they are shipped in, with 1 to 16 vectors.
#pragma once

#include "activations.hpp"
#include "dots.hpp"

namespace kh {

enum Packing : int { kDense32 = 0, kDense16 = 1, kPacked8 = 2, kPacked4 = 3, kPacked4Min = 4 };

// y = W x (+ bias): rows are outputs, columns inputs.
//
// Dense forms are row-major, as torch has them. Packed ones are in tiles of 16 rows; missing rows of the last tile
// are 0, as are missing columns of the last group. Within a group of a tile the bytes of 16 rows lie side by side,
// four of a row at a time: int8 [tile, group, 8, 16, 4], 4 bits [tile, group, 4, 16, 4]. Byte b of a row's 16 has
// column b in its low half, column 16 + b in its high half. A weight is
//   kPacked8: scale * code;  kPacked4: scale * (code - 8);  kPacked4Min: scale * code + minimum,
// which are the blocks Q8_0, Q4_0 and Q4_1 of GGUF.
struct Matrix {
  int packing;
  int64_t rows, columns;
  const void* weights;
  int64_t stride;       // of dense forms: elements from row to row
  const fp16* scales;   // [tile, group, 16]
  const fp16* minima;   // [tile, group, 16] of kPacked4Min
  const float* bias;    // [rows] or null
};

constexpr int kTileRows = 16;  // rows of a packed tile; ranges of rows begin at multiples of it

inline bool is_packed(const Matrix& m) { return m.packing >= kPacked8; }

struct RowRange {
  int64_t from, to;
};

// Rows of one of several threads that divide a matrix evenly.
inline RowRange rows_of(const Matrix& m, int thread, int threads) {
  const int64_t tiles = (m.rows + kTileRows - 1) / kTileRows;
  auto edge = [&](int64_t i) { return std::min(m.rows, tiles * i / threads * kTileRows); };
  return {edge(thread), edge(thread + 1)};
}

inline void write(const Matrix& m, const float* sums, int64_t row, int64_t count, float* out) {
  for (int64_t r = 0; r < count; r++) out[row + r] = sums[r] + (m.bias ? m.bias[row + r] : 0.0f);
}

// Products of 4 rows with N vectors; what one of them is depends on nothing but its row and its vector.
template <class T, int N>
inline void multiply_rows(const Matrix& m, const Activations& a, int first, int64_t row, float* out,
                          int64_t out_stride) {
  constexpr int R = 4;
  const T* w[R];
  const int64_t here = std::min<int64_t>(R, m.rows - row), whole = m.columns / kLanes * kLanes;
  for (int r = 0; r < R; r++) w[r] = static_cast<const T*>(m.weights) + (row + std::min<int64_t>(r, here - 1)) * m.stride;
  const float* x = a.x + first * a.stride;
  vf total[N][R] = {};
  auto add = [&](auto read, int64_t i) __attribute__((always_inline)) {
    vf weight[R];
    unroll<R>([&](auto r) { weight[r] = read(w[r] + i); });
    unroll<N>([&](auto v) {
      vf input = read(x + v * a.stride + i);
      unroll<R>([&](auto r) { total[v][r] += weight[r] * input; });
    });
  };
  // The processor's own prefetch would find each row anew; what follows are the rows behind these.
  const int64_t behind = R * m.stride;
  for (int64_t i = 0; i < whole; i += kLanes) {
    if (i * sizeof(T) % 64 == 0)
      for (int r = 0; r < R; r++) __builtin_prefetch(w[r] + behind + i, 0, sizeof(T) == 4 ? 2 : 3);
    add([](auto* p) { return load_float(p); }, i);
  }
  const int left = int(m.columns - whole);
  if (left) add([left](auto* p) { return load_float(p, left); }, whole);
  unroll<N>([&](auto v) {
    float sums[R];
    sum4(total[v][0], total[v][1], total[v][2], total[v][3], sums, 1);
    write(m, sums, row, here, out + (first + v) * out_stride);
  });
}

// Asks for the codes of a group some way ahead: where a tile ends, those of the tile that comes K tiles later.
template <int K, int Bytes>
inline void fetch_group(const uint8_t* tile, int64_t group, int64_t groups) {
  constexpr int64_t ahead = 2048 / Bytes;
  const int64_t next = group + ahead < groups ? group + ahead : group + ahead + (K - 1) * groups;
  for (int64_t i = 0; i < Bytes; i += 64) __builtin_prefetch(tile + next * Bytes + i, 0, 3);
}

// Products of the rows of K tiles with N vectors. One stream of bytes alone is not read at the memory's speed.
template <int Form, int N, int K>
inline void multiply_tiles(const Matrix& m, const Activations& a, int first, int64_t row, float* out,
                           int64_t out_stride) {
  using Reader = Dots<Form == kPacked8 ? 8 : 4>;
  constexpr int parts = kTileRows / kLanes, bytes = kTileRows * kGroupColumns * Reader::bits / 8;
  const int64_t start = row / kTileRows * a.groups;
  const uint8_t* codes = static_cast<const uint8_t*>(m.weights) + start * bytes;
  vf total[K][N][parts] = {};
  for (int64_t g = 0; g < a.groups; g++) {
    unroll<K>([&](auto k) {
      const int64_t group = k * a.groups + g;
      fetch_group<K, bytes>(codes + k * a.groups * bytes, g, a.groups);
      unroll<parts>([&](auto part) {
        const int64_t range = (start + group) * kTileRows + part * kLanes;
        const Reader reader(codes + group * bytes + part * kWidth);
        const vf scale = load_float(m.scales + range);
        unroll<N>([&](auto v) {
          const int64_t at = (first + v) * a.groups + g;
          vi dots = reader.with(a.codes + at * kGroupColumns, a.totals[at]);
          if (Form == kPacked4) dots -= 8 * a.totals[at];
          total[k][v][part] += __builtin_convertvector(dots, vf) * (scale * splat(a.scales[at]));
          if (Form == kPacked4Min) total[k][v][part] += load_float(m.minima + range) * splat(a.sums[at]);
        });
      });
    });
  }
  unroll<K>([&](auto k) {
    const int64_t from = row + k * kTileRows, here = std::min<int64_t>(kTileRows, m.rows - from);
    unroll<N>([&](auto v) {
      float sums[kTileRows];
      unroll<parts>([&](auto part) { store(sums + part * kLanes, total[k][v][part]); });
      write(m, sums, from, here, out + (first + v) * out_stride);
    });
  });
}

constexpr int kTiles = kWidth == 16 ? 1 : 4;  // read side by side for a single vector

// Products of the rows [from, to) with N vectors, of which there are at most kTiles tiles.
template <int Form, int N>
inline void multiply_packed(const Matrix& m, const Activations& a, int first, int64_t from, int64_t to, float* out,
                            int64_t stride) {
  if (N == 1 && to - from > (kTiles - 1) * kTileRows)
    return multiply_tiles<Form, N, N == 1 ? kTiles : 1>(m, a, first, from, out, stride);
  for (int64_t row = from; row < to; row += kTileRows) multiply_tiles<Form, N, 1>(m, a, first, row, out, stride);
}

template <class T, int N>
inline void multiply_dense(const Matrix& m, const Activations& a, int first, int64_t from, int64_t to, float* out,
                           int64_t stride) {
  for (int64_t row = from; row < to; row += 4) multiply_rows<T, N>(m, a, first, row, out, stride);
}

template <int N>
inline void multiply_some(const Matrix& m, const Activations& a, int first, int64_t from, int64_t to, float* out,
                          int64_t stride) {
  switch (m.packing) {
    case kDense32: return multiply_dense<float, N>(m, a, first, from, to, out, stride);
    case kDense16: return multiply_dense<bf16, N>(m, a, first, from, to, out, stride);
    case kPacked8: return multiply_packed<kPacked8, N>(m, a, first, from, to, out, stride);
    case kPacked4: return multiply_packed<kPacked4, N>(m, a, first, from, to, out, stride);
    default: return multiply_packed<kPacked4Min, N>(m, a, first, from, to, out, stride);
  }
}

// out[i * out_stride + row] = (W x[i])[row] for the rows [from, to) of all vectors; `from` is a multiple of 16, `to`
// too unless it is the last row's end. One thread's part: it allocates nothing and calls no other thread.
// Packed forms read the codes of the activations, dense ones only x.
//
// Against exact arithmetic with the weights as they are: for each row, with W its magnitudes, at most
// sum over groups of (max|x| / 254 * sum W) for packed forms, and rounding of float32 sums.
inline void multiply(const Matrix& m, const Activations& a, float* out, int64_t out_stride, int64_t from, int64_t to) {
  constexpr int side = kWidth == 64 ? 4 : 2;
  for (int64_t row = from; row < to; row += kTiles * kTileRows) {
    const int64_t end = std::min<int64_t>(to, row + kTiles * kTileRows);
    int i = 0;
    for (; i + side <= a.count; i += side) multiply_some<side>(m, a, i, row, end, out, out_stride);
    if (side == 4 && i + 2 <= a.count) multiply_some<2>(m, a, i, row, end, out, out_stride), i += 2;
    if (i < a.count) multiply_some<1>(m, a, i, row, end, out, out_stride);
  }
}

// Products of several matrices with the same vectors, in one parallel region; out[k] is [count, rows of matrix k].
inline int multiply_all(const Matrix* const* matrices, int count, const float* x, int64_t stride, int vectors,
                        float* const* out, int threads) {
  Frame frame;
  const Activations a = activations(x, stride, vectors, matrices[0]->columns, frame);
  bool packed = false;
  int64_t tiles = 0;
  for (int k = 0; k < count; k++) packed |= is_packed(*matrices[k]), tiles += (matrices[k]->rows + kTileRows - 1) / kTileRows;
  if (packed) quantise(a, 0, a.groups);
  const int64_t blocks = (tiles + kTiles - 1) / kTiles, rows = kTiles * kTileRows;
  const int64_t pieces = std::min<int64_t>(blocks, threads > 1 ? 4 * threads : 1);
  return parallel(pieces, threads, [&](int64_t piece) {
    int64_t from = blocks * piece / pieces * rows, to = blocks * (piece + 1) / pieces * rows;
    for (int k = 0; k < count; k++) {
      const int64_t all = round_up(matrices[k]->rows, kTileRows), first = std::max<int64_t>(from, 0), last = std::min(to, all);
      if (first < last)
        multiply(*matrices[k], a, out[k], matrices[k]->rows, first, std::min(last, matrices[k]->rows));
      from -= all, to -= all;
    }
    return int(kOk);
  });
}

}  // namespace kh
