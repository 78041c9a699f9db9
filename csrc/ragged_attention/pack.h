// Rows of tensors to and from the fp32 (fp64) matrices that the products read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/lanes.h"
#include "common/transpose.h"

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
