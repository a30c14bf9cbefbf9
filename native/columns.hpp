// Softmax weights of many queries, summed by key: for each KV head over its queries and over the heads of its group.
#pragma once

#include "simd.hpp"

namespace kh {

struct Columns {
  const float* logits;  // [R, G, Q, N]; query i sees the slots up to N - Q + i, those from `first` on
  int64_t rows, heads, queries, slots;
  const int64_t* first;   // [R]
  const uint32_t* words;  // [R, G, Q, 2], the queries' part of the noise's counter; null: no noise
  const int32_t* places;  // [R, places_stride], the keys' part of it
  int64_t places_stride;
  const float* sinks;  // [R, G] or null
  float cool;          // logits and noise are multiplied by that
  float* sums;         // [R, sums_stride]
  int64_t sums_stride;
};

// Natural logarithm of positive normal numbers, to about an ulp (the polynomial of Cephes).
inline vf log(vf x) {
  vi exponent = (as<vi>(x) - 0x3f3504f3) >> 23;
  vf f = as<vf>(as<vi>(x) - (exponent << 23)) - 1.0f, e = __builtin_convertvector(exponent, vf), z = f * f;
  vf p = splat(7.0376836292e-2f);
  p = p * f - splat(1.1514610310e-1f);
  p = p * f + splat(1.1676998740e-1f);
  p = p * f - splat(1.2420140846e-1f);
  p = p * f + splat(1.4249322787e-1f);
  p = p * f - splat(1.6668057665e-1f);
  p = p * f + splat(2.0000714765e-1f);
  p = p * f - splat(2.4999993993e-1f);
  p = p * f + splat(3.3333331174e-1f);
  p = p * f * z + e * splat(-2.12194440e-4f) - 0.5f * z;
  return f + p + e * splat(0.693359375f);
}

// Gumbel noise of the entries at some places, by a counter-based generator: keyhole/kernels/noise.py defines it.
inline vf gumbel(vi places, const uint32_t* words) {
  vu h = as<vu>(places) * 0x9e3779b9u + words[0];
  h = (h ^ h >> 16) * 0x7feb352du ^ words[1];
  h = (h ^ h >> 15) * 0x846ca68bu;
  h ^= h >> 16;
  vf uniform = (__builtin_convertvector(as<vi>(h >> 9), vf) + 0.5f) * splat(0x1p-23f);
  return -log(-log(uniform));
}

// Adds the weights of one query, whose logits are at `logits[from, to)`, to `sums`; `part` has room for them.
inline void add_query(const float* logits, int64_t from, int64_t to, const uint32_t* words, const int32_t* places,
                      float sink, float cool, float* part, float* sums) {
  auto each = [&](auto body) {
    int64_t i = from;
    for (; i + kLanes <= to; i += kLanes) body(i, kLanes);
    if (i < to) body(i, int(to - i));
  };
  // Lanes beyond the count are -inf, whose weight is nothing; `part` has room for them.
  auto read = [](const auto* from, int count, auto beyond) {
    decltype(beyond) lanes[kLanes];
    for (int i = 0; i < kLanes; i++) lanes[i] = beyond;
    memcpy(lanes, from, count * sizeof(beyond));
    return load<typename Vector<decltype(beyond), kLanes>::type>(lanes);
  };
  vf high = splat(-INFINITY);
  vi finite = ~vi{};
  each([&](int64_t i, int count) {
    vf x = count == kLanes ? load<vf>(logits + i) : read(logits + i, count, -INFINITY);
    if (words) x += gumbel(count == kLanes ? load<vi>(places + i) : read(places + i, count, int32_t(0)), words);
    x *= splat(cool);
    store(part + i, x);
    finite &= x < splat(INFINITY);
    high = largest(high, x);
  });
  if (bits_of(~finite)) return;
  float most = sink * cool;
  for (int i = 0; i < kLanes; i++) most = high[i] > most ? high[i] : most;
  vf all{}, base = splat(most);
  each([&](int64_t i, int) {
    vf e = exp2((load<vf>(part + i) - base) * splat(1.44269504f));
    store(part + i, e);
    all += e;
  });
  float total = sum(all) + std::exp(sink * cool - most);
  if (!(total > 0)) return;  // it sees nothing
  vf share = splat(1.0f / total);
  each([&](int64_t i, int count) {
    if (count == kLanes) return store(sums + i, load<vf>(sums + i) + load<vf>(part + i) * share);
    for (int j = 0; j < count; j++) sums[i + j] += part[i + j] * share[0];
  });
}

// Queries come one after the other, so that sums do not depend on the blocks they come in.
inline int add_columns(const Columns& c, int threads) {
  return parallel(c.rows, threads, [&](int64_t row) {
    Frame frame;
    float* part = frame.take<float>(c.slots + kLanes);
    for (int64_t query = 0; query < c.queries; query++)
      for (int64_t head = 0; head < c.heads; head++) {
        int64_t at = (row * c.heads + head) * c.queries + query;
        add_query(c.logits + at * c.slots, c.first[row], c.slots - c.queries + query + 1,
                  c.words ? c.words + 2 * at : nullptr, c.places + row * c.places_stride,
                  c.sinks ? c.sinks[row * c.heads + head] : -INFINITY, c.cool, part, c.sums + row * c.sums_stride);
      }
    return int(kOk);
  });
}

}  // namespace kh
