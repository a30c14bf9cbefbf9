// Softmax of every query head over the keys of its KV head, gathered to scores and shares of pages. Keys are read
// once; what is held beside them is one logit for each query head and slot.
#pragma once

#include "scores.hpp"

namespace kh {

struct Pooling {
  const float* query;  // [B, Hkv, G, D]
  const void* keys;
  int type;
  int64_t batch_stride, head_stride, slot_stride, block_stride;
  Pages pages;  // without a table, keys are in one piece; else a batch row has a row of it
  int64_t batches;
  int kv_heads, heads, size;  // heads: those of one KV head, G
  const int64_t *begin, *end;   // [B]: slots [begin, end) make the denominators
  const int64_t *first, *stop;  // [B]: slots [first, stop) are pooled
  int64_t slots, last;          // no end, no stop lies behind it
  int64_t page;
  float scale, softcap, sharpness;
  bool per_head;  // a list of scores for each KV head, else one for all
  bool largest;   // scores take the largest weight of a slot, else the mean
  const float *score_extra, *share_extra;  // [B, Hkv, G]: log of more mass in the denominators, or null
  float *scores, *shares, *lse;            // [B, L, P], [B, Hkv, P], [B, Hkv, G]
};

constexpr int64_t kPooled = 1024;  // slots handled together
constexpr float kLog2e = 1.44269504f;

// Log-sum-exp of some logits as their maximum and the sum of exp(logit - maximum).
struct Mass {
  float most, total;
};

inline double log_of(const Mass& mass) { return mass.most + std::log(double(mass.total)); }

inline double log_add(double a, double b) {
  double high = std::max(a, b);
  return high == -INFINITY ? high : high + std::log(std::exp(a - high) + std::exp(b - high));
}

// The mass of n logits times `sharpness`; a multiple of kLanes may be read.
inline Mass mass_of(const float* logits, int64_t n, float most, float sharpness) {
  const vf base = splat(most), factor = splat(sharpness * kLog2e);
  vf total{};
  for (int64_t i = 0; i < n; i += kLanes) total += exp2((load<vf>(logits + i) - base) * factor);
  return {most * sharpness, sum(total)};
}

class Pool {
 public:
  Pool(const Pooling& p, Frame& frame) : p_(p), rows_(p.batches * p.kv_heads), blocks_((p.slots + kPooled - 1) / kPooled) {
    stride_ = round_up(p.slots, kPooled);
    padded_ = round_up(p.size, 16);
    int64_t all = rows_ * p.heads;
    queries_ = padded_queries(p.query, all, p.size, padded_, frame);
    logits_ = frame.take<float>(all * stride_ + kLanes);
    masses_ = frame.take<Mass>(all * blocks_);
    sharp_ = frame.take<Mass>(all * blocks_);
    weights_ = frame.take<Weights>(all);
  }

  int run(int threads) {
    int status = parallel(rows_ * blocks_, threads, [&](int64_t i) {
      if (p_.type == kFloat32) return score<float>(i / blocks_, i % blocks_);
      if (p_.type == kBFloat16) return score<bf16>(i / blocks_, i % blocks_);
      return score<fp16>(i / blocks_, i % blocks_);
    });
    if (status != kOk) return status;
    for (int64_t head = 0; head < rows_ * p_.heads; head++) settle(head);
    int64_t step = std::max(p_.page, kPooled / p_.page * p_.page), pieces = (p_.last + step - 1) / step;
    return parallel(p_.batches * pieces, threads, [&](int64_t i) {
      int64_t from = i % pieces * step;
      pool(i / pieces, from, std::min(from + step, p_.last));
      return int(kOk);
    });
  }

 private:
  // What turns a logit into a weight: scores take exp(sharpness * logit - score), shares exp(logit - share).
  struct Weights {
    float score, share;
  };

  // Logits of one block of a row, and the mass of each head on it.
  template <class T>
  int score(int64_t row, int64_t block) {
    int64_t start = block * kPooled, from = std::max(start, p_.begin[row / p_.kv_heads]);
    int64_t to = std::min(start + kPooled, p_.end[row / p_.kv_heads]);
    float* out = logits_ + row * p_.heads * stride_;
    if (from < to && !products(queries_ + row * p_.heads * padded_, padded_, p_.heads, keys<T>(row), from, to, p_.size,
                               p_.scale, out, stride_))
      return kBadSlot;
    for (int64_t head = row * p_.heads; head < (row + 1) * p_.heads; head++) weigh(head, block, from, to);
    return kOk;
  }

  template <class T>
  KeyRow<T> keys(int64_t row) const {
    const int64_t batch = row / p_.kv_heads;
    const T* data = static_cast<const T*>(p_.keys) + batch * p_.batch_stride + row % p_.kv_heads * p_.head_stride;
    const int32_t* table = p_.pages.table ? p_.pages.table + batch * p_.pages.table_stride : nullptr;
    return {data, p_.slot_stride, p_.block_stride, table, p_.pages.block_size, p_.pages.blocks};
  }

  void weigh(int64_t head, int64_t block, int64_t from, int64_t to) {
    int64_t start = block * kPooled, count = round_up(to - start, kLanes), at = head * blocks_ + block;
    masses_[at] = sharp_[at] = {-INFINITY, 0};
    if (from >= to) return;
    float* logits = logits_ + head * stride_;
    for (int64_t i = start; p_.softcap > 0 && i < start + count; i += kLanes)
      store(logits + i, tanh(load<vf>(logits + i) * (1 / p_.softcap)) * p_.softcap);
    std::fill(logits + start, logits + from, -INFINITY);
    std::fill(logits + to, logits + start + count, -INFINITY);
    vf high = splat(-INFINITY);
    for (int64_t i = start; i < start + count; i += kLanes) high = largest(load<vf>(logits + i), high);
    float most = -INFINITY;
    for (int i = 0; i < kLanes; i++) most = std::max(most, high[i]);
    masses_[at] = mass_of(logits + start, count, most, 1);
    if (p_.sharpness != 1) sharp_[at] = mass_of(logits + start, count, most, p_.sharpness);
  }

  double joined(const Mass* masses) const {
    Mass all = {-INFINITY, 0};
    for (int64_t i = 0; i < blocks_; i++) all.most = std::max(all.most, masses[i].most);
    if (all.most == -INFINITY) return -INFINITY;
    for (int64_t i = 0; i < blocks_; i++) all.total += masses[i].total * std::exp(masses[i].most - all.most);
    return log_of(all);
  }

  void settle(int64_t head) {
    auto with = [&](double lse, const float* extra) { return float(extra ? log_add(lse, extra[head]) : lse); };
    double lse = joined(masses_ + head * blocks_);
    double sharp = p_.sharpness == 1 ? lse : joined(sharp_ + head * blocks_);
    weights_[head] = {with(sharp, p_.score_extra), with(lse, p_.share_extra)};
    p_.lse[head] = float(lse);
  }

  // Of the slots of some pages, [from, to), those in [first, stop) are pooled.
  struct Pooled {
    int64_t from, first, stop, to;
  };

  // Scores and shares of the pages in [from, to) of one batch row.
  void pool(int64_t batch, int64_t from, int64_t to) const {
    Frame frame;
    const int64_t room = round_up(to - from, kLanes), stop = std::min(to, p_.stop[batch]);
    const Pooled pooled = {from, std::max(from, p_.first[batch]), stop, to};
    float* scores = frame.take<float>(room);
    float* shares = frame.take<float>(room);
    std::fill_n(scores, room, 0.0f);
    for (int64_t row = batch * p_.kv_heads; row < (batch + 1) * p_.kv_heads; row++) {
      std::fill_n(shares, room, 0.0f);
      for (int g = 0; g < p_.heads && pooled.first < stop; g++) add(row * p_.heads + g, from, room, scores, shares);
      emit(shares, pooled, 1.0f / float(p_.heads), p_.shares + row * pages());
      if (!p_.per_head) continue;
      emit(scores, pooled, part(p_.heads), p_.scores + row * pages());
      std::fill_n(scores, room, 0.0f);
    }
    if (!p_.per_head) emit(scores, pooled, part(p_.heads * p_.kv_heads), p_.scores + batch * pages());
  }

  float part(int heads) const { return p_.largest ? 1.0f : 1.0f / float(heads); }
  int64_t pages() const { return (p_.last + p_.page - 1) / p_.page; }

  // Adds the weights of one head; what lies outside the slots to be pooled may become anything.
  void add(int64_t head, int64_t from, int64_t room, float* scores, float* shares) const {
    const float* logits = logits_ + head * stride_ + from;
    const Weights& w = weights_[head];
    const vf score = splat(w.score), share = splat(w.share), sharp = splat(p_.sharpness), factor = splat(kLog2e);
    const bool same = p_.sharpness == 1;
    const vf between = splat(std::exp(w.score - w.share));
    for (int64_t i = 0; i < room; i += kLanes) {
      vf x = load<vf>(logits + i), weight = exp2((x * sharp - score) * factor), held = load<vf>(scores + i);
      store(scores + i, p_.largest ? kh::largest(weight, held) : held + weight);
      store(shares + i, load<vf>(shares + i) + (same ? weight * between : exp2((x - share) * factor)));
    }
  }

  // Sums over pages, times `factor`; slots that are not pooled count nothing.
  void emit(float* weights, const Pooled& pooled, float factor, float* out) const {
    const auto [from, first, stop, to] = pooled;
    std::fill(weights, weights + std::min(first, to) - from, 0.0f);
    std::fill(weights + std::max(stop, from) - from, weights + to - from, 0.0f);
    for (int64_t at = from; at < to; at += p_.page) {
      float total = 0;
      for (int64_t i = at; i < std::min(at + p_.page, to); i++) total += weights[i - from];
      out[at / p_.page] = total * factor;
    }
  }

  const Pooling& p_;
  int64_t rows_, blocks_, stride_, padded_;
  const float* queries_;
  float* logits_;
  Mass *masses_, *sharp_;
  Weights* weights_;
};

}  // namespace kh
