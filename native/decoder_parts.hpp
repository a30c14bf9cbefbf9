// Norms, rotation, gating and projections of a decoder layer, in float32.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "products.hpp"

namespace kh {

// Numbers as the model has them, so that they are those it has now.
struct Numbers {
  const void* data;  // null: none
  int type;          // kFloat32 or kBFloat16
};

enum NormKind : int { kNoNorm = 0, kRootMeanSquare = 1, kLayerNorm = 2 };

struct Norm {
  int kind;
  float eps;
  Numbers weight;  // null: ones
};

struct Linear {
  const Matrix* matrix;
  Numbers bias;  // beside that of the matrix
};

// A thread among those of a parallel region.
struct Team {
  int thread, count;

  void meet() const {
#pragma omp barrier
  }
  RowRange share(int64_t n) const { return {n * thread / count, n * (thread + 1) / count}; }
};

inline float number(const Numbers& numbers, int64_t i) {
  if (numbers.type == kFloat32) return static_cast<const float*>(numbers.data)[i];
  return to_float(static_cast<const bf16*>(numbers.data)[i]);
}

inline vf several(const Numbers& numbers, int64_t i) {
  if (numbers.type == kFloat32) return load_float(static_cast<const float*>(numbers.data) + i);
  return load_float(static_cast<const bf16*>(numbers.data) + i);
}

// out[i] of numbers [from, to).
inline void read_floats(const Numbers& numbers, int64_t from, int64_t to, float* out) {
  int64_t i = from;
  for (; i + kLanes <= to; i += kLanes) store(out + i, several(numbers, i));
  for (; i < to; i++) out[i] = number(numbers, i);
}

inline const float* as_floats(const Numbers& numbers, int64_t count, Frame& frame) {
  if (numbers.type == kFloat32) return static_cast<const float*>(numbers.data);
  float* floats = frame.take<float>(count);
  read_floats(numbers, 0, count, floats);
  return floats;
}

inline void write_floats(const float* x, int type, int64_t at, int64_t count, void* out) {
  if (type == kFloat32)
    memcpy(static_cast<float*>(out) + at, x, count * sizeof(float));
  else
    for (int64_t i = 0; i < count; i++) static_cast<bf16*>(out)[at + i] = to_bf16(x[i]);
}

// A norm of one vector is factor * (x - mean), times the weight.
struct Scaling {
  float mean, factor;
};

inline Scaling scaling_of(const Norm& norm, const float* x, int64_t n) {
  if (norm.kind == kNoNorm) return {0.0f, 1.0f};
  float mean = 0.0f;
  if (norm.kind == kLayerNorm) {
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= float(n);
  }
  vf squares{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    vf centred = load<vf>(x + i) - splat(mean);
    squares += centred * centred;
  }
  float total = sum(squares);
  for (; i < n; i++) total += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0f / std::sqrt(total / float(n) + norm.eps)};
}

inline float scaled(const Norm& norm, const Scaling& scaling, float x, int64_t i) {
  const float value = scaling.factor * (x - scaling.mean);
  return norm.weight.data ? value * number(norm.weight, i) : value;
}

// The norm of n numbers whose scaling is known; their weights begin at `first`.
inline void normalise(const Norm& norm, const Scaling& scaling, const float* x, int64_t first, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    vf value = splat(scaling.factor) * (load<vf>(x + i) - splat(scaling.mean));
    store(out + i, norm.weight.data ? value * several(norm.weight, first + i) : value);
  }
  for (; i < n; i++) out[i] = scaled(norm, scaling, x[i], first + i);
}

// Rotation of the first `n` channels, whose halves turn together.
inline void rotate(float* x, const float* cos, const float* sin, int64_t n) {
  float *low = x, *high = x + n / 2;
  for (int64_t i = 0; i < n / 2; i++) {
    const float l = low[i], h = high[i];
    low[i] = l * cos[i] - h * sin[i];
    high[i] = h * cos[i + n / 2] + l * sin[i + n / 2];
  }
}

inline vf silu(vf x) { return x / (1.0f + exp2(x * splat(-1.442695041f))); }

// gate = silu(gate) * up
inline void gated(float* gate, const float* up, RowRange range) {
  int64_t i = range.from;
  for (; i + kLanes <= range.to; i += kLanes) store(gate + i, silu(load<vf>(gate + i)) * load<vf>(up + i));
  for (; i < range.to; i++) gate[i] = silu(splat(gate[i]))[0] * up[i];
}

// out[v * stride + row] for some rows of a projection.
inline void project(const Linear& linear, const Activations& a, float* out, int64_t stride, RowRange range) {
  multiply(*linear.matrix, a, out, stride, range.from, range.to);
  if (!linear.bias.data) return;
  for (int v = 0; v < a.count; v++)
    for (int64_t row = range.from; row < range.to; row++) out[v * stride + row] += number(linear.bias, row);
}

}  // namespace kh
