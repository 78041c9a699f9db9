// The keys of the exponential race, sixteen lanes at a time: exact integers until the last two
// roundings, so that every machine gets the same bits. README.md of the op derives the numbers.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "common/simd.h"

namespace gtkern::neighbor_sampling {

constexpr int kLanes = 16;
// positions whose words come out of one call of Philox in all lanes
constexpr int kChunk = 4 * kLanes;

constexpr float kSmallestWeight = 0x1p-100f, kLargestWeight = 0x1p100f;
constexpr std::int32_t kInfinity = 0x7f800000;

using U16 = std::uint32_t __attribute__((vector_size(64)));
using I16 = std::int32_t __attribute__((vector_size(64)));
using F16 = float __attribute__((vector_size(64)));
using U8 = std::uint64_t __attribute__((vector_size(64)));
using I8 = std::int64_t __attribute__((vector_size(64)));

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

// -2**16 log2((word + 1/2) / 2**32): the exponential variate of a word.
GTKERN_INLINE F16 exponential(U16 word) {
  constexpr std::int32_t kLog[] = {774541020,  387264965, 258464808,   188062494, 208826086,
                                   -157649060, 974116327, -1313475288, 1116196857};
  word |= bits_as<U16>(word == 0) & 1u;
  const U16 zeros = leading_zeros(word);
  const U16 rest = 0u - (word << zeros << 1) - ((U16{} + 1u) << zeros);
  const U8 even = even_lanes(rest >> 1), odd = odd_lanes(rest >> 1);
  const auto constant = [](std::int32_t c) {
    return U8{} + static_cast<std::uint64_t>(static_cast<std::uint32_t>(c));
  };
  U8 log_even = constant(kLog[8]), log_odd = log_even;
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) {
    log_even = (signed_product(log_even, even) >> 32) + constant(kLog[i]);
    log_odd = (signed_product(log_odd, odd) >> 32) + constant(kLog[i]);
  }
  const U16 fraction =
      join_high(product(even_lanes(rest), log_even << 2), product(odd_lanes(rest), log_odd << 2)) +
      1u;
  const I16 small = zeros == 0;
  const U16 fixed = small ? fraction : (zeros << 27) + (fraction >> 5);
  const F16 scale = small ? F16{} + 0x1p-16f : F16{} + 0x1p-11f;
  return __builtin_convertvector(fixed, F16) * scale;
}

// Philox4x32-10 of the positions begin .. begin + 63 (begin a multiple of 64): the word of position
// p is number p % 4 of the counter (p / 4 low, p / 4 high, layer, epoch).
GTKERN_INLINE void position_words(std::uint64_t seed, std::uint64_t begin, std::uint32_t layer,
                                  std::uint32_t epoch, U16 words[4]) {
  const std::uint64_t quad = begin / 4;
  // lane 4 l + j holds counter 4 j + l, so that the transposition below ends in order
  const U16 place = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  U16 c0 = place + static_cast<std::uint32_t>(quad);
  U16 c1 = U16{} + static_cast<std::uint32_t>(quad >> 32);
  U16 c2 = U16{} + layer, c3 = U16{} + epoch;
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

// The bits of exponential / weight, which order as integers; infinity where weight counts as 0.
GTKERN_INLINE I16 race_key(U16 word, F16 weight) {
  const I16 candidate = (weight >= kSmallestWeight) & (weight <= kLargestWeight);
  const F16 key = exponential(word) * (1.0f / weight);
  return candidate ? bits_as<I16>(key) : I16{} + kInfinity;
}

// Bits that fall as the weight rises.
GTKERN_INLINE I16 top_key(F16 weight) {
  const I16 candidate = (weight >= kSmallestWeight) & (weight <= kLargestWeight);
  return candidate ? kInfinity - bits_as<I16>(weight) : I16{} + kInfinity;
}

// Roughly the sum of n weights.
inline float sum_of(const float* weight, std::int64_t n) {
  F16 sum = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum += load_lanes<F16>(weight + i);
#ifdef __AVX512F__
  const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1u);
  sum += _mm512_maskz_loadu_ps(rest, weight + i);
#else
  for (; i < n; ++i) sum[0] += weight[i];
#endif
  const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int half = 8; half > 0; half /= 2) sum += __builtin_shuffle(sum, lane ^ half);
  return sum[0];
}

// How many of n keys are below the limit.
inline std::int64_t count_below(const std::int32_t* key, std::int64_t n, std::int32_t limit) {
  std::int64_t i = 0, count = 0;
#ifdef __AVX512F__
  const __m512i bound = _mm512_set1_epi32(limit);
  for (; i + kLanes <= n; i += kLanes) {
    count += std::popcount(
        static_cast<unsigned>(_mm512_cmplt_epi32_mask(_mm512_loadu_si512(key + i), bound)));
  }
  if (i < n) {
    const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1u);
    count += std::popcount(static_cast<unsigned>(
        _mm512_mask_cmplt_epi32_mask(rest, _mm512_maskz_loadu_epi32(rest, key + i), bound)));
  }
#else
  I16 lanes = {};
  for (; i + kLanes <= n; i += kLanes) lanes -= load_lanes<I16>(key + i) < limit;
  for (int lane = 0; lane < kLanes; ++lane) count += lanes[lane];
  for (; i < n; ++i) count += key[i] < limit;
#endif
  return count;
}

// Writes the places of the keys below the limit, in order; `place` has room for 16 more. Returns
// their number.
inline std::int64_t places_below(const std::int32_t* key, std::int64_t n, std::int32_t limit,
                                 std::int32_t* place) {
  std::int64_t i = 0, count = 0;
#ifdef __AVX512F__
  const __m512i bound = _mm512_set1_epi32(limit);
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i < n; i += kLanes) {
    const __mmask16 there =
        n - i >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (n - i)) - 1u);
    const __mmask16 below =
        _mm512_mask_cmplt_epi32_mask(there, _mm512_maskz_loadu_epi32(there, key + i), bound);
    if (below) {
      _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(below, lane));
      count += std::popcount(static_cast<unsigned>(below));
    }
    lane = _mm512_add_epi32(lane, _mm512_set1_epi32(kLanes));
  }
#else
  for (; i < n; ++i) {
    place[count] = static_cast<std::int32_t>(i);
    count += key[i] < limit;
  }
#endif
  return count;
}

// Writes the places of the k smallest of n <= 32 keys, in order; `place` has room for 16 more.
// False, and no order, where ties leave more than k.
inline bool few_smallest(const std::int32_t* key, std::int64_t n, std::int64_t k,
                         std::int32_t* place) {
  std::int32_t all[2 * kLanes], rank[2 * kLanes];
  for (std::int64_t i = 0; i < n; ++i) all[i] = key[i];
  for (std::int64_t i = n; i < 2 * kLanes; ++i) all[i] = kInfinity;
  const I16 a = load_lanes<I16>(all), b = load_lanes<I16>(all + kLanes);
  // how many keys are smaller
  I16 rank_a = {}, rank_b = {};
  for (std::int64_t i = 0; i < n; ++i) {
    rank_a -= a > key[i];
    rank_b -= b > key[i];
  }
  store_lanes(rank, rank_a);
  store_lanes(rank + kLanes, rank_b);
  return places_below(rank, n, static_cast<std::int32_t>(k), place) == k;
}

}  // namespace gtkern::neighbor_sampling
