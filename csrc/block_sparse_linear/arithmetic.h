// What a product is computed in: the elements it reads, its sums, and the way to and from tensors.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/lanes.h"

namespace gtkern::block_sparse_linear {

// Two bf16 that follow each other in the depth of a product: one instruction multiplies and adds
// both, into fp32.
struct Pair {
  std::uint32_t bits;
};

// E is an element as a product reads it, Sum its sums, kDepth the numbers that an element holds.
template <class E>
struct Arithmetic {
  using Sum = E;
  using L = Lanes<E>;
  using V = typename L::V;
  static constexpr int kDepth = 1;
  static GTKERN_INLINE V multiply_add(V a, V b, V sum) { return L::fma(a, b, sum); }
  static GTKERN_INLINE V splat(const E* p) { return L::splat(*p); }
  static GTKERN_INLINE V load(const E* p) { return L::load(p); }
};

#ifdef __AVX512BF16__
template <>
struct Arithmetic<Pair> {
  using Sum = float;
  using L = Lanes<float>;
  using V = L::V;
  static constexpr int kDepth = 2;
  static GTKERN_INLINE V multiply_add(V a, V b, V sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static GTKERN_INLINE V splat(const Pair* p) {
    float bits;
    std::memcpy(&bits, p, sizeof bits);
    return L::splat(bits);
  }
  static GTKERN_INLINE V load(const Pair* p) { return _mm512_loadu_ps(p); }
};
using BFloat16Element = Pair;
#else
using BFloat16Element = float;
#endif

// The element that tensors of T are multiplied in.
template <class T>
using Element = std::conditional_t<
    std::is_same_v<T, double>, double,
    std::conditional_t<std::is_same_v<T, c10::BFloat16>, BFloat16Element, float>>;
template <class T>
using SumOf = typename Arithmetic<Element<T>>::Sum;

// One vector of sums from, and to, a tensor.
template <class T>
GTKERN_INLINE auto load_values(const T* p) {
  using A = SumOf<T>;
  using L = Lanes<A>;
  if constexpr (std::is_same_v<T, A>) {
    return L::load(p);
#ifdef __AVX512F__
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
#endif
  } else {
    A wide[L::kCount];
    for (int l = 0; l < L::kCount; ++l) wide[l] = static_cast<A>(p[l]);
    return L::load(wide);
  }
}

template <class T>
GTKERN_INLINE void store_values(T* p, typename Lanes<SumOf<T>>::V x) {
  using A = SumOf<T>;
  using L = Lanes<A>;
  if constexpr (std::is_same_v<T, A>) {
    L::store(p, x);
#ifdef __AVX512F__
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    // to nearest, ties to even; the instruction for it would flush small numbers to 0
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                    _mm512_set1_epi32(0x7FC00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
  } else {
    A wide[L::kCount];
    L::store(wide, x);
    for (int l = 0; l < L::kCount; ++l) p[l] = static_cast<T>(wide[l]);
  }
}

// The first `count` lanes, 0 < count <= kCount; those behind load as 0.
template <class T>
GTKERN_INLINE auto load_values(const T* p, std::int64_t count) {
  if (count == Lanes<SumOf<T>>::kCount) return load_values(p);
  T all[Lanes<SumOf<T>>::kCount] = {};
  std::memcpy(static_cast<void*>(all), p, count * sizeof(T));
  return load_values(all);
}

template <class T>
GTKERN_INLINE void store_values(T* p, typename Lanes<SumOf<T>>::V x, std::int64_t count) {
  if (count == Lanes<SumOf<T>>::kCount) {
    store_values(p, x);
  } else {
    T all[Lanes<SumOf<T>>::kCount];
    store_values(all, x);
    std::memcpy(static_cast<void*>(p), all, count * sizeof(T));
  }
}

}  // namespace gtkern::block_sparse_linear
