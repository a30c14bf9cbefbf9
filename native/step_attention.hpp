// Attention of one layer in a decode step, by the threads of one parallel region: what is read is shared out evenly
// by tokens, so that no thread waits for a whole KV head of another one.
//
// Legend: B batch rows, K KV heads, R = B * K rows, G query heads of each, D head size, T threads.
#pragma once

#include "append.hpp"
#include "asked.hpp"
#include "decoder.hpp"

namespace kh {

// One layer of a step. Of `read` it takes where keys and values lie, their type, sizes and how logits are made.
struct StepLayer {
  const DecoderLayer* layer;
  Attention read;
  const PqStep* chooses;           // by what index; null: everything is read
  int64_t sinks, window, budget;   // where it chooses: always read, and how many slots beside
  int32_t* counts;                 // [R], of what was chosen
  float* masses;                   // [R]
};

// What the threads of a step share.
struct StepMemory {
  float* queries;   // [R, G, D], and rows that may be read behind them
  float* attended;  // [R, G, D]
  Partial* parts;   // [R, T]
  float *asked, *anchors, *lse;  // [R, G, D] along an index's axes, [R, G], [R, G]
  int64_t *first, *last;         // [R]
  int32_t* slots;                // [R, largest budget]
  Piece* pieces;                 // [R, T]
  int* status;                   // of the step; what comes after a failure is left out

  StepMemory(const StepLayer* layers, int64_t count, int threads, Frame& frame) : status(frame.take<int>(1)) {
    const Attention& a = layers[0].read;
    const int64_t heads = a.rows * a.heads, numbers = heads * a.size;
    int64_t most = 1;
    for (int64_t i = 0; i < count; i++) most = std::max(most, layers[i].budget);
    *status = kOk;
    queries = frame.take<float>(numbers + kBeyond * a.size);
    memset(queries + numbers, 0, sizeof(float) * kBeyond * a.size);
    attended = frame.take<float>(numbers), asked = frame.take<float>(numbers);
    anchors = frame.take<float>(heads), lse = frame.take<float>(heads);
    first = frame.take<int64_t>(a.rows), last = frame.take<int64_t>(a.rows);
    slots = frame.take<int32_t>(a.rows * most);
    parts = frame.take<Partial>(a.rows * threads);
    pieces = frame.take<Piece>(a.rows * threads);
    for (int64_t i = 0; i < a.rows * threads; i++)
      parts[i] = {frame.take<float>(a.heads * a.size), frame.take<float>(a.heads), frame.take<float>(a.heads)};
  }
};

// One thread's part.
class StepAttention {
 public:
  StepAttention(const StepMemory& memory, Team team, int64_t length) : m(memory), team_(team), length_(length) {}

  bool failed() const {
    int status;
#pragma omp atomic read
    status = *m.status;
    return status != kOk;
  }

  // Where one head of the new token belongs; of keys and values none may hold NaN or infinity.
  void give(const StepLayer& layer, int type, int64_t heads, int64_t row, int64_t head, const float* x) {
    const Attention& a = layer.read;
    if (head < heads) return copy_as(type, x, a.size, m.queries + (row * heads + head) * a.size);
    const int64_t kv = heads / a.heads;
    const bool key = head < heads + kv;
    const Side& side = key ? a.keys : a.values;
    const int64_t at = row * kv + head - heads - (key ? 0 : kv);
    char* to = static_cast<char*>(const_cast<void*>(side.data)) +
               (at * side.row_stride + (length_ - 1) * side.slot_stride) * (type == kFloat32 ? 4 : 2);
    write_floats(x, type, 0, a.size, to);
    if (!finite_row(to, a.size, type)) fail(kNotFinite);
  }

  // From queries to what is attended, all threads together; it ends with all of them at one place.
  void run(const StepLayer& layer, int type) {
    Attention a = layer.read;
    a.capacity = length_, a.slots = a.counts = nullptr, a.logits = nullptr;
    begin(a);
    if (layer.chooses) {
      guarded([&] { return read_always(layer, a); });
      team_.meet();
      choose(layer, a);
      a.slots = m.slots, a.slots_stride = layer.budget;
      guarded([&] { return read(a, layer.counts, 0); });
    } else {
      guarded([&] { return read(a, nullptr, length_); });
    }
    team_.meet();
    guarded([&] { return end(a, type); });
    team_.meet();
  }

 private:
  template <class Body>
  void guarded(const Body& body) {
    if (failed()) return;
    int status;
    try {
      status = body();
    } catch (const std::bad_alloc&) {
      status = kNoMemory;
    }
    if (status != kOk) fail(status);
  }

  void fail(int status) {
#pragma omp atomic write
    *m.status = status;
  }

  static void copy_as(int type, const float* x, int n, float* out) {
    for (int i = 0; i < n; i++) out[i] = type == kFloat32 ? x[i] : to_float(to_bf16(x[i]));
  }

  Partial& part(int64_t row, int thread) const { return m.parts[row * team_.count + thread]; }

  void begin(const Attention& a) {
    for (int64_t row = 0; row < a.rows; row++) {
      Partial& mine = part(row, team_.thread);
      memset(mine.acc, 0, sizeof(float) * a.heads * a.size);
      for (int g = 0; g < a.heads; g++) mine.most[g] = -INFINITY, mine.total[g] = 0;
    }
  }

  int read_always(const StepLayer& layer, Attention a) {
    Frame frame;
    const int64_t last = std::max<int64_t>(length_ - layer.window, 0), first = std::min(layer.sinks, last);
    int32_t* slots = frame.take<int32_t>(first + length_ - last);
    for (int64_t i = 0; i < first; i++) slots[i] = int32_t(i);
    for (int64_t i = last; i < length_; i++) slots[first + i - last] = int32_t(i);
    a.slots = slots, a.slots_stride = 0;
    return read(a, nullptr, first + length_ - last);
  }

  // This thread's share of the tiles that rows read, `counts` slots of each or `each`.
  int read(const Attention& a, const int32_t* counts, int64_t each) {
    auto tiles = [&](int64_t row) { return ((counts ? counts[row] : each) + kTile - 1) / kTile; };
    int64_t all = 0, status = kOk;
    for (int64_t row = 0; row < a.rows; row++) all += tiles(row);
    auto [from, to] = team_.share(all);
    for (int64_t row = 0; row < a.rows && status == kOk; row++) {
      const int64_t here = tiles(row), begin = std::max<int64_t>(from, 0), end = std::min(to, here);
      if (begin < end)
        status = attend_any(a, m.queries + row * a.heads * a.size, a.size, row, begin * kTile,
                            std::min<int64_t>(end * kTile, counts ? counts[row] : each), part(row, team_.thread));
      from -= here, to -= here;
    }
    return int(status);
  }

  void choose(const StepLayer& layer, const Attention& a) {
    Frame frame;
    PqStep p = *layer.chooses;
    p.query = m.queries, p.asked = kFloat32, p.anchors = m.lse;
    const int64_t last = std::max<int64_t>(length_ - layer.window, 0), first = std::min(layer.sinks, last);
    const Request request = {m.asked, p.shape, p.codes, a.rows, a.heads, m.first, m.last, m.anchors, p.scale,
                             0, 0, layer.budget, layer.budget, m.slots, layer.counts, layer.masses};
    const int64_t cuts = pieces(a.rows, team_.count, last - first, 16 * kChunk);
    const Selection selection(request, cuts);
    const auto [from, to] = team_.share(a.rows);
    for (int64_t row = 0; row < a.rows && team_.thread == 0; row++) m.first[row] = first, m.last[row] = last;
    guarded([&] {
      for (int64_t i = 0; i < a.rows * cuts && team_.thread == 0; i++) m.pieces[i] = selection.take(i / cuts, frame);
      for (int64_t row = from; row < to; row++) {
        const int status = turn(p, a, row);
        if (status != kOk) return status;
      }
      return int(kOk);
    });
    team_.meet();
    const auto [begin, end] = team_.share(a.rows * cuts);
    guarded([&] {
      int status = kOk;
      for (int64_t i = begin; i < end && status == kOk; i++) status = selection.stream(i / cuts, i % cuts, m.pieces[i]);
      return status;
    });
    team_.meet();
    guarded([&] {
      int status = kOk;
      for (int64_t row = from; row < to && status == kOk; row++) {
        status = selection.settle(row, m.pieces + row * cuts);
        layer.masses[row] = std::min(std::max(layer.masses[row], 0.0f), 1.0f);
      }
      return status;
    });
    team_.meet();
  }

  // A row's queries along the axes of an index, beside what is always read.
  int turn(const PqStep& p, const Attention& a, int64_t row) {
    for (int g = 0; g < a.heads; g++) {
      float high = -INFINITY, total = 0;
      for (int t = 0; t < team_.count; t++) high = std::max(high, part(row, t).most[g]);
      for (int t = 0; t < team_.count; t++) total += part(row, t).total[g] * std::exp(part(row, t).most[g] - high);
      m.lse[row * a.heads + g] = high + std::log(total);
    }
    const float* query = m.queries + row * a.heads * a.size;
    for (int64_t i = 0; i < int64_t(a.heads) * a.size; i++)
      if (!(std::fabs(query[i]) <= p.largest)) return kOutOfRange;
    ask(p, row, m.asked, m.anchors);
    return kOk;
  }

  int end(Attention a, int type) {
    a.out = m.attended, a.asked = kFloat32, a.sinks = nullptr, a.before = nullptr, a.lse = nullptr;
    const auto [from, to] = team_.share(a.rows);
    const int64_t each = int64_t(a.heads) * a.size;
    for (int64_t row = from; row < to; row++) {
      finish(a, m.parts + row * team_.count, team_.count, a.size, row);
      if (type != kFloat32) copy_as(type, m.attended + row * each, int(each), m.attended + row * each);
    }
    return kOk;
  }

  const StepMemory& m;
  Team team_;
  int64_t length_;
};

}  // namespace kh
