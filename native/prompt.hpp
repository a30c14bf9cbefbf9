// Exact causal attention of a prompt's queries, or of a piece of it, a block of keys at a time.
//
// A task is some tokens of all query heads of a KV head, so that blocks of keys and values are prepared once for them.
#pragma once

#include "prompt_softmax.hpp"

namespace kh::prompt {

struct Job {
  Strided query, keys, values, out;  // [B, H, Q, D], [B, Hkv, N, D], [B, Hkv, N, Dv], [B, H, Q, Dv]
  int64_t batch, kv_heads, groups, queries, tokens;
  int64_t key_size, value_size;
  const int64_t* padding;  // [B], unused slots at the start
  const float* sinks;      // [H], logits that take weight and give nothing, or null
  double scale, softcap;   // softcap 0: none
  int64_t type, unit;      // kFloat32 or kBFloat16; what may be used at most
};

constexpr int64_t kRows = 640;  // of a task, tokens times heads; more would not fit the second cache
constexpr int64_t kFewest = 64;

inline int64_t tokens_of_task(const Job& job, int threads) {
  int64_t tokens = std::max(kFewest, kRows / job.groups / kSlice * kSlice);
  const int64_t heads = job.batch * job.kv_heads;
  while (tokens > kFewest && heads * ((job.queries + tokens - 1) / tokens) < 4 * threads) tokens -= kSlice;
  return tokens;
}

template <class U, class T>
class Task {
 public:
  // Tokens [from, to) of one KV head of one batch row; slots count from its first token.
  Task(const Job& job, int64_t b, int64_t h, int64_t from, int64_t to)
      : job_(job), b_(b), h_(h), skip_(job.padding[b]), length_(job.tokens - skip_), from_(from),
        count_(to - from), first_(length_ - job.queries + from), slices_((count_ + kSlice - 1) / kSlice),
        words_(U::words(int(job.key_size))), width_(int(round_up(job.value_size, kSlice))) {
    query_ = frame_.template take<uint32_t>(all() * words_ * kSlice);
    acc_ = frame_.template take<float>(all() * width_ * kSlice);
    softmax_ = frame_.template take<Softmax>(all());
    keys_ = frame_.template take<uint32_t>(kKeys * words_);
    values_ = frame_.template take<uint32_t>(kKeys * width_);
    memset(acc_, 0, sizeof(float) * all() * width_ * kSlice);
    memset(keys_, 0, sizeof(uint32_t) * kKeys * words_);
    for (int64_t i = 0; i < all(); i++) softmax_[i].clear(), load_slice(i);
  }

  void run() {
    const int64_t end = first_ + count_;
    const T* keys = job_.keys.template at<T>(b_, h_, skip_);
    const T* values = job_.values.template at<T>(b_, h_, skip_);
    for (int64_t at = 0; at < end; at += kKeys) {
      const int here = int(std::min<int64_t>(kKeys, end - at));
      for (int j = 0; j < here; j++) U::load_row(keys + (at + j) * job_.keys.row, int(job_.key_size), keys_ + j * words_);
      U::load_values(values + at * job_.values.row, job_.values.row, here, int(job_.value_size), width_, values_);
      attend(at);
    }
    for (int64_t i = 0; i < all(); i++) finish(i);
  }

 private:
  int64_t all() const { return slices_ * job_.groups; }
  int64_t token(int64_t i) const { return i % slices_ * kSlice; }  // the first of a slice, counted from `from`
  int64_t head(int64_t i) const { return h_ * job_.groups + i / slices_; }
  int rows(int64_t i) const { return int(std::min<int64_t>(kSlice, count_ - token(i))); }
  float* sums(int64_t i) { return acc_ + i * width_ * kSlice; }

  void load_slice(int64_t i) {
    const int64_t padded = round_up(words_, kSquare);
    Frame inner;
    uint32_t* rows_of = inner.take<uint32_t>(kSlice * padded);
    uint32_t* columns = inner.take<uint32_t>(padded * kSlice);
    memset(rows_of, 0, sizeof(uint32_t) * kSlice * padded);
    for (int row = 0; row < rows(i); row++)
      U::load_row(job_.query.template at<T>(b_, head(i), from_ + token(i) + row), int(job_.key_size), rows_of + row * padded);
    for (int64_t k = 0; k < padded; k += kSquare) transpose(rows_of + k, padded, columns + k * kSlice, kSlice);
    memcpy(query_ + i * words_ * kSlice, columns, sizeof(uint32_t) * words_ * kSlice);
  }

  // Keys of the block at slot `at` that a slice works on.
  int keys_of(int64_t i, int64_t at) const {
    return int(std::max<int64_t>(0, std::min<int64_t>(kKeys, round_up(first_ + token(i) + kSlice - at, kStep))));
  }

  int64_t next_of(int64_t i, int64_t at) const {
    do i++;
    while (i < all() && !keys_of(i, at));
    return i;
  }

  void some_logits(int64_t i, int step, float* out) {
    const int from = step * kStep;
    U::logits(keys_ + from * words_, query_ + i * words_ * kSlice, words_, kStep, out + from * kSlice);
  }

  // All slices attend to the block of keys at slot `at`; while one's weights are made, the next one's logits are.
  void attend(int64_t at) {
    constexpr int kApart = 512;  // arrays a whole page apart would seem the same to the processor
    alignas(64) float logits[2][kKeys * kSlice + kApart];
    int64_t i = next_of(-1, at);
    for (int step = 0; i < all() && step * kStep < keys_of(i, at); step++) some_logits(i, step, logits[0]);
    for (int turn = 0; i < all(); turn ^= 1) {
      const int64_t next = next_of(i, at);
      const int wanted = next < all() ? keys_of(next, at) / kStep : 0, given = keys_of(i, at) / kStep;
      auto ahead = [&](int step) {
        if (step < wanted) some_logits(next, step, logits[turn ^ 1]);
      };
      attend(i, at, given * kStep, logits[turn], ahead);
      for (int step = given; step < wanted; step++) ahead(step);
      i = next;
    }
  }

  template <class Ahead>
  void attend(int64_t i, int64_t at, int count, float* logits, const Ahead& ahead) {
    const int64_t first = first_ + token(i);
    alignas(64) float decay[kSlice];
    alignas(64) uint32_t weights[kKeys * kSlice / U::kGroup];
    float scale = float(job_.scale * kLog2e);
    if (job_.softcap > 0) cap_logits(count, float(job_.scale), float(job_.softcap), logits), scale = float(kLog2e);
    if (at + count > first + 1) hide_later(first, at, count, logits);
    if (!weigh<U>(softmax_[i], count, logits, scale, weights, decay, ahead)) multiply_rows(sums(i), width_, decay);
    U::add_values(values_, weights, width_, count, sums(i));
  }

  void finish(int64_t i) {
    alignas(64) float factor[kSlice];
    for (int j = 0; j < kSlice; j++) factor[j] = 1;
    if (job_.sinks) add_sink(softmax_[i], float(job_.sinks[head(i)] * kLog2e), factor);
    for (int j = 0; j < kSlice; j++) factor[j] /= softmax_[i].total[j];
    multiply_rows(sums(i), width_, factor);
    alignas(64) float square[kSquare * kSquare];
    for (int d = 0; d < width_; d += kSquare) {
      transpose(reinterpret_cast<uint32_t*>(sums(i) + d * kSlice), kSlice, reinterpret_cast<uint32_t*>(square), kSquare);
      const int size = std::min<int>(kSquare, int(job_.value_size) - d);
      for (int row = 0; row < rows(i); row++) write(square + row * kSquare, size, i, row, d);
    }
  }

  void write(const float* numbers, int size, int64_t i, int row, int d) {
    T rounded[kSquare];
    for (int k = 0; k < kSquare; k += kLanes) store_float(rounded + k, load<vf>(numbers + k));
    T* out = const_cast<T*>(job_.out.template at<T>(b_, head(i), from_ + token(i) + row)) + d;
    memcpy(out, rounded, sizeof(T) * size);
  }

  static constexpr double kLog2e = 1.4426950408889634;

  Frame frame_;
  const Job& job_;
  int64_t b_, h_, skip_, length_, from_, count_, first_, slices_;
  int words_, width_;
  uint32_t *query_, *keys_, *values_;
  float* acc_;
  Softmax* softmax_;
};

template <class U, class T>
inline void run_task(const Job& job, int64_t b, int64_t h, int64_t from, int64_t to) {
#if defined(KH_TILES)
  if constexpr (std::is_same<U, Squares>::value) {
    Tiles tiles;
    return Task<U, T>(job, b, h, from, to).run();
  }
#endif
  Task<U, T>(job, b, h, from, to).run();
}

template <class U, class T>
inline int attention(const Job& job, int threads) {
  const int64_t heads = job.batch * job.kv_heads, each = tokens_of_task(job, threads);
  const int64_t pieces = (job.queries + each - 1) / each;
  return parallel(heads * pieces, threads, [&](int64_t i) {
    const int64_t piece = pieces - 1 - i / heads, b = i % heads / job.kv_heads;  // the longest first
    const int64_t unused = std::max<int64_t>(0, job.queries - (job.tokens - job.padding[b]));
    const int64_t from = std::max(piece * each, unused), to = std::min((piece + 1) * each, job.queries);
    if (from < to) run_task<U, T>(job, b, i % job.kv_heads, from, to);
    return int(kOk);
  });
}

inline int attention(const Job& job, int threads) {
  if (job.type == kFloat32) return attention<Widened, float>(job, threads);
#if defined(KH_TILES)
  if (std::min(best_unit(), Unit(job.unit)) == kSquares) return attention<Squares, bf16>(job, threads);
#endif
  return attention<Widened, bf16>(job, threads);
}

}  // namespace kh::prompt
