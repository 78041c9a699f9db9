// block_sparse_linear for CPU tensors: reads the arguments and calls the kernels.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>

#include "block_sparse_linear/problem.h"
#include "block_sparse_linear/schema.h"
#include "common/check.h"
#include "common/memory.h"

namespace gtkern::block_sparse_linear {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f with a null pointer that names the dtype.
template <class F>
void dispatch(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    case ScalarType::Half: return f(static_cast<c10::Half*>(nullptr));
    default: STD_TORCH_CHECK(false, "x must be float32, float64, bfloat16 or float16");
  }
}

Grid grid_of(const Tensor& x, const Tensor& values, const Tensor& row_ptr, const Tensor& row,
             const Tensor& col, const Tensor& col_ptr, const Tensor& order,
             std::int64_t out_features) {
  Grid grid;
  grid.out_features = out_features;
  grid.in_features = x.size(1);
  grid.blocks = values.size(0);
  grid.height = values.size(1);
  grid.width = values.size(2);
  grid.row_ptr = pointer_or_null<std::int32_t>(row_ptr);
  grid.row = pointer_or_null<std::int32_t>(row);
  grid.col = pointer_or_null<std::int32_t>(col);
  grid.col_ptr = pointer_or_null<std::int32_t>(col_ptr);
  grid.order = pointer_or_null<std::int32_t>(order);
  return grid;
}

std::int64_t row_stride(const Tensor& x) {
  STD_TORCH_CHECK(x.numel() == 0 || x.size(1) == 1 || x.stride(1) == 1,
                  "the features of a row must lie one after the other");
  return x.stride(0);
}

std::tuple<Tensor, Tensor> forward_op(const Tensor& x, const Tensor& values, const Tensor& row_ptr,
                                      const Tensor& row, const Tensor& col, const Tensor& col_ptr,
                                      const Tensor& order, std::int64_t out_features,
                                      const OptionalTensor& bias, std::int64_t activation,
                                      bool keep, bool) {
  const ScalarType dtype = x.scalar_type();
  const auto chosen = static_cast<Activation>(activation);
  const bool kept = keep && (chosen == Activation::kGelu || chosen == Activation::kSilu);
  Tensor out = new_output(x, {x.size(0), out_features}, dtype);
  Tensor before = kept ? new_output_like(out) : new_output(x, {0}, dtype);
  dispatch(dtype, [&]<class T>(T*) {
    Forward<T> call;
    call.grid = grid_of(x, values, row_ptr, row, col, col_ptr, order, out_features);
    call.rows = x.size(0);
    call.x_row = row_stride(x);
    call.x = pointer_or_null<T>(x);
    call.values = pointer_or_null<T>(values);
    call.bias = pointer_or_null<T>(bias);
    call.activation = chosen;
    call.out = output_or_null<T>(out);
    call.kept = output_or_null<T>(before);
    if (out.numel() > 0) forward(call);
  });
  return {out, before};
}

std::tuple<Tensor, Tensor, Tensor> backward_op(const Tensor& grad_out, const Tensor& x,
                                               const Tensor& values, const Tensor& row_ptr,
                                               const Tensor& row, const Tensor& col,
                                               const Tensor& col_ptr, const Tensor& order,
                                               const Tensor& kept, std::int64_t activation,
                                               std::int64_t needs, bool) {
  const ScalarType dtype = x.scalar_type();
  const Tensor none = new_output(x, {0}, dtype);
  Tensor grad_x = needs & 1 ? new_output(x, {x.size(0), x.size(1)}, dtype) : none;
  Tensor grad_values = needs & 2 ? new_output_like(values) : new_output(x, {0}, dtype);
  Tensor grad_bias =
      needs & 4 ? new_output(x, {grad_out.size(1)}, dtype) : new_output(x, {0}, dtype);
  dispatch(dtype, [&]<class T>(T*) {
    Backward<T> call;
    call.grid = grid_of(x, values, row_ptr, row, col, col_ptr, order, grad_out.size(1));
    call.rows = x.size(0);
    call.x_row = row_stride(x);
    call.grad_out = pointer_or_null<T>(grad_out);
    call.x = pointer_or_null<T>(x);
    call.values = pointer_or_null<T>(values);
    call.kept = pointer_or_null<T>(kept);
    call.activation = static_cast<Activation>(activation);
    call.grad_x = output_or_null<T>(grad_x);
    call.grad_values = output_or_null<T>(grad_values);
    call.grad_bias = output_or_null<T>(grad_bias);
    backward(call);
  });
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace gtkern::block_sparse_linear

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::block_sparse_linear::kForwardSchema);
  m.def(gtkern::block_sparse_linear::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("block_sparse_linear_fwd", TORCH_BOX(&gtkern::block_sparse_linear::forward_op));
  m.impl("block_sparse_linear_bwd", TORCH_BOX(&gtkern::block_sparse_linear::backward_op));
}
