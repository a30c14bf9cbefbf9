// Matrix-vector products that skip weight rows.
#pragma once

#include "simd.hpp"

namespace kh {

inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) { *p = to_bf16(x); }

// Weight rows read side by side: for products with one vector, and for sums.
constexpr int kTogether = 4, kSummed = 8;

// Rows of a weight that are read together; missing ones repeat the last with factor 0.
template <class T, int N>
struct Rows {
  const T* row[N];
  float factor[N];

  Rows(const T* w, int64_t stride, const int32_t* active, int64_t left, const float* factors) {
    for (int j = 0; j < N; j++) {
      int32_t at = active[std::min<int64_t>(j, left - 1)];
      row[j] = w + at * stride;
      factor[j] = j < left ? factors[at] : 0;
    }
  }
};

// Asks for what the rows read next hold where the present ones are read: the processor's own prefetch would find
// each row anew.
template <class T, int N>
inline void fetch(const Rows<T, N>& next, int64_t from, int64_t count) {
  for (const T* r : next.row)
    for (size_t byte = 0; byte < count * sizeof(T); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(r + from) + byte, 0, 2);
}

// Products of four rows with x.
template <class T>
inline void dot_rows(const Rows<T, kTogether>& rows, const Rows<T, kTogether>& next, const float* x, int64_t n,
                     float* out) {
  vf a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    if (i * sizeof(T) % 64 == 0) fetch(next, i, std::max<int64_t>(2 * kLanes, 64 / sizeof(T)));
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
      int64_t then = std::min(i + kTogether, count - 1);
      using Four = Rows<T, kTogether>;
      Four rows(w, stride, active + i, end - i, gate), next(w, stride, active + then, count - then, gate);
      float dots[kTogether];
      dot_rows(rows, next, x, n, dots);
      for (int64_t j = 0; j < std::min<int64_t>(kTogether, end - i); j++) y[active[i + j]] = rows.factor[j] * dots[j];
    }
    return int(kOk);
  });
}

// y += the rows times their factors.
template <class T>
inline void add_rows(const Rows<T, kSummed>& rows, const Rows<T, kSummed>& next, int64_t n, float* y) {
  constexpr int64_t step = 64 / sizeof(T);
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    fetch(next, i, step);
    for (int64_t at = i; at < i + step; at += kLanes) {
      vf total = load<vf>(y + at);
      for (int j = 0; j < kSummed; j++) total += load_float(rows.row[j] + at) * rows.factor[j];
      store(y + at, total);
    }
  }
  for (; i < n; i++)
    for (int j = 0; j < kSummed; j++) y[i] += to_float(rows.row[j][i]) * rows.factor[j];
}

// y = sum over i with x[i] != 0 of x[i] * w[i]. Whole rows go to one thread, so that it reads long runs; what they
// sum to does not depend on the number of threads.
template <class T>
inline int matvec_skip_columns(const T* w, int64_t stride, const float* x, int64_t rows, int64_t n, float* y,
                               int threads) {
  Frame frame;
  int32_t* active = frame.take<int32_t>(rows + 1);
  int64_t count = nonzero(x, rows, active);
  int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(8, count / (8 * kSummed)));
  int64_t step = round_up((count + pieces - 1) / pieces, kSummed), width = round_up(n, 16);
  float* sums = frame.take<float>(pieces * width);
  std::fill_n(sums, pieces * width, 0.0f);
  int status = parallel(pieces, threads, [&](int64_t piece) {
    int64_t end = std::min(count, (piece + 1) * step);
    for (int64_t i = piece * step; i < end; i += kSummed) {
      using Eight = Rows<T, kSummed>;
      int64_t then = std::min(i + kSummed, count - 1);
      Eight rows(w, stride, active + i, end - i, x), next(w, stride, active + then, count - then, x);
      add_rows(rows, next, n, sums + piece * width);
    }
    return int(kOk);
  });
  std::copy_n(sums, n, y);
  for (int64_t piece = 1; piece < pieces; piece++)
    for (int64_t i = 0; i < n; i++) y[i] += sums[piece * width + i];
  return status;
}

}  // namespace kh
