// A running softmax over blocks of keys, for slices of 16 queries. Logits are base 2.
#pragma once

#include "prompt_units.hpp"

namespace kh::prompt {

// 2**x for x <= 0: 0 from -150 on, NaN where x is. Weights that are rounded to bfloat16 need but a few bits.
template <bool Rounded>
inline vf weight_of(vf x) {
#if defined(__AVX512F__) && !defined(KH_WIDTH)
  const __m512 given = reinterpret_cast<__m512>(x);
  if constexpr (Rounded) {
    const vf f = reinterpret_cast<vf>(_mm512_reduce_ps(given, 0x09));  // x less its floor
    vf p = splat(7.8024357e-2f);
    p = p * f + splat(2.2606774e-1f);
    p = p * f + splat(6.9583313e-1f);
    p = p * f + splat(9.9992528e-1f);
    return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), given));
  }
  const vf whole = reinterpret_cast<vf>(_mm512_roundscale_ps(given, 0x08)), f = reinterpret_cast<vf>(_mm512_reduce_ps(given, 0x08));
  vf p = splat(1.5403530e-4f);
  p = p * f + splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.0f);
  return reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(whole)));
#else
  const vf y = x < splat(-126.0f) ? vf{} : exp2(x);
  return x == x ? y : x;
#endif
}

// Softmax of a slice so far.
struct Softmax {
  float most[kSlice], total[kSlice];  // largest logit, sum of weights relative to it

  void clear() {
    for (int i = 0; i < kSlice; i++) most[i] = -INFINITY, total[i] = 0;
  }
};

inline vf finite(vf most) { return most == splat(-INFINITY) ? vf{} : most; }

// logits[key][slice] become weights, as words of the unit; `decay` is what earlier sums are to be multiplied by.
// Returns whether that is 1 for all of them. Before each kStep keys `ahead` is called, whose products the processor
// then computes beside the exponentials.
template <class U, class Ahead>
inline bool weigh(Softmax& softmax, int count, const float* logits, float scale, uint32_t* weights, float* decay,
                  const Ahead& ahead) {
  constexpr bool rounded = U::kGroup == 2;
  bool same = true;
  for (int part = 0; part < kParts; part++) {
    const float* column = logits + part * kLanes;
    float *most = softmax.most + part * kLanes, *total = softmax.total + part * kLanes;
    vf a = load<vf>(column), b = load<vf>(column + kSlice);
    for (int j = 2; j < count; j += 2) {
      a = largest(a, load<vf>(column + j * kSlice));
      b = largest(b, load<vf>(column + (j + 1) * kSlice));
    }
    const vf before = load<vf>(most), high = largest(before, largest(a, b) * splat(scale)), less = finite(high);
    vf sum{}, other{};
    for (int j = 0; j < count; j += 2) {
      if (part == 0 && j % kStep == 0) ahead(j / kStep);
      vf p = weight_of<rounded>(load<vf>(column + j * kSlice) * splat(scale) - less);
      vf q = weight_of<rounded>(load<vf>(column + (j + 1) * kSlice) * splat(scale) - less);
      sum += p, other += q;
      U::set_weights(j, part, p, q, weights);
    }
    const vf factor = weight_of<false>(before - less);
    store(decay + part * kLanes, factor);
    store(total, load<vf>(total) * factor + sum + other);
    store(most, high);
    same &= bits_of(before == high) == (1u << kLanes) - 1;
  }
  return same;
}

inline void multiply_rows(float* acc, int width, const float* factors) {
  for (int part = 0; part < kParts; part++) {
    const vf factor = load<vf>(factors + part * kLanes);
    for (int d = 0; d < width; d++) {
      float* at = acc + d * kSlice + part * kLanes;
      store(at, load<vf>(at) * factor);
    }
  }
}

// Logits cap * tanh(x / cap).
inline void cap_logits(int count, float scale, float cap, float* logits) {
  for (int i = 0; i < count * kSlice; i += kLanes) {
    const vf x = load<vf>(logits + i) * splat(scale / cap), y = tanh(x) * splat(cap);
    store(logits + i, x == x ? y : x);
  }
}

// Hides keys at position `from` and on that come after queries at `first` and on.
inline void hide_later(int64_t first, int64_t from, int count, float* logits) {
  for (int j = int(std::max<int64_t>(0, first + 1 - from)); j < count; j++) {
    const vi late = vi{} + int32_t(from + j - first);
    for (int p = 0; p < kParts; p++) {
      float* part = logits + j * kSlice + p * kLanes;
      store(part, late > iota() + p * kLanes ? splat(-INFINITY) : load<vf>(part));
    }
  }
}

// One more logit that takes weight and gives nothing.
inline void add_sink(Softmax& softmax, float logit, float* decay) {
  for (int part = 0; part < kParts; part++) {
    float *most = softmax.most + part * kLanes, *total = softmax.total + part * kLanes;
    const vf before = load<vf>(most), high = largest(before, splat(logit)), factor = weight_of<false>(before - finite(high));
    store(decay + part * kLanes, factor);
    store(total, load<vf>(total) * factor + weight_of<false>(splat(logit) - finite(high)));
    store(most, high);
  }
}

}  // namespace kh::prompt
