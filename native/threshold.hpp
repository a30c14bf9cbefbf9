// The value above which the wanted elements of an unsorted array lie, by radix selection: no sort.
#pragma once

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

// Elements wanted: the largest `count`, or the fewest largest whose sum reaches `mass`.
struct Goal {
  int64_t count;
  double mass;
  bool by_mass;
};

namespace radix {
constexpr int kBins = 2048, kShift[3] = {21, 10, 0}, kBits[3] = {11, 11, 10};

// Walks the bins from the top while the goal is not reached inside the next; returns the bin it ends in.
inline int walk(const int64_t* counts, const double* sums, int bins, Goal& goal) {
  for (int bin = bins - 1; bin > 0; bin--) {
    if (!counts[bin]) continue;
    if (goal.by_mass ? sums[bin] >= goal.mass : counts[bin] >= goal.count) return bin;
    goal.count -= counts[bin];
    goal.mass -= sums[bin];
  }
  return 0;
}

// `same` elements equal `value`, of which the goal still wants some; those above it are counted off already.
template <class T>
inline Cut<T> conclude(T value, int64_t same, int64_t wanted, Goal goal) {
  if (!goal.by_mass) return {value, goal.count, wanted};
  bool all = goal.mass >= double(value) * double(same);
  int64_t ties = all ? same : int64_t(std::ceil(goal.mass / value));
  return {value, ties, wanted - goal.count + ties};
}
}  // namespace radix

// p: n floats that are not negative, or unsigned integers. goal.count <= n by count; by mass, goal.count is 0.
template <class T>
inline Cut<T> find_threshold(const T* p, int64_t n, Goal goal, Frame& frame) {
  if (!goal.by_mass && n > 0 && goal.count >= n) return {*std::min_element(p, p + n), n, n};
  const int64_t wanted = goal.count;
  int64_t* counts = frame.take<int64_t>(radix::kBins);
  double* sums = frame.take<double>(radix::kBins);
  T* same = frame.take<T>(n + 1);  // the elements that share the digits known so far
  uint32_t prefix = 0;
  for (int level = 0;; level++) {
    int shift = radix::kShift[level], bins = 1 << radix::kBits[level];
    memset(counts, 0, sizeof(int64_t) * bins);
    if (goal.by_mass) memset(sums, 0, sizeof(double) * bins);
    for (int64_t i = 0; i < n; i++) {
      uint32_t bin = as<uint32_t>(p[i]) >> shift & (bins - 1);
      counts[bin]++;
      if (goal.by_mass) sums[bin] += p[i];
    }
    uint32_t bin = uint32_t(radix::walk(counts, sums, bins, goal));
    prefix |= bin << shift;
    if (level == 2) return radix::conclude(as<T>(prefix), counts[bin], wanted, goal);
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++) {
      same[left] = p[i];
      left += (as<uint32_t>(p[i]) >> shift & (bins - 1)) == bin;
    }
    p = same, n = left;
  }
}

// Indexes of the wanted elements, in order; returns how many. places: room for n + 1.
template <class T>
inline int64_t pick(const T* p, int64_t n, Cut<T> cut, int32_t* places) {
  int64_t count = 0, ties = cut.ties;
  for (int64_t i = 0; i < n; i++) {
    places[count] = int32_t(i);
    bool tie = p[i] == cut.value && ties > 0;
    ties -= tie;
    count += p[i] > cut.value || tie;
  }
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
  int32_t* places = frame.take<int32_t>(n + 1);
  for (int64_t i = 0; i < n; i++) ranks[i] = rank_of(scores[i]);
  pick(ranks, n, find_threshold(ranks, n, {count, 0, false}, frame), places);
  std::copy(places, places + count, out);
}

}  // namespace kh
