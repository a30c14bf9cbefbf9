// Sums of table entries of 4-bit codes, four sub-spaces at a time, where the processor looks up bytes among 64 (AVX-512
// VBMI). The sums are those of `scan_nibbles`; the library need not be compiled for it, and asks the processor.
#pragma once

#include "simd.hpp"

namespace kh {

constexpr int64_t kCodesAhead = 4096;  // bytes of codes that are fetched ahead of the scan

#if defined(__AVX512VNNI__) && !defined(KH_WIDTH)
constexpr bool kByQuads = true;

inline bool scans_by_quads() {
  static const bool able = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi") != 0;
  }();
  return able;
}

#define KH_QUADS __attribute__((target("avx512vbmi"), always_inline)) inline

// Of 64 slots: 0-3, 8-11, ... of the first half, then 4-7, 12-15, ...; the same of the second half.
struct Quarters {
  __m512i a, b, c, d;
};

// Indexes of four sub-spaces among 64 entries, from two rows of pairs of codes.
KH_QUADS Quarters quad_indexes(const uint8_t* pair, const uint8_t* other) {
  const __m512i p = _mm512_loadu_si512(pair), q = other ? _mm512_loadu_si512(other) : _mm512_setzero_si512();
  const __m512i first = _mm512_set1_epi64(0x3430242014100400), second = _mm512_set1_epi64(0x3c382c281c180c08);
  const __m512i low = _mm512_set1_epi8(15), table = _mm512_set1_epi32(0x30201000);
  const __m512i even = _mm512_unpacklo_epi16(p, q), odd = _mm512_unpackhi_epi16(p, q);
  auto place = [&](__m512i codes) { return _mm512_ternarylogic_epi32(codes, low, table, 0xea); };
  return {place(_mm512_multishift_epi64_epi8(first, even)), place(_mm512_multishift_epi64_epi8(first, odd)),
          place(_mm512_multishift_epi64_epi8(second, even)), place(_mm512_multishift_epi64_epi8(second, odd))};
}

// Adds four bytes of each lane. Written out since GCC copies, and spills, what the intrinsic adds to.
KH_QUADS void add_four(__m512i& sums, __m512i bytes, __m512i one) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(one));
}

KH_QUADS void add_quads(Quarters& sums, const Quarters& at, const uint8_t* entries) {
  const __m512i table = _mm512_loadu_si512(entries), one = _mm512_set1_epi8(1);
  add_four(sums.a, _mm512_permutexvar_epi8(at.a, table), one);
  add_four(sums.b, _mm512_permutexvar_epi8(at.b, table), one);
  add_four(sums.c, _mm512_permutexvar_epi8(at.c, table), one);
  add_four(sums.d, _mm512_permutexvar_epi8(at.d, table), one);
}

KH_QUADS void store_quads(const Quarters& sums, uint16_t* out) {
  _mm512_storeu_si512(out, _mm512_packus_epi32(sums.a, sums.b));
  _mm512_storeu_si512(out + 32, _mm512_packus_epi32(sums.c, sums.d));
}

// Sums of H heads over one block of `pairs` rows; head h goes to out + h * stride.
template <int H>
__attribute__((target("avx512vbmi"))) void scan_quads(const uint8_t* block, const uint8_t* tables, int pairs,
                                                      uint16_t* out, int64_t stride) {
  const __m512i zero = _mm512_setzero_si512();
  Quarters s0 = {zero, zero, zero, zero}, s1 = s0, s2 = s0, s3 = s0;
  for (int p = 0; p < pairs; p += 2, block += 128, tables += H * 64) {
    const Quarters at = quad_indexes(block, p + 1 < pairs ? block + 64 : nullptr);
    __builtin_prefetch(block + kCodesAhead);
    __builtin_prefetch(block + kCodesAhead + 64);
    add_quads(s0, at, tables);
    if (H > 1) add_quads(s1, at, tables + 64);
    if (H > 2) add_quads(s2, at, tables + 128);
    if (H > 3) add_quads(s3, at, tables + 192);
  }
  store_quads(s0, out);
  if (H > 1) store_quads(s1, out + stride);
  if (H > 2) store_quads(s2, out + 2 * stride);
  if (H > 3) store_quads(s3, out + 3 * stride);
}
#undef KH_QUADS
#else
constexpr bool kByQuads = false;
inline bool scans_by_quads() { return false; }
template <int H>
void scan_quads(const uint8_t*, const uint8_t*, int, uint16_t*, int64_t) {}
#endif

}  // namespace kh
