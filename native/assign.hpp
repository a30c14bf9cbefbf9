// Nearest-centroid labels of points cut into sub-spaces, eight or more points at a time.
#pragma once

#include "simd.hpp"

namespace kh {

struct Assignment {
  const void* points;  // [R, T, M * width], last dimension dense
  int type;
  int64_t row_stride, point_stride;
  const float* centroids;  // [R, M, C, width], rows `centroid_row` elements apart
  int64_t centroid_row;
  int64_t rows, count;
  int subspaces, centroids_each, width;
  void* labels;  // [R, T, M] of label_bytes
  int label_bytes;
};

constexpr int kPoints = 2 * kLanes;

// Transposes one sub-space of up to kPoints points: tile[i][t].
template <class T>
inline void turn(const T* points, int64_t stride, int count, int width, float* tile) {
  for (int t = 0; t < kPoints; t++) {
    const T* point = points + std::min(t, count - 1) * stride;
    for (int i = 0; i < width; i++) tile[i * kPoints + t] = to_float(point[i]);
  }
}

inline float square(const float* x, int n) {
  vf total{};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load<vf>(x + i) * load<vf>(x + i);
  float rest = 0;
  for (; i < n; i++) rest += x[i] * x[i];
  return sum(total) + rest;
}

// Labels of a transposed tile: the first centroid with the least half_norm - dot.
inline void nearest(const float* tile, const float* centroids, const float* half_norms, int count, int width,
                    int32_t* labels) {
  vf best0 = splat(INFINITY), best1 = best0;
  vi label0{}, label1{};
  for (int c = 0; c < count; c += 4) {
    const float* row[4];
    vf a[4], b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      int at = std::min(c + j, count - 1);
      row[j] = centroids + int64_t(at) * width;
      a[j] = b[j] = splat(half_norms[at]);
    }
    for (int i = 0; i < width; i++) {
      vf x = load<vf>(tile + i * kPoints), y = load<vf>(tile + i * kPoints + kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        a[j] -= x * row[j][i];
        b[j] -= y * row[j][i];
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      vi less0 = a[j] < best0, less1 = b[j] < best1;
      best0 = less0 ? a[j] : best0, best1 = less1 ? b[j] : best1;
      label0 = less0 ? vi{} + (c + j) : label0, label1 = less1 ? vi{} + (c + j) : label1;
    }
  }
  store(labels, label0);
  store(labels + kLanes, label1);
}

template <class T>
inline void assign_points(const Assignment& a, int64_t row, int64_t from, int64_t to) {
  Frame frame;
  float* tile = frame.take<float>(int64_t(a.width) * kPoints);
  float* half_norms = frame.take<float>(int64_t(a.subspaces) * a.centroids_each);
  const float* centroids = a.centroids + row * a.centroid_row;
  for (int64_t c = 0; c < int64_t(a.subspaces) * a.centroids_each; c++)
    half_norms[c] = square(centroids + c * a.width, a.width) / 2;
  const T* points = static_cast<const T*>(a.points) + row * a.row_stride;
  for (int64_t t = from; t < to; t += kPoints) {
    int count = int(std::min<int64_t>(kPoints, to - t));
    for (int m = 0; m < a.subspaces; m++) {
      int32_t labels[kPoints];
      turn(points + t * a.point_stride + int64_t(m) * a.width, a.point_stride, count, a.width, tile);
      int64_t first = int64_t(m) * a.centroids_each;
      nearest(tile, centroids + first * a.width, half_norms + first, a.centroids_each, a.width, labels);
      int64_t out = (row * a.count + t) * a.subspaces + m;
      for (int i = 0; i < count; i++, out += a.subspaces) {
        if (a.label_bytes == 1) static_cast<uint8_t*>(a.labels)[out] = uint8_t(labels[i]);
        else static_cast<int32_t*>(a.labels)[out] = labels[i];
      }
    }
  }
}

inline int assign(const Assignment& a, int threads) {
  constexpr int64_t step = 1024;
  int64_t pieces = (a.count + step - 1) / step;
  return parallel(a.rows * pieces, threads, [&](int64_t i) {
    int64_t row = i / pieces, from = i % pieces * step, to = std::min(from + step, a.count);
    if (a.type == kFloat32) assign_points<float>(a, row, from, to);
    else if (a.type == kBFloat16) assign_points<bf16>(a, row, from, to);
    else assign_points<fp16>(a, row, from, to);
    return int(kOk);
  });
}

}  // namespace kh
