// Transposes of 16 by 16 words.
#pragma once

#include "simd.hpp"

namespace kh {

constexpr int kSquare = 16;

#if defined(__AVX512BW__) && !defined(KH_WIDTH)

// rows[i] becomes column i.
inline void transpose16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// out[j][i] = in[i][j] for 16 by 16 words; strides in words.
inline void transpose(const uint32_t* in, int64_t in_stride, uint32_t* out, int64_t out_stride) {
  __m512i rows[16];
  for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(in + i * in_stride);
  transpose16(rows);
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * out_stride, rows[i]);
}

#else

inline void transpose(const uint32_t* in, int64_t in_stride, uint32_t* out, int64_t out_stride) {
  for (int i = 0; i < kSquare; i++)
    for (int j = 0; j < kSquare; j++) out[j * out_stride + i] = in[i * in_stride + j];
}

#endif

}  // namespace kh
