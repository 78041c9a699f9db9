// Philox in sixteen lanes, and the products of 32-bit lanes that it is made of.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "common/simd.h"

namespace gtkern::simd {

using U16 = std::uint32_t __attribute__((vector_size(64)));
using U8 = std::uint64_t __attribute__((vector_size(64)));
using I8 = std::int64_t __attribute__((vector_size(64)));

template <class To, class From>
GTKERN_INLINE To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// The even and the odd lanes, each in the low half of a 64-bit lane; high halves hold anything.
GTKERN_INLINE U8 even_lanes(U16 x) { return bits_as<U8>(x); }
GTKERN_INLINE U8 odd_lanes(U16 x) { return bits_as<U8>(x) >> 32; }

// Products of the low halves. (Masked by all ones: GCC 12 warns of its own unmasked intrinsics.)
GTKERN_INLINE U8 product(U8 a, U8 b) {
#ifdef __AVX512F__
  return bits_as<U8>(_mm512_maskz_mul_epu32(0xff, bits_as<__m512i>(a), bits_as<__m512i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}
GTKERN_INLINE U8 signed_product(U8 a, U8 b) {
#ifdef __AVX512F__
  return bits_as<U8>(_mm512_maskz_mul_epi32(0xff, bits_as<__m512i>(a), bits_as<__m512i>(b)));
#else
  const I8 x = bits_as<I8>(a << 32) >> 32, y = bits_as<I8>(b << 32) >> 32;
  return bits_as<U8>(x * y);
#endif
}

// Lanes out of the high (low) halves of products of the even and the odd lanes.
GTKERN_INLINE U16 join_high(U8 even, U8 odd) {
#ifdef __AVX512F__
  return bits_as<U16>(
      _mm512_mask_mov_epi32(bits_as<__m512i>(even >> 32), 0xAAAA, bits_as<__m512i>(odd)));
#else
  return bits_as<U16>((even >> 32) | (odd & 0xffffffff00000000u));
#endif
}
GTKERN_INLINE U16 join_low(U8 even, U8 odd) {
#ifdef __AVX512F__
  return bits_as<U16>(
      _mm512_mask_mov_epi32(bits_as<__m512i>(even), 0xAAAA, bits_as<__m512i>(odd << 32)));
#else
  return bits_as<U16>((even & 0xffffffffu) | (odd << 32));
#endif
}

// Philox4x32-10 of sixteen counters (c0, c1, c2, c3), one in each lane; the words take their
// places.
GTKERN_INLINE void philox_rounds(std::uint64_t seed, U16& c0, U16& c1, U16& c2, U16& c3) {
  std::uint32_t key0 = static_cast<std::uint32_t>(seed);
  std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
  const U8 factor0 = U8{} + 0xD2511F53u, factor1 = U8{} + 0xCD9E8D57u;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const U8 even0 = product(even_lanes(c0), factor0), odd0 = product(odd_lanes(c0), factor0);
    const U8 even1 = product(even_lanes(c2), factor1), odd1 = product(odd_lanes(c2), factor1);
    c0 = join_high(even1, odd1) ^ c1 ^ key0;
    c1 = join_low(even1, odd1);
    c2 = join_high(even0, odd0) ^ c3 ^ key1;
    c3 = join_low(even0, odd0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace gtkern::simd
