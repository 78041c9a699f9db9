#pragma once

// The sum of parts that blocks left, in a fixed order.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "common/warp.cuh"

namespace gtkern {

constexpr int kSumThreads = 128, kSumColumns = 32;

// Block (x, y) sums rows y * rows_per_part and the next of kSumColumns columns of `in` [rows,
// columns] into `out` [parts, columns]: each entry by one thread's loop and a fixed tree.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(const float* in, int64_t rows, int64_t columns, int64_t rows_per_part,
                    int64_t column_blocks, T* out) {
  GTKERN_DYNAMIC_SHARED(float, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t part = blockIdx.x / column_blocks;
  const int64_t column = blockIdx.x % column_blocks * kSumColumns + thread % kSumColumns;
  const int64_t begin = part * rows_per_part;
  const int64_t end = begin + rows_per_part < rows ? begin + rows_per_part : rows;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = begin + thread / kSumColumns; row < end; row += kSumThreads / kSumColumns) {
      sum += in[row * columns + column];
    }
  }
  sum = block_fold(sum, kSumColumns, shared, Add());
  if (thread < kSumColumns && column < columns) out[part * columns + column] = from_float<T>(sum);
}

// result [columns], T = the sum of the rows of `parts`, float [rows, columns].
template <typename T>
void sum_rows(const torch::stable::Tensor& parts, int64_t rows, const torch::stable::Tensor& result,
              cudaStream_t stream) {
  using torch::stable::Tensor;
  constexpr int64_t kFewRows = 64, kMostParts = 64;
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t columns = result.numel(), column_blocks = divide_up(columns, kSumColumns);
  if (columns == 0) return;
  const auto sum = [&]<typename Out>(const Tensor& in, int64_t in_rows, int64_t out_rows,
                                     Out* out) {
    launch(sum_rows_kernel<Out>, out_rows * column_blocks, kSumThreads, kSumThreads * sizeof(float),
           stream, static_cast<const float*>(in.const_data_ptr()), in_rows, columns,
           divide_up(in_rows, out_rows), column_blocks, out);
  };
  T* const out = static_cast<T*>(result.mutable_data_ptr());
  if (rows <= kFewRows) return sum(parts, rows, 1, out);
  const int64_t middle_rows = std::min(kMostParts, divide_up(rows, kFewRows));
  const Tensor middle = torch::stable::new_empty(parts, {middle_rows, columns});
  sum(parts, rows, middle_rows, static_cast<float*>(middle.mutable_data_ptr()));
  sum(middle, middle_rows, 1, out);
}

}  // namespace gtkern
