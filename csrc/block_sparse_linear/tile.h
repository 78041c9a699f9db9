// Register tiles: all multiplications of the room.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "block_sparse_linear/arithmetic.h"

namespace gtkern::block_sparse_linear {

// Sums that fit beside what they are made of: 32 registers with AVX-512, 16 of half the width
// without.
#ifdef __AVX512F__
constexpr int kTileRows = 12, kTileVectors = 2;
#else
constexpr int kTileRows = 6, kTileVectors = 1;
#endif

template <class E>
constexpr std::int64_t kTileColumns = kTileVectors * Lanes<typename Arithmetic<E>::Sum>::kCount;

// sum[r][x] += Σ_k a(r, k) b[k][x]; a(r, k) lies at a[r * lda + k], or turned at a[k * lda + r].
template <class E, bool kTurned, int Rows, int Vectors>
GTKERN_INLINE void multiply(const E* a, std::int64_t lda, const E* b, std::int64_t ldb,
                            std::int64_t depth, typename Arithmetic<E>::V (&sum)[Rows][Vectors]) {
  using M = Arithmetic<E>;
#pragma GCC unroll 2
  for (std::int64_t k = 0; k < depth; ++k) {
    typename M::V row[Vectors];
#pragma GCC unroll 2
    for (int x = 0; x < Vectors; ++x) row[x] = M::load(b + k * ldb + x * M::L::kCount);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const typename M::V factor = M::splat(kTurned ? a + k * lda + r : a + r * lda + k);
#pragma GCC unroll 2
      for (int x = 0; x < Vectors; ++x) sum[r][x] = M::multiply_add(factor, row[x], sum[r][x]);
    }
  }
}

// A matrix in column blocks: element (m, k) of column block c lies at [m * row + c * block + k].
template <class E>
struct Blocked {
  const E* data = nullptr;
  std::int64_t row = 0, block = 0;
};

// The columns [..., kTileColumns or fewer] of one block row of a weight: of each of its blocks, one
// after the other, [depth][columns], packed.
template <class E>
struct Strip {
  const E* packed = nullptr;
  std::int64_t columns = 0;             // whole vectors
  const std::int32_t* inner = nullptr;  // the blocks' places along the depth
  std::int64_t blocks = 0;
  std::int64_t depth = 0;                 // elements in a packed block
  std::int64_t last = 0, last_depth = 0;  // the last place, whose blocks may be cut short
  const typename Arithmetic<E>::Sum* bias = nullptr;  // [columns]
};

// to[r][x] = bias[x] + Σ over the strip's blocks of a times the block, for Rows rows.
template <class E, int Rows, int Vectors>
void strip_tile(const Blocked<E>& a, const Strip<E>& strip, typename Arithmetic<E>::Sum* to,
                std::int64_t ldt) {
  using L = typename Arithmetic<E>::L;
  typename Arithmetic<E>::V sum[Rows][Vectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int x = 0; x < Vectors; ++x) sum[r][x] = L::load(strip.bias + x * L::kCount);
  }
  constexpr std::int64_t kColumns = Vectors * L::kCount;
  const E* packed = strip.packed;
  for (std::int64_t j = 0; j < strip.blocks; ++j, packed += strip.depth * kColumns) {
    const std::int64_t place = strip.inner[j];
    multiply<E, false, Rows, Vectors>(a.data + place * a.block, a.row, packed, kColumns,
                                      place == strip.last ? strip.last_depth : strip.depth, sum);
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int x = 0; x < Vectors; ++x) L::store(to + r * ldt + x * L::kCount, sum[r][x]);
  }
}

// to[r][x] (+)= Σ_k a[k][r] b[k][x] for Rows rows.
template <class E, int Rows, int Vectors>
void outer_tile(const E* a, std::int64_t lda, const E* b, std::int64_t ldb, std::int64_t depth,
                bool add, typename Arithmetic<E>::Sum* to, std::int64_t ldt) {
  using L = typename Arithmetic<E>::L;
  typename Arithmetic<E>::V sum[Rows][Vectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int x = 0; x < Vectors; ++x) {
      sum[r][x] = add ? L::load(to + r * ldt + x * L::kCount) : L::zero();
    }
  }
  multiply<E, true, Rows, Vectors>(a, lda, b, ldb, depth, sum);
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int x = 0; x < Vectors; ++x) L::store(to + r * ldt + x * L::kCount, sum[r][x]);
  }
}

template <class E, int Vectors>
struct Tiles {
  using Sum = typename Arithmetic<E>::Sum;
  using StripTile = void (*)(const Blocked<E>&, const Strip<E>&, Sum*, std::int64_t);
  using OuterTile = void (*)(const E*, std::int64_t, const E*, std::int64_t, std::int64_t, bool,
                             Sum*, std::int64_t);
  template <int... R>
  static constexpr std::array<StripTile, kTileRows> strips(std::integer_sequence<int, R...>) {
    return {&strip_tile<E, R + 1, Vectors>...};
  }
  template <int... R>
  static constexpr std::array<OuterTile, kTileRows> outers(std::integer_sequence<int, R...>) {
    return {&outer_tile<E, R + 1, Vectors>...};
  }
  // by the number of rows less one
  static constexpr auto kStrips = strips(std::make_integer_sequence<int, kTileRows>{});
  static constexpr auto kOuters = outers(std::make_integer_sequence<int, kTileRows>{});
};

// f(first, height) for tiles of about equal height: one of few rows waits for its own additions.
template <class F>
GTKERN_INLINE void for_each_tile(std::int64_t rows, const F& f) {
  const std::int64_t count = (rows + kTileRows - 1) / kTileRows;
  for (std::int64_t t = 0, row = 0; t < count; ++t) {
    const std::int64_t height = rows / count + (t < rows % count);
    f(row, height);
    row += height;
  }
}

// to[rows][columns] (+)= aᵀ b, both [depth][...]; columns is a whole number of vectors.
template <class E>
void outer_product(const E* a, std::int64_t lda, const E* b, std::int64_t ldb, std::int64_t depth,
                   bool add, std::int64_t rows, std::int64_t columns,
                   typename Arithmetic<E>::Sum* to, std::int64_t ldt) {
  constexpr std::int64_t kWide = kTileColumns<E>;
  for (std::int64_t x = 0; x < columns; x += kWide) {
    for_each_tile(rows, [&](std::int64_t row, std::int64_t height) {
      const auto tile = columns - x >= kWide ? Tiles<E, kTileVectors>::kOuters[height - 1]
                                             : Tiles<E, 1>::kOuters[height - 1];
      tile(a + row, lda, b + x, ldb, depth, add, to + row * ldt + x, ldt);
    });
  }
}

}  // namespace gtkern::block_sparse_linear
