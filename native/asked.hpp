// A decode step's choice by product-quantiser codes, queries as the model made them: turned, weighed, looked up.
#pragma once

#include "attention.hpp"
#include "select_rows.hpp"

namespace kh {

struct PqStep {
  const void* query;  // [R, G, D], of type `asked`
  int asked;
  float largest;                  // of the query's numbers; with larger ones nothing is answered
  const float *rotation, *moment;  // [R, D, D], of queries, or null; of the residuals
  Codebook shape;
  Codes codes;
  int64_t rows;
  int heads;
  const int32_t *first, *stop;  // [R]
  const float* anchors;         // [R, G]
  double scale, softcap, mass;
  int64_t floor, cap;
  int32_t *slots, *counts;  // [R, cap], [R]
  float* masses;            // [R]
};

constexpr float kMostVariance = 64;  // as in selection/quantisers/uncertainty.py

// out[g] = query[g] times a matrix [n, n], for heads `stride` floats apart, which is a multiple of 16.
inline void turn(const float* query, int heads, int64_t stride, const float* matrix, int n, float* out) {
  Frame frame;
  float* weights = frame.take<float>(int64_t(heads) * kTile);
  float* ones = frame.take<float>(heads);
  std::fill_n(ones, heads, 1.0f);
  memset(out, 0, sizeof(float) * heads * stride);
  Fetcher nothing(nullptr, 0);
  for (int start = 0; start < n; start += kTile) {
    const float* rows[kTile];
    const int count = std::min(kTile, n - start);
    for (int i = 0; i < count; i++) rows[i] = matrix + int64_t(start + i) * n;
    for (int g = 0; g < heads; g++)
      for (int i = 0; i < count; i++) weights[g * kTile + i] = query[g * stride + start + i];
    add_any(rows, count, weights, ones, out, stride, n, heads, nothing);
  }
}

// Queries of one row along the quantised axes, and the anchors relative to estimated weights.
inline void ask(const PqStep& p, int64_t row, float* queries, float* anchors) {
  Frame frame;
  const int n = p.shape.subspaces * p.shape.width;
  const int64_t stride = round_up(n, 16);
  float* plain = frame.take<float>(p.heads * stride);
  float* turned = frame.take<float>(p.heads * stride);
  for (int g = 0; g < p.heads; g++) to_floats(p.query, p.asked, (row * p.heads + g) * n, n, plain + g * stride);
  if (p.rotation) {
    turn(plain, p.heads, stride, p.rotation + row * n * n, n, turned);
    std::swap(plain, turned);
  }
  turn(plain, p.heads, stride, p.moment + row * n * n, n, turned);
  for (int g = 0; g < p.heads; g++) {
    float variance = 0;
    for (int i = 0; i < n; i++) variance += plain[g * stride + i] * turned[g * stride + i];
    variance = std::min(variance * float(p.scale * p.scale), kMostVariance);
    anchors[row * p.heads + g] = p.anchors[row * p.heads + g] - variance / 2;
    memcpy(queries + (row * p.heads + g) * n, plain + g * stride, sizeof(float) * n);
  }
}

inline bool within(const PqStep& p) {
  Frame frame;
  const int64_t n = p.rows * p.heads * p.shape.subspaces * p.shape.width;
  float* query = frame.take<float>(n);
  to_floats(p.query, p.asked, 0, int(n), query);
  bool inside = true;
  for (int64_t i = 0; i < n; i++) inside &= std::fabs(query[i]) <= p.largest;
  return inside;
}

inline int pq_step(const PqStep& p, int threads) {
  if (!within(p)) return kOutOfRange;
  Frame frame;
  const int64_t n = p.shape.subspaces * p.shape.width, each = n * n * sizeof(float);
  float* queries = frame.take<float>(p.rows * p.heads * n);
  float* anchors = frame.take<float>(p.rows * p.heads);
  int64_t *first = frame.take<int64_t>(p.rows), *last = frame.take<int64_t>(p.rows), slots = 0;
  for (int64_t row = 0; row < p.rows; row++) {
    first[row] = p.first[row], last[row] = p.stop[row];
    slots += last[row] - first[row];
  }
  parallel(p.rows, threads_for(2 * p.rows * each, threads), [&](int64_t row) {
    ask(p, row, queries, anchors);
    return int(kOk);
  });
  const Request request = {queries, p.shape, p.codes, p.rows, p.heads, first, last, anchors, p.scale, p.softcap, p.mass,
                           p.floor, p.cap, p.slots, p.counts, p.masses};
  // A slot's codes take far longer to look up than to read.
  const int status = select_rows(request, threads_for(slots * p.shape.subspaces * 2, threads));
  for (int64_t row = 0; status == kOk && row < p.rows; row++) p.masses[row] = std::min(std::max(p.masses[row], 0.0f), 1.0f);
  return status;
}

}  // namespace kh
