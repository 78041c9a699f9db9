// The kept blocks, packed for the products of a call.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "block_sparse_linear/problem.h"
#include "block_sparse_linear/tile.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/transpose.h"

namespace gtkern::block_sparse_linear {

// Uninitialised elements that start on a cache line.
template <class E>
class Array {
 public:
  explicit Array(std::int64_t count)
      : scratch_((count * static_cast<std::int64_t>(sizeof(E)) + 3) / 4) {}
  E* data() const { return reinterpret_cast<E*>(scratch_.data()); }

 private:
  Scratch scratch_;
};

// The weight, or turned its transpose, in strips of columns. `Outputs` are what a block row of
// it gives: the channels of out, or turned those of x.
template <class T>
class Weights {
 public:
  using E = Element<T>;
  using M = Arithmetic<E>;
  static constexpr std::int64_t kLanes = M::L::kCount;

  Weights(const Grid& grid, const T* values, bool turned)
      : grid_(grid),
        values_(values),
        turned_(turned),
        outputs_(turned ? grid.width : grid.height),
        inputs_(turned ? grid.height : grid.width),
        depth_((inputs_ + M::kDepth - 1) / M::kDepth),
        columns_((outputs_ + kLanes - 1) / kLanes * kLanes),
        packed_(grid.blocks * depth_ * columns_),
        inner_(grid.blocks) {
    for_each_block(block_rows(), [&](std::int64_t row) { pack_row(row); });
  }

  std::int64_t block_rows() const { return turned_ ? grid_.block_cols() : grid_.block_rows(); }
  // outputs of a whole block row, and of this one
  std::int64_t outputs() const { return outputs_; }
  std::int64_t outputs_of(std::int64_t row) const {
    return turned_ ? grid_.cols_of(row) : grid_.rows_of(row);
  }
  // elements along the depth of a block
  std::int64_t depth() const { return depth_; }

  // The strip of a block row that begins at output `first`, a multiple of kTileColumns.
  Strip<E> strip(std::int64_t row, std::int64_t first, const SumOf<T>* bias) const {
    const std::int32_t* ptr = turned_ ? grid_.col_ptr : grid_.row_ptr;
    const std::int64_t last = (turned_ ? grid_.block_rows() : grid_.block_cols()) - 1;
    Strip<E> strip;
    strip.blocks = ptr[row + 1] - ptr[row];
    strip.packed = packed_.data() + (ptr[row] * columns_ + strip.blocks * first) * depth_;
    strip.columns = std::min(kTileColumns<E>, columns_ - first);
    strip.inner = inner_.data() + ptr[row];
    strip.depth = depth_;
    strip.last = last;
    const std::int64_t inside = turned_ ? grid_.rows_of(last) : grid_.cols_of(last);
    strip.last_depth = (inside + M::kDepth - 1) / M::kDepth;
    strip.bias = bias;
    return strip;
  }

 private:
  void pack_row(std::int64_t row) {
    const std::int32_t* ptr = turned_ ? grid_.col_ptr : grid_.row_ptr;
    const std::int64_t begin = ptr[row], count = ptr[row + 1] - begin, outputs = outputs_of(row);
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t block = turned_ ? grid_.order[begin + j] : begin + j;
      const std::int32_t place = turned_ ? grid_.row[block] : grid_.col[block];
      inner_.data()[begin + j] = place;
      const std::int64_t inputs = turned_ ? grid_.rows_of(place) : grid_.cols_of(place);
      const T* from = values_ + block * grid_.height * grid_.width;
      for (std::int64_t first = 0; first < columns_; first += kTileColumns<E>) {
        const std::int64_t wide = std::min(kTileColumns<E>, columns_ - first);
        E* to = packed_.data() + (begin * columns_ + count * first + j * wide) * depth_;
        pack(from, inputs, first, std::min(wide, outputs - first), wide, to);
      }
    }
  }

  // to[k][n] = the block's weight of input k (all those of element k) and output first + n; 0 for
  // outputs past the matrix, nothing for inputs past it.
  void pack(const T* from, std::int64_t inputs, std::int64_t first, std::int64_t outputs,
            std::int64_t wide, E* to) const {
    const std::int64_t by_output = turned_ ? 1 : grid_.width, by_input = turned_ ? grid_.width : 1;
    const T* origin = from + first * by_output;
    const std::int64_t depth = (inputs + M::kDepth - 1) / M::kDepth;
    std::int64_t k = 0;
    const bool whole = outputs == wide && inputs % M::kDepth == 0;
    if (whole && !turned_) k = turn_squares(origin, depth, wide, to);
    if constexpr (std::is_same_v<T, E>) {
      if (whole && turned_) {
        for (; k < depth; ++k) {
          for (std::int64_t n = 0; n < wide; ++n) to[k * wide + n] = origin[k * by_input + n];
        }
      }
    }
    for (; k < depth; ++k) {
      for (std::int64_t n = 0; n < wide; ++n) {
        const T* at = origin + k * M::kDepth * by_input + n * by_output;
        if constexpr (M::kDepth == 2) {
          std::uint16_t two[2] = {};
          if (n < outputs) std::memcpy(two, at, 2);
          if (n < outputs && 2 * k + 1 < inputs) std::memcpy(two + 1, at + by_input, 2);
          std::memcpy(&to[k * wide + n], two, 4);
        } else {
          to[k * wide + n] = n < outputs ? static_cast<E>(*at) : E{};
        }
      }
    }
  }

  // The elements k below the result, sixteen at a time, where memory holds them as they are.
  std::int64_t turn_squares([[maybe_unused]] const T* origin, [[maybe_unused]] std::int64_t depth,
                            [[maybe_unused]] std::int64_t wide, [[maybe_unused]] E* to) const {
#ifdef __AVX512F__
    if constexpr (sizeof(E) == 4 && sizeof(E) == sizeof(T) * M::kDepth) {
      if (grid_.width % M::kDepth) return 0;
      const float* rows = reinterpret_cast<const float*>(origin);
      const std::int64_t row = grid_.width / M::kDepth;
      std::int64_t k = 0;
      for (; k + 16 <= depth; k += 16) {
        for (std::int64_t n = 0; n < wide; n += 16) {
          transpose_block(rows + n * row + k, row, reinterpret_cast<float*>(to) + k * wide + n,
                          wide);
        }
      }
      return k;
    }
#endif
    return 0;
  }

  Grid grid_;
  const T* values_;
  bool turned_;
  std::int64_t outputs_, inputs_, depth_, columns_;
  Array<E> packed_;
  Array<std::int32_t> inner_;
};

// The strips of a block row: f(first, strip, valid) with `valid` outputs from `first` on.
template <class T, class F>
GTKERN_INLINE void for_each_strip(const Weights<T>& weights, std::int64_t row, const SumOf<T>* bias,
                                  const F& f) {
  constexpr std::int64_t kWide = kTileColumns<Element<T>>;
  const std::int64_t outputs = weights.outputs_of(row);
  for (std::int64_t first = 0; first < outputs; first += kWide) {
    f(first, weights.strip(row, first, bias + first), std::min(kWide, outputs - first));
  }
}

}  // namespace gtkern::block_sparse_linear
