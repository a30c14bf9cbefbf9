// Exact attention over selected slots: all query heads of a KV head in one pass over the rows it reads.
#pragma once

#include "tile.hpp"

namespace kh {

// Adds the products of one stretch of two keys with H queries, `stride` floats apart.
template <int H>
inline void dot_step(vf k, vf l, const float* q, int64_t stride, vf& a0, vf& a1, vf& a2, vf& a3, vf& b0, vf& b1,
                     vf& b2, vf& b3) {
  vf q0 = load<vf>(q);
  a0 += k * q0, b0 += l * q0;
  if (H > 1) {
    vf q1 = load<vf>(q + stride);
    a1 += k * q1, b1 += l * q1;
  }
  if (H > 2) {
    vf q2 = load<vf>(q + 2 * stride);
    a2 += k * q2, b2 += l * q2;
  }
  if (H > 3) {
    vf q3 = load<vf>(q + 3 * stride);
    a3 += k * q3, b3 += l * q3;
  }
}

// Products of two keys with H queries, which are `stride` floats apart and zero padded: out[h * kTile] and beside.
template <class T, int H>
inline void dot_pair(const T* key, const T* other, const float* q, int64_t stride, int size, Fetcher& fetch,
                     float* out) {
  vf a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    fetch.step();
    dot_step<H>(load_float(key + i), load_float(other + i), q + i, stride, a0, a1, a2, a3, b0, b1, b2, b3);
  }
  if (i < size)
    dot_step<H>(load_float(key + i, size - i), load_float(other + i, size - i), q + i, stride, a0, a1, a2, a3, b0, b1,
                b2, b3);
  if (H == 4) {
    sum4(a0, a1, a2, a3, out, kTile);
    sum4(b0, b1, b2, b3, out + 1, kTile);
    return;
  }
  out[0] = sum(a0), out[1] = sum(b0);
  if (H > 1) out[kTile] = sum(a1), out[kTile + 1] = sum(b1);
  if (H > 2) out[2 * kTile] = sum(a2), out[2 * kTile + 1] = sum(b2);
}

template <class T>
inline void dot_any(const T* key, const T* other, const float* q, int64_t stride, int size, int heads, Fetcher& fetch,
                    float* out) {
  for (; heads >= 4; heads -= 4, q += 4 * stride, out += 4 * kTile)
    dot_pair<T, 4>(key, other, q, stride, size, fetch, out);
  if (heads == 1) dot_pair<T, 1>(key, other, q, stride, size, fetch, out);
  if (heads == 2) dot_pair<T, 2>(key, other, q, stride, size, fetch, out);
  // Of three the sums take longer than another head; what follows the queries is finite, and its sums are nobody's.
  if (heads == 3) dot_pair<T, 4>(key, other, q, stride, size, fetch, out);
}

// acc[h] = acc[h] * alpha[h] + sum over the tile of p[h][i] * value[i], for H heads and V vectors from d on.
template <class T, int H, int V, bool Tail>
inline void add_stretch(const T* const* values, int count, const float* p, const float* alpha, float* acc,
                        int64_t stride, int d, int size, Fetcher& fetch) {
  auto value = [&](int i, int at) {
    return Tail ? load_float(values[i] + at, size - at) : load_float(values[i] + at);
  };
  vf a[H], b[H];
  for (int h = 0; h < H; h++) {
    a[h] = load<vf>(acc + h * stride + d) * alpha[h];
    if (V > 1) b[h] = load<vf>(acc + h * stride + d + kLanes) * alpha[h];
  }
  for (int i = 0; i < count; i++) {
    fetch.step();
    vf v = value(i, d), w = V > 1 ? value(i, d + kLanes) : v;
#pragma GCC unroll 4
    for (int h = 0; h < H; h++) {
      a[h] += v * p[h * kTile + i];
      if (V > 1) b[h] += w * p[h * kTile + i];
    }
  }
  for (int h = 0; h < H; h++) {
    store(acc + h * stride + d, a[h]);
    if (V > 1) store(acc + h * stride + d + kLanes, b[h]);
  }
}

template <class T, int H>
inline void add_values(const T* const* values, int count, const float* p, const float* alpha, float* acc,
                       int64_t stride, int size, Fetcher& fetch) {
  int d = 0;
  for (; d + 2 * kLanes <= size; d += 2 * kLanes)
    add_stretch<T, H, 2, false>(values, count, p, alpha, acc, stride, d, size, fetch);
  for (; d + kLanes <= size; d += kLanes)
    add_stretch<T, H, 1, false>(values, count, p, alpha, acc, stride, d, size, fetch);
  if (d < size) add_stretch<T, H, 1, true>(values, count, p, alpha, acc, stride, d, size, fetch);
}

template <class T>
inline void add_any(const T* const* values, int count, const float* p, const float* alpha, float* acc,
                    int64_t stride, int size, int heads, Fetcher& fetch) {
  for (; heads >= 4; heads -= 4, p += 4 * kTile, alpha += 4, acc += 4 * stride)
    add_values<T, 4>(values, count, p, alpha, acc, stride, size, fetch);
  if (heads == 1) add_values<T, 1>(values, count, p, alpha, acc, stride, size, fetch);
  if (heads == 2) add_values<T, 2>(values, count, p, alpha, acc, stride, size, fetch);
  if (heads == 3) add_values<T, 3>(values, count, p, alpha, acc, stride, size, fetch);
}

// Partial result of a row: unnormalised output with its running maximum and denominator, for each head.
struct Partial {
  float *acc, *most, *total;  // [G, stride], [G], [G]
};

// Turns a tile of raw products into weights exp(logit - most), and updates the running softmax. `told`, where given,
// gets the logits.
inline void weigh_tile(const Attention& a, float* logits, const float* key_scale, const float* value_scale, int count,
                       int g, float* alpha, Partial& part, float* told) {
  const vf none = splat(-INFINITY), scale = splat(a.scale);
  vf high = none;
  for (int i = 0; i < kTile; i += kLanes) {
    vf x = load<vf>(logits + i) * load<vf>(key_scale + i) * scale;
    if (a.softcap > 0)
      for (int j = 0; j < kLanes; j++) x[j] = a.softcap * std::tanh(x[j] / a.softcap);
    x = iota() + i < count ? x : none;
    store(logits + i, x);
    high = largest(x, high);
  }
  const float most = std::max(part.most[g], largest_of(high));
  if (told) memcpy(told, logits, sizeof(float) * count);
  alpha[g] = most == part.most[g] ? 1.0f : std::exp(part.most[g] - most);
  const vf base = splat(most == -INFINITY ? 0.0f : most), log2e = splat(1.44269504f);
  vf total{};
  for (int i = 0; i < kTile; i += kLanes) {
    vf weight = exp2((load<vf>(logits + i) - base) * log2e);
    weight = iota() + i < count ? weight : vf{};
    total += weight;
    store(logits + i, weight * load<vf>(value_scale + i));
  }
  part.most[g] = most;
  part.total[g] = part.total[g] * alpha[g] + sum(total);
}

// Attends over the slots that one row reads, entries [from, to). While the keys of a tile are multiplied its values are fetched, and
// while its values are added the keys of the next tile.
template <class Tile>
inline int attend(const Attention& a, const float* q, int64_t stride, int64_t row, int64_t from, int64_t to,
                  Partial& part) {
  if (from >= to) return kOk;
  Frame frame;
  float* logits = frame.take<float>(int64_t(a.heads + kBeyond) * kTile);
  float* alpha = frame.take<float>(a.heads);
  typename Tile::Source source(a, row, frame);
  const SlotList slots = {a.slots ? a.slots + row * a.slots_stride : nullptr};
  Tile tiles[2], *tile = tiles, *next = tiles + 1;
  if (!tile->fill(source, slots, from, to - from)) return kBadSlot;
  tile->fetch_keys().finish();
  for (int64_t start = from; start < to; start += kTile, std::swap(tile, next)) {
    if (!next->fill(source, slots, start + kTile, to - start - kTile)) return kBadSlot;
    Fetcher fetch = tile->fetch_values();
    auto keys = tile->keys(source);
    for (int i = 0; i < tile->count; i += 2)
      dot_any(keys[i], keys[i + 1], q, stride, a.size, a.heads, fetch, logits + i);
    fetch.finish();
    for (int g = 0; g < a.heads; g++)
      weigh_tile(a, logits + g * kTile, tile->key_scale, tile->value_scale, tile->count, g, alpha, part,
                 a.logits ? a.logits + (row * a.heads + g) * a.width + start : nullptr);
    fetch = next->fetch_keys();
    add_any(tile->values(source), tile->count, logits, alpha, part.acc, stride, a.size, a.heads, fetch);
    fetch.finish();
  }
  return kOk;
}

inline int attend_any(const Attention& a, const float* q, int64_t stride, int64_t row, int64_t from, int64_t to,
                      Partial& part) {
  if (a.type == kFloat32) return attend<PlainTile<float>>(a, q, stride, row, from, to, part);
  if (a.type == kBFloat16) return attend<PlainTile<bf16>>(a, q, stride, row, from, to, part);
  if (a.type == kFloat16) return attend<PlainTile<fp16>>(a, q, stride, row, from, to, part);
  if (a.type == kCodes8) return attend<PackedTile<8>>(a, q, stride, row, from, to, part);
  if (a.type == kCodes4) return attend<PackedTile<4>>(a, q, stride, row, from, to, part);
  if (a.type == kCodes3) return attend<PackedTile<3>>(a, q, stride, row, from, to, part);
  if (a.type == kCodes2) return attend<PackedTile<2>>(a, q, stride, row, from, to, part);
  return attend<PlainTile<int8_t>>(a, q, stride, row, from, to, part);
}

// Merges the partial results of a row, and the attention that came before, and divides.
inline void finish(const Attention& a, const Partial* parts, int64_t count, int64_t stride, int64_t row) {
  Frame frame;
  float* out = frame.take<float>(stride);
  float* before = frame.take<float>(stride);
  for (int g = 0; g < a.heads; g++) {
    const int64_t head = row * a.heads + g;
    float sink = a.sinks ? a.sinks[head] : -INFINITY, earlier = a.before ? a.before_lse[head] : -INFINITY;
    float high = std::max(sink, earlier), lse = -INFINITY;
    for (int64_t i = 0; i < count; i++) high = std::max(high, parts[i].most[g]);
    memset(out, 0, sizeof(float) * a.size);
    if (high != -INFINITY) {
      float total = std::exp(sink - high) + std::exp(earlier - high);
      for (int64_t i = 0; i < count; i++) total += parts[i].total[g] * std::exp(parts[i].most[g] - high);
      auto add = [&](float weight, const float* part) {
        for (int d = 0; weight != 0 && d < a.size; d++) out[d] += weight * part[d];
      };
      if (earlier != -INFINITY) {
        to_floats(a.before, a.asked, head * a.size, a.size, before);
        add(std::exp(earlier - high) / total, before);
      }
      for (int64_t i = 0; i < count; i++) add(std::exp(parts[i].most[g] - high) / total, parts[i].acc + g * stride);
      lse = high + std::log(total);
    }
    from_floats(out, a.size, a.out, a.asked, head * a.size);
    if (a.lse) a.lse[head] = lse;
  }
}

inline int64_t bytes_of(int type, int size) {
  if (type == kFloat32) return 4 * size;
  if (type == kBFloat16 || type == kFloat16) return 2 * size;
  const int bits = type == kCodes4 ? 4 : type == kCodes3 ? 3 : type == kCodes2 ? 2 : 8;
  return (int64_t(size) * bits + 7) / 8;
}

inline int gather_attention(const Attention& a, int64_t longest, int threads) {
  Frame frame;
  threads = threads_for(2 * a.rows * longest * bytes_of(a.type, a.size), threads);
  int64_t stride = round_up(a.size, 16), cuts = pieces(a.rows, threads, longest, 128);
  const float* queries = padded_queries(a.query, a.rows * a.heads, a.size, stride, frame, a.asked);
  Partial* parts = frame.take<Partial>(a.rows * cuts);
  for (int64_t i = 0; i < a.rows * cuts; i++) {
    parts[i] = {frame.take<float>(a.heads * stride), frame.take<float>(a.heads), frame.take<float>(a.heads)};
    memset(parts[i].acc, 0, sizeof(float) * a.heads * stride);
    for (int g = 0; g < a.heads; g++) parts[i].most[g] = -INFINITY, parts[i].total[g] = 0;
  }
  return parallel(a.rows * cuts, threads, [&](int64_t i) {
    int64_t row = i / cuts, count = a.counts ? a.counts[row] : longest;
    if (count < 0 || count > longest) return int(kBadRange);
    for (int g = 0; a.logits && i % cuts == 0 && g < a.heads; g++)
      std::fill_n(a.logits + (row * a.heads + g) * a.width + count, a.width - count, -INFINITY);
    int64_t step = round_up((count + cuts - 1) / cuts, kTile), from = std::min(i % cuts * step, count);
    int status = attend_any(a, queries + row * a.heads * stride, stride, row, from, std::min(from + step, count),
                            parts[i]);
    if (status == kOk && cuts == 1) finish(a, parts + i, 1, stride, row);
    return status;
  }) |
         (cuts == 1 ? kOk : parallel(a.rows, threads, [&](int64_t row) {
            finish(a, parts + row * cuts, cuts, stride, row);
            return int(kOk);
          }));
}

}  // namespace kh
