// Rows [heads, width] of any dtype as they lie, in vectors of 16 lanes: masked loads and stores,
// products of one row with several, and weighted sums of rows. For direct.cpp; needs AVX-512.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/simd.h"

namespace gtkern::sampled_attention {

using simd::F16;
using simd::Mask16;

constexpr int kMostHeads = simd::kLanes;
constexpr Mask16 kAll = 0xFFFF;

GTKERN_INLINE F16 load(const float* p, Mask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
GTKERN_INLINE F16 load(const c10::BFloat16* p, Mask16 mask) {
  const __m256i x = _mm256_maskz_loadu_epi16(mask, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
GTKERN_INLINE F16 load(const c10::Half* p, Mask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

GTKERN_INLINE void store(float* p, Mask16 mask, F16 x) { _mm512_mask_storeu_ps(p, mask, x); }
// rounds to nearest, ties to even; a NaN stays one
GTKERN_INLINE void store(c10::BFloat16* p, Mask16 mask, F16 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                  _mm512_set1_epi32(0x7FC00000));
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
GTKERN_INLINE void store(c10::Half* p, Mask16 mask, F16 x) {
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

GTKERN_INLINE F16 load(const float* p) { return simd::load(p); }
template <class T>
GTKERN_INLINE F16 load(const T* p) {
  return load(p, kAll);
}

// The sums over each of P runs of 16 / P lanes of the vectors f(0), f(1), ...: lane e * P + p holds
// run p of vector e.
template <int P, class F>
GTKERN_INLINE F16 reduce_runs(const F& f) {
  using namespace simd::detail;
  const auto quad = [&](int e) {
    return fold_pairs(fold_singles(f(e), f(e + 1)), fold_singles(f(e + 2), f(e + 3)));
  };
  if constexpr (P == 1) {
    return simd::reduce<1>(f);
  } else if constexpr (P == 2) {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_ps(order, fold_quarters(quad(0), quad(4)));
  } else {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, quad(0));
  }
}

// Lane l belongs to head l % slots, slots a power of two: the largest (sum) of each head, in all of
// its lanes.
template <class F>
GTKERN_INLINE F16 over_heads(F16 x, int slots, const F& f) {
  if (slots <= 8) x = f(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  if (slots <= 4) x = f(x, _mm512_shuffle_f32x4(x, x, 0xB1));
  if (slots <= 2) x = f(x, _mm512_permute_ps(x, 0x4E));
  if (slots <= 1) x = f(x, _mm512_permute_ps(x, 0xB1));
  return x;
}
GTKERN_INLINE F16 largest_of_heads(F16 x, int slots) {
  return over_heads(x, slots, [](F16 a, F16 b) { return simd::max_of(a, b); });
}
GTKERN_INLINE F16 sum_of_heads(F16 x, int slots) {
  return over_heads(x, slots, [](F16 a, F16 b) { return simd::add(a, b); });
}

// The weight of each head, at every lane l with l % slots equal to the head.
GTKERN_INLINE F16 repeat(const float* weights, int slots) {
  if (slots == 1) return simd::repeat<1>(weights);
  if (slots == 2) return simd::repeat<2>(weights);
  if (slots == 4) return simd::repeat<4>(weights);
  return slots == 8 ? simd::repeat<8>(weights) : simd::load(weights);
}

// log2 x; error below 2e-7 near 1, relative error below 2e-7 elsewhere; -inf at 0, NaN stays NaN.
GTKERN_INLINE F16 log2(F16 x) {
  // x = m * 2 ** n with m in [3/4, 3/2); log2 m = 2 / ln 2 * artanh((m - 1) / (m + 1))
  const F16 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  const F16 n = simd::sub(_mm512_getexp_ps(x), _mm512_getexp_ps(m));
  const F16 s = _mm512_div_ps(simd::sub(m, simd::splat(1.f)), simd::add(m, simd::splat(1.f)));
  const F16 square = simd::mul(s, s);
  F16 p = simd::splat(2.8853901f / 11);
  p = simd::fma(p, square, simd::splat(2.8853901f / 9));
  p = simd::fma(p, square, simd::splat(2.8853901f / 7));
  p = simd::fma(p, square, simd::splat(2.8853901f / 5));
  p = simd::fma(p, square, simd::splat(2.8853901f / 3));
  p = simd::fma(p, square, simd::splat(2.8853901f));
  return simd::fma(p, s, n);
}

GTKERN_INLINE Mask16 lanes_left(int lanes, int at) {
  return simd::first_lanes(std::min(lanes - at, simd::kLanes));
}

// How rows [heads, width] fall into vectors.
//
// For products: where P heads fill a vector, as they lie, a part is one vector of P heads; else P
// is 1 and a part is one head, its last vector partly filled. For weighted sums a row is one run of
// floats, and each lane looks up the weight of its head.
struct Rows {
  Rows(int heads, int width, int per_vector)
      : size(heads * width), chunks((size + simd::kLanes - 1) / simd::kLanes) {
    const int step = per_vector == 1 ? width : simd::kLanes;
    const int parts = (heads + per_vector - 1) / per_vector;
    vectors = (step + simd::kLanes - 1) / simd::kLanes;
    for (int part = 0; part < kMostHeads; ++part) {
      // parts that only round the heads up to a power of two repeat the last one
      begin[part] = std::min(part, parts - 1) * step;
      tail[part] = lanes_left(std::min(step, size - begin[part]), (vectors - 1) * simd::kLanes);
    }
    for (int i = 0; i < chunks * simd::kLanes; ++i) head.push_back(std::min(i / width, heads - 1));
  }

  int padded() const { return chunks * simd::kLanes; }

  int size, chunks, vectors;       // floats, vectors in one run, vectors of a part
  int begin[kMostHeads];           // of each part
  Mask16 tail[kMostHeads];         // of its last vector
  std::vector<std::int32_t> head;  // of each lane of a run
};

// to[e, part] = factor * own . table_e . row_e, for the heads of each part, from pointers to
// parts; `within` is the number of parts (a power of two) less 1.
template <class T>
using Products = void (*)(const Rows& shape, int within, const float* own, const T* const* rows,
                          const float* const* tables, int count, float factor, float* to);

// kVectors: of a part; 0: shape.vectors.
template <class T, int P, int kVectors, bool kTable>
void products(const Rows& shape, int within, const float* own, const T* const* rows,
              const float* const* tables, int count, float factor, float* to) {
  const int last = (kVectors ? kVectors : shape.vectors) - 1;
  const F16 by = simd::splat(factor);
  for (int at = 0; at < count; at += simd::kLanes / P) {
    const F16 sums = reduce_runs<P>([&](int i) __attribute__((always_inline)) {
      if (at + i >= count) return simd::zero();
      const float* mine = own + shape.begin[i & within];
      const T* row = rows[at + i];
      const float* table = kTable ? tables[at + i] : nullptr;
      const auto scaled = [&](F16 x, auto... mask) {
        if constexpr (kTable) return simd::mul(x, load(table, mask...));
        return x;
      };
      F16 sum = simd::zero();
#pragma GCC unroll 8
      for (int z = 0; z < last; ++z) {
        sum = simd::fma(scaled(load(mine)), load(row), sum);
        mine += simd::kLanes, row += simd::kLanes;
        if constexpr (kTable) table += simd::kLanes;
      }
      const Mask16 mask = shape.tail[i & within];
      return simd::fma(scaled(load(mine, mask), mask), load(row, mask), sum);
    });
    simd::store(to + at * P, simd::mul(sums, by));
  }
}

template <class T, bool kTable>
Products<T> products_for(int per_vector, int vectors) {
  if (per_vector == 4) return &products<T, 4, 1, kTable>;
  if (per_vector == 2) return &products<T, 2, 1, kTable>;
  switch (vectors) {
    case 1: return &products<T, 1, 1, kTable>;
    case 2: return &products<T, 1, 2, kTable>;
    case 4: return &products<T, 1, 4, kTable>;
    case 8: return &products<T, 1, 8, kTable>;
    default: return &products<T, 1, 0, kTable>;
  }
}

// C vectors of factor * (start + sum weight_e * table_e * row_e); `factor` is by head.
template <int C, bool kTable, class T, class Row, class Weight, class Table, class Out>
GTKERN_INLINE void sum_chunks(const Rows& shape, int slots, int chunk, const Row& row,
                              const Table& table, const Weight& weight, int n, const float* start,
                              F16 factor, Out* to) {
  const int at = chunk * simd::kLanes;
  const Mask16 tail = lanes_left(shape.size, at + (C - 1) * simd::kLanes);
  F16 sum[C];
  __m512i head[C];
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    head[c] = _mm512_loadu_si512(shape.head.data() + at + c * simd::kLanes);
    const Mask16 mask = c == C - 1 ? tail : kAll;
    sum[c] = start ? load(start + at + c * simd::kLanes, mask) : simd::zero();
  }
  for (int e = 0; e < n; ++e) {
    const F16 by_head = repeat(weight(e), slots);
    const T* from = row(e) + at;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const Mask16 mask = c == C - 1 ? tail : kAll;
      F16 w = _mm512_permutexvar_ps(head[c], by_head);
      if constexpr (kTable) w = simd::mul(w, load(table(e) + at + c * simd::kLanes, mask));
      sum[c] = simd::fma(w, load(from + c * simd::kLanes, mask), sum[c]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < C; ++c) {
    store(to + at + c * simd::kLanes, c == C - 1 ? tail : kAll,
          simd::mul(sum[c], _mm512_permutexvar_ps(head[c], factor)));
  }
}

template <bool kTable, class T, class Row, class Weight, class Table, class Out>
GTKERN_INLINE void weighted_sum(const Rows& shape, int slots, const Row& row, const Table& table,
                                const Weight& weight, int n, const float* start, F16 factor,
                                Out* to) {
  for (int chunk = 0; chunk < shape.chunks; chunk += 4) {
    const auto sum = [&](auto chunks) {
      sum_chunks<chunks(), kTable, T>(shape, slots, chunk, row, table, weight, n, start, factor,
                                      to);
    };
    switch (shape.chunks - chunk) {
      case 1: sum(std::integral_constant<int, 1>()); break;
      case 2: sum(std::integral_constant<int, 2>()); break;
      case 3: sum(std::integral_constant<int, 3>()); break;
      default: sum(std::integral_constant<int, 4>());
    }
  }
}

}  // namespace gtkern::sampled_attention
