// What is left and right of attention in one step of a decoder: up to 16 rows, one parallel region for each call.
//
// Legend: B rows (sequences), E hidden size, F feed-forward size, H query heads, K KV heads, D head size.
#pragma once

#include <optional>

#include "decoder_parts.hpp"

namespace kh {

struct DecoderLayer {
  Norm before_attention, query_norm, key_norm, after_attention, before_forward, after_forward;
  Linear query, key, value, output, gate, up, down;
  int rotates;
};

struct DecoderSizes {
  int64_t hidden, forward, heads, kv_heads, head_size;
  int norms_all_heads;  // query and key norms are over all heads together
  int type;             // of input and output
  float embedding;      // what embeddings are multiplied by
  float residual;       // what a layer's two sums are multiplied by
  float clip;           // queries, keys and values are within it; 0: no bound
};

// One call: from attention to attention, from embeddings to the first one, or from the last one to the final norm.
// Rotations turn the first `rotary` channels of a head, whose halves belong together.
struct DecoderCall {
  const DecoderSizes* sizes;
  const DecoderLayer* finish;  // the layer whose attention was computed; null at first
  const DecoderLayer* start;   // the layer whose attention comes; null at last
  const void* input;           // [B, H, D] of attention, or embeddings [B, E]
  void* out;                   // queries, keys and values [B, H + 2 K, D], or [B, E] behind the last norm
  const float *cos, *sin;      // [B, rotary]
  int64_t angle_stride;        // from row to row; 0 where all have the same
  int64_t rotary, rows;
  Norm last;
  float* x;                    // [B, E], kept from call to call
  float* heads;                // scratch [B, H + 2 K, D]
  float *gate, *up;            // scratch [B, F]
  float* sums;                 // scratch [B, E]
};

// One thread's part of a call. All threads meet at the same barriers, so nothing is taken or thrown between them.
class DecoderThread {
 public:
  // `attended`: where attention [B, H, D] comes to be; null: nowhere, as nothing is finished.
  DecoderThread(const DecoderCall& call, Team team, const float* attended, Frame& frame)
      : c(call), s(*call.sizes), team_(team), normed_(frame.take<float>(c.rows * s.hidden)),
        head_(frame.take<float>(s.head_size)),
        hidden_(activations(normed_, s.hidden, int(c.rows), s.hidden, frame)) {
    if (!attended) return;
    const int64_t width = s.heads * s.head_size;
    attended_ = activations(attended, width, int(c.rows), width, frame);
    wide_ = activations(c.gate, s.forward, int(c.rows), s.forward, frame);
  }

  void run() {
    if (c.finish)
      finish(*c.finish);
    else
      embed();
    if (c.start)
      start(*c.start, [&](int64_t row, int64_t head, const float* x) {
        const int64_t place = row * (s.heads + 2 * s.kv_heads) + head;
        write_floats(x, s.type, place * s.head_size, s.head_size, c.out);
      });
    else
      leave();
  }

  void embed() {
    const auto [from, to] = team_.share(c.rows * s.hidden);
    read_floats({c.input, s.type}, from, to, c.x);
    for (int64_t i = from; i < to; i++) c.x[i] *= s.embedding;
    team_.meet();
  }

  void finish(const DecoderLayer& layer) {
    if (is_packed(*layer.output.matrix)) quantise(attended_, 0, attended_.groups);
    add(layer.output, attended_, layer.after_attention);
    multiply_normed(layer.before_forward, is_packed(*layer.gate.matrix) || is_packed(*layer.up.matrix));
    const RowRange range = rows_of(*layer.gate.matrix, team_.thread, team_.count);
    project(layer.gate, hidden_, c.gate, s.forward, range);
    project(layer.up, hidden_, c.up, s.forward, range);
    for (int64_t row = 0; row < c.rows; row++)
      gated(c.gate + row * s.forward, c.up + row * s.forward, range);
    team_.meet();
    if (is_packed(*layer.down.matrix)) quantise(wide_, 0, wide_.groups);
    add(layer.down, wide_, layer.after_forward);
  }

  // Queries, keys and values of a layer: give(row, head, numbers) takes each head, on one of the threads.
  template <class Give>
  void start(const DecoderLayer& layer, const Give& give) {
    const int64_t width = (s.heads + 2 * s.kv_heads) * s.head_size;
    const int64_t places[] = {0, s.heads * s.head_size, (s.heads + s.kv_heads) * s.head_size};
    const Linear* linears[] = {&layer.query, &layer.key, &layer.value};
    bool packed = false;
    for (const Linear* linear : linears) packed |= is_packed(*linear->matrix);
    multiply_normed(layer.before_attention, packed);
    for (int i = 0; i < 3; i++) {
      const RowRange range = rows_of(*linears[i]->matrix, team_.thread, team_.count);
      project(*linears[i], hidden_, c.heads + places[i], width, range);
      for (int64_t row = 0; s.clip > 0 && row < c.rows; row++)
        for (int64_t at = range.from; at < range.to; at++) {
          float& value = c.heads[row * width + places[i] + at];
          value = value < -s.clip ? -s.clip : value > s.clip ? s.clip : value;
        }
    }
    team_.meet();
    const int64_t all = s.heads + 2 * s.kv_heads;
    const auto [from, to] = team_.share(c.rows * all);
    for (int64_t i = from; i < to; i++) give(i / all, i % all, turned(layer, i));
  }

  void leave() {
    if (team_.thread != 0) return;
    for (int64_t row = 0; row < c.rows; row++) {
      normed(c.last, row, normed_);
      write_floats(normed_, s.type, row * s.hidden, s.hidden, c.out);
    }
  }

 private:
  // x += residual * norm(product)
  void add(const Linear& linear, const Activations& a, const Norm& norm) {
    const RowRange range = rows_of(*linear.matrix, team_.thread, team_.count);
    project(linear, a, c.sums, s.hidden, range);
    if (norm.kind != kNoNorm) team_.meet();
    for (int64_t row = 0; row < c.rows; row++) {
      const float* sums = c.sums + row * s.hidden;
      float* x = c.x + row * s.hidden;
      const Scaling scaling = scaling_of(norm, sums, s.hidden);
      for (int64_t i = range.from; i < range.to; i++) x[i] += s.residual * scaled(norm, scaling, sums[i], i);
    }
    team_.meet();
  }

  void multiply_normed(const Norm& norm, bool packed) {
    for (int64_t row = 0; row < c.rows; row++) normed(norm, row, normed_ + row * s.hidden);
    if (packed) quantise(hidden_, 0, hidden_.groups);
  }

  // One head after norm and rotation; the products stay as they are, as others may be reading them.
  const float* turned(const DecoderLayer& layer, int64_t place) {
    const int64_t all = s.heads + 2 * s.kv_heads, row = place / all, head = place % all;
    const float* x = c.heads + place * s.head_size;
    if (head >= s.heads + s.kv_heads) return x;
    const bool key = head >= s.heads;
    const Norm& norm = key ? layer.key_norm : layer.query_norm;
    const int64_t within = s.norms_all_heads ? key ? head - s.heads : head : 0;
    const int64_t width = s.norms_all_heads ? (key ? s.kv_heads : s.heads) * s.head_size : s.head_size;
    const Scaling scaling = scaling_of(norm, x - within * s.head_size, width);
    normalise(norm, scaling, x, within * s.head_size, s.head_size, head_);
    const int64_t angles = row * c.angle_stride;
    if (layer.rotates) rotate(head_, c.cos + angles, c.sin + angles, c.rotary);
    return head_;
  }

  void normed(const Norm& norm, int64_t row, float* out) {
    const float* x = c.x + row * s.hidden;
    normalise(norm, scaling_of(norm, x, s.hidden), x, 0, s.hidden, out);
  }

  const DecoderCall& c;
  const DecoderSizes& s;
  Team team_;
  float *normed_, *head_;
  Activations hidden_, attended_{}, wide_{};
};

inline int decode(const DecoderCall& call, [[maybe_unused]] int threads) {
  int status = kOk;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#ifdef _OPENMP
    const Team team = {omp_get_thread_num(), omp_get_num_threads()};
#else
    const Team team = {0, 1};
#endif
    Frame frame;
    std::optional<DecoderThread> thread;
    try {
      const int64_t attended = call.rows * call.sizes->heads * call.sizes->head_size;
      thread.emplace(call, team,
                     call.finish ? as_floats({call.input, call.sizes->type}, attended, frame) : nullptr, frame);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      status = kNoMemory;
    }
    team.meet();
    if (status == kOk) thread->run();
  }
  return status;
}

}  // namespace kh
