// Integer products of packed weights with codes of a vector, exact.
#pragma once

#include <utility>

#include "simd.hpp"

namespace kh {

// Calls body(0), ..., body(N - 1) with constants: arrays of vectors indexed by them stay in registers.
template <class Body, int... I>
inline __attribute__((always_inline)) void unroll_over(const Body& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}
template <int N, class Body>
inline __attribute__((always_inline)) void unroll(const Body& body) {
  unroll_over(body, std::make_integer_sequence<int, N>{});
}

// Four bytes of a vector, in every lane.
inline vi four(const int8_t* x) {
  int32_t bytes;
  memcpy(&bytes, x, 4);
  return vi{} + bytes;
}

// total + the four products of unsigned and signed bytes in each lane. Pairs of products have to fit 16 bits.
inline vi add_products(vi total, vu8 left, vi right) {
#if defined(__AVX512VNNI__) && !defined(KH_WIDTH)
  return reinterpret_cast<vi>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(total), reinterpret_cast<__m512i>(left),
                                                  reinterpret_cast<__m512i>(right)));
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  __m256i pairs = _mm256_maddubs_epi16(reinterpret_cast<__m256i>(left), reinterpret_cast<__m256i>(right));
  return total + reinterpret_cast<vi>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#elif defined(__SSSE3__) && !defined(KH_WIDTH)
  __m128i pairs = _mm_maddubs_epi16(reinterpret_cast<__m128i>(left), reinterpret_cast<__m128i>(right));
  return total + reinterpret_cast<vi>(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
#else
  vu l = as<vu>(left);
  for (int shift = 0; shift < 32; shift += 8) total += as<vi>(l >> shift & 255u) * (right << (24 - shift) >> 24);
  return total;
#endif
}

// Whether `add_signed` multiplies left + 128, so that 128 times the sum of all that is right has to be subtracted.
#if defined(__AVX512VNNI__) && !defined(KH_WIDTH)
constexpr bool kShifted = true;
#else
constexpr bool kShifted = false;
#endif

// The same with signed bytes on both sides, of which the right ones are not -128.
inline vi add_signed(vi total, vu8 left, vi right) {
#if defined(__AVX512VNNI__) && !defined(KH_WIDTH)
  return add_products(total, left ^ uint8_t(128), right);
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  __m256i l = reinterpret_cast<__m256i>(left);
  return add_products(total, reinterpret_cast<vu8>(_mm256_abs_epi8(l)),
                      reinterpret_cast<vi>(_mm256_sign_epi8(reinterpret_cast<__m256i>(right), l)));
#elif defined(__SSSE3__) && !defined(KH_WIDTH)
  __m128i l = reinterpret_cast<__m128i>(left);
  return add_products(total, reinterpret_cast<vu8>(_mm_abs_epi8(l)),
                      reinterpret_cast<vi>(_mm_sign_epi8(reinterpret_cast<__m128i>(right), l)));
#else
  vi l = as<vi>(left);
  for (int shift = 0; shift < 32; shift += 8) total += (l << (24 - shift) >> 24) * (right << (24 - shift) >> 24);
  return total;
#endif
}

// The weights of kLanes rows of a packed group; units of four columns are 64 bytes apart.
template <int Bits>
struct Dots;

template <>
struct Dots<4> {
  static constexpr int bits = 4;
  vu8 unit[8];

  explicit Dots(const uint8_t* codes) {
    unroll<4>([&](auto u) {
      vu8 both = load<vu8>(codes + 64 * u);
      unit[u] = both & uint8_t(15);
      unit[u + 4] = as<vu8>(as<vu16>(both) >> 4) & uint8_t(15);
    });
  }
  // Products with the 32 codes of a vector.
  vi with(const int8_t* x, int32_t) const {
    vi total{};
    unroll<8>([&](auto u) { total = add_products(total, unit[u], four(x + 4 * u)); });
    return total;
  }
};

template <>
struct Dots<8> {
  static constexpr int bits = 8;
  vu8 unit[8];

  explicit Dots(const uint8_t* codes) {
    unroll<8>([&](auto u) { unit[u] = load<vu8>(codes + 64 * u); });
  }
  vi with(const int8_t* x, int32_t sum) const {
    vi total = vi{} - (kShifted ? 128 * sum : 0);
    unroll<8>([&](auto u) { total = add_signed(total, unit[u], four(x + 4 * u)); });
    return total;
  }
};

}  // namespace kh
