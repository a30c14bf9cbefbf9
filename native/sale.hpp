// Block-sparse attention of a prompt (SALE): exact over sinks and a window, and over the keys that small integers
// say some query of a tile may need.
//
// Source: arXiv 2505.24179. A task is a few tiles of all query heads of a KV head: they share the integers of the
// keys, which are made for a chunk at a time and never stored.
#pragma once

#include "matvec.hpp"
#include "sale_attend.hpp"

namespace kh::sale {

struct Job {
  Strided query, keys, values;  // [B, H, Q, D], [B, Hkv, N, D], [B, Hkv, N, Dv]
  int64_t batch, kv_heads, groups, queries, tokens;
  int64_t key_size, value_size;
  const int64_t* padding;  // [B], unused slots at the start
  const float* tau;        // [H]
  double scale;
  int64_t sinks, window, width, levels, pooled;
  int64_t rows, means;  // queries that read the same keys; whether what is left out counts as its mean
  void* out;      // [B, H, Q, Dv], of the type of values; float32 for 16-bit floats
  int32_t* kept;  // [B, H, groups of `rows`], keys each group reads
  uint32_t* map;  // [B, H, groups of `rows`, words], or null
};

constexpr int kChunkBlocks = 8;
constexpr int kTilesAtOnce = 8;

// One KV head of one batch row, slots counted from its first token.
template <class T>
struct Head {
  const Job& job;
  int64_t b, h, length, rows, skipped, padded;
  float* means;  // [1 + blocks][padded], the mean of keys and those of blocks, see `average`
  Rows<T> keys, values;

  Head(const Job& job, int64_t index, float* means, Frame& frame)
      : job(job), b(index / job.kv_heads), h(index % job.kv_heads), length(job.tokens - job.padding[b]),
        rows(std::min(job.queries, length)), skipped(job.queries - rows), padded(round_up(job.key_size, 16)),
        means(means + index * stride(job)),
        keys(job.keys.at<T>(b, h, job.padding[b]), job.keys.row, int(job.key_size), frame),
        values(job.values.at<T>(b, h, job.padding[b]), job.values.row, int(job.value_size), frame) {}

  static int64_t stride(const Job& job) {
    return round_up(job.key_size, 16) * (1 + (job.pooled ? job.tokens / kBlockKeys : 0));
  }
};

// The mean of a head's keys and, behind it, those of each whole block where the job is pooled.
template <class T>
inline void average(const Head<T>& head) {
  Frame frame;
  const int64_t padded = head.padded;
  float* sum = frame.take<float>(padded);
  double* total = frame.take<double>(padded);
  std::fill(total, total + padded, 0.0);
  for (int64_t from = 0; from < head.length; from += kBlockKeys) {
    int64_t count = std::min<int64_t>(kBlockKeys, head.length - from);
    head.keys.add_up(head.keys.data + from * head.keys.stride, count, sum);
    for (int d = 0; d < padded; d++) total[d] += sum[d];
    if (!head.job.pooled || count < kBlockKeys) continue;
    float* block = head.means + (1 + from / kBlockKeys) * padded;
    for (int d = 0; d < padded; d++) block[d] = sum[d] / kBlockKeys;
  }
  for (int d = 0; d < padded; d++) head.means[d] = float(total[d] / double(head.length));
}

// A tile with where its candidates lie, and where its results go.
struct Work {
  Tile64 tile;
  int64_t head, number, begin, end;  // query head; tile of the head; candidates [begin, end)
  float tau;
  int32_t* kept;
  uint32_t* map;
  float step[kTileRows], offset[kTileRows];  // of the integers of a query; its product with the mean key
  bool broken[kTileRows];                    // holds NaN or infinity

  // Takes down what a group of queries reads.
  void note(const Job& job, int group, int64_t from, uint32_t word) {
    kept[group] += __builtin_popcount(word);
    if (map) map[group * ((job.tokens + kBlockKeys - 1) / kBlockKeys) + from / kBlockKeys] |= word;
  }
  void note(const Job& job, int64_t from, int64_t to) {
    for (; from < to; from += kBlockKeys - from % kBlockKeys) {
      int64_t bits = std::min(to - from, kBlockKeys - from % kBlockKeys);
      uint32_t word = uint32_t((uint64_t(1) << bits) - 1) << (from % kBlockKeys);
      for (int group = 0; group * job.rows < tile.rows; group++) note(job, group, from, word);
    }
  }
};

template <class T>
inline void load_queries(Work& work, const Head<T>& head) {
  const Job& job = head.job;
  const int size = int(job.key_size);
  const float scale = float(job.scale * 1.4426950408889634);
  Frame frame;
  float* x = frame.take<float>(head.padded);
  for (int row = 0; row < work.tile.rows; row++) {
    const T* from = job.query.at<T>(head.b, work.head, head.skipped + work.number * kTileRows + row);
    float most = 0, dot = 0, broken = 0;
    for (int d = 0; d < size; d++) {
      x[d] = to_float(from[d]) * scale;
      most = std::max(most, std::fabs(x[d]));
      dot += x[d] * head.means[d];
      broken += x[d] * 0.0f;
    }
    work.broken[row] = broken != 0.0f;
    if (work.broken[row]) std::fill(x, x + size, 0.0f), most = dot = 0;
    for (int d = 0; d < size; d++) work.tile.query(row, d) = x[d];
    work.step[row] = most > 0 ? most / float(job.levels) : 1.0f;
    work.offset[row] = dot;
    work.tile.small.set(row, x, size, 1.0f / work.step[row], int(job.levels));
  }
  std::fill(x, x + size, 0.0f);
  for (int row = work.tile.rows; row < kTileRows; row++) work.tile.small.set(row, x, size, 1.0f, int(job.levels));
}

// total[i] += the sum of base-2 exponentials that the candidates have at least, by the means of their blocks: the
// exponential of a mean is no more than the mean of exponentials.
template <class T>
inline void add_pooled(const Work& work, const Head<T>& head, float* total) {
  const float* rows[kPack];
  alignas(64) float logits[kPack * kSlice];
  for (int64_t block = work.begin / kBlockKeys; block < work.end / kBlockKeys; block += kPack) {
    int count = int(std::min<int64_t>(kPack, work.end / kBlockKeys - block));
    for (int j = 0; j < count; j++) rows[j] = head.means + (1 + block + j) * head.padded;
    for (int s = 0; s < work.tile.slices(); s++) {
      products(rows, count, work.tile.slice(s), work.tile.key_size, logits);
      for (int part = 0; part < kSlice; part += kLanes) {
        vf most = load<vf>(work.tile.most + s * kSlice + part), sum{};
        const vf high = splat(100.0f);
        for (int j = 0; j < count; j++) {
          vf x = load<vf>(logits + j * kSlice + part) - most;
          sum += exp2(x < high ? x : high);
        }
        float* to = total + s * kSlice + part;
        store(to, load<vf>(to) + sum * splat(float(kBlockKeys)));
      }
    }
  }
}

template <class T>
inline void set_thresholds(Work& work, const Head<T>& head) {
  float total[kTileRows];
  memcpy(total, work.tile.total, sizeof total);
  if (head.job.pooled) add_pooled(work, head, total);
  for (int row = 0; row < kTileRows; row++) {
    float theta = work.tile.most[row] + std::log2(work.tau * total[row]) - work.offset[row] * (row < work.tile.rows);
    bool idle = row >= work.tile.rows || work.broken[row];
    work.tile.small.threshold[row] = idle ? INFINITY : theta / work.step[row];
  }
}

// Loads a tile and attends to what it always reads; a tau of 0 reads everything.
template <class T>
inline void begin(Work& work, const Head<T>& head) {
  const Job& job = head.job;
  Tile64& tile = work.tile;
  int64_t at = work.number * kTileRows, first = head.length - head.rows + at;
  tile.start(first, int(std::min<int64_t>(kTileRows, head.rows - at)));
  load_queries(work, head);
  work.begin = round_up(job.sinks, kBlockKeys);
  work.end = std::max<int64_t>(first - job.window, 0) / kBlockKeys * kBlockKeys;
  if (work.tau == 0 || work.end < work.begin) work.end = work.begin = 0;
  auto read = [&](int64_t from, int64_t to) {
    add_range(tile, from, to, head.keys, head.values);
    work.note(job, from, to);
  };
  read(0, work.begin);
  read(work.end, first + tile.rows);
  flush(tile, head.keys, head.values);
  if (work.begin < work.end) set_thresholds(work, head);
}

// Reads those candidates of the blocks in `small`, whose first key is `from`, that may matter.
template <class T>
inline void select(Work& work, const Head<T>& head, const SmallKeys& small, int64_t from, int64_t to) {
  const Job& job = head.job;
  const int slices = work.tile.slices(), together = int(job.rows) / kSlice;
  for (int64_t at = std::max(from, work.begin); at < std::min(to, work.end); at += kBlockKeys) {
    uint32_t words[kSlices];
    passing(work.tile.small, small, at - from, words);
    for (int s = 0; s < slices; s += together) {
      const int last = std::min(s + together, slices);
      uint32_t word = 0;
      for (int i = s; i < last; i++) word |= words[i];
      word = whole_runs(word, int(job.width));
      work.note(job, s / together, at, word);
      for (int i = s; i < last; i++) add_slots(work.tile, i, at, word, job.means, head.keys, head.values);
    }
  }
}

template <class T, class Out>
inline void finish(Work& work, const Head<T>& head) {
  flush(work.tile, head.keys, head.values);
  const Job& job = head.job;
  int64_t heads = job.kv_heads * job.groups;
  for (int row = 0; row < work.tile.rows; row++) {
    int64_t place = (head.b * heads + work.head) * job.queries + head.skipped + work.number * kTileRows + row;
    Out* out = static_cast<Out*>(job.out) + place * job.value_size;
    float inverse = work.broken[row] ? NAN : 1.0f / work.tile.total[row];
    for (int d = 0; d < job.value_size; d++) put(out + d, work.tile.sum(row, d) * inverse);
  }
}

template <class T, class Out>
inline void run_tiles(const Head<T>& head, int64_t from, int64_t to) {
  const Job& job = head.job;
  Frame frame;
  int64_t count = (to - from) * job.groups, end = 0;
  Work* works = frame.take<Work>(count);
  for (int64_t i = 0; i < count; i++) {
    Work& work = works[i];
    work.tile.take(int(job.key_size), int(job.value_size), frame);
    work.number = from + i / job.groups;
    work.head = head.h * job.groups + i % job.groups;
    work.tau = job.tau[work.head];
    int64_t groups = (job.queries + job.rows - 1) / job.rows;
    int64_t place = (head.b * job.kv_heads * job.groups + work.head) * groups + work.number * (kTileRows / job.rows);
    work.kept = job.kept + place;
    work.map = job.map ? job.map + place * ((job.tokens + kBlockKeys - 1) / kBlockKeys) : nullptr;
    begin(work, head);
    end = std::max(end, work.end);
  }
  SmallKeys small(kChunkBlocks * kBlockKeys, int(job.key_size), int(job.levels), frame);
  for (int64_t at = round_up(job.sinks, kBlockKeys); at < end; at += kChunkBlocks * kBlockKeys) {
    int64_t stop = std::min<int64_t>(at + kChunkBlocks * kBlockKeys, end);
    for (int64_t key = at; key < stop; key += kScaleKeys)
      small.set(key - at, head.keys.data + key * head.keys.stride, head.keys.stride, head.means, int(job.key_size));
    if (job.means) {
      for (int64_t i = 0; i < count; i++) flush_old(works[i].tile, stop, head.keys, head.values);
      head.keys.add_up(at, stop), head.values.add_up(at, stop);
    }
    for (int64_t i = 0; i < count; i++) select(works[i], head, small, at, stop);
  }
  for (int64_t i = 0; i < count; i++) finish<T, Out>(works[i], head);
}

template <class T, class Out>
inline int attention(const Job& job, int threads) {
  Frame frame;
  int64_t heads = job.batch * job.kv_heads;
  float* means = frame.take<float>(heads * Head<T>::stride(job));
  parallel(heads, threads, [&](int64_t i) {
    Frame inner;
    Head<T> head(job, i, means, inner);
    average(head);
    return int(kOk);
  });
  int64_t tiles = (job.queries + kTileRows - 1) / kTileRows;
  int64_t each = std::max<int64_t>(1, kTilesAtOnce / job.groups), pieces = (tiles + each - 1) / each;
  return parallel(heads * pieces, threads, [&](int64_t i) {
    Frame inner;
    Head<T> head(job, i % heads, means, inner);
    int64_t from = (pieces - 1 - i / heads) * each;  // the longest first
    int64_t to = std::min(from + each, (head.rows + kTileRows - 1) / kTileRows);
    if (from < to) run_tiles<T, Out>(head, from, to);
    return int(kOk);
  });
}

inline int attention(const Job& job, int type, int threads) {
  if (type == kFloat32) return attention<float, float>(job, threads);
  if (type == kBFloat16) return attention<bf16, bf16>(job, threads);
  return attention<fp16, float>(job, threads);
}

}  // namespace kh::sale
