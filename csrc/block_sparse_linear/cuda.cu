// block_sparse_linear for CUDA tensors: lays out the launches of cuda_kernels.cuh.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "block_sparse_linear/cuda_kernels.cuh"
#include "block_sparse_linear/schema.h"
#include "common/check.h"
#include "common/launch.h"
#include "common/sum_rows.cuh"

namespace gtkern::block_sparse_linear {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums over rows are cut until about so many blocks share them, none of fewer than kChunkRows rows;
// all parts together have at most kPartFloats.
constexpr int64_t kFullGrid = 512, kChunkRows = 512, kPartFloats = int64_t{1} << 24;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Index {
  const Tensor &row_ptr, &row, &col, &col_ptr, &order;
};

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
bool in_packets(const T* pointer, int64_t elements) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && elements % kPacketSize<T> == 0;
}

template <typename T>
Rows<T> rows_of(const Tensor& x) {
  const int64_t stride = x.size(0) > 1 ? x.stride(0) : x.size(1);
  return {data<T>(x), x.size(0), stride, static_cast<int>(x.size(1))};
}

// Whether pieces of `size` columns of the rows are made of packets.
template <typename T>
bool in_packets(const Rows<T>& rows, int64_t size) {
  return in_packets(rows.data, rows.stride) && rows.width % kPacketSize<T> == 0 &&
         size % kPacketSize<T> == 0;
}

// Calls f.operator()<T, EXACT>(), EXACT where fp32 numbers are multiplied as they are.
template <typename F>
void dispatch_dtype(ScalarType dtype, bool tf32, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return tf32 ? f.template operator()<float, false>() : f.template operator()<float, true>();
    case ScalarType::BFloat16: return f.template operator()<__nv_bfloat16, false>();
    case ScalarType::Half: return f.template operator()<__half, false>();
    default: STD_TORCH_CHECK(false, "x must be float32, bfloat16 or float16 on a GPU");
  }
}

// Calls f.operator()<SIZE>() with the tile that holds a block's side of `size`.
template <typename F>
void dispatch_size(int64_t size, const F& f) {
  STD_TORCH_CHECK(size <= 128, "blocks must have at most 128 rows and columns, got ", size);
  if (size <= 16) return f.template operator()<16>();
  if (size <= 32) return f.template operator()<32>();
  if (size <= 64) return f.template operator()<64>();
  f.template operator()<128>();
}

// Fills p.out; p has what does not depend on the tile.
template <typename T, bool EXACT, bool TURNED>
void multiply(Product<T> p, cudaStream_t stream) {
  p.whole_x = in_packets(p.x, p.size_k);
  // across x, no packet of a block may reach past the matrix
  p.whole_values = in_packets(p.values, TURNED ? p.size_n : p.size_k) &&
                   (TURNED || p.x.width % kPacketSize<T> == 0);
  dispatch_size(p.size_n, [&]<int BN>() {
    using Tile = ProductTile<T, TURNED, BN>;
    launch(product_kernel<T, EXACT, TURNED, BN>, divide_up(p.x.count, kTileRows) * p.strips,
           Tile::kThreads, Tile::kSharedBytes, stream, p);
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& values, const Tensor& row_ptr,
                                   const Tensor& /*row*/, const Tensor& col,
                                   const Tensor& /*col_ptr*/, const Tensor& /*order*/,
                                   int64_t out_features, const OptionalTensor& bias,
                                   int64_t activation, bool keep, bool tf32) {
  const DeviceScope scope(x.get_device_index());
  const Tensor out = torch::stable::new_empty(x, {x.size(0), out_features});
  const bool kept_needed = keep && (activation == kGelu || activation == kSilu);
  const Tensor kept =
      kept_needed ? torch::stable::empty_like(out) : torch::stable::new_empty(x, {0});
  dispatch_dtype(x.scalar_type(), tf32, [&]<typename T, bool EXACT>() {
    Product<T> p{};
    p.x = rows_of<T>(x);
    p.values = data<T>(values);
    p.ptr = data<int32_t>(row_ptr);
    p.index = data<int32_t>(col);
    p.bias = pointer_or_null<T>(bias);
    p.out = output_or_null<T>(out);
    p.kept = output_or_null<T>(kept);
    p.strips = row_ptr.numel() - 1;
    p.out_width = static_cast<int>(out_features);
    p.size_n = static_cast<int>(values.size(1));
    p.size_k = static_cast<int>(values.size(2));
    p.activation = static_cast<int>(activation);
    multiply<T, EXACT, /*TURNED=*/false>(p, scope.stream());
  });
  return {out, kept};
}

// The gradient before the activation: grad_out where there is none; and that of the bias.
template <typename T>
Tensor pull_back_all(const Tensor& grad_out, const Tensor& kept, int64_t activation, bool needed,
                     const Tensor& grad_bias, cudaStream_t stream) {
  const bool fresh = needed && activation != kNone;
  const Tensor grad_z = fresh ? torch::stable::empty_like(grad_out) : grad_out;
  const int64_t rows = grad_out.size(0), width = grad_out.size(1);
  const int64_t chunks = divide_up(rows, kPullBackRows);
  if (!fresh && grad_bias.numel() == 0) return grad_z;
  const Tensor parts = torch::stable::new_empty(
      grad_out, {grad_bias.numel() > 0 ? chunks : 0, width}, ScalarType::Float);
  PullBack<T> p{};
  p.grad = data<T>(grad_out);
  p.kept = activation == kNone ? nullptr : data<T>(kept);
  p.grad_z = fresh ? output_or_null<T>(grad_z) : nullptr;
  p.part = output_or_null<float>(parts);
  p.rows = rows;
  p.width = width;
  p.column_blocks = divide_up(width, kPullBackThreads);
  p.activation = static_cast<int>(activation);
  launch(pull_back_kernel<T>, chunks * p.column_blocks, kPullBackThreads, 0, stream, p);
  if (grad_bias.numel() > 0) sum_rows<T>(parts, chunks, grad_bias, stream);
  return grad_z;
}

template <typename T, bool EXACT>
void fill_values(const Tensor& grad_z, const Tensor& x, const Index& index,
                 const Tensor& grad_values, cudaStream_t stream) {
  WeightGradient<T> p{};
  p.grad = rows_of<T>(grad_z);
  p.x = rows_of<T>(x);
  p.row_ptr = data<int32_t>(index.row_ptr);
  p.col = data<int32_t>(index.col);
  p.out = output_or_null<T>(grad_values);
  p.strips = index.row_ptr.numel() - 1;
  p.blocks = grad_values.size(0);
  p.size_n = static_cast<int>(grad_values.size(1));
  p.size_k = static_cast<int>(grad_values.size(2));
  p.whole_grad = in_packets(p.grad, p.size_n);
  p.whole_x = in_packets(p.x, p.size_k);
  // as many tiles as a full block row has
  p.tiles = divide_up(divide_up(p.x.width, p.size_k) * p.size_k, kTilePlaces);
  // depends on sizes alone: the sums are the same from run to run
  const int64_t live = divide_up(p.blocks * p.size_k, kTilePlaces);
  const int64_t most =
      std::min(divide_up(kFullGrid, live), std::max<int64_t>(kPartFloats / grad_values.numel(), 1));
  const int64_t wanted = std::clamp<int64_t>(divide_up(p.x.count, kChunkRows), 1, most);
  p.chunk_rows = std::max<int64_t>(divide_up(p.x.count, wanted), 1);
  const int64_t chunks = std::max<int64_t>(divide_up(p.x.count, p.chunk_rows), 1);
  const Tensor parts = torch::stable::new_empty(
      grad_values, {chunks > 1 ? chunks : 0, grad_values.numel()}, ScalarType::Float);
  p.parts = output_or_null<float>(parts);
  dispatch_size(p.size_n, [&]<int BI>() {
    using Tile = WeightTile<T, BI>;
    launch(weight_kernel<T, EXACT, BI>, chunks * p.strips * p.tiles, Tile::kThreads,
           Tile::kSharedBytes, stream, p);
  });
  if (chunks > 1) sum_rows<T>(parts, chunks, grad_values, stream);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& x,
                                            const Tensor& values, const Tensor& row_ptr,
                                            const Tensor& row, const Tensor& col,
                                            const Tensor& col_ptr, const Tensor& order,
                                            const Tensor& kept, int64_t activation, int64_t needs,
                                            bool tf32) {
  const DeviceScope scope(x.get_device_index());
  const cudaStream_t stream = scope.stream();
  const bool needs_x = needs & 1, needs_values = needs & 2, needs_bias = needs & 4;
  const Tensor grad_x = needs_x ? torch::stable::new_empty(x, {x.size(0), x.size(1)})
                                : torch::stable::new_empty(x, {0});
  const Tensor grad_values =
      needs_values ? torch::stable::empty_like(values) : torch::stable::new_empty(x, {0});
  const Tensor grad_bias = torch::stable::new_empty(x, {needs_bias ? grad_out.size(1) : 0});
  dispatch_dtype(x.scalar_type(), tf32, [&]<typename T, bool EXACT>() {
    const Tensor grad_z =
        pull_back_all<T>(grad_out, kept, activation, needs_x || needs_values, grad_bias, stream);
    if (needs_x) {
      Product<T> p{};
      p.x = rows_of<T>(grad_z);
      p.values = data<T>(values);
      p.ptr = data<int32_t>(col_ptr);
      p.order = data<int32_t>(order);
      p.index = data<int32_t>(row);
      p.out = output_or_null<T>(grad_x);
      p.strips = col_ptr.numel() - 1;
      p.out_width = static_cast<int>(x.size(1));
      p.size_n = static_cast<int>(values.size(2));
      p.size_k = static_cast<int>(values.size(1));
      multiply<T, EXACT, /*TURNED=*/true>(p, stream);
    }
    if (grad_values.numel() > 0) {
      fill_values<T, EXACT>(grad_z, x, {row_ptr, row, col, col_ptr, order}, grad_values, stream);
    }
  });
  return {grad_x, grad_values, grad_bias};
}

}  // namespace
}  // namespace gtkern::block_sparse_linear

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::block_sparse_linear::kForwardSchema);
  m.def(gtkern::block_sparse_linear::kBackwardSchema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("block_sparse_linear_fwd", TORCH_BOX(&gtkern::block_sparse_linear::forward));
  m.impl("block_sparse_linear_bwd", TORCH_BOX(&gtkern::block_sparse_linear::backward));
}
