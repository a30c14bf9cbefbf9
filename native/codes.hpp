// Writing packed codes. The block layout is that of src/keyhole/kernels/codes.py.
#pragma once

#include "scan.hpp"

namespace kh {

// codes [T, M] of one row go to slots start .. start + T.
inline void write_codes(uint8_t* row, int64_t block_stride, int64_t start, const uint8_t* codes, int64_t count,
                        int subspaces, bool four_bit) {
  for (int64_t t = 0; t < count; t++, codes += subspaces) {
    int64_t slot = start + t, lane = slot % kBlock;
    uint8_t* block = row + slot / kBlock * block_stride;
    if (four_bit) {
      uint8_t* to = block + 2 * (lane % 32) + lane / 32;
      for (int m = 0; m < subspaces; m += 2, to += kBlock)
        *to = uint8_t(codes[m] | (m + 1 < subspaces ? codes[m + 1] : 0) << 4);
    } else {
      for (int m = 0; m < subspaces; m++) block[m * kBlock + lane] = codes[m];
    }
  }
}

}  // namespace kh
