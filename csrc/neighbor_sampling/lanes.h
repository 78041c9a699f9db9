// Sixteen lanes of integers and floats, and Philox in all of them, its words in their places.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "common/philox_lanes.h"
#include "common/simd.h"

namespace gtkern::neighbor_sampling {

constexpr int kLanes = 16;
// words that come out of one call of Philox in all lanes
constexpr int kChunk = 4 * kLanes;

using simd::bits_as, simd::even_lanes, simd::join_high, simd::join_low, simd::odd_lanes;
using simd::product, simd::signed_product;
using simd::U16, simd::U8;
using I16 = std::int32_t __attribute__((vector_size(64)));
using F16 = float __attribute__((vector_size(64)));

template <class V, class P>
GTKERN_INLINE V load_lanes(const P* p) {
  V x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class V, class P>
GTKERN_INLINE void store_lanes(P* p, V x) {
  std::memcpy(p, &x, sizeof x);
}
GTKERN_INLINE U16 leading_zeros(U16 x) {
#ifdef __AVX512CD__
  return bits_as<U16>(_mm512_lzcnt_epi32(bits_as<__m512i>(x)));
#else
  U16 zeros = {};
  for (int shift = 16; shift; shift /= 2) {
    const U16 low = bits_as<U16>(x < (1u << (32 - shift)));
    zeros += low & static_cast<std::uint32_t>(shift);
    x = (x << (low & static_cast<std::uint32_t>(shift)));
  }
  return zeros;
#endif
}

#ifdef __AVX512F__
// All lanes for n >= 16, none for n <= 0.
GTKERN_INLINE __mmask16 first_lanes(std::int64_t n) {
  return static_cast<__mmask16>(
      _bzhi_u32(0xffffu, static_cast<unsigned>(std::clamp<std::int64_t>(n, 0, kLanes))));
}
#endif

// The first n of sixteen values, 0 behind them.
template <class V, class P>
GTKERN_INLINE V load_first(const P* p, std::int64_t n) {
#ifdef __AVX512F__
  return bits_as<V>(_mm512_maskz_loadu_epi32(first_lanes(n), p));
#else
  if (n >= kLanes) return load_lanes<V>(p);
  V x = {};
  if (n > 0) std::memcpy(&x, p, static_cast<std::size_t>(n) * sizeof *p);
  return x;
#endif
}

// The numbers of the counters that philox_lanes wants in its lanes.
constexpr U16 kCounters = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};

// Philox4x32-10 of sixteen counters (c0, c1, c2, c3): word w of counter number n goes to lane
// (4 n + w) % 16 of words[n / 4]. Lane 4 l + j must hold counter 4 j + l: the order in which the
// transposition at the end leaves everything in its place.
GTKERN_INLINE void philox_lanes(std::uint64_t seed, U16 c0, U16 c1, U16 c2, U16 c3, U16 words[4]) {
  simd::philox_rounds(seed, c0, c1, c2, c3);
  // 4 x 4 transpositions inside every group of four lanes
  const U16 a =
      __builtin_shuffle(c0, c1, U16{0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29});
  const U16 b =
      __builtin_shuffle(c0, c1, U16{2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31});
  const U16 c =
      __builtin_shuffle(c2, c3, U16{0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29});
  const U16 d =
      __builtin_shuffle(c2, c3, U16{2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31});
  const U16 low = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  const U16 high = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
  words[0] = __builtin_shuffle(a, c, low);
  words[1] = __builtin_shuffle(a, c, high);
  words[2] = __builtin_shuffle(b, d, low);
  words[3] = __builtin_shuffle(b, d, high);
}

// High halves of the products of unsigned lanes.
GTKERN_INLINE U16 high_product(U16 a, U16 b) {
  return join_high(product(even_lanes(a), even_lanes(b)), product(odd_lanes(a), odd_lanes(b)));
}

}  // namespace gtkern::neighbor_sampling
