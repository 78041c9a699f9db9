// Rows of tensors to and from the fp32 (fp64) matrices that the products read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ragged_attention/lanes.h"

namespace gtkern::ragged_attention {

// to[i][d] = factor * from[i][d], with zeros up to whole vectors; rows of `from` lie `stride`
// apart.
template <class T, class A>
void widen(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t width, A factor,
           A* to) {
  using L = Lanes<A>;
  const std::int64_t wide = padded<A>(width), whole = width / L::kCount * L::kCount;
  for (std::int64_t i = 0; i < rows; ++i, from += stride, to += wide) {
    std::int64_t d = 0;
    if constexpr (std::is_same_v<T, A>) {
      for (; d < whole; d += L::kCount) {
        L::store(to + d, L::mul(L::load(from + d), L::splat(factor)));
      }
    }
    for (; d < width; ++d) to[d] = static_cast<A>(from[d]) * factor;
    for (; d < wide; ++d) to[d] = 0;
  }
}

// to[i][d] = factor * from[i][d] (times row_factor[i], if given); rows of `to` lie `stride` apart.
template <class T, class A>
void narrow(const A* from, std::int64_t rows, std::int64_t width, A factor, const A* row_factor,
            T* to, std::int64_t stride) {
  using L = Lanes<A>;
  const std::int64_t wide = padded<A>(width), whole = width / L::kCount * L::kCount;
  for (std::int64_t i = 0; i < rows; ++i, from += wide, to += stride) {
    const A scale = row_factor ? factor * row_factor[i] : factor;
    std::int64_t d = 0;
    if constexpr (std::is_same_v<T, A>) {
      for (; d < whole; d += L::kCount) {
        L::store(to + d, L::mul(L::load(from + d), L::splat(scale)));
      }
    }
    for (; d < width; ++d) to[d] = static_cast<T>(from[d] * scale);
  }
}

#ifdef __AVX512F__
// to[d][j] = from[j][d] for 16 x 16 floats.
inline void transpose_block(const float* from, std::int64_t ldf, float* to, std::int64_t ldt) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * ldf);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto pair = [](__m512 x) { return _mm512_castps_pd(x); };
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(b[i]), pair(b[i + 2])));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(b[i]), pair(b[i + 2])));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(b[i + 1]), pair(b[i + 3])));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(b[i + 1]), pair(b[i + 3])));
  }
  // a[4 g + e] holds column 4 l + e of rows 4 g .. 4 g + 3 in quarter l
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) {
    const __m512 even01 = _mm512_shuffle_f32x4(a[e], a[4 + e], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(a[e], a[4 + e], 0xDD);
    const __m512 even23 = _mm512_shuffle_f32x4(a[8 + e], a[12 + e], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(a[8 + e], a[12 + e], 0xDD);
    _mm512_storeu_ps(to + e * ldt, _mm512_shuffle_f32x4(even01, even23, 0x88));
    _mm512_storeu_ps(to + (4 + e) * ldt, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
    _mm512_storeu_ps(to + (8 + e) * ldt, _mm512_shuffle_f32x4(even01, even23, 0xDD));
    _mm512_storeu_ps(to + (12 + e) * ldt, _mm512_shuffle_f32x4(odd01, odd23, 0xDD));
  }
}
#endif

// to[d][j] = from[j][d] for whole vectors each way: `from` has rows of padded(width), `to` is in
// panels of `panel` columns, the last one what is left, each of padded(width) rows one after the
// other. Rows past `rows` are read, and may hold anything finite.
template <class A>
void transpose(const A* from, std::int64_t rows, std::int64_t width, std::int64_t panel, A* to) {
  constexpr int kLanes = Lanes<A>::kCount;
  const std::int64_t ldf = padded<A>(width), end = padded<A>(rows);
  for (std::int64_t j = 0; j < end; j += kLanes) {
    const std::int64_t begin = j / panel * panel, ldt = std::min(panel, end - begin);
    for (std::int64_t d = 0; d < ldf; d += kLanes) {
      const A* block = from + j * ldf + d;
      A* target = to + begin * ldf + d * ldt + j - begin;
#ifdef __AVX512F__
      if constexpr (std::is_same_v<A, float>) {
        transpose_block(block, ldf, target, ldt);
        continue;
      }
#endif
      for (int r = 0; r < kLanes; ++r) {
        for (int c = 0; c < kLanes; ++c) target[c * ldt + r] = block[r * ldf + c];
      }
    }
  }
}

}  // namespace gtkern::ragged_attention
