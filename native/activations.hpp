// Vectors that weights are multiplied with, also as 8-bit integers in groups of 32.
#pragma once

#include "simd.hpp"

namespace kh {

constexpr int kGroupColumns = 32;    // columns that share a scale
constexpr int kVectors = 16;  // most vectors of one product

inline int64_t groups_of(int64_t columns) { return (columns + kGroupColumns - 1) / kGroupColumns; }

// Vectors x[i] of `columns` numbers, `stride` apart, and for packed weights x ~ scale * code, |code| <= 127: a
// group's scale is its largest magnitude / 127. Columns behind the last one have code 0.
struct Activations {
  const float* x;
  int64_t stride;
  int count;
  int64_t columns, groups;
  int8_t* codes;    // [count, groups, 32]
  float* scales;    // [count, groups]
  int32_t* totals;  // [count, groups]: sum of the codes
  float* sums;      // [count, groups]: scale * sum of the codes
};

// The vectors with room for their codes, which `quantise` fills in.
inline Activations activations(const float* x, int64_t stride, int count, int64_t columns, Frame& frame) {
  const int64_t groups = groups_of(columns), all = count * groups;
  return {x,      stride, count, columns, groups, frame.take<int8_t>(all * kGroupColumns), frame.take<float>(all),
          frame.take<int32_t>(all), frame.take<float>(all)};
}

// Below that a group counts as 0, since its scale would not be a normal number.
constexpr float kLeastMagnitude = 2e-36f;

// One group; a group with infinity or NaN gets the scale NaN, so that what it is multiplied with is NaN.
inline void quantise_group(const float* x, int8_t* codes, float* scale, int32_t* total, float* sum) {
  constexpr int parts = kGroupColumns / kLanes;
  vi most{};
  for (int i = 0; i < parts; i++) {
    vi bits = as<vi>(load<vf>(x + i * kLanes)) & 0x7fffffff;  // ordered as the magnitudes are
    most = bits > most ? bits : most;
  }
  int32_t lanes[kLanes], high = 0, all = 0;
  store(lanes, most);
  for (int i = 0; i < kLanes; i++) high = std::max(high, lanes[i]);
  float magnitude = as<float>(high);
  if (!(magnitude >= kLeastMagnitude) || high >= 0x7f800000) {
    memset(codes, 0, kGroupColumns);
    *total = 0;
    *scale = *sum = high >= 0x7f800000 ? NAN : 0.0f;
    return;
  }
  const vf inverse = splat(127.0f / magnitude), magic = splat(12582912.0f);  // 1.5 * 2**23: adding it rounds
  vi counted{};
  for (int i = 0; i < parts; i++) {
    vi code = as<vi>(load<vf>(x + i * kLanes) * inverse + magic) - as<vi>(magic);
    counted += code;
    store(codes + i * kLanes, __builtin_convertvector(code, quarter_i8));
  }
  store(lanes, counted);
  for (int i = 0; i < kLanes; i++) all += lanes[i];
  *scale = magnitude / 127.0f;
  *total = all;
  *sum = *scale * float(all);
}

// Groups [from, to) of all vectors. Threads may share the groups out among them.
inline void quantise(const Activations& a, int64_t from, int64_t to) {
  for (int64_t i = 0; i < a.count; i++)
    for (int64_t g = from; g < to; g++) {
      const float* x = a.x + i * a.stride + g * kGroupColumns;
      const int64_t at = i * a.groups + g, left = a.columns - g * kGroupColumns;
      float padded[kGroupColumns] = {};
      if (left < kGroupColumns) x = static_cast<float*>(memcpy(padded, x, left * sizeof(float)));
      quantise_group(x, a.codes + at * kGroupColumns, a.scales + at, a.totals + at, a.sums + at);
    }
}

}  // namespace kh
