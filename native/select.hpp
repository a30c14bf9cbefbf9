// What the streaming choice of slots works with: logits as functions of integer sums, and the slots kept so far.
// Logits are in units of log 2; an `offset` is added to them before 2**x.
#pragma once

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

// p[i] += 2**(curve(s[i]) + offset) for i in [from, to); returns the sum of what was added. Whole vectors are
// read and written around the range; their other lanes get nothing.
template <bool Capped>
inline float add_shares(const uint16_t* s, int64_t from, int64_t to, const Curve& curve, float offset, float* p) {
  const vf mul = splat(curve.mul), add = splat(Capped ? curve.add : curve.add + offset);
  const vf cap = splat(curve.cap), last = splat(offset);
  vf total{};
  auto share = [&](int64_t i) {
    vf x = __builtin_convertvector(as<vi>(widen(s + i)), vf) * mul + add;
    return exp2(Capped ? tanh(x) * cap + last : x);
  };
  auto put = [&](int64_t i, vf x) {
    store(p + i, load<vf>(p + i) + x);
    total += x;
  };
  auto put_edge = [&](int64_t i) {
    vi at = iota() + int32_t(i);
    put(i, as<vf>(as<vi>(share(i)) & (at >= int32_t(from)) & (at < int32_t(to))));
  };
  int64_t i = from / kLanes * kLanes;
  if (i < from) put_edge(i), i += kLanes;
  for (; i + kLanes <= to; i += kLanes) put(i, share(i));
  if (i < to) put_edge(i);
  return sum(total);
}
inline float add_shares(const uint16_t* s, int64_t from, int64_t to, const Curve& curve, double offset, float* p) {
  return curve.cap > 0 ? add_shares<true>(s, from, to, curve, float(offset), p)
                       : add_shares<false>(s, from, to, curve, float(offset), p);
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

// Slots kept so far in ascending order, with their sums so that shares can be computed again.
struct Kept {
  int64_t capacity, count;
  int32_t* slots;
  uint16_t* sums;  // [heads][capacity]
  float* shares;   // [capacity], filled by `weigh`

  void weigh(const Head* heads, int n) {
    memset(shares, 0, sizeof(float) * round_up(count, kLanes));
    for (int g = 0; g < n; g++) add_shares(sums + g * capacity, 0, count, heads[g].curve, heads[g].offset, shares);
  }

  void keep(const int32_t* places, int64_t left, int n) {
    for (int64_t i = 0; i < left; i++) slots[i] = slots[places[i]];
    for (int g = 0; g < n; g++) {
      uint16_t* row = sums + g * capacity;
      for (int64_t i = 0; i < left; i++) row[i] = row[places[i]];
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
