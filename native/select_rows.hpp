// The choice for all rows of one call: pieces of rows are streamed in parallel, then each row is settled.
#pragma once

#include "stream.hpp"

namespace kh {

struct Request {
  const float* query;  // [R, G, D]
  Codebook shape;
  Codes codes;
  int64_t rows;
  int heads;
  const int64_t *first, *last;  // [R]
  const float* anchors;         // [R, G]
  double scale, softcap;        // softcap 0: none
  double mass;                  // 0: pick `cap` slots
  int64_t floor, cap;
  int32_t *slots, *counts;  // [R, cap], [R]
  float* masses;            // [R]
};

// One piece of a row, after streaming.
struct Piece {
  Head* heads;
  Kept kept;
};

inline Kept take_kept(int64_t capacity, int heads, Frame& frame) {
  int64_t padded = round_up(capacity + kLanes, 32);
  return {padded, 0, frame.take<int32_t>(padded), frame.take<uint16_t>(padded * heads), frame.take<float>(padded)};
}

class Selection {
 public:
  Selection(const Request& request, int64_t pieces) : r_(request), pieces_(pieces) {}

  // Memory for one piece of a row; it must outlive the row.
  Piece take(int64_t row, Frame& frame) const {
    return {frame.take<Head>(r_.heads), take_kept(std::min(length(row), capacity()), r_.heads, frame)};
  }

  int stream(int64_t row, int64_t index, Piece& piece) const {
    Frame frame;
    Tables tables;
    int status = make_tables(r_.query + row * r_.heads * size(), r_.heads, row, r_.shape, r_.scale, frame, tables);
    for (int g = 0; g < r_.heads && status == kOk; g++) {
      float anchor = r_.anchors[row * r_.heads + g];
      if (!(anchor < INFINITY)) status = kNotFinite;
      piece.heads[g] = {Curve::make(tables.step[g], tables.base[g], r_.softcap), anchor * 1.4426950408889634,
                        kNone, 0, 0, kNone, -1};
    }
    if (status != kOk) return status;
    int64_t step = round_up((length(row) + pieces_ - 1) / pieces_, kBlock);
    Job job = whole(row, tables);
    job.first = std::min(job.first + index * step, job.last);
    job.last = std::min(job.first + step, job.last);
    Stream(job, piece.heads, piece.kept, frame).run(false);
    return kOk;
  }

  int settle(int64_t row, Piece* pieces) const {
    Frame frame;
    if (length(row) == 0) return nothing(row);
    Head* heads = pieces[0].heads;
    for (int64_t i = 1; i < pieces_; i++) merge(heads, pieces[i].heads);
    double shift = final_offsets(heads), scale = std::exp2(-shift) / r_.heads, anchor = anchor_share(heads, shift);
    Kept all = join(row, pieces, frame);
    double bound = kNone;
    for (int g = 0; g < r_.heads; g++) bound = std::max(bound, heads[g].bound + heads[g].offset);
    all.weigh(heads, r_.heads);
    Threshold cut = decide(all, anchor, scale);
    bool lacking = all.count < std::min(r_.floor, length(row));
    if (bound > kNone && (lacking || std::log2(double(cut.value)) <= bound + 1e-4)) {
      int status = rescan(row, heads, all, frame);
      if (status != kOk) return status;
      all.weigh(heads, r_.heads);
      cut = decide(all, anchor, scale);
    }
    emit(row, all, cut, anchor, scale);
    return kOk;
  }

 private:
  int size() const { return r_.shape.subspaces * r_.shape.width; }
  int64_t length(int64_t row) const { return r_.last[row] - r_.first[row]; }
  int64_t keep() const { return r_.cap + r_.cap / 4 + 64; }
  int64_t capacity() const { return 2 * keep() + 2 * kChunk; }

  Job whole(int64_t row, const Tables& tables) const {
    double spared = r_.mass > 0 ? (1 - r_.mass) / double(length(row) + 1) / 2 : 0;
    return {&r_.shape, &tables, r_.codes.data + row * r_.codes.row_stride, r_.codes.block_stride,
            r_.first[row], r_.last[row], length(row), keep(), spared};
  }

  int nothing(int64_t row) const {
    double share = 0;
    for (int g = 0; g < r_.heads; g++) share += r_.anchors[row * r_.heads + g] > kNone;
    r_.counts[row] = 0;
    r_.masses[row] = float(share / r_.heads);
    std::fill_n(r_.slots + row * r_.cap, r_.cap, 0);
    return kOk;
  }

  void merge(Head* into, const Head* from) const {
    for (int g = 0; g < r_.heads; g++) {
      into[g].seen = log2_add(into[g].seen, from[g].seen);
      into[g].bound = std::max(into[g].bound, from[g].bound);
      into[g].most = std::max(into[g].most, from[g].most);
    }
  }

  // Offsets from the true Z; returns the common shift that brings the largest share near 1.
  double final_offsets(Head* heads) const {
    double shift = INFINITY;
    for (int g = 0; g < r_.heads; g++) {
      heads[g].offset = -log2_add(heads[g].anchor, heads[g].seen);
      shift = std::min(shift, -heads[g].offset - heads[g].curve.at(heads[g].most));
    }
    shift = std::floor(shift);
    for (int g = 0; g < r_.heads; g++) heads[g].offset += shift;
    return shift;
  }

  double anchor_share(const Head* heads, double shift) const {
    double share = 0;
    for (int g = 0; g < r_.heads; g++) share += std::exp2(heads[g].anchor + heads[g].offset - shift);
    return share / r_.heads;
  }

  Kept join(int64_t row, Piece* pieces, Frame& frame) const {
    if (pieces_ == 1) return pieces[0].kept;
    int64_t total = 0;
    for (int64_t i = 0; i < pieces_; i++) total += pieces[i].kept.count;
    Kept all = take_kept(std::max(total, std::min(length(row), capacity())), r_.heads, frame);
    for (int64_t i = 0; i < pieces_; i++) {
      const Kept& part = pieces[i].kept;
      memcpy(all.slots + all.count, part.slots, sizeof(int32_t) * part.count);
      for (int g = 0; g < r_.heads; g++)
        memcpy(all.sums + g * all.capacity + all.count, part.sums + g * part.capacity, 2 * part.count);
      all.count += part.count;
    }
    return all;
  }

  Threshold decide(const Kept& kept, double anchor, double scale) const {
    Frame frame;
    auto largest = [&](int64_t count) {
      if (count == 0) return Threshold{INFINITY, 0, 0};
      return find_greatest(kept.shares, kept.count, count, frame);
    };
    int64_t least = std::min(r_.floor, kept.count), most = std::min(r_.cap, kept.count);
    if (r_.mass <= 0) return largest(least);
    double wanted = (r_.mass - anchor) / scale;
    if (!(wanted > 0)) return largest(least);
    Threshold by_mass = find_mass(kept.shares, kept.count, wanted, frame);
    if (by_mass.count >= most) return largest(most);
    return by_mass.count >= least ? by_mass : largest(least);
  }

  // Ranks the whole row again with the heads' final offsets.
  int rescan(int64_t row, Head* heads, Kept& kept, Frame& frame) const {
    Tables tables;
    int status = make_tables(r_.query + row * r_.heads * size(), r_.heads, row, r_.shape, r_.scale, frame, tables);
    if (status != kOk) return status;
    Job job = whole(row, tables);
    job.keep = r_.cap;
    job.spared = 0;
    kept.count = 0;
    Stream(job, heads, kept, frame).run(true);
    return kOk;
  }

  void emit(int64_t row, const Kept& kept, Threshold cut, double anchor, double scale) const {
    Frame frame;
    int32_t* places = frame.take<int32_t>(kept.count + 1 + kLanes);
    int32_t* to = r_.slots + row * r_.cap;
    // No more than that by the threshold; where numbers are out of all range, memory must still do.
    int64_t count = std::min<int64_t>(pick(kept.shares, kept.count, cut, places), r_.cap);
    double mass = 0;
    for (int64_t i = 0; i < count; i++) {
      to[i] = kept.slots[places[i]];
      mass += kept.shares[places[i]];
    }
    std::fill_n(to + count, r_.cap - count, 0);
    r_.counts[row] = int32_t(count);
    r_.masses[row] = float(anchor + mass * scale);
  }

  const Request& r_;
  int64_t pieces_;
};

inline int select_rows(const Request& request, int threads) {
  int64_t longest = 0;
  for (int64_t row = 0; row < request.rows; row++)
    longest = std::max(longest, request.last[row] - request.first[row]);
  int64_t count = pieces(request.rows, threads, longest, 16 * kChunk);
  Selection selection(request, count);
  if (count == 1)
    return parallel(request.rows, threads, [&](int64_t row) {
      Frame frame;
      Piece piece = selection.take(row, frame);
      int status = selection.stream(row, 0, piece);
      return status == kOk ? selection.settle(row, &piece) : status;
    });
  Frame frame;
  Piece* all = frame.take<Piece>(request.rows * count);
  for (int64_t i = 0; i < request.rows * count; i++) all[i] = selection.take(i / count, frame);
  int status = parallel(request.rows * count, threads,
                        [&](int64_t i) { return selection.stream(i / count, i % count, all[i]); });
  if (status != kOk) return status;
  return parallel(request.rows, threads, [&](int64_t row) { return selection.settle(row, all + row * count); });
}

}  // namespace kh
