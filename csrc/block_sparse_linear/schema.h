#pragma once

// The schemas of block_sparse_linear's native ops. Shapes: x [M, C_in], its rows possibly apart;
// values [B, block_rows, block_cols], contiguous, in the dtype of x; row_ptr, row, col, col_ptr,
// order int32 (gtkern/block_sparse.py); bias [C_out]. activation: 0 none, 1 relu, 2 gelu, 3 silu.
// Results: out [M, C_out]; kept, the same before the activation, for gelu and silu where `keep` is
// set, else without elements. Backward's `kept` is the output for relu. Bit b of `needs` asks for
// gradient number b; one that is not asked for has no elements. tf32: a GPU may multiply fp32
// numbers as such.

namespace gtkern::block_sparse_linear {

inline constexpr const char* kForwardSchema =
    "block_sparse_linear_fwd(Tensor x, Tensor values, Tensor row_ptr, Tensor row, Tensor col, "
    "Tensor col_ptr, Tensor order, int out_features, Tensor? bias, int activation, bool keep, bool "
    "tf32) -> (Tensor out, Tensor kept)";

inline constexpr const char* kBackwardSchema =
    "block_sparse_linear_bwd(Tensor grad_out, Tensor x, Tensor values, Tensor row_ptr, Tensor row, "
    "Tensor col, Tensor col_ptr, Tensor order, Tensor kept, int activation, int needs, bool tf32) "
    "-> (Tensor grad_x, Tensor grad_values, Tensor grad_bias)";

}  // namespace gtkern::block_sparse_linear
