// Rows of a packed matrix as ordinary numbers.
#pragma once

#include "products.hpp"

namespace kh {

// The 32 codes of a row in one group of its tile. Bytes are put together in registers: a vector would wait for what
// was stored in pieces.
inline void row_codes(const Matrix& m, const uint8_t* group, int64_t lane, int8_t* codes) {
  using Bytes = Vector<uint8_t, 16>::type;
  using Words = Vector<uint32_t, 4>::type;
  auto four = [&](int unit) {
    const uint8_t* at = group + 64 * unit + 4 * lane;
    return as<Bytes>(Words{load<uint32_t>(at), load<uint32_t>(at + 64), load<uint32_t>(at + 128), load<uint32_t>(at + 192)});
  };
  if (m.packing == kPacked8) return store(codes, four(0)), store(codes + 16, four(4));
  const Bytes both = four(0);
  const uint8_t less = m.packing == kPacked4 ? 8 : 0;
  store(codes, (both & 15) - less), store(codes + 16, (both >> 4) - less);
}

template <class T>
inline void unpack_row(const Matrix& m, int64_t row, T* out) {
  const int64_t groups = groups_of(m.columns), tile = row / kTileRows, lane = row % kTileRows;
  const int64_t bytes = kTileRows * kGroupColumns * (m.packing == kPacked8 ? 8 : 4) / 8;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t at = tile * groups + g, left = m.columns - g * kGroupColumns;
    int8_t codes[kGroupColumns];
    row_codes(m, static_cast<const uint8_t*>(m.weights) + at * bytes, lane, codes);
    const vf scale = splat(to_float(m.scales[at * kTileRows + lane]));
    const vf low = m.packing == kPacked4Min ? splat(to_float(m.minima[at * kTileRows + lane])) : vf{};
    T padded[kGroupColumns];
    T* to = left < kGroupColumns ? padded : out + g * kGroupColumns;
    for (int i = 0; i < kGroupColumns; i += kLanes) store_float(to + i, load_float(codes + i) * scale + low);
    if (left < kGroupColumns) memcpy(out + g * kGroupColumns, padded, left * sizeof(T));
  }
}

// out[i] = row rows[i] of the matrix, or row i where there are no `rows`.
template <class T>
inline int unpack(const Matrix& m, const int64_t* rows, int64_t first, int64_t count, T* out, int threads) {
  for (int64_t i = 0; rows && i < count; i++)
    if (rows[i] < 0 || rows[i] >= m.rows) return kBadSlot;
  constexpr int64_t step = 64;
  return parallel((count + step - 1) / step, count > step ? threads : 1, [&](int64_t piece) {
    for (int64_t i = piece * step; i < std::min(count, (piece + 1) * step); i++)
      unpack_row(m, rows ? rows[i] : first + i, out + i * m.columns);
    return int(kOk);
  });
}

}  // namespace kh
