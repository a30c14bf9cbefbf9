// Heads of a batch in memory, and strips of rows.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace kh {

// Address, and strides in elements of batch rows, heads and tokens.
struct Strided {
  const void* data;
  int64_t batch, head, row;

  template <class T>
  const T* at(int64_t b, int64_t h, int64_t r) const {
    return static_cast<const T*>(data) + b * batch + h * head + r * row;
  }
};

constexpr int kSlice = 16;               // queries worked on together, which are lanes
constexpr int kParts = kSlice / kLanes;  // vectors of a slice
constexpr int kStrips = 12 / kParts;     // rows worked on together

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

}  // namespace kh
