// The keys of the exponential race, sixteen lanes at a time: exact integers until the last two
// roundings, so that every machine gets the same bits. README.md of the op derives the numbers.
#pragma once

#include <algorithm>
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

// Roughly the sum of n weights.
inline float sum_of(const float* weight, std::int64_t n) {
  F16 sum = {};
  for (std::int64_t i = 0; i < n; i += kLanes) sum += load_first<F16>(weight + i, n - i);
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
    const __mmask16 there = first_lanes(n - i);
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

// Writes the places of all n edges whose race keys are below the limit, and of a few more, in
// order; `place` has room for 16 more. Returns their number. No weights: all 1.
//
// -log2 U >= (1 - U) / ln 2, so a key below the limit needs 1 - U < limit * weight * ln 2: two
// operations in place of a logarithm. The slack covers every rounding, here and in the key.
inline std::int64_t places_maybe_below(const std::uint32_t* word, const float* weight,
                                       std::int64_t n, float limit, std::int32_t* place) {
  const float slope = limit * 65536.0f * 0.6931472f * 1.0001f, slack = 4.0f;
  std::int64_t count = 0;
#ifdef __AVX512F__
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 there = first_lanes(n - i);
    const F16 rest = __builtin_convertvector(~load_lanes<U16>(word + i), F16);
    F16 bound = F16{} + (slope + slack);
    if (weight) bound = load_first<F16>(weight + i, n - i) * slope + slack;
    const __mmask16 below = _mm512_mask_cmp_ps_mask(there, rest, bound, _CMP_LE_OQ);
    _mm512_storeu_si512(place + count, _mm512_maskz_compress_epi32(below, lane));
    count += std::popcount(static_cast<unsigned>(below));
    lane = _mm512_add_epi32(lane, _mm512_set1_epi32(kLanes));
  }
#else
  for (std::int64_t i = 0; i < n; ++i) {
    place[count] = static_cast<std::int32_t>(i);
    count += static_cast<float>(~word[i]) <= (weight ? weight[i] : 1.0f) * slope + slack;
  }
#endif
  return count;
}

// Thirty-two keys; infinity where there are fewer.
struct Few {
  I16 a, b;
};

constexpr int kFew = 2 * kLanes;

// The first n of them.
GTKERN_INLINE Few few_keys(const std::int32_t* key, std::int64_t n) {
  const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const std::int32_t size = static_cast<std::int32_t>(n);
  const I16 a = load_first<I16>(key, n), b = load_first<I16>(key + kLanes, n - kLanes);
  return {lane < size ? a : I16{} + kInfinity, lane + kLanes < size ? b : I16{} + kInfinity};
}

// How many of the first n are below the limit.
GTKERN_INLINE int count_below(const Few& few, std::int32_t limit) {
#ifdef __AVX512F__
  const __m512i bound = _mm512_set1_epi32(limit);
  return std::popcount(
             static_cast<unsigned>(_mm512_cmplt_epi32_mask(bits_as<__m512i>(few.a), bound))) +
         std::popcount(
             static_cast<unsigned>(_mm512_cmplt_epi32_mask(bits_as<__m512i>(few.b), bound)));
#else
  const I16 lanes = -((few.a < limit) + (few.b < limit));
  int count = 0;
  for (int lane = 0; lane < kLanes; ++lane) count += lanes[lane];
  return count;
#endif
}

// Writes the places of the k smallest of n keys, more than k of which are finite, in order; `place`
// has room for 32 more. False where ties leave more than k.
inline bool few_smallest(const Few& few, std::int64_t n, std::int64_t k, std::int32_t* place) {
  alignas(64) std::int32_t key[kFew];
  store_lanes(key, few.a);
  store_lanes(key + kLanes, few.b);
  // how many keys are smaller; those behind the first n are smaller than none
  I16 rank_a = {}, rank_b = {};
  for (std::int64_t i = 0; i < n; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      rank_a -= few.a > key[i + j];
      rank_b -= few.b > key[i + j];
    }
  }
  const std::int32_t size = static_cast<std::int32_t>(k);
#ifdef __AVX512F__
  const __m512i bound = _mm512_set1_epi32(size);
  const __mmask16 a = _mm512_cmplt_epi32_mask(bits_as<__m512i>(rank_a), bound);
  const __mmask16 b = _mm512_cmplt_epi32_mask(bits_as<__m512i>(rank_b), bound);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const int first = std::popcount(static_cast<unsigned>(a));
  _mm512_storeu_si512(place, _mm512_maskz_compress_epi32(a, lane));
  _mm512_storeu_si512(place + first, _mm512_maskz_compress_epi32(
                                         b, _mm512_add_epi32(lane, _mm512_set1_epi32(kLanes))));
  return first + std::popcount(static_cast<unsigned>(b)) == k;
#else
  std::int64_t count = 0;
  for (int i = 0; i < kFew; ++i) {
    place[count] = i;
    count += (i < kLanes ? rank_a[i] : rank_b[i - kLanes]) < size;
  }
  return count == k;
#endif
}

}  // namespace gtkern::neighbor_sampling
