// The value above which the wanted elements of an unsorted array lie, by radix selection: no sort.
#pragma once

#include "simd.hpp"

namespace kh {

// Wanted: every element greater than `value`, and the first `ties` elements equal to it.
struct Threshold {
  float value;
  int64_t ties;
  int64_t count;  // elements wanted altogether
};

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
inline Threshold conclude(float value, int64_t same, int64_t wanted, Goal goal) {
  if (!goal.by_mass) return {value, goal.count, wanted};
  bool all = goal.mass >= double(value) * double(same);
  int64_t ties = all ? same : int64_t(std::ceil(goal.mass / value));
  return {value, ties, wanted - goal.count + ties};
}
}  // namespace radix

// p: n values that are not negative. goal.count <= n by count; by mass, goal.count is 0.
inline Threshold find_threshold(const float* p, int64_t n, Goal goal, Frame& frame) {
  if (!goal.by_mass && n > 0 && goal.count >= n) return {*std::min_element(p, p + n), n, n};
  const int64_t wanted = goal.count;
  int64_t* counts = frame.take<int64_t>(radix::kBins);
  double* sums = frame.take<double>(radix::kBins);
  float* same = frame.take<float>(n + 1);  // the elements that share the digits known so far
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
    if (level == 2) return radix::conclude(as<float>(prefix), counts[bin], wanted, goal);
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++) {
      same[left] = p[i];
      left += (as<uint32_t>(p[i]) >> shift & (bins - 1)) == bin;
    }
    p = same, n = left;
  }
}

// Indexes of the wanted elements, in order; returns how many. places: room for n + 1.
inline int64_t pick(const float* p, int64_t n, Threshold cut, int32_t* places) {
  int64_t count = 0, ties = cut.ties;
  for (int64_t i = 0; i < n; i++) {
    places[count] = int32_t(i);
    bool tie = p[i] == cut.value && ties > 0;
    ties -= tie;
    count += p[i] > cut.value || tie;
  }
  return count;
}

}  // namespace kh
