// Products of small dense matrices, in register tiles: all arithmetic of the attention but softmax.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "common/lanes.h"

namespace gtkern::ragged_attention {

// Accumulators that fit beside a row of B: 32 registers with AVX-512, 16 of half the width without.
#ifdef __AVX512F__
constexpr int kTileColumns = 4;
constexpr int kMostRows[kTileColumns + 1] = {0, 12, 12, 8, 6};
#else
constexpr int kTileColumns = 2;
constexpr int kMostRows[kTileColumns + 1] = {0, 4, 2};
#endif

enum class Into { kSet, kAdd };

// C[i][x] (+)= sum over k of A(i, k) B[k][x] for Rows rows and Columns vectors; A(i, k) lies at
// a[i * lda + k], or transposed at a[k * lda + i].
template <class A, bool kTransposed, Into kInto, int Rows, int Columns>
void tile(const A* a, std::int64_t lda, const A* b, std::int64_t ldb, A* c, std::int64_t ldc,
          std::int64_t depth) {
  using L = Lanes<A>;
  using V = typename L::V;
  V sum[Rows][Columns];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int x = 0; x < Columns; ++x) {
      sum[r][x] = kInto == Into::kAdd ? L::load(c + r * ldc + x * L::kCount) : L::zero();
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    V row[Columns];
#pragma GCC unroll 4
    for (int x = 0; x < Columns; ++x) row[x] = L::load(b + k * ldb + x * L::kCount);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const V factor = L::splat(kTransposed ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 4
      for (int x = 0; x < Columns; ++x) sum[r][x] = L::fma(factor, row[x], sum[r][x]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int x = 0; x < Columns; ++x) L::store(c + r * ldc + x * L::kCount, sum[r][x]);
  }
}

template <class A>
using Tile = void (*)(const A*, std::int64_t, const A*, std::int64_t, A*, std::int64_t,
                      std::int64_t);

// The tiles of a number of columns, by their number of rows less one.
template <class A, bool kTransposed, Into kInto, int Columns, int... R>
constexpr std::array<Tile<A>, sizeof...(R)> tiles(std::integer_sequence<int, R...>) {
  return {&tile<A, kTransposed, kInto, R + 1, Columns>...};
}

template <class A, bool kTransposed, Into kInto, int Columns>
void stripe(const A* a, std::int64_t lda, const A* b, std::int64_t ldb, A* c, std::int64_t ldc,
            std::int64_t rows, std::int64_t depth) {
  constexpr int kMost = kMostRows[Columns];
  static constexpr auto kTiles =
      tiles<A, kTransposed, kInto, Columns>(std::make_integer_sequence<int, kMost>{});
  // of about equal height: a tile of few rows waits for its own additions
  const std::int64_t count = (rows + kMost - 1) / kMost;
  for (std::int64_t t = 0, row = 0; t < count; ++t) {
    const std::int64_t height = rows / count + (t < rows % count);
    kTiles[height - 1](a + (kTransposed ? row : row * lda), lda, b, ldb, c + row * ldc, ldc, depth);
    row += height;
  }
}

// C[rows][columns] (+)= A[rows][depth] B[depth][columns]; `columns` is a whole number of vectors.
template <class A, bool kTransposed, Into kInto>
void product(const A* a, std::int64_t lda, const A* b, std::int64_t ldb, A* c, std::int64_t ldc,
             std::int64_t rows, std::int64_t columns, std::int64_t depth) {
  constexpr int kLanes = Lanes<A>::kCount;
  const std::int64_t vectors = columns / kLanes;
  const std::int64_t count = (vectors + kTileColumns - 1) / kTileColumns;
  for (std::int64_t t = 0, at = 0; t < count; ++t) {
    const std::int64_t width = vectors / count + (t < vectors % count);
    const A* from = b + at * kLanes;
    A* to = c + at * kLanes;
    switch (width) {
      case 1: stripe<A, kTransposed, kInto, 1>(a, lda, from, ldb, to, ldc, rows, depth); break;
      case 2: stripe<A, kTransposed, kInto, 2>(a, lda, from, ldb, to, ldc, rows, depth); break;
#ifdef __AVX512F__
      case 3: stripe<A, kTransposed, kInto, 3>(a, lda, from, ldb, to, ldc, rows, depth); break;
      case 4: stripe<A, kTransposed, kInto, 4>(a, lda, from, ldb, to, ldc, rows, depth); break;
#endif
    }
    at += width;
  }
}

// C[rows][columns] (+)= A[rows][depth] B[depth][columns] as `product`, with B in panels of
// `panel` columns, the last one what is left: each has its `deep` >= depth rows one after the
// other, and stays in the L1 cache for all rows of A.
template <class A, Into kInto>
void product_by_panels(const A* a, std::int64_t lda, const A* b, std::int64_t deep, A* c,
                       std::int64_t ldc, std::int64_t rows, std::int64_t columns,
                       std::int64_t depth, std::int64_t panel) {
  for (std::int64_t at = 0; at < columns; at += panel) {
    const std::int64_t width = std::min(panel, columns - at);
    product<A, false, kInto>(a, lda, b + at * deep, width, c + at, ldc, rows, width, depth);
  }
}

}  // namespace gtkern::ragged_attention
