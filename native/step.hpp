// A whole decode step, from embeddings to the norm behind the last layer, in one parallel region.
#pragma once

#include "step_attention.hpp"

namespace kh {

// Keys and values of the new token are written behind the others, which is all that a step changes: where it fails,
// nothing has happened that anybody reads.
struct StepCall {
  DecoderCall decode;
  const StepLayer* layers;
  int64_t count;
  int64_t length;  // tokens of each row, the new one among them
};

inline void step_part(const StepCall& call, const StepMemory& memory, DecoderThread& decoder, Team team) {
  const DecoderSizes& sizes = *call.decode.sizes;
  StepAttention attention(memory, team, call.length);
  decoder.embed();
  for (int64_t i = 0; i < call.count; i++) {
    const StepLayer& layer = call.layers[i];
    decoder.start(*layer.layer, [&](int64_t row, int64_t head, const float* x) {
      attention.give(layer, sizes.type, sizes.heads, row, head, x);
    });
    team.meet();
    attention.run(layer, sizes.type);
    // The next one to fail is behind further meetings, so that all threads see the same here.
    if (attention.failed()) return;
    decoder.finish(*layer.layer);
  }
  decoder.leave();
}

inline int step(const StepCall& call, [[maybe_unused]] int threads) {
  Frame shared;
  const StepMemory memory(call.layers, call.count, threads, shared);
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
      thread.emplace(call.decode, team, memory.attended, frame);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      *memory.status = kNoMemory;
    }
    team.meet();
    if (*memory.status == kOk) step_part(call, memory, *thread, team);
  }
  return *memory.status;
}

}  // namespace kh
