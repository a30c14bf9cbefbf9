// Matrix-vector products that skip weight rows.
#pragma once

#include "simd.hpp"

namespace kh {

inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) { *p = to_bf16(x); }

template <class T>
inline float dot_row(const T* w, const float* x, int64_t n) {
  vf a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a += load_float(w + i) * load<vf>(x + i);
    b += load_float(w + i + kLanes) * load<vf>(x + i + kLanes);
    c += load_float(w + i + 2 * kLanes) * load<vf>(x + i + 2 * kLanes);
    d += load_float(w + i + 3 * kLanes) * load<vf>(x + i + 3 * kLanes);
  }
  float total = sum((a + b) + (c + d));
  for (; i < n; i++) total += to_float(w[i]) * x[i];
  return total;
}

inline int64_t nonzero(const float* values, int64_t n, int32_t* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    out[count] = int32_t(i);
    count += values[i] != 0;
  }
  return count;
}

// y[i] = gate[i] * (w[i] . x) where gate[i] is not 0, else 0.
template <class T>
inline int matvec_skip_rows(const T* w, int64_t stride, const float* x, const float* gate, int64_t rows, int64_t n,
                            float* y, int threads) {
  Frame frame;
  int32_t* active = frame.take<int32_t>(rows + 1);
  int64_t count = nonzero(gate, rows, active);
  memset(y, 0, sizeof(float) * rows);
  constexpr int64_t step = 16;
  return parallel((count + step - 1) / step, threads, [&](int64_t piece) {
    for (int64_t i = piece * step; i < std::min(count, (piece + 1) * step); i++) {
      int32_t row = active[i];
      y[row] = gate[row] * dot_row(w + row * stride, x, n);
    }
    return int(kOk);
  });
}

// y[from, to) += sum over four rows of x * w.
template <class T>
inline void add_rows(const T* const* w, const float* x, int64_t from, int64_t to, float* y) {
  int64_t i = from;
  for (; i + kLanes <= to; i += kLanes) {
    vf total = load<vf>(y + i) + load_float(w[0] + i) * x[0];
    total += load_float(w[1] + i) * x[1];
    total += load_float(w[2] + i) * x[2];
    total += load_float(w[3] + i) * x[3];
    store(y + i, total);
  }
  for (; i < to; i++)
    for (int j = 0; j < 4; j++) y[i] += to_float(w[j][i]) * x[j];
}

// y = sum over i with x[i] != 0 of x[i] * w[i].
template <class T>
inline int matvec_skip_columns(const T* w, int64_t stride, const float* x, int64_t rows, int64_t n, float* y,
                               int threads) {
  Frame frame;
  int32_t* active = frame.take<int32_t>(rows + 1);
  int64_t count = nonzero(x, rows, active);
  memset(y, 0, sizeof(float) * n);
  int64_t step = std::max<int64_t>(256, std::min<int64_t>(2048, round_up((n + threads - 1) / threads, 64)));
  return parallel((n + step - 1) / step, threads, [&](int64_t piece) {
    int64_t from = piece * step, to = std::min(n, from + step);
    for (int64_t i = 0; i < count; i += 4) {
      const T* row[4];
      float factor[4];
      for (int j = 0; j < 4; j++) {
        int32_t at = active[std::min(i + j, count - 1)];
        row[j] = w + at * stride;
        factor[j] = i + j < count ? x[at] : 0;
      }
      add_rows(row, factor, from, to, y);
    }
    return int(kOk);
  });
}

}  // namespace kh
