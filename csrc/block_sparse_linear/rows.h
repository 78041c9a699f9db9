// Rows of tensors in the layout that products read, and products of such rows with a weight.
#pragma once

#include <algorithm>
#include <cstdint>

#include "block_sparse_linear/activation.h"
#include "block_sparse_linear/weights.h"

namespace gtkern::block_sparse_linear {

// to[block][row][k] = from[row][block * size + k], in elements; zeros where an element's second
// number lies past the block or the row. `depth` elements a block; blocks lie rows * depth apart.
template <class T>
void pack_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t features,
               std::int64_t size, std::int64_t depth, Element<T>* to) {
  using E = Element<T>;
  using M = Arithmetic<E>;
  const std::int64_t blocks = (features + size - 1) / size;
  // row by row: memory is read in its order
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t count = std::min(size, features - block * size);
      const T* source = from + row * stride + block * size;
      E* target = to + (block * rows + row) * depth;
      if constexpr (sizeof(E) == sizeof(T) * M::kDepth) {
        if (count % M::kDepth) target[count / M::kDepth] = E{};
        std::memcpy(static_cast<void*>(target), source, count * sizeof(T));
      } else {
        constexpr std::int64_t kLanes = M::L::kCount;
        std::int64_t k = 0;
        for (; k + kLanes <= count; k += kLanes) M::L::store(target + k, load_values(source + k));
        for (; k < count; ++k) target[k] = static_cast<E>(source[k]);
      }
    }
  }
}

// Products of rows with a weight: the rows of one thread.
template <class T>
class RowProduct {
 public:
  using E = Element<T>;
  using A = SumOf<T>;
  static constexpr std::int64_t kLanes = Lanes<A>::kCount;

  explicit RowProduct(const Weights<T>& weights) : weights_(weights) {}

  // out[row][n] = activation(bias[n] + Σ_k rows(row, k) W[n, k]); `kept` (may be null) gets the
  // same before the activation. `bias` has zeros up to whole strips.
  template <Activation kActivation>
  void run(const Blocked<E>& rows, std::int64_t count, const A* bias, std::int64_t features, T* out,
           T* kept) const {
    for (std::int64_t block = 0; block < weights_.block_rows(); ++block) {
      const std::int64_t column = block * weights_.outputs();
      for_each_strip(weights_, block, bias + column,
                     [&](std::int64_t first, const Strip<E>& strip, std::int64_t valid) {
                       const std::int64_t at = column + first;
                       run_strip<kActivation>(rows, count, strip, valid, features, out + at,
                                              kept ? kept + at : nullptr);
                     });
    }
  }

 private:
  template <Activation kActivation>
  void run_strip(const Blocked<E>& rows, std::int64_t count, const Strip<E>& strip,
                 std::int64_t valid, std::int64_t features, T* out, T* kept) const {
    const auto& tiles =
        strip.columns == kTileColumns<E> ? Tiles<E, kTileVectors>::kStrips : Tiles<E, 1>::kStrips;
    for_each_tile(count, [&](std::int64_t row, std::int64_t height) {
      const Blocked<E> here{rows.data + row * rows.row, rows.row, rows.block};
      T* to = out + row * features;
      if constexpr (std::is_same_v<T, A> && kActivation == Activation::kNone) {
        if (valid == strip.columns) {
          tiles[height - 1](here, strip, to, features);
          return;
        }
      }
      alignas(64) A sums[kTileRows * kTileColumns<E>];
      tiles[height - 1](here, strip, sums, strip.columns);
      for (std::int64_t r = 0; r < height; ++r) {
        for (std::int64_t n = 0; n < valid; n += kLanes) {
          const auto z = Lanes<A>::load(sums + r * strip.columns + n);
          const std::int64_t lanes = std::min(kLanes, valid - n);
          if (kept) store_values(kept + (row + r) * features + n, z, lanes);
          store_values(to + r * features + n, activated<kActivation, A>(z), lanes);
        }
      }
    });
  }

  const Weights<T>& weights_;
};

}  // namespace gtkern::block_sparse_linear
