// What the streaming choice of slots works with: logits as functions of integer sums, and the slots kept so far.
// Logits are in units of log 2; an `offset` is added to them before 2**x.
#pragma once

#include <type_traits>

#include "scan.hpp"

namespace kh {

constexpr int kChunk = 1024;
constexpr double kNone = -INFINITY;

// Logit of one head as a function of its integer sum.
struct Curve {
  float mul, add, cap;  // cap 0: mul * s + add; else cap * tanh(mul * s + add)
  static Curve make(double step, double base, double softcap) {
    const double log2e = 1.4426950408889634;
    if (softcap > 0) return {float(step / softcap), float(base / softcap), float(softcap * log2e)};
    return {float(step * log2e), float(base * log2e), 0};
  }
  double at(int s) const { return cap > 0 ? cap * std::tanh(double(mul) * s + add) : double(mul) * s + add; }
};

inline double log2_add(double a, double b) {
  double high = a > b ? a : b, low = a > b ? b : a;
  return low == kNone ? high : high + std::log2(1 + std::exp2(low - high));
}

// What one query head has seen so far.
struct Head {
  Curve curve;
  double anchor;  // log-sum-exp of the always-read tokens
  double seen;    // log-sum-exp of the scanned slots, up to the last change of offset
  double fresh;   // sum of shares since then
  double offset;  // current weight: minus the estimated log Z, plus the common shift
  double bound;   // the largest (threshold - offset) a slot was dropped under
  int most;       // the largest sum seen

  void settle() {
    if (fresh > 0) seen = log2_add(seen, std::log2(fresh) - offset);
    fresh = 0;
  }
};

// 2**(curve + offset) of integer sums of one head.
struct Power {
  vf mul, add;
  explicit Power(const Head& head) : mul(splat(head.curve.mul)), add(splat(head.curve.add + float(head.offset))) {}
  vf operator()(vu sums) const { return exp2(__builtin_convertvector(as<vi>(sums), vf) * mul + add); }
};
struct CappedPower {
  vf mul, add, cap, last;
  explicit CappedPower(const Head& head)
      : mul(splat(head.curve.mul)), add(splat(head.curve.add)), cap(splat(head.curve.cap)),
        last(splat(float(head.offset))) {}
  vf operator()(vu sums) const {
    return exp2(tanh(__builtin_convertvector(as<vi>(sums), vf) * mul + add) * cap + last);
  }
};

#if defined(__AVX512F__) && !defined(KH_WIDTH)
// The same as a product of powers of a sum's digits, which are looked up: sums have less than 13 bits.
struct PowerOfDigits {
  __m512 low, middle, high, higher;
  explicit PowerOfDigits(const Head& head) {
    const Power power(head);
    const vf digits = __builtin_convertvector(iota(), vf);
    low = reinterpret_cast<__m512>(exp2(digits * power.mul));
    middle = reinterpret_cast<__m512>(exp2(digits * 16.0f * power.mul));
    high = reinterpret_cast<__m512>(power(as<vu>(iota() * 256)));
    higher = reinterpret_cast<__m512>(power(as<vu>((iota() + 16) * 256)));
  }
  // Numbers of steeper curves would leave the range of powers before they are multiplied.
  static bool serves(const Head& head) { return head.most < 8192 && head.curve.mul * 256 < 16; }
  vf operator()(vu sums) const {
    const __m512i s = reinterpret_cast<__m512i>(sums);
    const __m512 least = _mm512_permutexvar_ps(s, low), more = _mm512_permutexvar_ps(_mm512_srli_epi32(s, 4), middle);
    const __m512 most = _mm512_permutex2var_ps(high, _mm512_srli_epi32(s, 8), higher);
    return reinterpret_cast<vf>(_mm512_mul_ps(_mm512_mul_ps(least, more), most));
  }
};
#else
struct PowerOfDigits : Power {
  using Power::Power;
  static bool serves(const Head&) { return false; }
};
#endif

// p[i] = the sum over H heads of their powers of s[i] for i in [from, to), added to what is there unless `first`; a
// head's sums are `stride` apart, and its total goes to `totals`. Whole vectors are read and written around the range;
// their other lanes get nothing.
template <int H, class P>
inline void put_shares(const uint16_t* s, int64_t stride, int64_t from, int64_t to, const Head* heads, bool first,
                       float* p, float* totals) {
  const P powers[4] = {P(heads[0]), P(heads[H > 1 ? 1 : 0]), P(heads[H > 2 ? 2 : 0]), P(heads[H > 3 ? 3 : 0])};
  vf total[H];
  for (int g = 0; g < H; g++) total[g] = vf{};
  for (int64_t i = from / kLanes * kLanes; i < to; i += kLanes) {
    const vi at = iota() + int32_t(i);
    vi inside = vi{} - 1;
    if (i < from || i + kLanes > to) inside = (at >= int32_t(from)) & (at < int32_t(to));
    vf all = first ? vf{} : load<vf>(p + i);
#pragma GCC unroll 4
    for (int g = 0; g < H; g++) {
      const vf x = as<vf>(as<vi>(powers[g](widen(s + g * stride + i))) & inside);
      total[g] += x;
      all += x;
    }
    store(p + i, all);
  }
  for (int g = 0; g < H; g++) totals[g] = sum(total[g]);
}

// The same for n heads, all of which are capped or none.
inline void shares_of(const uint16_t* s, int64_t stride, int64_t from, int64_t to, const Head* heads, int n, float* p,
                      float* totals) {
  auto put = [&](auto count, int g) {
    constexpr int H = decltype(count)::value;
    auto run = [&](auto kind) {
      put_shares<H, decltype(kind)>(s + g * stride, stride, from, to, heads + g, g == 0, p, totals + g);
    };
    bool digits = true;
    for (int h = g; h < g + H; h++) digits = digits && PowerOfDigits::serves(heads[h]);
    if (heads[g].curve.cap > 0) run(CappedPower(heads[g]));
    else if (digits && to - from > 8 * kLanes) run(PowerOfDigits(heads[g]));
    else run(Power(heads[g]));
  };
  int g = 0;
  for (; g + 4 <= n; g += 4) put(std::integral_constant<int, 4>{}, g);
  for (; g + 2 <= n; g += 2) put(std::integral_constant<int, 2>{}, g);
  if (g < n) put(std::integral_constant<int, 1>{}, g);
}

// Slots kept so far in ascending order, with their sums so that shares can be computed again.
struct Kept {
  int64_t capacity, count;
  int32_t* slots;
  uint16_t* sums;  // [heads][capacity]
  float* shares;   // [capacity], filled by `weigh`

  void weigh(const Head* heads, int n) {
    Frame frame;
    shares_of(sums, capacity, 0, count, heads, n, shares, frame.take<float>(n));
  }

  void keep(const int32_t* places, int64_t left, int n) {
    for (int64_t i = 0; i < left; i++) slots[i] = slots[places[i]];
    for (int g = 0; g < n; g++) {
      uint16_t* row = sums + g * capacity;
      take_at(row, places, 0, left, row);
    }
    count = left;
  }
};

struct Job {
  const Codebook* shape;
  const Tables* tables;
  const uint8_t* codes;  // of this row
  int64_t block_stride;
  int64_t first, last;  // slots of this piece
  int64_t total;        // slots of the whole row
  int64_t keep;         // slots to keep when the store is full
  double spared;        // a share below this may be dropped whatever the rank
};

// Largest sum in [from, to).
inline int most_of(const uint16_t* s, int64_t from, int64_t to) {
  uint16_t most = 0;
  for (int64_t i = from; i < to; i++) most = s[i] > most ? s[i] : most;
  return most;
}

}  // namespace kh
