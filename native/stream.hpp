// Streaming choice of slots: one pass over the codes of a row, no array of scores, no sort.
//
// A slot's share of mass is P = mean_g exp(a_g) / Z_g, but Z_g is known only when all slots were seen. The pass
// ranks by estimates of Z_g from what was seen so far, keeps more slots than wanted, and remembers how large the
// true share of any dropped slot can have been. Only if that bound reaches the final threshold is the row
// scanned once more with the true Z_g.
#pragma once

#include "select.hpp"
#include "threshold.hpp"

namespace kh {

class Stream {
 public:
  Stream(const Job& job, Head* heads, Kept& kept, Frame& frame)
      : job_(job), heads_(heads), n_(job.tables->heads), kept_(kept) {
    sums_ = frame.take<uint16_t>(int64_t(n_) * kChunk + kLanes);
    p_ = frame.take<float>(kChunk);
    totals_ = frame.take<float>(n_);
  }

  // Scans the piece. With `settled`, the heads' offsets are final: only the ranking is left to do.
  void run(bool settled) {
    settled_ = settled;
    int64_t chunks = std::min<int64_t>((job_.last - job_.first) / (8 * kChunk), 4);
    if (!settled && chunks > 0) pilot(chunks * kChunk);
    for (int64_t base = job_.first / kBlock * kBlock; base < job_.last; base += kChunk) {
      int64_t from = base < job_.first ? job_.first - base : 0;
      int64_t to = std::min<int64_t>(job_.last - base, kChunk);
      sums_of(base, int((to + kBlock - 1) / kBlock), sums_);
      take(base, from, to);
    }
    for (int g = 0; g < n_; g++) heads_[g].settle();
  }

 private:
  void sums_of(int64_t slot, int blocks, uint16_t* out) const {
    scan(job_.codes + slot / kBlock * job_.block_stride, job_.block_stride, blocks, *job_.tables, *job_.shape, out,
         kChunk);
  }

  // Takes so many slots in blocks spread over the piece first, to start with sound weights and a threshold near the final one.
  void pilot(int64_t slots) {
    int64_t begin = round_up(job_.first, kBlock), blocks = (job_.last - begin) / kBlock;
    for (int64_t i = 0; i < slots / kBlock; i++) {
      int64_t lane = i % (kChunk / kBlock) * kBlock;
      sums_of(begin + blocks * i / (slots / kBlock) * kBlock, 1, sums_ + lane);
      if (lane + kBlock == kChunk) take(0, 0, kChunk);
    }
    for (int g = 0; g < n_; g++) heads_[g].bound = kNone;
    int64_t wanted = 2 * job_.keep * slots / (job_.last - job_.first);
    thin(std::max<int64_t>(wanted, 32));
    for (int g = 0; g < n_; g++) heads_[g].seen = kNone;
    kept_.count = scanned_ = 0;
  }

  // Takes in the sums of a chunk.
  void take(int64_t base, int64_t from, int64_t to) {
    if (!settled_) follow(from, to);
    if (kept_.count + (to - from) > kept_.capacity) thin(job_.keep);
    shares_of(sums_, kChunk, from, to, heads_, n_, p_, totals_);
    for (int g = 0; g < n_; g++) heads_[g].fresh += totals_[g];
    collect(base, from, to);
    scanned_ += to - from;
  }

  // Tracks the largest sums, and starts afresh when a slot dwarfs everything before it.
  void follow(int64_t from, int64_t to) {
    bool first = heads_[0].most < 0, dwarfed = false;
    for (int g = 0; g < n_; g++) {
      Head& head = heads_[g];
      int most = most_of(sums_ + g * kChunk, from, to);
      head.most = std::max(most, head.most);
      if (first) head.offset = -head.curve.at(most);
      dwarfed = dwarfed || head.curve.at(most) + head.offset > 40;
    }
    if (dwarfed) thin(job_.keep);
  }

  // Log-sum-exp of the whole row, judged by what was seen: the largest term stands for itself, the rest for more.
  double expected(const Head& head) const {
    double peak = head.curve.at(head.most), rest = 1 - std::exp2(peak - head.seen);
    if (!(rest > 1e-9)) return peak;
    return log2_add(peak, head.seen + std::log2(rest * double(job_.total) / double(scanned_)));
  }

  // Weighs the heads by the estimated Z, with the largest possible share near 1 to stay in range.
  void weigh() {
    double shift = INFINITY;
    for (int g = 0; g < n_; g++) {
      Head& head = heads_[g];
      head.settle();
      double z = log2_add(head.anchor, expected(head));
      head.offset = -z;
      shift = std::min(shift, z - head.curve.at(head.most));
    }
    shift_ = std::floor(shift);
    for (int g = 0; g < n_; g++) heads_[g].offset += shift_;
  }

  // Drops all but the best `keep` slots and raises the threshold for those to come.
  void thin(int64_t keep) {
    if (!settled_) weigh();
    kept_.weigh(heads_, n_);
    float spared = float(job_.spared * n_ * std::exp2(shift_));
    Threshold cut = {spared, 0, 0};
    Frame frame;
    if (kept_.count > keep) cut = find_greatest(kept_.shares, kept_.count, keep, frame);
    if (cut.value < spared) cut = {spared, 0, 0};
    threshold_ = cut.value;
    int32_t* places = frame.take<int32_t>(kept_.count + 1 + kLanes);
    // No more than that by the threshold; where numbers are out of all range, memory must still do.
    kept_.keep(places, std::min(pick(kept_.shares, kept_.count, cut, places), keep), n_);
    for (int g = 0; g < n_; g++)
      heads_[g].bound = std::max(heads_[g].bound, std::log2(double(threshold_)) - heads_[g].offset);
  }

  // Keeps the slots of this chunk whose share exceeds the threshold.
  void collect(int64_t base, int64_t from, int64_t to) {
    const vf threshold = splat(threshold_);
    int32_t* slots = kept_.slots;
    const int64_t before = kept_.count;
    int64_t count = before;
    for (int64_t i = from / kLanes * kLanes; i < to; i += kLanes)
      count += put_places(slots + count, int32_t(base + i), greater(load<vf>(p_ + i), threshold));
    for (int g = 0; g < n_; g++)
      take_at(sums_ + g * kChunk, slots + before, int32_t(base), count - before,
              kept_.sums + g * kept_.capacity + before);
    kept_.count = count;
  }

  const Job& job_;
  Head* heads_;
  int n_;
  Kept& kept_;
  uint16_t* sums_;
  float *p_, *totals_;
  float threshold_ = 0;
  double shift_ = 0;
  int64_t scanned_ = 0;
  bool settled_ = false;
};

}  // namespace kh
