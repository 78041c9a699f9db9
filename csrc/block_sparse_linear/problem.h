// What the CPU kernels of block_sparse_linear compute on: plain pointers and the grid of blocks.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gtkern::block_sparse_linear {

enum class Activation : std::int64_t { kNone, kRelu, kGelu, kSilu };

// The kept blocks, and where they lie in [out_features, in_features].
struct Grid {
  std::int64_t out_features = 0, in_features = 0;
  std::int64_t height = 0, width = 0;  // of a block
  std::int64_t blocks = 0;
  const std::int32_t *row_ptr = nullptr, *row = nullptr, *col = nullptr;
  const std::int32_t *col_ptr = nullptr, *order = nullptr;

  std::int64_t block_rows() const { return (out_features + height - 1) / height; }
  std::int64_t block_cols() const { return (in_features + width - 1) / width; }
  // what of a block row (column) lies inside the matrix
  std::int64_t rows_of(std::int64_t row) const {
    return std::min(height, out_features - row * height);
  }
  std::int64_t cols_of(std::int64_t col) const {
    return std::min(width, in_features - col * width);
  }
};

// T is the dtype of the tensors.
template <class T>
struct Forward {
  Grid grid;
  std::int64_t rows = 0, x_row = 0;  // x_row: from one row of x to the next
  const T *x = nullptr, *values = nullptr, *bias = nullptr;
  Activation activation = Activation::kNone;
  T *out = nullptr, *kept = nullptr;  // kept: null where nothing is
};

template <class T>
struct Backward {
  Grid grid;
  std::int64_t rows = 0, x_row = 0;
  const T *grad_out = nullptr, *x = nullptr, *values = nullptr, *kept = nullptr;
  Activation activation = Activation::kNone;
  T *grad_x = nullptr, *grad_values = nullptr, *grad_bias = nullptr;  // null: not wanted
};

template <class T>
void forward(const Forward<T>& call);
template <class T>
void backward(const Backward<T>& call);

}  // namespace gtkern::block_sparse_linear
