// Vectors of the level being compiled. GCC/Clang vector extensions everywhere; one intrinsic for each primitive
// that they cannot express.
#pragma once

#include "common.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace kh {

// KH_WIDTH overrides the width: 64 with AVX2 flags tests the logic of the AVX-512 build on a machine without it.
#if defined(KH_WIDTH)
constexpr int kWidth = KH_WIDTH;
#elif defined(__AVX512BW__)
constexpr int kWidth = 64;
#elif defined(__AVX2__)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;
#endif

constexpr int kLanes = kWidth / 4;   // float32 lanes
constexpr int kShorts = kWidth / 2;  // uint16 lanes

template <class T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
using vf = Vector<float, kLanes>::type;
using vi = Vector<int32_t, kLanes>::type;
using vu = Vector<uint32_t, kLanes>::type;
using vu8 = Vector<uint8_t, kWidth>::type;
using vu16 = Vector<uint16_t, kShorts>::type;
using vd = Vector<double, kLanes / 2>::type;
using half_f = Vector<float, kLanes / 2>::type;
using half_u16 = Vector<uint16_t, kLanes>::type;
using quarter_i8 = Vector<int8_t, kLanes>::type;
using quarter_u8 = Vector<uint8_t, kLanes>::type;

template <class V>
inline V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
inline void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class V, class U>
inline V as(U u) {
  static_assert(sizeof(V) == sizeof(U), "same size");
  V v;
  __builtin_memcpy(&v, &u, sizeof v);
  return v;
}
inline vf splat(float x) { return x - vf{}; }

inline vi iota() {
  vi v;
  for (int i = 0; i < kLanes; i++) v[i] = i;
  return v;
}

inline float sum(vf v) {
#if defined(__AVX2__) && !defined(KH_WIDTH)
#if defined(__AVX512F__)
  __m512 w = reinterpret_cast<__m512>(v);
  __m256 all = _mm256_add_ps(_mm512_castps512_ps256(w), _mm512_extractf32x8_ps(w, 1));
#else
  __m256 all = reinterpret_cast<__m256>(v);
#endif
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#endif
  float lanes[kLanes], total = 0;
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return total + lanes[0];
}

// The sums of four vectors; sum h goes to out[h * stride].
inline void sum4(vf a, vf b, vf c, vf d, float* out, int stride) {
#if defined(__AVX2__) && !defined(KH_WIDTH)
#if defined(__AVX512F__)
  auto half = [](vf v) {
    __m512 w = reinterpret_cast<__m512>(v);
    return _mm256_add_ps(_mm512_castps512_ps256(w), _mm512_extractf32x8_ps(w, 1));
  };
#else
  auto half = [](vf v) { return reinterpret_cast<__m256>(v); };
#endif
  __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  float lanes[4];
  _mm_storeu_ps(lanes, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  for (int h = 0; h < 4; h++) out[h * stride] = lanes[h];
#else
  out[0] = sum(a), out[stride] = sum(b), out[2 * stride] = sum(c), out[3 * stride] = sum(d);
#endif
}

inline vf largest(vf a, vf b) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return reinterpret_cast<vf>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  return reinterpret_cast<vf>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#elif defined(__SSE2__) && !defined(KH_WIDTH)
  return reinterpret_cast<vf>(_mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}

inline float largest_of(vf v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
  return lanes[0];
}

// kLanes shorter integers as 32-bit ones; GCC 12 spends four instructions on it by itself.
inline vu widen(const uint16_t* p) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(load<half_u16>(p), vu);
#endif
}

inline vu widen(const uint8_t* p) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(load<quarter_u8>(p), vu);
#endif
}

// Bit i is set where lane i of the mask is all ones.
inline unsigned bits_of(vi mask) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask));
#elif defined(__SSE2__) && !defined(KH_WIDTH)
  return _mm_movemask_ps(reinterpret_cast<__m128>(mask));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; i++) bits |= unsigned(mask[i] & 1) << i;
  return bits;
#endif
}

// Bit i is set where lane i of a is greater than that of b, or not less.
inline unsigned greater(vf a, vf b) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
#else
  return bits_of(a > b);
#endif
}
inline unsigned at_least(vi a, vi b) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return _mm512_cmpge_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#else
  return bits_of(a >= b);
#endif
}

// Writes base + i for each bit i, in order, and returns how many; behind them up to kLanes numbers may be overwritten.
inline int put_places(int32_t* to, int32_t base, unsigned bits) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(base));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(bits), places));
  return __builtin_popcount(bits);
#else
  int count = 0;
  for (; bits; bits &= bits - 1) to[count++] = base + __builtin_ctz(bits);
  return count;
#endif
}

// Copies the lanes of x whose bits are set, in order, and returns how many; behind them up to kLanes may be overwritten.
template <class T>
inline int put_lanes(T* to, const T* x, unsigned bits) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(bits), _mm512_loadu_si512(x)));
  return __builtin_popcount(bits);
#else
  int count = 0;
  for (; bits; bits &= bits - 1) to[count++] = x[__builtin_ctz(bits)];
  return count;
#endif
}

// to[i] = from[at[i] - base] for n numbers, in place where at[i] - base >= i; two bytes behind the last may be read.
inline void take_at(const uint16_t* from, const int32_t* at, int32_t base, int64_t n, uint16_t* to) {
  int64_t i = 0;
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  for (; i < n; i += kLanes) {
    const __mmask16 inside = n - i < kLanes ? __mmask16((1u << (n - i)) - 1) : __mmask16(-1);
    const __m512i places = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(inside, at + i), _mm512_set1_epi32(base));
    const __m512i found = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), inside, places, from, 2);
    _mm512_mask_cvtepi32_storeu_epi16(to + i, inside, found);
  }
#endif
  for (; i < n; i++) to[i] = from[at[i] - base];
}

// A table of 16 bytes, held once for each 16-byte lane of a vector, and its look-up by indexes below 16.
inline vu8 table16(const uint8_t* p) {
  vu8 v;
  using lane = Vector<uint8_t, 16>::type;
  lane l = load<lane>(p);
#if defined(__AVX512BW__) && !defined(KH_WIDTH)
  v = reinterpret_cast<vu8>(_mm512_broadcast_i32x4(reinterpret_cast<__m128i>(l)));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  v = reinterpret_cast<vu8>(_mm256_broadcastsi128_si256(reinterpret_cast<__m128i>(l)));
#else
  for (int i = 0; i < kWidth; i += 16) __builtin_memcpy(reinterpret_cast<char*>(&v) + i, &l, 16);
#endif
  return v;
}
inline vu8 lookup(vu8 table, vu8 index) {
#if defined(__AVX512BW__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu8>(
      _mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(index)));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu8>(
      _mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(index)));
#elif defined(__SSSE3__) && !defined(KH_WIDTH)
  return reinterpret_cast<vu8>(_mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(index)));
#elif defined(__aarch64__)
  return reinterpret_cast<vu8>(vqtbl1q_u8(reinterpret_cast<uint8x16_t>(table), reinterpret_cast<uint8x16_t>(index)));
#else
  vu8 v;
  for (int i = 0; i < kWidth; i++) v[i] = table[index[i]];
  return v;
#endif
}

// 2**x; 2**127 beyond 127, and 2**-126 below -126. Relative error below 3e-7.
inline __attribute__((always_inline)) vf exp2(vf x) {
  const vf high = splat(127.0f);
  x = largest(x, splat(-126.0f));
  x = x < high ? x : high;
  const vf magic = splat(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer
  vf shifted = x + magic;
  vf f = x - (shifted - magic);
  vf p = splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.0f);
  return as<vf>(as<vu>(p) + (as<vu>(shifted) << 23));
}

// tanh to about 1e-6 absolute.
inline vf tanh(vf x) {
  const vf high = splat(15.0f), low = splat(-15.0f);
  x = x < high ? x : high;
  x = x > low ? x : low;
  return 1.0f - 2.0f / (exp2(x * splat(2.885390082f)) + 1.0f);
}

// kLanes elements of any type as float32.
inline vf load_float(const float* p) { return load<vf>(p); }
inline vf load_float(const bf16* p) {
  return as<vf>(widen(&p->bits) << 16);
}
inline vf load_float(const int8_t* p) {
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(KH_WIDTH)
  __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<vf>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
#elif defined(__AVX512F__) && !defined(KH_WIDTH)
  __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return reinterpret_cast<vf>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#else
  return __builtin_convertvector(load<quarter_i8>(p), vf);
#endif
}
inline vf load_float(const fp16* p) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__) && defined(__AVX2__) && !defined(KH_WIDTH)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  vu bits = widen(&p->bits);
  vu sign = (bits & 0x8000u) << 16, body = (bits & 0x7fffu) << 13;
  vf value = as<vf>(body) * splat(5.192296858534828e33f);  // 2**112 moves the exponent bias from 15 to 127
  vi special = as<vi>(body) >= 0x0f800000;                 // infinity and NaN
  vu result = special ? (body | 0x7f800000u) : as<vu>(value);
  return as<vf>(result | sign);
#endif
}

// The same for fewer than kLanes elements; lanes beyond them are 0.
template <class T>
inline vf load_float(const T* p, int count) {
  T padded[kLanes] = {};
  __builtin_memcpy(padded, p, count * sizeof(T));
  return load_float(padded);
}

// Codes d to d + kLanes, unsigned, of a row of them, as float32. A code of 2, 3 or 4 bits stands behind those before
// it, from the lowest bit of a byte on.
template <int Bits>
inline vf load_codes(const uint8_t* row, int d, int count = kLanes) {
  static_assert(Bits == 8 || (Bits >= 2 && Bits <= 4), "bits of a code");
  if constexpr (Bits == 8) {
    uint8_t padded[kLanes] = {};
    if (count < kLanes) __builtin_memcpy(padded, row + d, count);
    return __builtin_convertvector(as<vi>(widen(count < kLanes ? padded : row + d)), vf);
  } else {
    const int first = d * Bits / 8, shift = d * Bits % 8;
    uint64_t bits = 0;
    __builtin_memcpy(&bits, row + first, (shift + count * Bits + 7) / 8);
    bits >>= shift;
    const vu low = vu{} + uint32_t(bits), high = vu{} + uint32_t(bits >> 8 * Bits);
    const vu codes = (kLanes > 8 ? (iota() < 8 ? low : high) : low) >> as<vu>(iota() % 8 * Bits);
    return __builtin_convertvector(as<vi>(codes & ((1u << Bits) - 1)), vf);
  }
}

inline float to_float(float x) { return x; }
inline float to_float(int8_t x) { return x; }
inline float to_float(bf16 x) {
  return as<float>(uint32_t(x.bits) << 16);
}
inline float to_float(fp16 x) {
  vf v = load_float(&x, 1);
  return v[0];
}

inline bf16 to_bf16(float x) {
  uint32_t bits = as<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

// kLanes numbers as float32 or bfloat16, rounded as by to_bf16.
inline void store_float(float* p, vf v) { store(p, v); }
inline void store_float(bf16* p, vf v) {
  const vu bits = as<vu>(v), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  const __mmask16 nan = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(v), _CMP_UNORD_Q);
  const vu quiet = bits >> 16 | 0x40u;
  store(p, _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(reinterpret_cast<__m512i>(rounded), nan, reinterpret_cast<__m512i>(quiet))));
#else
  const vu words = v == v ? rounded : bits >> 16 | 0x40u;
  store(p, __builtin_convertvector(words, half_u16));
#endif
}

}  // namespace kh
