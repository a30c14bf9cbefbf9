// Products of int8 tiles into int32, exact.
#pragma once

#include "simd.hpp"

namespace kh {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(KH_WIDTH)

constexpr int kDotStep = 64;
using DotSum = __m512i;
inline DotSum dot_zero() { return _mm512_setzero_si512(); }
// a is moved to unsigned by adding 128; `correction` takes the surplus 128 * sum(b) away again.
inline DotSum dot_step(DotSum sum, const int8_t* a, const int8_t* b) {
  __m512i moved = _mm512_xor_si512(_mm512_loadu_si512(a), _mm512_set1_epi8(char(0x80)));
  return _mm512_dpbusd_epi32(sum, moved, _mm512_loadu_si512(b));
}
inline int32_t dot_total(DotSum sum) { return _mm512_reduce_add_epi32(sum); }
inline int32_t correction(const int8_t* b, int size) {
  int32_t total = 0;
  for (int i = 0; i < size; i++) total += b[i];
  return -128 * total;
}

#elif defined(__AVX2__) && !defined(KH_WIDTH)

constexpr int kDotStep = 16;
using DotSum = __m256i;
inline DotSum dot_zero() { return _mm256_setzero_si256(); }
inline DotSum dot_step(DotSum sum, const int8_t* a, const int8_t* b) {
  __m256i wide_a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
  __m256i wide_b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(wide_a, wide_b));
}
inline int32_t dot_total(DotSum sum) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
inline int32_t correction(const int8_t*, int) { return 0; }

#else

constexpr int kDotStep = 16;
using DotSum = int32_t;
inline DotSum dot_zero() { return 0; }
inline DotSum dot_step(DotSum sum, const int8_t* a, const int8_t* b) {
#if defined(__aarch64__)
  int16x8_t low = vmull_s8(vld1_s8(a), vld1_s8(b)), high = vmull_s8(vld1_s8(a + 8), vld1_s8(b + 8));
  return sum + vaddlvq_s16(low) + vaddlvq_s16(high);
#else
  for (int i = 0; i < kDotStep; i++) sum += int32_t(a[i]) * b[i];
  return sum;
#endif
}
inline int32_t dot_total(DotSum sum) { return sum; }
inline int32_t correction(const int8_t*, int) { return 0; }

#endif

// One row of a against four rows of b, which lie `stride` apart.
inline void dot_four(const int8_t* a, const int8_t* b, int64_t stride, int size, int32_t* out) {
  DotSum s0 = dot_zero(), s1 = dot_zero(), s2 = dot_zero(), s3 = dot_zero();
  for (int i = 0; i < size; i += kDotStep) {
    s0 = dot_step(s0, a + i, b + i);
    s1 = dot_step(s1, a + i, b + stride + i);
    s2 = dot_step(s2, a + i, b + 2 * stride + i);
    s3 = dot_step(s3, a + i, b + 3 * stride + i);
  }
  out[0] = dot_total(s0), out[1] = dot_total(s1), out[2] = dot_total(s2), out[3] = dot_total(s3);
}

// out [I, J] = a [I, D] times b [J, D] transposed. Rows are copied to zero padding first, a panel of b at a time.
inline void dot_tile(const int8_t* a, const int8_t* b, int64_t rows, int64_t columns, int size, int32_t* out,
                     int64_t out_stride) {
  Frame frame;
  int64_t padded = round_up(size, kDotStep), panel = 64;
  int8_t* left = frame.take<int8_t>(padded);
  int8_t* right = frame.take<int8_t>(padded * panel);
  int32_t* corrections = frame.take<int32_t>(panel);
  memset(left, 0, padded);
  memset(right, 0, padded * panel);
  for (int64_t j = 0; j < columns; j += panel) {
    int64_t count = std::min(panel, columns - j);
    for (int64_t c = 0; c < count; c++) {
      memcpy(right + c * padded, b + (j + c) * size, size);
      corrections[c] = correction(right + c * padded, size);
    }
    for (int64_t i = 0; i < rows; i++) {
      memcpy(left, a + i * size, size);
      for (int64_t c = 0; c < count; c += 4) {
        int32_t four[4];
        dot_four(left, right + c * padded, padded, int(padded), four);
        for (int64_t e = 0; e < std::min<int64_t>(4, count - c); e++)
          out[i * out_stride + j + c + e] = four[e] + corrections[c + e];
      }
    }
  }
}

}  // namespace kh
