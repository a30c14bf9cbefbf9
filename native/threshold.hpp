// The value above which the wanted elements of an unsorted array lie: no sort.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace kh {

// Wanted: every element greater than `value`, and the first `ties` elements equal to it.
template <class T>
struct Cut {
  T value;
  int64_t ties;
  int64_t count;  // elements wanted altogether
};
using Threshold = Cut<float>;

namespace radix {
constexpr int kBins = 2048, kShift[3] = {21, 10, 0}, kBits[3] = {11, 11, 10};
}  // namespace radix

// Numbers of an array as integers of the same order.
template <class T>
struct Ranked {
  static constexpr uint32_t flip = std::is_same<T, float>::value ? 0 : 0x80000000u;
  const T* p;
  int64_t n;

  vi at(int64_t i) const { return as<vi>(load<vu>(p + i) ^ flip); }
  static int32_t of(uint32_t bits) { return as<int32_t>(bits ^ flip); }

  // How many are not less than a number of these bits.
  int64_t not_less(uint32_t bits) const {
    const vi least = vi{} + of(bits);
    int64_t count = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes) count += __builtin_popcount(at_least(at(i), least));
    for (; i < n; i++) count += of(as<uint32_t>(p[i])) >= of(bits);
    return count;
  }
  // The bits in which not all numbers are alike.
  uint32_t differences() const {
    const uint32_t first = as<uint32_t>(p[0]);
    vu found{};
    uint32_t all = 0;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) found |= load<vu>(p + i) ^ first;
    for (; i < n; i++) all |= as<uint32_t>(p[i]) ^ first;
    for (int lane = 0; lane < kLanes; lane++) all |= found[lane];
    return all;
  }
  // Copies those between two numbers, both included; `to` has room for kLanes more.
  int64_t between(uint32_t low, uint32_t high, T* to) const {
    const vi least = vi{} + of(low), most = vi{} + of(high);
    int64_t count = 0, i = 0;
    for (; i + kLanes <= n; i += kLanes)
      count += put_lanes(to + count, p + i, at_least(at(i), least) & at_least(most, at(i)));
    for (; i < n; i++) {
      const int32_t x = of(as<uint32_t>(p[i]));
      to[count] = p[i];
      count += x >= of(low) && x <= of(high);
    }
    return count;
  }
};

// The `wanted`-th greatest number, bit by bit: a number of so many leading bits is tried, and those that are not less are
// counted. p: n floats, none negative, or unsigned integers; wanted: at least 1. All are taken where there are fewer.
template <class T>
inline Cut<T> find_greatest(const T* p, int64_t n, int64_t wanted, Frame& frame) {
  if (wanted >= n) return {n ? *std::min_element(p, p + n) : T{}, n, n};
  Ranked<T> numbers = {p, n};
  const uint32_t different = numbers.differences();
  int bit = different ? 31 - __builtin_clz(different) : -1;
  uint32_t value = as<uint32_t>(p[0]);
  if (bit >= 0) value &= ~uint32_t((uint64_t(2) << bit) - 1);
  int64_t left = wanted, above = 0, reach = n;  // of `numbers`: greater than all that begin so, not less than them
  T* same = nullptr;
  for (; bit >= 0; bit--) {
    const uint32_t tried = value | uint32_t(1) << bit;
    const int64_t count = numbers.not_less(tried);
    if (count >= left) value = tried, reach = count;
    else above = count;
    if (numbers.n < 256 || (reach - above) * 8 > numbers.n) continue;
    if (!same) same = frame.take<T>(n + kLanes);
    numbers.n = numbers.between(value, value | ((uint32_t(1) << bit) - 1), same);
    numbers.p = same;
    left -= above, above = 0, reach = numbers.n;
  }
  return {as<T>(value), left - above, wanted};
}

// The fewest greatest of n floats, none negative, whose sum reaches `mass`, by radix selection.
inline Threshold find_mass(const float* p, int64_t n, double mass, Frame& frame) {
  int64_t* counts = frame.take<int64_t>(radix::kBins);
  double* sums = frame.take<double>(radix::kBins);
  float* same = frame.take<float>(n + 1);  // those that share the digits known so far
  uint32_t prefix = 0;
  int64_t above = 0;
  for (int level = 0;; level++) {
    int shift = radix::kShift[level], bins = 1 << radix::kBits[level], bin = bins - 1;
    memset(counts, 0, sizeof(int64_t) * bins);
    memset(sums, 0, sizeof(double) * bins);
    auto digit = [&](float x) { return int(as<uint32_t>(x) >> shift & (bins - 1)); };
    for (int64_t i = 0; i < n; i++) counts[digit(p[i])]++, sums[digit(p[i])] += p[i];
    for (; bin > 0 && !(counts[bin] && sums[bin] >= mass); bin--) above += counts[bin], mass -= sums[bin];
    prefix |= uint32_t(bin) << shift;
    if (level == 2) {
      const float value = as<float>(prefix);
      bool all = mass >= double(value) * double(counts[bin]);
      int64_t ties = all ? counts[bin] : int64_t(std::ceil(mass / value));
      return {value, ties, above + ties};
    }
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++) {
      same[left] = p[i];
      left += digit(p[i]) == bin;
    }
    p = same, n = left;
  }
}

// Indexes of the wanted elements, in order; returns how many. places: room for n + 1, and kLanes more.
template <class T>
inline int64_t pick(const T* p, int64_t n, Cut<T> cut, int32_t* places) {
  const int32_t least = Ranked<T>::of(as<uint32_t>(cut.value));
  const Ranked<T> numbers = {p, n};
  int64_t count = 0, ties = cut.ties, i = 0;
  auto one = [&](int64_t at) {
    const int32_t x = Ranked<T>::of(as<uint32_t>(p[at]));
    const bool tie = x == least && ties > 0;
    ties -= tie;
    places[count] = int32_t(at);
    count += x > least || tie;
  };
  for (; i + kLanes <= n; i += kLanes) {
    const vi x = numbers.at(i);
    const unsigned reach = at_least(x, vi{} + least), equal = reach & at_least(vi{} + least, x);
    if (equal && ties < __builtin_popcount(equal)) {
      for (int lane = 0; lane < kLanes; lane++) one(i + lane);
    } else {
      ties -= __builtin_popcount(equal);
      count += put_places(places + count, int32_t(i), reach);
    }
  }
  for (; i < n; i++) one(i);
  return count;
}

// An integer for each float, ordered as they are; both zeros are alike, and NaN is as low as can be.
inline uint32_t rank_of(float x) {
  if (x != x) x = -INFINITY;
  uint32_t bits = as<uint32_t>(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Indexes of the `count` greatest of n scores, ascending; of equal ones the lower.
inline void top_slots(const float* scores, int64_t n, int64_t count, int64_t* out) {
  if (count == 0) return;
  Frame frame;
  uint32_t* ranks = frame.take<uint32_t>(n);
  int32_t* places = frame.take<int32_t>(n + 1 + kLanes);
  for (int64_t i = 0; i < n; i++) ranks[i] = rank_of(scores[i]);
  pick(ranks, n, find_greatest(ranks, n, count, frame), places);
  std::copy(places, places + count, out);
}

}  // namespace kh
