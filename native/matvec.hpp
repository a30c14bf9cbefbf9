// Matrix-vector products that skip weight rows.
#pragma once

#include "simd.hpp"

namespace kh {

inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) { *p = to_bf16(x); }

constexpr int kTogether = 4;  // weight rows read side by side

// Rows of a weight that are read together; missing ones repeat the last with factor 0.
template <class T>
struct Rows {
  const T* row[kTogether];
  float factor[kTogether];

  Rows(const T* w, int64_t stride, const int32_t* active, int64_t left, const float* factors) {
    for (int j = 0; j < kTogether; j++) {
      int32_t at = active[std::min<int64_t>(j, left - 1)];
      row[j] = w + at * stride;
      factor[j] = j < left ? factors[at] : 0;
    }
  }
  // The processor's own prefetch finds each row anew; this bridges the gap.
  void fetch_start() const {
    for (const T* r : row)
      for (int line = 0; line < 8; line++) __builtin_prefetch(reinterpret_cast<const char*>(r) + 64 * line);
  }
};

// Products of four rows with x.
template <class T>
inline void dot_rows(const Rows<T>& rows, const float* x, int64_t n, float* out) {
  vf a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    vf x0 = load<vf>(x + i), x1 = load<vf>(x + i + kLanes);
    a0 += load_float(rows.row[0] + i) * x0, b0 += load_float(rows.row[0] + i + kLanes) * x1;
    a1 += load_float(rows.row[1] + i) * x0, b1 += load_float(rows.row[1] + i + kLanes) * x1;
    a2 += load_float(rows.row[2] + i) * x0, b2 += load_float(rows.row[2] + i + kLanes) * x1;
    a3 += load_float(rows.row[3] + i) * x0, b3 += load_float(rows.row[3] + i + kLanes) * x1;
  }
  sum4(a0 + b0, a1 + b1, a2 + b2, a3 + b3, out, 1);
  for (; i < n; i++)
    for (int j = 0; j < kTogether; j++) out[j] += to_float(rows.row[j][i]) * x[i];
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
  std::fill_n(y, rows, 0.0f);
  constexpr int64_t step = 16;
  return parallel((count + step - 1) / step, threads, [&](int64_t piece) {
    int64_t end = std::min(count, (piece + 1) * step);
    for (int64_t i = piece * step; i < end; i += kTogether) {
      Rows<T> rows(w, stride, active + i, end - i, gate);
      if (i + kTogether < count) Rows<T>(w, stride, active + i + kTogether, count - i - kTogether, gate).fetch_start();
      float dots[kTogether];
      dot_rows(rows, x, n, dots);
      for (int64_t j = 0; j < std::min<int64_t>(kTogether, end - i); j++) y[active[i + j]] = rows.factor[j] * dots[j];
    }
    return int(kOk);
  });
}

// y[from, to) += the four rows times their factors.
template <class T>
inline void add_rows(const Rows<T>& rows, int64_t from, int64_t to, float* y) {
  int64_t i = from;
  for (; i + kLanes <= to; i += kLanes) {
    vf total = load<vf>(y + i) + load_float(rows.row[0] + i) * rows.factor[0];
    total += load_float(rows.row[1] + i) * rows.factor[1];
    total += load_float(rows.row[2] + i) * rows.factor[2];
    total += load_float(rows.row[3] + i) * rows.factor[3];
    store(y + i, total);
  }
  for (; i < to; i++)
    for (int j = 0; j < kTogether; j++) y[i] += to_float(rows.row[j][i]) * rows.factor[j];
}

// y = sum over i with x[i] != 0 of x[i] * w[i].
template <class T>
inline int matvec_skip_columns(const T* w, int64_t stride, const float* x, int64_t rows, int64_t n, float* y,
                               int threads) {
  Frame frame;
  int32_t* active = frame.take<int32_t>(rows + 1);
  int64_t count = nonzero(x, rows, active);
  std::fill_n(y, n, 0.0f);
  int64_t step = std::max<int64_t>(256, std::min<int64_t>(4096, round_up((n + threads - 1) / threads, 64)));
  return parallel((n + step - 1) / step, threads, [&](int64_t piece) {
    int64_t from = piece * step, to = std::min(n, from + step);
    for (int64_t i = 0; i < count; i += kTogether) {
      int64_t next = i + kTogether;
      if (next < count) Rows<T>(w + from, stride, active + next, count - next, x).fetch_start();
      add_rows(Rows<T>(w, stride, active + i, count - i, x), from, to, y);
    }
    return int(kOk);
  });
}

}  // namespace kh
