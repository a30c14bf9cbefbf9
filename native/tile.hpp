// What attention over selected slots reads: rows as they lie, or codes that are turned into numbers a tile at a time.
#pragma once

#include "simd.hpp"

namespace kh {

// Keys or values of all rows. Row r, slot s is at data + row(r) + slot(s), in elements; with a block table, slot
// s lives in block table[r / heads][s / block_size], and row strides step over the heads inside a block.
struct Side {
  const void* data;
  const float* scales;  // one for each slot of int8 data, or null
  int64_t row_stride, slot_stride, block_stride;
  int64_t scale_row, scale_slot, scale_block;
};

struct Pages {
  const int32_t* table;  // null: slots are contiguous
  int64_t table_stride, block_size, blocks, heads;
};

// Keys or values as codes: a number is low + scale * code. Row r, group n, token t of it has its codes at
// codes + r * row + n * group + t * token, in bytes; scales and lows of a group are those of its channels or tokens.
struct CodeSide {
  const uint8_t* codes;
  const float *scale, *low;
  int64_t row, group, token;
  int64_t range_row, range_group;  // in numbers
};

struct Attention {
  const void* query;  // [R, G, D], of type `asked`
  Side keys, values;
  CodeSide key_codes, value_codes;  // instead of those two, where the type is of codes
  int64_t grouped;                  // tokens of a group of codes
  int type;
  Pages pages;
  const int32_t *slots, *counts;  // [R, slots_stride], or null: a row reads its first slots; [R]
  int64_t slots_stride, capacity;
  const float* sinks;  // [R, G] or null
  int64_t rows;
  int heads, size;
  float scale, softcap;
  void* out;      // [R, G, D], of type `asked`
  float *lse;     // [R, G] or null
  float* logits;  // [R, G, width] or null
  int64_t width;
  int asked = kFloat32;          // or bfloat16
  const void* before = nullptr;  // attention over other tokens that is merged in, as out, or null
  const float* before_lse = nullptr;
};

// The slots a row reads: those listed, or all of them in order.
struct SlotList {
  const int32_t* listed;
  int64_t operator[](int64_t i) const { return listed ? listed[i] : i; }
};

constexpr int kTile = 16;  // slots handled together: keys of one tile and values of another fit the first cache

struct Span {
  const void* at;
  int64_t bytes;
};

// Fetches spans of memory into the cache, a line at each step, so that misses overlap with the arithmetic between.
class Fetcher {
 public:
  Fetcher(const Span* spans, int64_t count) : spans_(spans), last_(spans + count) { open(); }
  void step() {
    if (at_ >= end_) return;
    __builtin_prefetch(at_);
    at_ += 64;
    if (at_ >= end_) spans_++, open();
  }
  void finish() {
    while (at_ < end_) step();
  }

 private:
  void open() {
    at_ = end_ = nullptr;
    if (spans_ < last_) at_ = static_cast<const char*>(spans_->at), end_ = at_ + spans_->bytes;
  }
  const Span *spans_, *last_;
  const char *at_, *end_;
};

// n numbers of float32 or bfloat16, as float32, and back.
inline void to_floats(const void* from, int type, int64_t at, int n, float* out) {
  if (type == kFloat32) memcpy(out, static_cast<const float*>(from) + at, sizeof(float) * n);
  else for (int i = 0; i < n; i++) out[i] = to_float(static_cast<const bf16*>(from)[at + i]);
}
inline void from_floats(const float* from, int n, void* out, int type, int64_t at) {
  if (type == kFloat32) memcpy(static_cast<float*>(out) + at, from, sizeof(float) * n);
  else for (int i = 0; i < n; i++) static_cast<bf16*>(out)[at + i] = to_bf16(from[i]);
}

constexpr int kBeyond = 3;  // rows that may be read behind queries, as heads are multiplied by fours

// Queries `padded` floats apart, zero between: rows of a whole number of vectors.
inline float* padded_queries(const void* query, int64_t count, int size, int64_t padded, Frame& frame,
                             int type = kFloat32) {
  float* out = frame.take<float>((count + kBeyond) * padded);
  memset(out, 0, sizeof(float) * (count + kBeyond) * padded);
  for (int64_t i = 0; i < count; i++) to_floats(query, type, i * size, size, out + i * padded);
  return out;
}

// Keys and values of one row as they lie, in contiguous slots or in blocks of a table.
template <class T>
class PlainSource {
 public:
  PlainSource(const Attention& a, int64_t row, Frame&) : a_(a) {
    const Pages& pages = a.pages;
    int64_t inner = pages.table ? row % pages.heads : row;
    table_ = pages.table ? pages.table + row / pages.heads * pages.table_stride : nullptr;
    key_ = static_cast<const T*>(a.keys.data) + inner * a.keys.row_stride;
    value_ = static_cast<const T*>(a.values.data) + inner * a.values.row_stride;
    key_scale_ = a.keys.scales ? a.keys.scales + inner * a.keys.scale_row : nullptr;
    value_scale_ = a.values.scales ? a.values.scales + inner * a.values.scale_row : nullptr;
  }

  // Addresses (and scales) of one slot; false if it lies outside the cache.
  bool find(int64_t slot, const T** key, const T** value, float* key_scale, float* value_scale) const {
    if (slot < 0 || slot >= a_.capacity) return false;
    int64_t block = 0;
    if (table_) {
      uint32_t at = uint32_t(slot), size = uint32_t(a_.pages.block_size);  // 64-bit division takes far longer
      block = table_[at / size];
      slot = at % size;
      if (block < 0 || block >= a_.pages.blocks) return false;
    }
    *key = key_ + block * a_.keys.block_stride + slot * a_.keys.slot_stride;
    *value = value_ + block * a_.values.block_stride + slot * a_.values.slot_stride;
    *key_scale = key_scale_ ? key_scale_[block * a_.keys.scale_block + slot * a_.keys.scale_slot] : 1.0f;
    *value_scale = value_scale_ ? value_scale_[block * a_.values.scale_block + slot * a_.values.scale_slot] : 1.0f;
    return true;
  }

  int64_t bytes() const { return int64_t(a_.size) * sizeof(T); }

 private:
  const Attention& a_;
  const int32_t* table_;
  const T *key_, *value_;
  const float *key_scale_, *value_scale_;
};

// A tile of rows that are read in place.
template <class T>
struct PlainTile {
  using Source = PlainSource<T>;
  int count = 0;
  float key_scale[kTile] = {}, value_scale[kTile] = {};

  // Looks up the slots from entry `from` on; false if one lies outside the cache. Rows beyond the count repeat the
  // last one.
  bool fill(const Source& source, SlotList slots, int64_t from, int64_t left) {
    count = int(std::max<int64_t>(0, std::min<int64_t>(kTile, left)));
    for (int i = 0; i < count; i++) {
      if (!source.find(slots[from + i], &keys_[i], &values_[i], &key_scale[i], &value_scale[i])) return false;
      key_spans_[i] = {keys_[i], source.bytes()};
      value_spans_[i] = {values_[i], source.bytes()};
    }
    for (int i = count; i && i < kTile; i++) keys_[i] = keys_[count - 1];
    return true;
  }
  Fetcher fetch_keys() const { return {key_spans_, count}; }
  Fetcher fetch_values() const { return {value_spans_, count}; }
  const T* const* keys(const Source&) const { return keys_; }
  const T* const* values(const Source&) const { return values_; }

 private:
  const T *keys_[kTile], *values_[kTile];
  Span key_spans_[kTile], value_spans_[kTile];
};

// Where the codes and ranges of one slot lie.
struct Coded {
  const uint8_t* codes;
  const float *scale, *low;
};

// Codes of one row, and memory for the numbers of a tile.
template <int Bits>
class PackedSource {
 public:
  PackedSource(const Attention& a, int64_t row, Frame& frame) : a_(a), stride_(round_up(a.size, 16)) {
    numbers_ = frame.take<float>(kTile * stride_);
    for (int i = 0; i < kTile; i++) rows_[i] = numbers_ + i * stride_;
    keys_ = a.key_codes, values_ = a.value_codes;
    for (CodeSide* side : {&keys_, &values_}) {
      side->codes += row * side->row;
      side->scale += row * side->range_row, side->low += row * side->range_row;
    }
  }

  // Codes and ranges of one slot, and its group; false if it lies outside the cache.
  bool find(int64_t slot, Coded* key, Coded* value, int32_t* group) const {
    if (slot < 0 || slot >= a_.capacity) return false;
    uint32_t at = uint32_t(slot), size = uint32_t(a_.grouped), in = at / size, token = at % size;
    *key = place(keys_, in, token);
    *value = place(values_, in, token);
    value->scale += token, value->low += token;
    *group = int32_t(in);
    return true;
  }

  int64_t bytes() const { return (int64_t(a_.size) * Bits + 7) / 8; }
  int64_t range_bytes() const { return int64_t(a_.size) * sizeof(float); }

  // Puts the numbers of codes at row i of the tile, with the ranges of each channel or of the token.
  template <bool ByChannel>
  void decode(int i, const Coded& at) const {
    float* out = numbers_ + i * stride_;
    const vf low = splat(*at.low), scale = splat(*at.scale);
    int d = 0;
    for (; d + kLanes <= a_.size; d += kLanes) {
      vf code = load_codes<Bits>(at.codes, d);
      store(out + d, ByChannel ? load<vf>(at.low + d) + load<vf>(at.scale + d) * code : low + scale * code);
    }
    if (d == a_.size) return;
    vf code = load_codes<Bits>(at.codes, d, a_.size - d);
    store(out + d, ByChannel ? load_float(at.low + d, a_.size - d) + load_float(at.scale + d, a_.size - d) * code
                             : low + scale * code);
  }
  const float* const* rows() const { return rows_; }

 private:
  static Coded place(const CodeSide& side, int64_t group, int64_t token) {
    int64_t range = group * side.range_group;
    return {side.codes + group * side.group + token * side.token, side.scale + range, side.low + range};
  }

  const Attention& a_;
  int64_t stride_;
  CodeSide keys_, values_;
  float* numbers_;
  const float* rows_[kTile];
};

// A tile of rows that are codes: keys with ranges by channel, values with ranges by token.
template <int Bits>
struct PackedTile {
  using Source = PackedSource<Bits>;
  int count = 0;
  float key_scale[kTile] = {}, value_scale[kTile] = {};

  bool fill(const Source& source, SlotList slots, int64_t from, int64_t left) {
    count = int(std::max<int64_t>(0, std::min<int64_t>(kTile, left)));
    key_spans_ = value_spans_ = 0;
    int32_t before = -1;
    for (int i = 0; i < count; i++) {
      int32_t group;
      if (!source.find(slots[from + i], &keys_[i], &values_[i], &group)) return false;
      key_scale[i] = value_scale[i] = 1;
      fetch_key(keys_[i].codes, source.bytes());
      if (group != before) fetch_key(keys_[i].scale, source.range_bytes()), fetch_key(keys_[i].low, source.range_bytes());
      fetch_value(values_[i].codes, source.bytes());
      fetch_value(values_[i].scale, sizeof(float)), fetch_value(values_[i].low, sizeof(float));
      before = group;
    }
    return true;
  }
  Fetcher fetch_keys() const { return {key_list_, key_spans_}; }
  Fetcher fetch_values() const { return {value_list_, value_spans_}; }

  const float* const* keys(const Source& source) const {
    for (int i = 0; i < count; i++) source.template decode<true>(i, keys_[i]);
    return source.rows();
  }
  const float* const* values(const Source& source) const {
    for (int i = 0; i < count; i++) source.template decode<false>(i, values_[i]);
    return source.rows();
  }

 private:
  void fetch_key(const void* at, int64_t bytes) { key_list_[key_spans_++] = {at, bytes}; }
  void fetch_value(const void* at, int64_t bytes) { value_list_[value_spans_++] = {at, bytes}; }

  Coded keys_[kTile], values_[kTile];
  Span key_list_[3 * kTile], value_list_[3 * kTile];
  int key_spans_ = 0, value_spans_ = 0;
};

}  // namespace kh
