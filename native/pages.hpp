// Pages of slots: their logits bounded by boxes, and from their scores to the slots that a budget allows.
#pragma once

#include "columns.hpp"
#include "pool.hpp"
#include "threshold.hpp"

namespace kh {

// Competing slots of a page: those in [begin, begin + size).
struct PageSpan {
  int64_t begin, size;
  static PageSpan of(int64_t number, int64_t page, int64_t first, int64_t stop) {
    int64_t begin = std::max(number * page, first), end = std::min((number + 1) * page, stop);
    return {begin, std::max<int64_t>(end - begin, 0)};
  }
};

struct Boxes {
  const void* query;  // [R, G, D], of type `asked`
  const void* ends;   // [R, P, 2 * D]: the greatest key of a page, then the least; of `type`; null: they are codes
  int asked, type;
  int64_t row_stride, page_stride;
  int64_t rows, kv_heads;
  int heads, size;
  int64_t pages, page;
  const int32_t *first, *stop;  // [B]
  const float* anchors;         // [R, G]: log-sum-exp of what is always read
  float scale, softcap, spread;
  float *scores, *shares, *anchored;  // [R, P], [R, P], [R]
  Codebook levels;  // [R, 2 * D, 16, 1], what codes of each channel's greatest and least key stand for
  Codes codes;
  float largest;  // of the query's numbers; with larger ones nothing is answered by codes
};

class BoxScores {
 public:
  BoxScores(const Boxes& b, Frame& frame) : b_(b), padded_(b.ends ? round_up(2 * b.size, 16) : 2 * b.size) {
    stride_ = round_up(b.pages, kLanes);
    queries_ = frame.take<float>((b.rows * 2 * b.heads + kBeyond) * padded_);
    memset(queries_, 0, sizeof(float) * b.rows * 2 * b.heads * padded_);
    bounds_ = frame.take<float>(b.rows * 2 * b.heads * stride_);
  }

  int run(int threads) {
    bool inside = true;
    for (int64_t head = 0; head < b_.rows * b_.heads; head++) inside &= split(head);
    if (!b_.ends) return inside ? coded(threads) : kOutOfRange;
    const int64_t step = 256, pieces = (b_.pages + step - 1) / step;
    threads = threads_for(b_.rows * b_.pages * bytes_of(b_.type, 2 * b_.size), threads);
    int status = parallel(b_.rows * pieces, threads, [&](int64_t i) {
      int64_t from = i % pieces * step, to = std::min(b_.pages, from + step);
      if (b_.type == kFloat32) return bound<float>(i / pieces, from, to);
      if (b_.type == kBFloat16) return bound<bf16>(i / pieces, from, to);
      return bound<fp16>(i / pieces, from, to);
    });
    return status != kOk ? status : parallel(b_.rows, threads, [&](int64_t row) { return score(row); });
  }

 private:
  int coded(int threads) {
    threads = threads_for(b_.rows * b_.pages * b_.size * 2 * b_.heads, threads);
    return parallel(b_.rows, threads, [&](int64_t row) {
      const int64_t at = row * 2 * b_.heads;
      int status = estimate(queries_ + at * padded_, 2 * b_.heads, row, b_.levels, b_.codes, 0, b_.pages, b_.scale, 0,
                            bounds_ + at * stride_, stride_);
      return status == kOk ? score(row) : status;
    });
  }

  // Queries of the greatest logit of a box and of the least: positive and negative channels apart, or, of codes, one
  // beside the other. Whether all numbers are small enough.
  bool split(int64_t head) {
    Frame frame;
    float* query = frame.take<float>(b_.size);
    to_floats(b_.query, b_.asked, head * b_.size, b_.size, query);
    const int64_t row = head / b_.heads, g = head % b_.heads;
    float* upper = queries_ + (row * 2 * b_.heads + g) * padded_;
    float* lower = upper + b_.heads * padded_;
    const int64_t step = b_.ends ? 1 : 2, beside = b_.ends ? b_.size : 1;
    bool inside = true;
    for (int i = 0; i < b_.size; i++) {
      upper[i * step] = lower[i * step + beside] = std::max(query[i], 0.0f);
      upper[i * step + beside] = lower[i * step] = std::min(query[i], 0.0f);
      inside &= std::fabs(query[i]) <= b_.largest;
    }
    return inside;
  }

  template <class T>
  int bound(int64_t row, int64_t from, int64_t to) {
    float* out = bounds_ + row * 2 * b_.heads * stride_;
    products(queries_ + row * 2 * b_.heads * padded_, padded_, 2 * b_.heads,
             static_cast<const T*>(b_.ends) + row * b_.row_stride, b_.page_stride, from, to, 2 * b_.size, b_.scale, out,
             stride_);
    return kOk;
  }

  int score(int64_t row) const {
    Frame frame;
    float* sizes = frame.take<float>(stride_);  // as logarithms
    const int64_t batch = row / b_.kv_heads;
    const float whole = std::log(float(b_.page));
    for (int64_t p = 0; p < stride_; p++) {
      int64_t size = p < b_.pages ? PageSpan::of(p, b_.page, b_.first[batch], b_.stop[batch]).size : 0;
      sizes[p] = size == b_.page ? whole : size ? std::log(float(size)) : -INFINITY;
    }
    float* upper = bounds_ + row * 2 * b_.heads * stride_;
    float* masses = upper + b_.heads * stride_;
    float* tops = frame.take<float>(b_.heads);    // log-sum-exps of the upper bounds
    float* totals = frame.take<float>(b_.heads);  // of the masses, and of what is always read
    float anchored = 0;
    for (int g = 0; g < b_.heads; g++) {
      weigh(upper + g * stride_, masses + g * stride_, sizes);
      tops[g] = lse(upper + g * stride_);
      const float anchor = b_.anchors[row * b_.heads + g];
      totals[g] = float(log_add(lse(masses + g * stride_), anchor));
      anchored += std::exp(anchor - totals[g]);  // NaN where nothing is read at all
    }
    b_.anchored[row] = anchored / float(b_.heads);
    gather(upper, masses, tops, totals, row, frame);
    return kOk;
  }

  // Caps both bounds; of the lower one makes the logarithm of the page's estimated mass.
  void weigh(float* upper, float* lower, const float* sizes) const {
    const vf none = splat(-INFINITY), cap = splat(b_.softcap), inverse = splat(1 / b_.softcap);
    for (int64_t p = 0; p < stride_; p += kLanes) {
      vf high = load<vf>(upper + p), low = load<vf>(lower + p), size = load<vf>(sizes + p);
      if (b_.softcap > 0) high = tanh(high * inverse) * cap, low = tanh(low * inverse) * cap;
      vf mass = (high + low) * 0.5f + (high - low) * splat(b_.spread) + size;
      vi unused = size == none;
      store(upper + p, unused ? none : high);
      store(lower + p, unused ? none : mass);
    }
  }

  float lse(const float* logits) const {
    vf high = splat(-INFINITY);
    for (int64_t p = 0; p < stride_; p += kLanes) high = largest(load<vf>(logits + p), high);
    float most = -INFINITY;
    for (int i = 0; i < kLanes; i++) most = std::max(most, high[i]);
    return most == -INFINITY ? most : float(log_of(mass_of(logits, stride_, most, 1)));
  }

  // Scores and shares of all pages, of the heads' bounds and masses.
  void gather(const float* upper, const float* masses, const float* tops, const float* totals, int64_t row,
              Frame& frame) const {
    float* scores = frame.take<float>(stride_);
    float* shares = frame.take<float>(stride_);
    const vf factor = splat(kLog2e);
    for (int64_t p = 0; p < stride_; p += kLanes) {
      vf high = splat(-INFINITY), total{}, share{};
      for (int g = 0; g < b_.heads; g++)
        if (tops[g] != -INFINITY) high = largest(load<vf>(upper + g * stride_ + p) - splat(tops[g]), high);
      const vi none = high == splat(-INFINITY);
      const vf base = none ? vf{} : high;
      for (int g = 0; g < b_.heads; g++) {
        if (tops[g] != -INFINITY)
          total += exp2((load<vf>(upper + g * stride_ + p) - splat(tops[g]) - base) * factor);
        share += totals[g] == -INFINITY ? splat(NAN) : exp2((load<vf>(masses + g * stride_ + p) - splat(totals[g])) * factor);
      }
      store(scores + p, none ? splat(-INFINITY) : base + log(total));
      store(shares + p, share * splat(1.0f / float(b_.heads)));
    }
    memcpy(b_.scores + row * b_.pages, scores, sizeof(float) * b_.pages);
    memcpy(b_.shares + row * b_.pages, shares, sizeof(float) * b_.pages);
  }

  const Boxes& b_;
  int64_t padded_, stride_;
  float *queries_, *bounds_;
};

struct Picking {
  const float *scores, *shares, *anchored;  // [B, L, P], [B, Hkv, P], [B, Hkv]
  int64_t batches, lists, kv_heads, pages, page;
  const int32_t *first, *stop;  // [B]
  const int64_t* limits;        // [B]: slots at most
  double mass;                  // pages are read until their shares reach it; negative: to the limit
  int64_t floor, count, width;  // count: pages that may be read
  int32_t *slots, *counts;      // [B, L, width], [B, L]
  float* held;                  // [B, Hkv]
};

class PagePicker {
 public:
  explicit PagePicker(const Picking& p) : p_(p) {}

  // The list of one batch row and, where there are more, of one KV head.
  void run(int64_t list) const {
    Frame frame;
    const int64_t batch = list / p_.lists;
    uint32_t* ranks = frame.take<uint32_t>(p_.pages);
    int32_t* order = frame.take<int32_t>(p_.pages + 1 + kLanes);
    for (int64_t i = 0; i < p_.pages; i++) {
      bool earlier = i < p_.first[batch] / p_.page;
      ranks[i] = rank_of(earlier ? -INFINITY : p_.scores[list * p_.pages + i]);
    }
    if (p_.count) pick(ranks, p_.pages, find_greatest(ranks, p_.pages, p_.count, frame), order);
    std::sort(order, order + p_.count, [&](int32_t a, int32_t b) { return ranks[a] != ranks[b] ? ranks[a] > ranks[b] : a < b; });
    int64_t left = p_.limits[batch];
    if (p_.mass >= 0) left = std::min(left, wanted(list, order));
    int32_t* taken = frame.take<int32_t>(p_.pages);
    std::fill_n(taken, p_.pages, 0);
    for (int64_t i = 0; i < p_.count && left > 0; i++) {
      taken[order[i]] = int32_t(std::min(left, span(order[i], batch).size));
      left -= taken[order[i]];
    }
    emit(list, taken);
  }

 private:
  PageSpan span(int64_t number, int64_t batch) const {
    return PageSpan::of(number, p_.page, p_.first[batch], p_.stop[batch]);
  }
  int64_t heads() const { return p_.kv_heads / p_.lists; }

  // Slots of as many pages as reach the mass for every head of the list.
  int64_t wanted(int64_t list, const int32_t* order) const {
    int64_t most = p_.floor;
    for (int64_t head = list * heads(); head < (list + 1) * heads(); head++) {
      double sum = 0;
      int64_t slots = 0;
      for (int64_t i = 0; i < p_.count; i++) {
        const float share = p_.shares[head * p_.pages + order[i]];
        sum += share;
        // Rounded as torch rounds it, since what is to be reached is such a sum, and is to be met exactly.
        const float before = p_.anchored[head] + float(sum) - share;
        if (before < float(p_.mass)) slots += span(order[i], list / p_.lists).size;
      }
      most = std::max(most, slots);
    }
    return most;
  }

  void emit(int64_t list, const int32_t* taken) const {
    const int64_t batch = list / p_.lists;
    int32_t* to = p_.slots + list * p_.width;
    int64_t count = 0;
    for (int64_t i = 0; i < p_.pages; i++) {
      const int64_t begin = taken[i] ? span(i, batch).begin : 0;
      for (int64_t slot = 0; slot < taken[i] && count < p_.width; slot++) to[count++] = int32_t(begin + slot);
    }
    std::fill_n(to + count, p_.width - count, 0);
    p_.counts[list] = int32_t(count);
    for (int64_t head = list * heads(); head < (list + 1) * heads(); head++) {
      double held = p_.anchored[head];
      for (int64_t i = 0; i < p_.pages; i++)
        if (taken[i]) held += double(p_.shares[head * p_.pages + i]) * taken[i] / double(span(i, batch).size);
      p_.held[head] = float(held);
    }
  }

  const Picking& p_;
};

inline int pick_pages(const Picking& p, int threads) {
  threads = threads_for(p.batches * p.lists * p.pages * 16, threads);
  return parallel(p.batches * p.lists, threads, [&](int64_t list) {
    PagePicker(p).run(list);
    return int(kOk);
  });
}

}  // namespace kh
