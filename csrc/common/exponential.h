#pragma once

// Exponential and Gumbel variates of 32-bit words, the same bits everywhere: exact integers until
// one last rounding. gtkern/random.py specifies them.

#include <cstdint>

#include "common/philox.h"

namespace gtkern {

// -2**32 log2((word + 1/2) / 2**(32 - zeros)) of a word that begins with `zeros` zeros.
GTKERN_HOST_DEVICE uint32_t negative_log2(uint32_t word, int zeros) {
  const uint32_t rest = 0u - (word << zeros << 1) - (1u << zeros);
  const int64_t half = rest >> 1;
  int64_t log = 1116196857;
  log = ((log * half) >> 32) - 1313475288;
  log = ((log * half) >> 32) + 974116327;
  log = ((log * half) >> 32) - 157649060;
  log = ((log * half) >> 32) + 208826086;
  log = ((log * half) >> 32) + 188062494;
  log = ((log * half) >> 32) + 258464808;
  log = ((log * half) >> 32) + 387264965;
  log = ((log * half) >> 32) + 774541020;
  return static_cast<uint32_t>((static_cast<uint64_t>(rest) * static_cast<uint64_t>(log)) >> 30) +
         1u;
}

GTKERN_HOST_DEVICE int leading_zeros(uint32_t word) {
#if defined(__CUDA_ARCH__)
  return __clz(static_cast<int>(word));
#else
  return __builtin_clz(word);
#endif
}

GTKERN_HOST_DEVICE uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

// -2**16 log2((word + 1/2) / 2**32); word 0 counts as 1.
GTKERN_HOST_DEVICE float exponential(uint32_t word) {
  word = word == 0 ? 1 : word;
  const int zeros = leading_zeros(word);
  const uint32_t fraction = negative_log2(word, zeros);
  const uint32_t fixed =
      zeros > 0 ? (static_cast<uint32_t>(zeros) << 27) + (fraction >> 5) : fraction;
  return static_cast<float>(fixed) * (zeros > 0 ? 0x1p-11f : 0x1p-16f);
}

// -2**26 log(-log((word + 1/2) / 2**32)).
GTKERN_HOST_DEVICE int32_t gumbel(uint32_t word) {
  constexpr int64_t kLog2 = 744261118;  // Q30
  constexpr int32_t kOffset = 24596266;
  const uint32_t bits = bits_of(exponential(word));
  const int64_t exponent = static_cast<int64_t>(bits >> 23) - 126;
  const uint32_t fraction = negative_log2((bits << 8) | 0x80000000u, 0);
  const int64_t log = static_cast<int64_t>(fraction >> 5) - (exponent - 16) * (int64_t{1} << 27);
  return static_cast<int32_t>((log * kLog2) >> 31) + kOffset;
}

}  // namespace gtkern
