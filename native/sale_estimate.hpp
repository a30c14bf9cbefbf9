// Estimates of logits from small integers: which keys of a block some query of a tile may need (SALE).
//
// Queries are lanes, keys are repeated over a vector, so a threshold for each query costs nothing. Sums are kept in
// 16 bits where the machine multiplies bytes into 16 bits; the number of levels makes sure that they fit.
#pragma once

#include "strided.hpp"

namespace kh::sale {

constexpr int kTileRows = 64;   // queries of a tile
constexpr int kSlices = kTileRows / kSlice;
constexpr int kBlockKeys = 32;  // keys of a block, a bit of a word each
constexpr int kScaleKeys = 16;  // keys that share a scale

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(KH_WIDTH)
constexpr int kSumGroup = 4;
constexpr bool kKeysUnsigned = true;
using Sum = vi;
inline Sum add_products(Sum sum, int32_t key, Sum query) {
  return reinterpret_cast<Sum>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), _mm512_set1_epi32(key), reinterpret_cast<__m512i>(query)));
}
#elif defined(__SSSE3__) && !defined(__AVX512BW__) && !defined(KH_WIDTH)
constexpr int kSumGroup = 2;
constexpr bool kKeysUnsigned = true;
using Sum = Vector<int16_t, kShorts>::type;
inline Sum add_products(Sum sum, int32_t key, Sum query) {
#if defined(__AVX2__)
  return sum + reinterpret_cast<Sum>(_mm256_maddubs_epi16(_mm256_set1_epi32(key), reinterpret_cast<__m256i>(query)));
#else
  return sum + reinterpret_cast<Sum>(_mm_maddubs_epi16(_mm_set1_epi32(key), reinterpret_cast<__m128i>(query)));
#endif
}
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int kSumGroup = 4;
constexpr bool kKeysUnsigned = false;
using Sum = vi;
inline Sum add_products(Sum sum, int32_t key, Sum query) {
  return reinterpret_cast<Sum>(vdotq_s32(reinterpret_cast<int32x4_t>(sum),
                                         vreinterpretq_s8_s32(vdupq_n_s32(key)), reinterpret_cast<int8x16_t>(query)));
}
#else
constexpr int kSumGroup = 1;
constexpr bool kKeysUnsigned = false;
using Sum = vi;
inline Sum add_products(Sum sum, int32_t key, Sum query) { return sum + key * query; }
#endif

using SumLane = std::remove_reference_t<decltype(Sum{}[0])>;
constexpr int kSumLanes = sizeof(Sum) / sizeof(SumLane);
constexpr int kSumVectors = kTileRows / kSumLanes;
using SumByte = std::conditional_t<kSumGroup == 1, int32_t, int8_t>;

inline int64_t sum_groups(int size) { return round_up(size, 4) / kSumGroup; }

inline bool any_lane(Sum mask) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__) && !defined(KH_WIDTH)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)) != 0;
#elif defined(__SSE2__) && !defined(KH_WIDTH)
  return _mm_movemask_epi8(reinterpret_cast<__m128i>(mask)) != 0;
#else
  int64_t words[sizeof(Sum) / 8], any = 0;
  store(words, mask);
  for (int64_t word : words) any |= word;
  return any != 0;
#endif
}

// Queries of one tile as integers, -levels to levels; `data` [groups][64][group], `base` what sums start from.
struct SmallQueries {
  SumByte* data;
  SumLane* base;     // [64]
  float* threshold;  // [64], in units of the query's and a key's step of 1
  int64_t groups;

  SmallQueries() = default;
  SmallQueries(int size, Frame& frame) : groups(sum_groups(size)) {
    data = frame.take<SumByte>(groups * kSumGroup * kTileRows);
    base = frame.take<SumLane>(kTileRows);
    threshold = frame.take<float>(kTileRows);
  }

  // Takes in query `row`, times `inverse` of its step.
  void set(int row, const float* query, int size, float inverse, int levels) const {
    int32_t total = 0;
    for (int64_t d = 0; d < groups * kSumGroup; d++) {
      int x = d < size ? int(std::nearbyint(query[d] * inverse)) : 0;
      data[(d / kSumGroup * kTileRows + row) * kSumGroup + d % kSumGroup] = SumByte(x);
      total += x;
    }
    base[row] = SumLane(kKeysUnsigned ? -levels * total : 0);
  }
};

// Keys of some blocks as integers, repeated as vectors will repeat them, and their inverse steps.
struct SmallKeys {
  int32_t* data;   // [key][groups]
  float* inverse;  // [key / kScaleKeys]
  int64_t groups;
  int levels;

  SmallKeys(int64_t keys, int size, int levels, Frame& frame) : groups(sum_groups(size)), levels(levels) {
    data = frame.take<int32_t>(keys * groups);
    inverse = frame.take<float>(keys / kScaleKeys);
  }

  // Takes in kScaleKeys rows less the mean, as keys `at` and on.
  template <class T>
  void set(int64_t at, const T* rows, int64_t stride, const float* mean, int size) const {
    Frame frame;
    int64_t padded = round_up(size, 16);
    float* shifted = frame.take<float>(kScaleKeys * padded);
    int32_t* whole = frame.take<int32_t>(padded);
    vf most{};
    for (int i = 0; i < kScaleKeys; i++)
      for (int d = 0; d < padded; d += kLanes) {
        int left = size - d;
        vf x{};
        if (left > 0) {
          x = left >= kLanes ? load_float(rows + i * stride + d) : load_float(rows + i * stride + d, left);
          x -= load<vf>(mean + d);
        }
        most = largest(most, largest(x, -x));
        store(shifted + i * padded + d, x);
      }
    float high = 0;
    for (int i = 0; i < kLanes; i++) high = std::max(high, float(most[i]));
    float step = high > 0 ? high / float(levels) : 1.0f;
    inverse[at / kScaleKeys] = 1.0f / step;
    for (int i = 0; i < kScaleKeys; i++) write(data + (at + i) * groups, shifted + i * padded, 1.0f / step, padded, whole);
  }

 private:
  void write(int32_t* to, const float* x, float inverse, int64_t padded, int32_t* whole) const {
    const vf magic = splat(12582912.0f);  // adding it rounds to an integer
    const vi offset = (kKeysUnsigned ? levels : 0) - as<vi>(magic);
    for (int64_t d = 0; d < padded; d += kLanes) store(whole + d, as<vi>(load<vf>(x + d) * inverse + magic) + offset);
    auto byte = [&](int64_t d) { return uint32_t(whole[d]) & 255; };
    for (int64_t g = 0; g < groups; g++) {
      if (kSumGroup == 1) to[g] = whole[g];
      if (kSumGroup == 2) to[g] = int32_t((byte(2 * g) | byte(2 * g + 1) << 8) * 0x10001u);
      if (kSumGroup == 4)
        to[g] = int32_t(byte(4 * g) | byte(4 * g + 1) << 8 | byte(4 * g + 2) << 16 | byte(4 * g + 3) << 24);
    }
  }
};

// Thresholds of integer sums for one step of keys: a sum passes where it is larger.
inline void round_thresholds(const float* thresholds, float inverse, SumLane* out) {
  using Narrow = typename Vector<SumLane, kLanes>::type;
  const vf high = splat(32767.0f), low = splat(-32768.0f);
  for (int i = 0; i < kTileRows; i += kLanes) {
    vf t = load<vf>(thresholds + i) * inverse;
    t = t < high ? t : high;
    t = t > low ? t : low;
    vi whole = __builtin_convertvector(t, vi);
    whole += __builtin_convertvector(whole, vf) > t;  // towards minus infinity
    store(out + i, __builtin_convertvector(whole, Narrow));
  }
}

// A vector that is loaded into a register even where an instruction could read it from memory, and would twice.
template <class V>
inline V load_once(const void* p) {
  V v = load<V>(p);
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  __asm__("" : "+v"(v));
#elif defined(__SSE2__) && !defined(KH_WIDTH)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// Sets bits `at` and at + 1 of the words of those slices of which a query lets the first or second of two keys pass.
inline void pass_pair(const SmallQueries& q, const int32_t* keys, const SumLane* thresholds, int at, uint32_t* words) {
  constexpr int kAtOnce = kSumVectors < 4 ? kSumVectors : 4;
  const int32_t *a = keys, *b = keys + q.groups;
  for (int v = 0; v < kSumVectors; v += kAtOnce) {
    Sum left[kAtOnce], right[kAtOnce];
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; i++) left[i] = right[i] = load<Sum>(q.base + (v + i) * kSumLanes);
    const SumByte* data = q.data + v * kSumLanes * kSumGroup;
    for (int64_t g = 0; g < q.groups; g++, data += kTileRows * kSumGroup) {
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; i++) {
        Sum query = load_once<Sum>(data + i * kSumLanes * kSumGroup);
        left[i] = add_products(left[i], a[g], query);
        right[i] = add_products(right[i], b[g], query);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kAtOnce; i++) {
      Sum t = load<Sum>(thresholds + (v + i) * kSumLanes);
      uint32_t both = uint32_t(any_lane(left[i] > t)) | uint32_t(any_lane(right[i] > t)) << 1;
      words[(v + i) * kSumLanes / kSlice] |= both << at;
    }
  }
}

// Bit i of a slice's word is set where key `at` + i of a block passes for any of its queries.
inline void passing(const SmallQueries& queries, const SmallKeys& keys, int64_t at, uint32_t* words) {
  alignas(64) SumLane thresholds[kTileRows];
  std::fill(words, words + kSlices, 0);
  for (int i = 0; i < kBlockKeys; i += 2) {
    if (i % kScaleKeys == 0) round_thresholds(queries.threshold, keys.inverse[(at + i) / kScaleKeys], thresholds);
    pass_pair(queries, keys.data + (at + i) * keys.groups, thresholds, i, words);
  }
}

// Sets all bits of each run of `width` bits of which one is set; width is a power of two.
inline uint32_t whole_runs(uint32_t word, int width) {
  if (width == 32) return word ? ~uint32_t(0) : 0;
  uint32_t ones = (uint32_t(1) << width) - 1, starts = ~uint32_t(0) / ones;
  for (int shift = width / 2; shift; shift /= 2) word |= word >> shift;
  return (word & starts) * ones;
}

}  // namespace kh::sale
