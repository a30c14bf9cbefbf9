// Blocks of slots by the attention to windows of averaged keys, and by the importance of their tokens (InfLLM-V2,
// NOSA), in one pass: from the logits of strides to the slots of the chosen blocks. The rules are those of
// src/keyhole/selection/block_lists.py.
#pragma once

#include "pages.hpp"

namespace kh {

struct Blocks {
  const float* logits;  // [R, G, C]: of the mean keys of strides
  const float* matter;  // [R, C]: mean importance of strides; null: the query chooses all
  int64_t matter_row;
  const float* anchors;  // [R, G]: log-sum-exp of what is always read
  int64_t batches, kv_heads, heads, strides;
  int64_t stride, block, length;
  const int64_t* starts;                         // [B]: padding
  const int32_t *ends, *first, *stop;            // [B]
  const int64_t *limits, *blocks, *recalled;     // [B]: slots, blocks of a list, those before importance chooses
  int64_t init, local, width;
  int32_t *slots, *counts;  // [R, width], [R]
  float* held;              // [R]
};

class BlockPicker {
 public:
  BlockPicker(const Blocks& b, int64_t row)
      : b_(b), row_(row), batch_(row / b.kv_heads), count_((b.length + b.block - 1) / b.block) {
    current_ = (b.ends[batch_] - 1) / b.block;
    // Windows, and strides, that are whole and without padding: those in [from, to).
    from_ = std::min((b.starts[batch_] + b.stride - 1) / b.stride, b.strides);
    to_ = std::max(from_, std::min<int64_t>(b.ends[batch_] / b.stride, b.strides));
  }

  void run() {
    const int64_t padded = round_up(b_.strides + 2 * kLanes, kLanes);
    shares_ = take(padded), windows_ = take(padded);
    uint32_t* ranks = frame_.take<uint32_t>(count_ + kLanes);
    chosen_ = frame_.take<int32_t>(count_ + 1 + kLanes);
    for (int64_t head = 0; head < b_.heads; head++) add_shares(b_.logits + (row_ * b_.heads + head) * b_.strides);
    rank(shares_, ranks, 0);
    choose(ranks, b_.matter ? b_.recalled[batch_] : b_.blocks[batch_]);
    if (b_.matter) {
      average(b_.matter + row_ * b_.matter_row);
      rank(windows_, ranks, chosen_count_);
      choose(ranks, b_.blocks[batch_]);
    }
    emit();
    b_.held[row_] = float(held());
  }

 private:
  int64_t whole_windows() const { return std::max<int64_t>(to_ - from_ - 1, 0); }

  float* take(int64_t count) {
    float* memory = frame_.take<float>(count);
    std::fill_n(memory, count, 0.0f);
    return memory;
  }

  // The mean of each two strides.
  void average(const float* strides) {
    for (int64_t i = 0; i < whole_windows(); i++) windows_[i] = (strides[from_ + i] + strides[from_ + i + 1]) / 2;
  }

  // The softmax of a head over its windows.
  void add_shares(const float* logits) {
    const int64_t n = whole_windows();
    if (n == 0) return;
    average(logits);
    const float most = *std::max_element(windows_, windows_ + n), total = exponentials(windows_, n, most);
    if (!(total > 0) || !(most < INFINITY)) return;  // NaN among them counts for nothing
    for (int64_t i = 0; i < n; i++) shares_[i] += windows_[i] / total;
  }

  // x[i] = exp(x[i] - most), with whole vectors behind the end; their sum.
  static float exponentials(float* x, int64_t n, float most) {
    const vf slope = splat(1.442695041f), shift = splat(most);
    for (int64_t i = 0; i < n; i += kLanes) store(x + i, exp2((load<vf>(x + i) - shift) * slope));
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += x[i];
    return float(total);
  }

  // A rank for each block: the greatest of the windows that touch it; `wanted` of `chosen_` come first.
  void rank(const float* windows, uint32_t* ranks, int64_t wanted) const {
    const int64_t each = b_.block / b_.stride, n = whole_windows();
    for (int64_t block = 0; block < count_; block++) {
      const int64_t begin = std::max<int64_t>(block * each - 1 - from_, 0), end = std::min((block + 1) * each - from_, n);
      float most = std::numeric_limits<float>::lowest();
      for (int64_t i = begin; i < end; i++) most = std::max(most, windows[i]);
      const bool forced = block < b_.init || block >= current_ - b_.local;
      ranks[block] = block > current_ ? 0 : forced ? UINT32_MAX : rank_of(most);
    }
    for (int64_t i = 0; i < wanted; i++) ranks[chosen_[i]] = UINT32_MAX;
  }

  // The blocks of greatest rank, ascending; of those that are too late none.
  void choose(const uint32_t* ranks, int64_t wanted) {
    Frame frame;
    const int64_t count = std::min(wanted, count_);
    chosen_count_ = count ? pick(ranks, count_, find_greatest(ranks, count_, count, frame), chosen_) : 0;
    while (chosen_count_ > 0 && chosen_[chosen_count_ - 1] > current_) chosen_count_--;
  }

  PageSpan span(int64_t block) const { return PageSpan::of(block, b_.block, b_.first[batch_], b_.stop[batch_]); }

  void emit() const {
    const int64_t most = std::min(b_.limits[batch_], b_.width);
    int32_t* to = b_.slots + row_ * b_.width;
    int64_t count = 0;
    for (int64_t i = 0; i < chosen_count_; i++) {
      const PageSpan part = span(chosen_[i]);
      for (int64_t slot = 0; slot < part.size && count < most; slot++) to[count++] = int32_t(part.begin + slot);
    }
    std::fill_n(to + count, b_.width - count, 0);
    b_.counts[row_] = int32_t(count);
  }

  // The estimated share of attention on the chosen blocks and what is always read: a block's competing tokens have
  // the mean mass of its strides.
  double held() {
    const int64_t each = b_.block / b_.stride;
    double sum = 0;
    for (int64_t head = 0; head < b_.heads; head++) {
      const float* logits = b_.logits + (row_ * b_.heads + head) * b_.strides;
      const float anchor = b_.anchors[row_ * b_.heads + head];
      const int64_t n = to_ - from_;
      float most = anchor;
      for (int64_t i = from_; i < to_; i++) most = std::max(most, logits[i]);
      std::copy(logits + from_, logits + to_, windows_);
      exponentials(windows_, n, most);
      const double anchored = std::exp(double(anchor) - most);
      double total = anchored, taken = anchored;
      int64_t next = 0;
      for (int64_t block = 0; block < count_; block++) {
        const int64_t begin = std::max<int64_t>(block * each - from_, 0), end = std::min((block + 1) * each - from_, n);
        double mass = 0;
        for (int64_t i = begin; i < end; i++) mass += windows_[i];
        if (end > begin) mass *= double(span(block).size) / double(end - begin);
        total += mass;
        while (next < chosen_count_ && chosen_[next] < block) next++;
        if (next < chosen_count_ && chosen_[next] == block) taken += mass;
      }
      sum += taken / total;
    }
    return std::min(std::max(sum / double(b_.heads), 0.0), 1.0);
  }

  const Blocks& b_;
  const int64_t row_, batch_, count_;
  int64_t current_, from_, to_, chosen_count_ = 0;
  Frame frame_;
  float *shares_, *windows_;
  int32_t* chosen_;
};

inline int pick_blocks(const Blocks& b, int threads) {
  const int64_t rows = b.batches * b.kv_heads;
  threads = threads_for(rows * b.heads * b.strides * 8, threads);
  return parallel(rows, threads, [&](int64_t row) {
    BlockPicker(b, row).run();
    return int(kOk);
  });
}

}  // namespace kh
