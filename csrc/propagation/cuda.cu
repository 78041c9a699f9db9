// One sweep of propagate for CUDA tensors; gtkern/ops/propagation/iteration.py makes the loop.
// Every row is written by one warp, and every sum has one order: no atomics, the same bits in every
// run.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "common/check.h"
#include "common/launch.h"
#include "common/warp.cuh"
#include "propagation/schema.h"

namespace gtkern::propagation {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowsOfWarp = 4;
constexpr int kRowsOfBlock = kWarps * kRowsOfWarp;
// rows with more edges come in pieces of at most so many: gtkern.graph.HEAVY_ROW_EDGES
constexpr int64_t kHeavyRowEdges = 1024;
// edges a lane adds up at a stretch: like terms, one after the other, are all rounded the same way
constexpr int64_t kStretch = 32;

// The rows of the matrix and the iterates, float [nodes, width]; width is a multiple of 4.
struct Sweep {
  const int64_t* ptr;
  const int32_t* index;
  const float* weight;  // null: ones
  const float* scale;   // null: ones, and own zeros
  const float* own;
  const int32_t* item;   // null: no row comes in pieces
  const float* partial;  // [pieces, width]
  const float* now;
  const float* before;  // may be next
  float* next;
  const float* unit;  // null: no squares are wanted
  float* squares;     // [blocks of rows, width]
  int64_t nodes;
  int width, column_blocks;
  float alpha, damping, omega;
};

// x from the tile's first channel on, of which there are `channels`.
template <typename T>
struct Source {
  const T* x;
  int64_t stride;
  int channels;
};

__device__ __forceinline__ float4 load4(const float* from, bool inside) {
  return inside ? *reinterpret_cast<const float4*>(from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// The weighted sum of rows index[begin .. end) of `now` at four columns for each of LANES lanes;
// the groups of lanes take turns, and all get the same bits.
template <int LANES, bool WEIGHTED>
__device__ __forceinline__ void sum_rows_of(const Sweep& in, int64_t begin, int64_t end, int column,
                                            bool inside, float (&sum)[4]) {
  constexpr int kGroups = kWarpSize / LANES;
  const int group = static_cast<int>(threadIdx.x) % kWarpSize / LANES;
#pragma unroll 1
  for (int64_t first = begin; first < end; first += kStretch * kGroups) {
    const int64_t last = min(first + kStretch * kGroups, end);
    float part[4] = {};
#pragma unroll 4
    for (int64_t e = first + group; e < last; e += kGroups) {
      const int64_t row = in.index[e];
      const float4 value = load4(in.now + row * in.width + column, inside);
      const float w = WEIGHTED ? in.weight[e] : 1.0f;
      part[0] += w * value.x;
      part[1] += w * value.y;
      part[2] += w * value.z;
      part[3] += w * value.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[i];
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset >= LANES; offset /= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += __shfl_xor_sync(kAllLanes, sum[i], offset);
  }
}

// One warp per piece of a heavy row and block of columns, whose part of `partial` it writes.
template <int LANES, bool WEIGHTED>
__global__ void __launch_bounds__(kThreads)
    heavy_sum_kernel(Sweep in, const int64_t* heavy, int64_t pieces, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int64_t slot = warp / in.column_blocks;
  if (slot >= pieces) return;
  const int column = static_cast<int>(warp % in.column_blocks) * LANES * 4 + lane % LANES * 4;
  const bool inside = column < in.width;
  float sum[4] = {};
  sum_rows_of<LANES, WEIGHTED>(in, heavy[slot * 3 + 1], heavy[slot * 3 + 2], column, inside, sum);
  if (lane < LANES && inside) {
    *reinterpret_cast<float4*>(partial + slot * in.width + column) =
        make_float4(sum[0], sum[1], sum[2], sum[3]);
  }
}

// One block per kRowsOfBlock rows and block of columns; each warp writes kRowsOfWarp of the rows.
// The first LANES threads write the block's sums of squares.
template <typename T, int LANES, bool WEIGHTED>
__global__ void __launch_bounds__(kThreads) sweep_kernel(Sweep in, Source<T> from) {
  __shared__ float shared[kWarps][LANES * 4];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t row_block = blockIdx.x / in.column_blocks;
  const int first_column = static_cast<int>(blockIdx.x % in.column_blocks) * LANES * 4;
  const int column = first_column + lane % LANES * 4;
  const bool inside = column < in.width;
  float unit[4] = {}, squares[4] = {};
  if (in.unit != nullptr) load_floats<16>(in.unit, column, in.width, true, unit);
  const int64_t first_row = row_block * kRowsOfBlock + warp * kRowsOfWarp;
#pragma unroll 1
  for (int64_t row = first_row; row < first_row + kRowsOfWarp && row < in.nodes; ++row) {
    const int64_t begin = in.ptr[row], end = in.ptr[row + 1];
    float sum[4] = {};
    if (end - begin <= kHeavyRowEdges) {
      sum_rows_of<LANES, WEIGHTED>(in, begin, end, column, inside, sum);
    } else {
      const int64_t pieces = (end - begin + kHeavyRowEdges - 1) / kHeavyRowEdges;
      const float* part = in.partial + in.item[row] * static_cast<int64_t>(in.width) + column;
      for (int64_t piece = 0; piece < pieces; ++piece, part += in.width) {
        const float4 value = load4(part, inside);
        sum[0] += value.x;
        sum[1] += value.y;
        sum[2] += value.z;
        sum[3] += value.w;
      }
    }
    const bool scaled = in.scale != nullptr;
    const float scale = scaled ? in.scale[row] : 1.0f;
    const float own = scaled ? in.own[row] : 0.0f;
    const float factor = in.damping * scale * scale;
    const int64_t at = row * in.width;
    float mine[4], before[4], next[4];
    load_floats<16>(in.now + at, column, in.width, true, mine);
    load_floats<16>(in.before + at, column, in.width, true, before);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool there = column + i < from.channels;
      const float x = there ? to_float(from.x[row * from.stride + column + i]) : 0.0f;
      // without a scale there is no own row either, not even one of infinities
      const float total = scaled ? sum[i] + own * mine[i] : sum[i];
      const float moved = factor * total + in.alpha * scale * x;
      const float gap = (moved - mine[i]) * unit[i] / scale;
      squares[i] += gap * gap;
      next[i] = in.omega * moved + (1.0f - in.omega) * before[i];
    }
    if (lane < LANES) store_floats<16>(in.next + at, column, in.width, next);
  }
  if (in.squares == nullptr) return;
  if (lane < LANES) {
#pragma unroll
    for (int i = 0; i < 4; ++i) shared[warp][lane * 4 + i] = squares[i];
  }
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.x);
  if (mine < LANES * 4 && first_column + mine < in.width) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += shared[w][mine];
    in.squares[row_block * in.width + first_column + mine] = sum;
  }
}

template <typename F>
void with_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Half: return f(static_cast<__half*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<__nv_bfloat16*>(nullptr));
    default: STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16");
  }
}

// Calls f<LANES, WEIGHTED>: as many lanes as a row has fours of columns.
template <typename F>
void with_lanes(int width, bool weighted, const F& f) {
  const auto lanes = [&]<bool WEIGHTED>() {
    if (width > 64) return f.template operator()<32, WEIGHTED>();
    if (width > 32) return f.template operator()<16, WEIGHTED>();
    return f.template operator()<8, WEIGHTED>();
  };
  weighted ? lanes.template operator()<true>() : lanes.template operator()<false>();
}

Tensor sweep_op(const Tensor& x, int64_t first, const Tensor& now, const Tensor& before,
                Tensor next, const Tensor& ptr, const Tensor& index, const Tensor& heavy,
                const OptionalTensor& item, const OptionalTensor& weight,
                const OptionalTensor& scale, const OptionalTensor& own, double alpha, double omega,
                const OptionalTensor& inverse_size) {
  const DeviceScope scope(x.get_device_index());
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t row_blocks = divide_up(now.size(0), kRowsOfBlock);
  const int64_t pieces = item ? heavy.size(0) : 0;
  Sweep in{};
  in.ptr = pointer_or_null<int64_t>(ptr);
  in.index = pointer_or_null<int32_t>(index);
  in.weight = pointer_or_null<float>(weight);
  in.scale = pointer_or_null<float>(scale);
  in.own = pointer_or_null<float>(own);
  in.item = pointer_or_null<int32_t>(item);
  in.now = pointer_or_null<float>(now);
  in.before = pointer_or_null<float>(before);
  in.next = output_or_null<float>(next);
  in.unit = pointer_or_null<float>(inverse_size);
  in.nodes = now.size(0);
  in.width = static_cast<int>(now.size(1));
  in.alpha = static_cast<float>(alpha);
  in.damping = static_cast<float>(1 - alpha);
  in.omega = static_cast<float>(omega);
  STD_TORCH_CHECK(in.width % 4 == 0, "a tile must have a multiple of 4 columns, got ", in.width);
  const Tensor partial = torch::stable::new_empty(now, {pieces, now.size(1)});
  const Tensor squares =
      torch::stable::new_empty(now, {inverse_size ? row_blocks : 0, now.size(1)});
  in.partial = pointer_or_null<float>(partial);
  in.squares = output_or_null<float>(squares);
  with_lanes(in.width, in.weight != nullptr, [&]<int LANES, bool WEIGHTED>() {
    in.column_blocks = static_cast<int>(divide_up(in.width, LANES * 4));
    launch(heavy_sum_kernel<LANES, WEIGHTED>, divide_up(pieces * in.column_blocks, kWarps),
           kThreads, 0, scope.stream(), in, pointer_or_null<int64_t>(heavy), pieces,
           output_or_null<float>(partial));
    with_dtype(x.scalar_type(), [&]<typename T>(T*) {
      const Source<T> from{pointer_or_null<T>(x) + first, x.stride(0),
                           static_cast<int>(std::min<int64_t>(x.size(1) - first, in.width))};
      launch(sweep_kernel<T, LANES, WEIGHTED>, row_blocks * in.column_blocks, kThreads, 0,
             scope.stream(), in, from);
    });
  });
  return squares;
}

}  // namespace
}  // namespace gtkern::propagation

STABLE_TORCH_LIBRARY_FRAGMENT(GTKERN_NAMESPACE, m) { m.def(gtkern::propagation::kSweepSchema); }

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("propagate_sweep", TORCH_BOX(&gtkern::propagation::sweep_op));
}
