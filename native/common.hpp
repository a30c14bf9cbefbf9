// Shared by all kernels: element types, scratch memory, parallel loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace kh {

enum Type : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3, kCodes8 = 4, kCodes4 = 5, kCodes3 = 6, kCodes2 = 7 };
enum Status : int { kOk = 0, kNotFinite = 1, kBadRange = 2, kBadSlot = 3, kNoMemory = 4, kOutOfRange = 5 };

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

// Scratch that lives as long as its thread: kernels run many times a second with the same sizes, and fresh
// pages would cost more than the work itself. A Frame hands out pieces and gives them back at its end.
class Scratch {
 public:
  static Scratch& local() {
    static thread_local Scratch scratch;
    return scratch;
  }
  ~Scratch() {
    while (top_) pop();
  }

 private:
  friend class Frame;
  struct Slab {
    Slab* below;
    size_t size, used;
  };
  static constexpr size_t kHeader = 64, kMinimum = size_t(1) << 20, kKept = size_t(64) << 20;

  char* take(size_t bytes) {
    bytes = (bytes + 63) & ~size_t(63);
    if (!top_ || top_->used + bytes > top_->size) push(kHeader + bytes);
    char* piece = reinterpret_cast<char*>(top_) + top_->used;
    top_->used += bytes;
    return piece;
  }
  void push(size_t size) {
    size_t least = top_ ? kMinimum : wanted_;
    if (size < least) size = least;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, size) != 0) throw std::bad_alloc();
    Slab* slab = static_cast<Slab*>(memory);
    *slab = {top_, size, kHeader};
    top_ = slab;
  }
  void pop() {
    Slab* below = top_->below;
    free(top_);
    top_ = below;
  }
  // At the end of a call: several slabs become one next time, and a huge one is not kept.
  void settle() {
    size_t total = 0;
    for (Slab* slab = top_; slab; slab = slab->below) total += slab->size;
    bool single = top_ && !top_->below;
    if (single && total <= kKept) return;
    wanted_ = total <= kKept ? total : kMinimum;
    while (top_) pop();
  }

  int depth_ = 0;
  size_t wanted_ = kMinimum;
  Slab* top_ = nullptr;
};

class Frame {
 public:
  Frame() : scratch_(Scratch::local()), top_(scratch_.top_), used_(top_ ? top_->used : 0) { scratch_.depth_++; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;
  ~Frame() {
    bool outermost = --scratch_.depth_ == 0;
    if (outermost) scratch_.settle();
    while (!outermost && scratch_.top_ != top_) scratch_.pop();
    if (scratch_.top_) scratch_.top_->used = outermost ? Scratch::kHeader : used_;
  }
  template <class T>
  T* take(size_t count) {
    return reinterpret_cast<T*>(scratch_.take(count * sizeof(T)));
  }

 private:
  Scratch& scratch_;
  Scratch::Slab* top_;
  size_t used_;
};

constexpr int64_t kBytesOfAThread = int64_t(512) << 10;

// Calls body(i) for i in [0, n) on up to `threads` threads; returns the highest status any call gave.
template <class Body>
int parallel(int64_t n, [[maybe_unused]] int threads, const Body& body) {
  int worst = kOk;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(max : worst) if (threads > 1 && n > 1)
  for (int64_t i = 0; i < n; i++) {
    int status;
    try {
      status = body(i);
    } catch (const std::bad_alloc&) {
      status = kNoMemory;
    }
    if (status > worst) worst = status;
  }
  return worst;
}

// Threads for work that moves so many bytes: to wake one takes as long as to read some hundred KiB.
inline int threads_for(int64_t bytes, int threads) {
  return int(std::min<int64_t>(threads, 1 + bytes / kBytesOfAThread));
}

// Pieces to cut each of `rows` equal jobs into, so that the threads end together.
inline int64_t pieces(int64_t rows, int threads, int64_t length, int64_t shortest) {
  if (rows % threads == 0 || rows >= 4 * threads) return 1;
  int64_t wanted = threads / rows + (threads % rows != 0 || rows > threads);
  if (rows > threads) wanted = threads;
  int64_t most = length / shortest;
  return wanted < most ? wanted : (most > 1 ? most : 1);
}

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace kh
