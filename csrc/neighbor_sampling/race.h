// The keys of the exponential race, sixteen lanes at a time, and the search for the smallest: exact
// integers until the last two roundings, so that every machine gets the same bits. README.md of the
// op derives the numbers.
#pragma once

#include "neighbor_sampling/lanes.h"

namespace gtkern::neighbor_sampling {

constexpr float kSmallestWeight = 0x1p-100f, kLargestWeight = 0x1p100f;
constexpr std::int32_t kInfinity = 0x7f800000;

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

// The words of the positions begin .. begin + 63 (begin a multiple of 64): the word of position p
// is number p % 4 of the counter (p / 4 low, p / 4 high, layer, epoch).
GTKERN_INLINE void position_words(std::uint64_t seed, std::uint64_t begin, std::uint32_t layer,
                                  std::uint32_t epoch, U16 words[4]) {
  const std::uint64_t quad = begin / 4;
  philox_lanes(seed, kCounters + static_cast<std::uint32_t>(quad),
               U16{} + static_cast<std::uint32_t>(quad >> 32), U16{} + layer, U16{} + epoch, words);
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
