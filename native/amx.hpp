// Which instructions multiply bfloat16 numbers on this CPU, and AMX's tiles.
//
// They are written as assembly, so that one library serves CPUs with and without them. GCC's own intrinsics do not say
// that loading a configuration reads memory, and its stores are dropped.
#pragma once

#include "simd.hpp"

#if defined(__AVX512BW__) && defined(__linux__) && !defined(KH_WIDTH)
#define KH_TILES 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kh {

// What multiplies bfloat16 numbers: float32 lanes they are widened to, or tiles.
enum Unit : int { kWidened = 0, kSquares = 1 };

#if defined(KH_TILES)

inline bool may_use_tiles() {
  constexpr long kAskForPermission = 0x1023, kTileData = 18;  // arch_prctl, which Linux asks of a process once
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3 && syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
}

inline Unit find_unit() {
  unsigned a, b, c, d, rounds;
  if (!__get_cpuid_count(7, 1, &rounds, &b, &c, &d) || !(rounds >> 5 & 1)) return kWidened;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kWidened;
  return (d >> 22 & 1) && (d >> 24 & 1) && may_use_tiles() ? kSquares : kWidened;  // bfloat16, tiles
}

// The best there is; tiles count only where the system lets this process use them.
inline Unit best_unit() {
  static const Unit unit = find_unit();
  return unit;
}

constexpr int kTileSide = 16;  // rows of a tile, of 64 bytes each

// All eight tiles are whole, inside the block.
class Tiles {
 public:
  Tiles() {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = kTileSide;
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { __asm__ volatile("tilerelease" ::: "memory"); }
};

template <int T>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C[m][n] += A[m] . B[n]: rows of A are 32 numbers, row p of B has the pair (2p, 2p + 1) of each of 16 columns.
template <int C, int A, int B>
inline void tile_multiply() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// Pairs (low, high) of two vectors, each rounded to bfloat16.
inline vu to_pairs(vf low, vf high) {
  __m512i both;
  __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return reinterpret_cast<vu>(_mm512_permutexvar_epi16(_mm512_load_si512(order), both));
}

#else

inline Unit best_unit() { return kWidened; }

#endif

}  // namespace kh
