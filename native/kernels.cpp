// The C interface of one instruction-set level. Every function returns a Status; 0 is success.
// src/keyhole/kernels/signatures.py mirrors these declarations.
#include "append.hpp"
#include "asked.hpp"
#include "assign.hpp"
#include "attention.hpp"
#include "blocks.hpp"
#include "codes.hpp"
#include "columns.hpp"
#include "decoder.hpp"
#include "matvec.hpp"
#include "sale.hpp"
#include "pages.hpp"
#include "pool.hpp"
#include "prompt.hpp"
#include "select_rows.hpp"
#include "step.hpp"
#include "unpack.hpp"

#if defined(_WIN32)
#define KH_API extern "C" __declspec(dllexport)
#else
#define KH_API extern "C" __attribute__((visibility("default")))
#endif

namespace {

template <class Body>
int guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return kh::kNoMemory;
  }
}

}  // namespace

KH_API int kh_abi_version() { return 10; }

// Highest level this CPU can run: 0 base, 1 avx2, 2 avx512; -1 if not even base.
KH_API int kh_cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("ssse3") || !__builtin_cpu_supports("sse4.2")) return -1;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return 0;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vnni");
  return wide ? 2 : 1;
#else
  return 0;
#endif
}

KH_API int kh_write_codes(uint8_t* buffer, int64_t row_stride, int64_t block_stride, int64_t start,
                          const uint8_t* codes, int64_t rows, int64_t count, int subspaces, int bits, int threads) {
  return kh::parallel(rows, count > 64 ? threads : 1, [&](int64_t row) {
    kh::write_codes(buffer + row * row_stride, block_stride, start, codes + row * count * subspaces, count, subspaces,
                    bits == 4);
    return int(kh::kOk);
  });
}

KH_API int kh_assign(const void* points, int type, int64_t row_stride, int64_t point_stride, const float* centroids,
                     int64_t rows, int64_t count, int subspaces, int centroids_each, int width, void* labels,
                     int label_bytes, int threads) {
  int64_t centroid_row = int64_t(subspaces) * centroids_each * width;
  return kh::assign({points, type, row_stride, point_stride, centroids, centroid_row, rows, count, subspaces,
                     centroids_each, width, labels, label_bytes},
                    threads);
}

KH_API int kh_pq_scores(const float* query, int64_t rows, int heads, const float* codebooks, int64_t codebook_row,
                        int subspaces, int centroids, int width, const uint8_t* buffer, int64_t row_stride,
                        int64_t block_stride, int64_t n, double scale, double softcap, float* out, int threads) {
  kh::Codebook shape = {codebooks, codebook_row, subspaces, centroids, width};
  constexpr int64_t step = 16 * kh::kChunk;
  int64_t pieces = (n + step - 1) / step;
  return kh::parallel(rows * pieces, threads, [&](int64_t i) {
    int64_t row = i / pieces, from = i % pieces * step;
    return kh::estimate(query + row * heads * subspaces * width, heads, row, shape, {buffer, row_stride, block_stride},
                        from, std::min(n, from + step), scale, softcap, out + row * heads * n, n);
  });
}

KH_API int kh_pq_select(const float* query, int64_t rows, int heads, const float* codebooks, int64_t codebook_row,
                        int subspaces, int centroids, int width, const uint8_t* buffer, int64_t row_stride,
                        int64_t block_stride, const int64_t* first, const int64_t* last, const float* anchors,
                        double scale, double softcap, double mass, int64_t floor, int64_t cap, int32_t* slots,
                        int32_t* counts, float* masses, int threads) {
  return guarded([&] {
    return kh::select_rows({query,
                            {codebooks, codebook_row, subspaces, centroids, width},
                            {buffer, row_stride, block_stride},
                            rows, heads, first, last, anchors, scale, softcap, mass, floor, cap, slots, counts, masses},
                           threads);
  });
}

KH_API int kh_gather_attention(const float* query, int64_t rows, int heads, int size, const kh::Side* keys,
                               const kh::Side* values, int type, const kh::Pages* pages, int64_t capacity,
                               const int32_t* slots, int64_t slots_stride, int64_t width, const int32_t* counts,
                               const float* sinks, float scale, float softcap, float* out, float* lse, float* logits,
                               int threads) {
  return guarded([&] {
    return kh::gather_attention({query, *keys, *values, {}, {}, 0, type, *pages, slots, counts, slots_stride, capacity,
                                 sinks, rows, heads, size, scale, softcap, out, lse, logits, width},
                                width, threads);
  });
}

KH_API int kh_packed_attention(const float* query, int64_t rows, int heads, int size, const kh::CodeSide* keys,
                               const kh::CodeSide* values, int bits, int64_t grouped, int64_t capacity,
                               const int32_t* slots, int64_t slots_stride, int64_t width, const int32_t* counts,
                               float scale, float softcap, float* out, float* lse, int threads) {
  const int type = bits == 8 ? kh::kCodes8 : bits == 4 ? kh::kCodes4 : bits == 3 ? kh::kCodes3 : kh::kCodes2;
  return guarded([&] {
    return kh::gather_attention({query, {}, {}, *keys, *values, grouped, type, {}, slots,
                                 counts, slots_stride, capacity, nullptr, rows, heads, size, scale, softcap, out, lse, nullptr, 0},
                                width, threads);
  });
}

KH_API int kh_add_columns(const float* logits, int64_t rows, int heads, int64_t queries, int64_t slots,
                          const int64_t* first, const uint32_t* words, const int32_t* places, int64_t places_stride,
                          const float* sinks, float cool, float* sums, int64_t sums_stride, int threads) {
  return guarded([&] {
    return kh::add_columns({logits, rows, heads, queries, slots, first, words, places, places_stride, sinks, cool, sums,
                            sums_stride},
                           threads);
  });
}

KH_API int kh_drop_slots(char* data, int64_t rows, int64_t row_bytes, int64_t slots, int64_t bytes,
                         const int64_t* gone, int) {
  for (int64_t row = 0; row < rows; row++)
    if (gone[row] < 0 || gone[row] >= slots) return kh::kBadSlot;
  for (int64_t row = 0; row < rows; row++) {
    char* at = data + row * row_bytes + gone[row] * bytes;
    memmove(at, at + bytes, (slots - 1 - gone[row]) * bytes);
  }
  return kh::kOk;
}

KH_API int kh_decode(const kh::DecoderCall* call, int threads) {
  return guarded([&] { return kh::decode(*call, threads); });
}

// Any status but success leaves what was read as it was; keys and values behind the last token are anything then.
KH_API int kh_step(const kh::StepCall* call, int threads) {
  return guarded([&] { return kh::step(*call, threads); });
}

KH_API int kh_exact_scores(const float* query, int64_t rows, int heads, int size, const kh::Side* keys, int type,
                           const kh::Pages* pages, int64_t first, int64_t n, float scale, float* out, int threads) {
  return guarded([&] {
    kh::Frame frame;
    const kh::Scores scores = {query, rows, heads, size, *keys, type, *pages, first, n, scale, out};
    return kh::exact_scores(scores, frame, threads);
  });
}

KH_API int kh_pooled_attention(const kh::Pooling* pooling, int threads) {
  return guarded([&] {
    kh::Frame frame;
    return kh::Pool(*pooling, frame).run(threads);
  });
}

KH_API int kh_top_slots(const float* scores, int64_t rows, int64_t n, int64_t count, int64_t* places, int threads) {
  return kh::parallel(rows, threads, [&](int64_t row) {
    kh::top_slots(scores + row * n, n, count, places + row * count);
    return int(kh::kOk);
  });
}

KH_API int kh_matvec_skip_rows(const void* weight, int type, int64_t stride, const float* x, const float* gate,
                               int64_t rows, int64_t n, float* y, int threads) {
  return guarded([&] {
    if (type == kh::kFloat32)
      return kh::matvec_skip_rows(static_cast<const float*>(weight), stride, x, gate, rows, n, y, threads);
    return kh::matvec_skip_rows(static_cast<const kh::bf16*>(weight), stride, x, gate, rows, n, y, threads);
  });
}

KH_API int kh_matvec_skip_columns(const void* weight, int type, int64_t stride, const float* x, int64_t rows,
                                  int64_t n, float* y, int threads) {
  return guarded([&] {
    if (type == kh::kFloat32)
      return kh::matvec_skip_columns(static_cast<const float*>(weight), stride, x, rows, n, y, threads);
    return kh::matvec_skip_columns(static_cast<const kh::bf16*>(weight), stride, x, rows, n, y, threads);
  });
}

KH_API int kh_sale_attention(const kh::sale::Job* job, int type, int threads) {
  return guarded([&] { return kh::sale::attention(*job, type, threads); });
}

KH_API int kh_multiply(const kh::Matrix* const* matrices, int count, const float* x, int64_t stride, int vectors,
                       float* const* out, int threads) {
  return guarded([&] { return kh::multiply_all(matrices, count, x, stride, vectors, out, threads); });
}

KH_API int kh_unpack(const kh::Matrix* matrix, const int64_t* rows, int64_t first, int64_t count, int type, void* out,
                     int threads) {
  if (type == kh::kFloat32) return kh::unpack(*matrix, rows, first, count, static_cast<float*>(out), threads);
  return kh::unpack(*matrix, rows, first, count, static_cast<kh::bf16*>(out), threads);
}

// Status kNotFinite: NaN or infinity among the numbers, and nothing was written.
KH_API int kh_append(const kh::Append* append, int) { return kh::append(*append); }

KH_API int kh_attend(const kh::Attention* attention, int threads) {
  return guarded([&] { return kh::gather_attention(*attention, attention->width, threads); });
}

// Status kOutOfRange: the query has larger numbers than are answered here.
KH_API int kh_pq_step(const kh::PqStep* step, int threads) {
  return guarded([&] { return kh::pq_step(*step, threads); });
}

KH_API int kh_box_scores(const kh::Boxes* boxes, int threads) {
  return guarded([&] {
    kh::Frame frame;
    return kh::BoxScores(*boxes, frame).run(threads);
  });
}

KH_API int kh_pick_pages(const kh::Picking* picking, int threads) {
  return guarded([&] { return kh::pick_pages(*picking, threads); });
}

KH_API int kh_pick_blocks(const kh::Blocks* blocks, int threads) {
  return guarded([&] { return kh::pick_blocks(*blocks, threads); });
}

// What multiplies bfloat16 numbers here at best: kWidened or kSquares.
KH_API int kh_bfloat16_unit() { return kh::best_unit(); }

KH_API int kh_prompt_attention(const kh::prompt::Job* job, int threads) {
  return guarded([&] { return kh::prompt::attention(*job, threads); });
}
