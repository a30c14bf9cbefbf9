// Sums of table entries over blocks of 64 slots. The block layout is that of src/keyhole/kernels/codes.py.
#pragma once

#include "tables.hpp"

namespace kh {

constexpr int kBlock = 64;

struct Codes {
  const uint8_t* data;
  int64_t row_stride, block_stride;  // bytes
};

// Adds bytes v to 16-bit sums: `wide` collects even + 256 * odd bytes modulo 2**16, `odd` the odd bytes.
inline void add_bytes(vu16& wide, vu16& odd, vu8 v) {
  vu16 w = as<vu16>(v);
  wide += w;
  odd += w >> 8;
}

// Sums of H heads over one block of 4-bit codes; head h goes to out + h * stride.
template <int H>
inline void scan_nibbles(const uint8_t* block, const uint8_t* tables, int pairs, uint16_t* out, int64_t stride) {
  const vu8 low = vu8{} + 15;
  for (int part = 0; part < kBlock / kWidth; part++) {
    vu16 w0{}, w1{}, w2{}, w3{}, o0{}, o1{}, o2{}, o3{};
    const uint8_t* table = tables;
    const uint8_t* codes = block + part * kWidth;
    for (int p = 0; p < pairs; p++, codes += kBlock, table += H * 32) {
      __builtin_prefetch(codes + kCodesAhead);
      vu8 both = load<vu8>(codes);
      vu8 a = both & low, b = as<vu8>(as<vu16>(both) >> 4) & low;
      add_bytes(w0, o0, lookup(table16(table), a));
      add_bytes(w0, o0, lookup(table16(table + 16), b));
      if (H > 1) {
        add_bytes(w1, o1, lookup(table16(table + 32), a));
        add_bytes(w1, o1, lookup(table16(table + 48), b));
      }
      if (H > 2) {
        add_bytes(w2, o2, lookup(table16(table + 64), a));
        add_bytes(w2, o2, lookup(table16(table + 80), b));
      }
      if (H > 3) {
        add_bytes(w3, o3, lookup(table16(table + 96), a));
        add_bytes(w3, o3, lookup(table16(table + 112), b));
      }
    }
    uint16_t* to = out + part * kShorts;
    store(to, w0 - (o0 << 8)), store(to + 32, o0);
    if (H > 1) store(to + stride, w1 - (o1 << 8)), store(to + stride + 32, o1);
    if (H > 2) store(to + 2 * stride, w2 - (o2 << 8)), store(to + 2 * stride + 32, o2);
    if (H > 3) store(to + 3 * stride, w3 - (o3 << 8)), store(to + 3 * stride + 32, o3);
  }
}

template <int H>
inline void scan_four_bit(const uint8_t* block, const uint8_t* tables, int pairs, uint16_t* out, int64_t stride) {
  if (kByQuads && scans_by_quads()) scan_quads<H>(block, tables, pairs, out, stride);
  else scan_nibbles<H>(block, tables, pairs, out, stride);
}

// The same with one code in a byte: one 64-bit addition serves four heads.
inline void scan_bytes(const uint8_t* block, const uint64_t* tables, int subspaces, int heads, uint16_t* out,
                       int64_t stride) {
  for (int slot = 0; slot < kBlock; slot += 4) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    const uint8_t* codes = block + slot;
    const uint64_t* table = tables;
    for (int m = 0; m < subspaces; m++, codes += kBlock, table += 256) {
      a += table[codes[0]];
      b += table[codes[1]];
      c += table[codes[2]];
      d += table[codes[3]];
    }
    for (int h = 0; h < heads; h++) {
      uint16_t* to = out + h * stride + slot;
      to[0] = uint16_t(a >> 16 * h), to[1] = uint16_t(b >> 16 * h);
      to[2] = uint16_t(c >> 16 * h), to[3] = uint16_t(d >> 16 * h);
    }
  }
}

// Sums of all heads over `blocks` blocks; head g goes to out + g * stride.
inline void scan(const uint8_t* codes, int64_t block_stride, int blocks, const Tables& tables, const Codebook& shape,
                 uint16_t* out, int64_t stride) {
  for (int g = 0; g < tables.heads; g += kGroup) {
    int heads = group_size(tables.heads, g / kGroup);
    const uint8_t* nibble = tables.nibble + int64_t(g) * Tables::steps(shape) * nibbles_at_once() * 16;
    const uint64_t* lanes = tables.lanes + int64_t(g / kGroup) * shape.subspaces * 256;
    for (int i = 0; i < blocks; i++) {
      const uint8_t* block = codes + i * block_stride;
      uint16_t* to = out + g * stride + i * kBlock;
      if (!shape.four_bit()) scan_bytes(block, lanes, shape.subspaces, heads, to, stride);
      else if (heads == 1) scan_four_bit<1>(block, nibble, shape.pairs(), to, stride);
      else if (heads == 2) scan_four_bit<2>(block, nibble, shape.pairs(), to, stride);
      else if (heads == 3) scan_four_bit<3>(block, nibble, shape.pairs(), to, stride);
      else scan_four_bit<4>(block, nibble, shape.pairs(), to, stride);
    }
  }
}

}  // namespace kh
