// New tokens on their way into a cache: none is written where one holds NaN or infinity.
#pragma once

#include "common.hpp"

namespace kh {

// TokenRows [B, H, T] of numbers side by side; strides in bytes.
struct TokenRows {
  char* data;
  int64_t batch, head, token;
  char* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * token; }
};

struct Append {
  TokenRows keys, values, key_to, value_to;  // the last two null: nothing is written
  int64_t batches, heads, tokens;
  int key_size, value_size;  // numbers of a row
  int type;
};

// Whether none of n numbers has all bits of its exponent set.
template <class Bits, Bits Exponent>
inline bool finite_bits(const char* row, int n) {
  int found = 0;
  for (int i = 0; i < n; i++) {
    Bits bits;
    memcpy(&bits, row + i * sizeof(Bits), sizeof bits);
    found |= (bits & Exponent) == Exponent;
  }
  return !found;
}

inline bool finite_row(const char* row, int n, int type) {
  if (type == kFloat32) return finite_bits<uint32_t, 0x7f800000u>(row, n);
  if (type == kBFloat16) return finite_bits<uint16_t, 0x7f80>(row, n);
  return finite_bits<uint16_t, 0x7c00>(row, n);
}

template <class Body>
inline void each_row(const Append& a, const Body& body) {
  for (int64_t b = 0; b < a.batches; b++)
    for (int64_t h = 0; h < a.heads; h++)
      for (int64_t t = 0; t < a.tokens; t++) body(b, h, t);
}

inline int append(const Append& a) {
  bool finite = true;
  each_row(a, [&](int64_t b, int64_t h, int64_t t) {
    finite = finite && finite_row(a.keys.at(b, h, t), a.key_size, a.type) &&
             finite_row(a.values.at(b, h, t), a.value_size, a.type);
  });
  if (!finite) return kNotFinite;
  if (!a.key_to.data) return kOk;
  const int64_t bytes = a.type == kFloat32 ? 4 : 2;
  each_row(a, [&](int64_t b, int64_t h, int64_t t) {
    memcpy(a.key_to.at(b, h, t), a.keys.at(b, h, t), a.key_size * bytes);
    memcpy(a.value_to.at(b, h, t), a.values.at(b, h, t), a.value_size * bytes);
  });
  return kOk;
}

}  // namespace kh
