// Products of int8 tiles into int32, exact for all values.
//
// One step multiplies a small group of consecutive elements of one row of `a`, repeated over a vector, with the
// same group of kLanes rows of `b`, and adds each group's sum to a 32-bit lane.
#pragma once

#include "simd.hpp"

namespace kh {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(KH_WIDTH)
constexpr int kDotGroup = 4;
using Packed = int8_t;
constexpr int kOffset = 128;  // makes `a` unsigned; what it adds to the products is taken off at the end
inline vi dot_groups(vi sum, int32_t a, vi b) {
  return reinterpret_cast<vi>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), _mm512_set1_epi32(a), reinterpret_cast<__m512i>(b)));
}
#elif defined(__SSE2__)
constexpr int kDotGroup = 2;
using Packed = int16_t;
constexpr int kOffset = 0;
inline vi dot_groups(vi sum, int32_t a, vi b) {
#if defined(__AVX2__) && !defined(KH_WIDTH)
  return sum + reinterpret_cast<vi>(_mm256_madd_epi16(_mm256_set1_epi32(a), reinterpret_cast<__m256i>(b)));
#elif !defined(KH_WIDTH)
  return sum + reinterpret_cast<vi>(_mm_madd_epi16(_mm_set1_epi32(a), reinterpret_cast<__m128i>(b)));
#else
  vi high = b >> 16, low = (b << 16) >> 16;
  return sum + low * int32_t(int16_t(a)) + high * (a >> 16);
#endif
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kDotGroup = 4;
using Packed = int8_t;
constexpr int kOffset = 0;
inline vi dot_groups(vi sum, int32_t a, vi b) {
  int8x16_t repeated = vreinterpretq_s8_s32(vdupq_n_s32(a));
  return reinterpret_cast<vi>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), repeated, reinterpret_cast<int8x16_t>(b)));
}
#else
constexpr int kDotGroup = 1;
using Packed = int32_t;
constexpr int kOffset = 0;
inline vi dot_groups(vi sum, int32_t a, vi b) { return sum + a * b; }
#endif

constexpr int kPanel = 2 * kLanes;  // rows of b worked on together
constexpr int kStrip = 6;           // rows of a worked on together

// b [J, D] as panels [J / kPanel][D / group][kPanel][group], zero padded, and for each row the surplus of the offset.
struct Panels {
  int64_t columns, padded;  // D rounded up to whole groups
  int size;
  Packed* data;
  int32_t* surplus;

  Panels(int64_t columns, int size, Frame& frame) : columns(columns), padded(round_up(size, kDotGroup)), size(size) {
    data = frame.take<Packed>(count() * kPanel * padded);
    surplus = frame.take<int32_t>(count() * kPanel);
  }
  int64_t count() const { return (columns + kPanel - 1) / kPanel; }

  void pack(const int8_t* b, int64_t panel) const {
    Packed* to = data + panel * kPanel * padded;
    memset(to, 0, sizeof(Packed) * kPanel * padded);
    for (int j = 0; j < kPanel; j++) {
      int64_t row = panel * kPanel + j;
      int32_t total = 0;
      for (int i = 0; i < size && row < columns; i++) {
        int8_t x = b[row * size + i];
        to[(i / kDotGroup * kPanel + j) * kDotGroup + i % kDotGroup] = x;
        total += x;
      }
      surplus[row] = kOffset * total;
    }
  }
};

// out[r][0, kPanel) for kStrip rows of packed `a`, `padded` elements apart.
inline void dot_strip(const Packed* a, const Packed* panel, int64_t padded, int32_t* out) {
  vi left[kStrip], right[kStrip];
#pragma GCC unroll 6
  for (int r = 0; r < kStrip; r++) left[r] = right[r] = vi{};
  for (int64_t k = 0; k < padded; k += kDotGroup) {
    vi b0 = load<vi>(panel + k * kPanel), b1 = load<vi>(panel + k * kPanel + kLanes * kDotGroup);
#pragma GCC unroll 6
    for (int r = 0; r < kStrip; r++) {
      int32_t group;
      __builtin_memcpy(&group, a + r * padded + k, sizeof group);
      left[r] = dot_groups(left[r], group, b0);
      right[r] = dot_groups(right[r], group, b1);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kStrip; r++) {
    store(out + r * kPanel, left[r]);
    store(out + r * kPanel + kLanes, right[r]);
  }
}

// out [rows, columns] = a [rows, size] times the panels.
inline void dot_rows_panels(const int8_t* a, int64_t rows, const Panels& b, int32_t* out) {
  Frame frame;
  Packed* strip = frame.take<Packed>(kStrip * b.padded);
  int32_t products[kStrip * kPanel];
  for (int64_t i = 0; i < rows; i += kStrip) {
    int64_t count = std::min<int64_t>(kStrip, rows - i);
    memset(strip, 0, sizeof(Packed) * kStrip * b.padded);
    for (int64_t r = 0; r < count; r++)
      for (int d = 0; d < b.size; d++) strip[r * b.padded + d] = Packed(a[(i + r) * b.size + d] + kOffset);
    for (int64_t panel = 0; panel < b.count(); panel++) {
      dot_strip(strip, b.data + panel * kPanel * b.padded, b.padded, products);
      int64_t from = panel * kPanel, width = std::min<int64_t>(kPanel, b.columns - from);
      for (int64_t r = 0; r < count; r++)
        for (int64_t j = 0; j < width; j++)
          out[(i + r) * b.columns + from + j] = products[r * kPanel + j] - b.surplus[from + j];
    }
  }
}

inline int int8_dot(const int8_t* a, const int8_t* b, int64_t rows, int64_t columns, int size, int32_t* out,
                    int threads) {
  Frame frame;
  Panels panels(columns, size, frame);
  parallel(panels.count(), threads, [&](int64_t panel) {
    panels.pack(b, panel);
    return int(kOk);
  });
  constexpr int64_t step = 8 * kStrip;
  return parallel((rows + step - 1) / step, threads, [&](int64_t piece) {
    int64_t from = piece * step;
    dot_rows_panels(a + from * size, std::min(step, rows - from), panels, out + from * columns);
    return int(kOk);
  });
}

}  // namespace kh
