// Integer look-up tables of one row's query heads, as src/keyhole/kernels/pq_tables.py defines them.
#pragma once

#include "quads.hpp"

namespace kh {

constexpr int kGroup = 4;  // query heads that share one pass over the codes

struct Codebook {
  const float* data;  // [R, M, C, width], rows `row_stride` elements apart, the rest dense
  int64_t row_stride;
  int subspaces, centroids, width;
  bool four_bit() const { return centroids == 16; }
  int pairs() const { return (subspaces + 1) / 2; }
};

// Sub-spaces whose 4-bit codes are looked up at once: four where a look-up takes indexes below 64.
inline int nibbles_at_once() { return kByQuads && scans_by_quads() ? 4 : 2; }

struct Tables {
  int heads;
  double* step;     // [heads]
  double* base;     // [heads]
  uint8_t* nibble;  // 4-bit codes: [groups][steps][heads of the group][nibbles_at_once][16]
  uint64_t* lanes;  // other codes: [groups][M][256], head h of a group in bits 16h
  static int64_t steps(const Codebook& shape) { return (shape.subspaces + nibbles_at_once() - 1) / nibbles_at_once(); }
};

inline int group_size(int heads, int group) {
  int left = heads - group * kGroup;
  return left < kGroup ? left : kGroup;
}

// q . c in double precision.
inline double dot_double(const double* q, const float* c, int width) {
  constexpr int lanes = kLanes / 2;
  double dot = 0;
  int i = 0;
  if (width >= lanes) {
    vd total{};
    for (; i + lanes <= width; i += lanes) total += load<vd>(q + i) * __builtin_convertvector(load<half_f>(c + i), vd);
    for (int j = 0; j < lanes; j++) dot += total[j];
  }
  for (; i < width; i++) dot += q[i] * double(c[i]);
  return dot;
}

// logits [M][C] of one head, whose scaled query is q; returns false if one is not finite.
inline bool head_logits(const double* q, const float* codebook, const Codebook& shape, double* out) {
  bool finite = true;
  if (shape.width == 1) {
    auto row = [&](double x, int count) {
      int64_t beyond = 0;
      for (int c = 0; c < count; c++) {
        out[c] = x * double(codebook[c]);
        beyond |= !(std::fabs(out[c]) < 1e30);
      }
      finite &= !beyond;
    };
    for (int m = 0; m < shape.subspaces; m++, codebook += shape.centroids, out += shape.centroids)
      shape.four_bit() ? row(q[m], 16) : row(q[m], shape.centroids);
    return finite;
  }
  for (int m = 0; m < shape.subspaces; m++, q += shape.width)
    for (int c = 0; c < shape.centroids; c++, codebook += shape.width, out++) {
      *out = dot_double(q, codebook, shape.width);
      finite &= std::fabs(*out) < 1e30;
    }
  return finite;
}

// The least and the greatest of n numbers.
struct Ends {
  double least, most;
};
inline Ends ends(const double* row, int n) {
  constexpr int lanes = kLanes / 2;
  Ends all = {row[0], row[0]};
  int i = 0;
  if (n >= lanes) {
    vd low = load<vd>(row), high = low;
    for (i = lanes; i + lanes <= n; i += lanes) {
      vd x = load<vd>(row + i);
      low = x < low ? x : low, high = x > high ? x : high;
    }
    for (int j = 0; j < lanes; j++) all.least = std::min(all.least, low[j]), all.most = std::max(all.most, high[j]);
  }
  for (; i < n; i++) all.least = std::min(all.least, row[i]), all.most = std::max(all.most, row[i]);
  return all;
}

// Rounds one head's logits to integers [M][C] of at most `top`.
inline void quantise(const double* logits, const Codebook& shape, int top, double* low, uint16_t* out, double* step,
                     double* base) {
  double span = 0, total = 0;
  for (int m = 0; m < shape.subspaces; m++) {
    const double* row = logits + m * shape.centroids;
    const auto [least, most] = ends(row, shape.centroids);
    low[m] = least;
    total += least;
    span = std::max(span, most - least);
  }
  double unit = span > 0 ? top / span : 0;
  auto row = [&](const double* from, double least, int count) {
    for (int c = 0; c < count; c++) out[c] = uint16_t(int32_t((from[c] - least) * unit + 0.5));
  };
  for (int m = 0; m < shape.subspaces; m++, logits += shape.centroids, out += shape.centroids)
    shape.four_bit() ? row(logits, low[m], 16) : row(logits, low[m], shape.centroids);
  *step = span / top;
  *base = total;
}

// Puts head g's integers [M][C] where the scan looks them up.
inline void place(const uint16_t* entries, const Codebook& shape, int g, Tables& tables) {
  int group = g / kGroup, h = g % kGroup, size = group_size(tables.heads, group);
  for (int m = 0; m < shape.subspaces; m++, entries += shape.centroids) {
    if (shape.four_bit()) {
      const int each = nibbles_at_once();
      int64_t before = int64_t(group) * kGroup * Tables::steps(shape) + int64_t(m / each) * size + h;
      uint8_t* to = tables.nibble + (before * each + m % each) * 16;
      for (int c = 0; c < 16; c++) to[c] = uint8_t(entries[c]);
    } else {
      uint64_t* to = tables.lanes + (int64_t(group) * shape.subspaces + m) * 256;
      for (int c = 0; c < shape.centroids; c++) to[c] |= uint64_t(entries[c]) << 16 * h;
    }
  }
}

// query: [G, D] of this row. Memory comes from the frame.
inline int make_tables(const float* query, int heads, int64_t row, const Codebook& shape, double scale, Frame& frame,
                       Tables& tables) {
  int groups = (heads + kGroup - 1) / kGroup, size = shape.subspaces * shape.centroids;
  int top = shape.four_bit() ? 255 : 65535 / shape.subspaces;
  int64_t nibbles = int64_t(groups) * kGroup * Tables::steps(shape) * nibbles_at_once() * 16, lanes = int64_t(groups) * shape.subspaces * 256;
  tables = {heads, frame.take<double>(heads), frame.take<double>(heads), nullptr, nullptr};
  if (shape.four_bit()) {
    tables.nibble = frame.take<uint8_t>(nibbles);
    memset(tables.nibble, 0, nibbles);
  } else {
    tables.lanes = frame.take<uint64_t>(lanes);
    memset(tables.lanes, 0, lanes * 8);
  }
  Frame inner;
  double* logits = inner.take<double>(size);
  double* low = inner.take<double>(shape.subspaces);
  uint16_t* entries = inner.take<uint16_t>(size);
  int width = shape.subspaces * shape.width;
  double* scaled = inner.take<double>(width);
  const float* codebook = shape.data + row * shape.row_stride;
  for (int g = 0; g < heads; g++) {
    for (int i = 0; i < width; i++) scaled[i] = double(query[int64_t(g) * width + i]) * scale;
    if (!head_logits(scaled, codebook, shape, logits)) return kNotFinite;
    quantise(logits, shape, top, low, entries, tables.step + g, tables.base + g);
    place(entries, shape, g, tables);
  }
  return kOk;
}

}  // namespace kh
