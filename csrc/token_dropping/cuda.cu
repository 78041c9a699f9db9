// Token dropping for CUDA tensors. Every result is written by one thread: no float atomics, and the
// same bits in every run.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/check.h"
#include "common/launch.h"
#include "common/warp.cuh"
#include "token_dropping/keys.h"
#include "token_dropping/schema.h"

namespace gtkern::token_dropping {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

int64_t blocks_for(int64_t items) { return (items + kThreads - 1) / kThreads; }

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// Sums x over the block; `shared` holds one number for each warp. Every thread gets the sum.
__device__ __forceinline__ int64_t block_sum(int x, int64_t* shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int sum = __reduce_add_sync(kAllLanes, x);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) shared[warp] = sum;
  __syncthreads();
  int64_t total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += shared[w];
  return total;
}

// How many threads of the block before this one have the flag, and how many there are.
__device__ __forceinline__ int64_t block_rank(bool flag, int64_t* shared, int64_t& total) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const unsigned mask = __ballot_sync(kAllLanes, flag);
  __syncthreads();
  if (lane == 0) shared[warp] = __popc(mask);
  __syncthreads();
  int64_t before = __popc(mask & ((1u << lane) - 1u));
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared[w];
    total += shared[w];
  }
  return before;
}

// One thread per row, which it writes: score + noise.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    keys_kernel(const T* score, int64_t rows, bool noise, uint64_t seed, float* key) {
  const int64_t row = global_thread();
  if (row >= rows) return;
  float value = to_float(score[row]);
  if (noise) {
    const PhiloxWords words = noise_words(seed, row >> 2);
    const uint32_t low = (row & 1) ? words.word[1] : words.word[0];
    const uint32_t high = (row & 1) ? words.word[3] : words.word[2];
    value = with_noise(value, gumbel((row & 2) ? high : low));
  }
  key[row] = value;
}

__device__ __forceinline__ uint32_t rank_bits(const float* key, const bool* always, int64_t row) {
  return always != nullptr && always[row] ? 0xffffffffu : rising_bits(key[row]);
}

// One block per graph, which writes its rows. The k-th largest bits are found one bit after the
// other, by counting.
__global__ void __launch_bounds__(kThreads)
    select_kernel(const float* key, const bool* always, const int64_t* ptr, const int64_t* kept_ptr,
                  int64_t* index, int32_t* position) {
  __shared__ int64_t shared[kWarps];
  const int64_t graph = blockIdx.x, begin = ptr[graph], end = ptr[graph + 1];
  const int64_t first = kept_ptr[graph], k = kept_ptr[graph + 1] - first;
  uint32_t limit = 0;
  const auto count_from = [&](uint32_t bound) {
    int count = 0;
    for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
      count += rank_bits(key, always, row) >= bound;
    }
    return block_sum(count, shared);
  };
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = limit | (1u << bit);
    if (count_from(candidate) >= k) limit = candidate;
  }
  // of those at the limit, so many are kept, from the first on
  int64_t left = k - (limit == 0xffffffffu ? 0 : count_from(limit + 1));
  int64_t place = first;
  for (int64_t at = begin; at < end; at += kThreads) {
    const int64_t row = at + threadIdx.x;
    const uint32_t bits = row < end ? rank_bits(key, always, row) : 0;
    const bool tied = row < end && bits == limit;
    int64_t ties = 0, taken = 0;
    const int64_t tie = block_rank(tied, shared, ties);
    const bool kept = row < end && (bits > limit || (tied && tie < left));
    const int64_t to = place + block_rank(kept, shared, taken);
    if (row < end) position[row] = kept ? static_cast<int32_t>(to) : -1;
    if (kept) index[to] = row;
    left = left > ties ? left - ties : 0;
    place += taken;
  }
}

// One block per graph, which writes its rows' gradients; sums are fixed trees.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gate_kernel(const T* grad_gate, const float* key, const bool* always, const int64_t* ptr,
                const int32_t* position, float factor, T* grad_score) {
  __shared__ float shared[kThreads];
  const int64_t begin = ptr[blockIdx.x], end = ptr[blockIdx.x + 1];
  const float none = __int_as_float(static_cast<int>(0xff800000u));
  const auto scaled = [&](int64_t row) {
    return always != nullptr && always[row] ? none : key[row] * factor;
  };
  const auto gradient = [&](int64_t row) {
    return position[row] < 0 ? 0.0f : to_float(grad_gate[position[row]]);
  };
  float peak = none;
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    peak = fmaxf(peak, scaled(row));
  }
  peak = block_fold(peak, 1, shared, Larger());
  // nothing to choose from: any finite stand-in gives exp(-inf) = 0
  if (peak == none) peak = 0.0f;
  float total = 0.0f, dot = 0.0f;
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    const float weight = expf(scaled(row) - peak);
    total += weight;
    dot += weight * gradient(row);
  }
  total = block_fold(total, 1, shared, Add());
  dot = block_fold(dot, 1, shared, Add());
  if (total == 0.0f) total = 1.0f;
  const float mean = dot / total;
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    const float weight = expf(scaled(row) - peak) / total;
    grad_score[row] = from_float<T>(weight * (gradient(row) - mean) * factor);
  }
}

// Rows as units of U, as wide as their size and place allow. One thread per unit of the result,
// which it writes.
template <typename U>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const U* x, const int64_t* index, int64_t count, int64_t units, U* out) {
  const int64_t at = global_thread();
  if (at >= count * units) return;
  const int64_t row = at / units;
  out[at] = x[index[row] * units + (at - row * units)];
}

template <typename U>
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const U* y, const U* fill, const int32_t* position, int64_t rows, int64_t units,
                   U* out) {
  const int64_t at = global_thread();
  if (at >= rows * units) return;
  const int64_t row = at / units;
  const int64_t from = position[row];
  U value{};
  if (from >= 0 && y != nullptr) value = y[from * units + (at - row * units)];
  if (from < 0 && fill != nullptr) value = fill[at];
  out[at] = value;
}

// One thread per element of the result, which it writes.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_gated_kernel(const T* x, const T* gate, const int64_t* index, int64_t count,
                        int64_t width, T* out) {
  const int64_t at = global_thread();
  if (at >= count * width) return;
  const int64_t row = at / width;
  out[at] =
      from_float<T>(to_float(x[index[row] * width + (at - row * width)]) * to_float(gate[row]));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_gated_kernel(const T* grad_out, const T* gate, const int32_t* position, int64_t rows,
                         int64_t width, T* grad_x) {
  const int64_t at = global_thread();
  if (at >= rows * width) return;
  const int64_t row = at / width, from = position[row];
  const float value =
      from < 0 ? 0.0f
               : to_float(grad_out[from * width + (at - row * width)]) * to_float(gate[from]);
  grad_x[at] = from_float<T>(value);
}

// One warp per kept row: the sum of the products with the row it came from.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dot_kernel(const T* grad_out, const T* x, const int64_t* index, int64_t count, int64_t width,
               T* grad_gate) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (row >= count) return;
  const T* a = grad_out + row * width;
  const T* b = x + index[row] * width;
  float sum[1] = {0.0f};
  for (int64_t c = lane; c < width; c += kWarpSize) sum[0] += to_float(a[c]) * to_float(b[c]);
  group_sum<kWarpSize>(sum, kWarpSize);
  if (lane == 0) grad_gate[row] = from_float<T>(sum[0]);
}

// One thread per edge, whose flag it writes.
template <typename I>
__global__ void __launch_bounds__(kThreads)
    kept_edges_kernel(const I* source, const I* destination, const int32_t* position, int64_t edges,
                      int8_t* kept) {
  const int64_t e = global_thread();
  if (e >= edges) return;
  kept[e] = (position[source[e]] | position[destination[e]]) >= 0;
}

// One thread per edge; a kept one goes to its place, one before the running sum.
template <typename I>
__global__ void __launch_bounds__(kThreads)
    write_edges_kernel(const I* source, const I* destination, const int32_t* position,
                       const int8_t* kept, const int64_t* after, int64_t edges, I* to_source,
                       I* to_destination, int64_t* edge) {
  const int64_t e = global_thread();
  if (e >= edges || !kept[e]) return;
  const int64_t to = after[e] - 1;
  to_source[to] = static_cast<I>(position[source[e]]);
  to_destination[to] = static_cast<I>(position[destination[e]]);
  edge[to] = e;
}

struct Rows {
  const int64_t* ptr;
  const int32_t* col;
  const int64_t* index;
  const int32_t* position;
  int64_t count;
};

// One warp per kept row, whose degree it writes.
__global__ void __launch_bounds__(kThreads) degree_kernel(Rows in, int64_t* degree) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (row >= in.count) return;
  const int64_t begin = in.ptr[in.index[row]], end = in.ptr[in.index[row] + 1];
  int count = 0;
  for (int64_t e = begin + lane; e < end; e += kWarpSize) count += in.position[in.col[e]] >= 0;
  count = __reduce_add_sync(kAllLanes, count);
  if (lane == 0) degree[row] = count;
}

// One warp per kept row, whose edges it writes in order.
__global__ void __launch_bounds__(kThreads)
    write_rows_kernel(Rows in, const int64_t* edge_id, const uint8_t* type, const int64_t* kept_ptr,
                      int32_t* kept_col, int64_t* edge, uint8_t* kept_type) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (row >= in.count) return;
  const int64_t begin = in.ptr[in.index[row]], end = in.ptr[in.index[row] + 1];
  int64_t place = kept_ptr[row];
  for (int64_t at = begin; at < end; at += kWarpSize) {
    const int64_t e = at + lane;
    const int32_t source = e < end ? in.position[in.col[e]] : -1;
    const unsigned mask = __ballot_sync(kAllLanes, source >= 0);
    if (source >= 0) {
      const int64_t to = place + __popc(mask & ((1u << lane) - 1u));
      kept_col[to] = source;
      edge[to] = edge_id != nullptr ? edge_id[e] : e;
      if (type != nullptr) kept_type[to] = type[e];
    }
    place += __popc(mask);
  }
}

// One block per graph, which writes the entries of its kept pairs.
template <typename E>
__global__ void __launch_bounds__(kThreads)
    pairs_kernel(const E* entry, const int64_t* ptr, const int64_t* pair_ptr, const int64_t* index,
                 const int64_t* kept_ptr, const int64_t* kept_pair_ptr, E* out) {
  const int64_t graph = blockIdx.x, first = ptr[graph], size = ptr[graph + 1] - first;
  const int64_t* kept = index + kept_ptr[graph];
  const int64_t k = kept_ptr[graph + 1] - kept_ptr[graph];
  const E* from = entry + pair_ptr[graph];
  E* to = out + kept_pair_ptr[graph];
  for (int64_t pair = threadIdx.x; pair < k * k; pair += kThreads) {
    const int64_t query = pair / k, key = pair - query * k;
    to[pair] = from[(kept[query] - first) * size + kept[key] - first];
  }
}

// Calls f with a null pointer that names the dtype.
template <class F>
void with_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Half: return f(static_cast<__half*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<__nv_bfloat16*>(nullptr));
    default: STD_TORCH_CHECK(false, "expected float32, float16 or bfloat16");
  }
}

// Calls f with a null pointer to units that rows of so many bytes are made of.
template <class F>
void with_unit(int64_t row_bytes, const F& f) {
  if (row_bytes % 16 == 0) return f(static_cast<uint4*>(nullptr));
  if (row_bytes % 8 == 0) return f(static_cast<uint2*>(nullptr));
  if (row_bytes % 4 == 0) return f(static_cast<uint32_t*>(nullptr));
  if (row_bytes % 2 == 0) return f(static_cast<uint16_t*>(nullptr));
  return f(static_cast<uint8_t*>(nullptr));
}

template <class T>
const T* data(const Tensor& tensor) {
  return pointer_or_null<T>(tensor);
}
template <class T>
const T* data(const OptionalTensor& tensor) {
  return tensor.has_value() ? pointer_or_null<T>(*tensor) : nullptr;
}

Tensor keys_of(const Tensor& score, bool noise, int64_t seed, cudaStream_t stream) {
  Tensor key = torch::stable::new_empty(score, {score.numel()}, ScalarType::Float);
  with_dtype(score.scalar_type(), [&]<class T>(T*) {
    launch(keys_kernel<T>, blocks_for(score.numel()), kThreads, 0, stream, data<T>(score),
           score.numel(), noise, static_cast<uint64_t>(seed), output_or_null<float>(key));
  });
  return key;
}

std::tuple<Tensor, Tensor> select_op(const Tensor& score, const Tensor& ptr, const Tensor& kept_ptr,
                                     int64_t num_kept, const OptionalTensor& always_keep,
                                     bool noise, int64_t seed) {
  const DeviceScope scope(score.get_device_index());
  Tensor index = torch::stable::new_empty(ptr, {num_kept}, ScalarType::Long);
  Tensor position = torch::stable::new_empty(ptr, {score.numel()}, ScalarType::Int);
  const Tensor key = keys_of(score, noise, seed, scope.stream());
  launch(select_kernel, ptr.numel() - 1, kThreads, 0, scope.stream(), data<float>(key),
         data<bool>(always_keep), data<int64_t>(ptr), data<int64_t>(kept_ptr),
         output_or_null<int64_t>(index), output_or_null<int32_t>(position));
  return {index, position};
}

Tensor gate_backward_op(const Tensor& grad_gate, const Tensor& score, const Tensor& ptr,
                        const Tensor& position, const OptionalTensor& always_keep,
                        double temperature, bool noise, int64_t seed) {
  const DeviceScope scope(score.get_device_index());
  Tensor grad_score = torch::stable::new_empty(score, {score.numel()}, score.scalar_type());
  const Tensor key = keys_of(score, noise, seed, scope.stream());
  with_dtype(score.scalar_type(), [&]<class T>(T*) {
    launch(gate_kernel<T>, ptr.numel() - 1, kThreads, 0, scope.stream(), data<T>(grad_gate),
           data<float>(key), data<bool>(always_keep), data<int64_t>(ptr), data<int32_t>(position),
           static_cast<float>(1 / temperature), output_or_null<T>(grad_score));
  });
  return grad_score;
}

Tensor gather_op(const Tensor& x, const OptionalTensor& gate, const Tensor& index) {
  const DeviceScope scope(x.get_device_index());
  const int64_t count = index.numel(), width = x.size(1);
  Tensor out = torch::stable::new_empty(x, {count, width}, x.scalar_type());
  if (gate) {
    with_dtype(x.scalar_type(), [&]<class T>(T*) {
      launch(gather_gated_kernel<T>, blocks_for(count * width), kThreads, 0, scope.stream(),
             data<T>(x), data<T>(gate), data<int64_t>(index), count, width, output_or_null<T>(out));
    });
    return out;
  }
  const int64_t bytes = width * x.element_size();
  with_unit(bytes, [&]<class U>(U*) {
    const int64_t units = bytes / static_cast<int64_t>(sizeof(U));
    launch(gather_kernel<U>, blocks_for(count * units), kThreads, 0, scope.stream(), data<U>(x),
           data<int64_t>(index), count, units, output_or_null<U>(out));
  });
  return out;
}

Tensor scatter_op(const OptionalTensor& y, const OptionalTensor& fill, const Tensor& position) {
  const Tensor& like = y ? *y : *fill;
  const DeviceScope scope(like.get_device_index());
  const int64_t rows = position.numel(), bytes = like.size(1) * like.element_size();
  Tensor out = torch::stable::new_empty(like, {rows, like.size(1)}, like.scalar_type());
  with_unit(bytes, [&]<class U>(U*) {
    const int64_t units = bytes / static_cast<int64_t>(sizeof(U));
    launch(scatter_kernel<U>, blocks_for(rows * units), kThreads, 0, scope.stream(), data<U>(y),
           data<U>(fill), data<int32_t>(position), rows, units, output_or_null<U>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> gather_backward_op(const Tensor& grad_out, const OptionalTensor& x,
                                              const OptionalTensor& gate, const Tensor& index,
                                              const Tensor& position, bool needs_x,
                                              bool needs_gate) {
  const DeviceScope scope(grad_out.get_device_index());
  const int64_t rows = position.numel(), count = index.numel(), width = grad_out.size(1);
  const ScalarType dtype = grad_out.scalar_type();
  Tensor grad_gate = torch::stable::new_empty(grad_out, {needs_gate ? count : 0}, dtype);
  if (!gate) return {scatter_op(grad_out, OptionalTensor(), position), grad_gate};
  Tensor grad_x = torch::stable::new_empty(grad_out, {needs_x ? rows : 0, width}, dtype);
  with_dtype(dtype, [&]<class T>(T*) {
    if (needs_x) {
      launch(scatter_gated_kernel<T>, blocks_for(rows * width), kThreads, 0, scope.stream(),
             data<T>(grad_out), data<T>(gate), data<int32_t>(position), rows, width,
             output_or_null<T>(grad_x));
    }
    if (needs_gate) {
      launch(dot_kernel<T>, (count + kWarps - 1) / kWarps, kThreads, 0, scope.stream(),
             data<T>(grad_out), data<T>(x), data<int64_t>(index), count, width,
             output_or_null<T>(grad_gate));
    }
  });
  return {grad_x, grad_gate};
}

template <class F>
void with_index(ScalarType dtype, const F& f) {
  dtype == ScalarType::Int ? f(static_cast<int32_t*>(nullptr)) : f(static_cast<int64_t*>(nullptr));
}

Tensor kept_edges_op(const Tensor& source, const Tensor& destination, const Tensor& position) {
  const DeviceScope scope(source.get_device_index());
  Tensor kept = torch::stable::new_empty(source, {source.numel()}, ScalarType::Char);
  with_index(source.scalar_type(), [&]<class I>(I*) {
    launch(kept_edges_kernel<I>, blocks_for(source.numel()), kThreads, 0, scope.stream(),
           data<I>(source), data<I>(destination), data<int32_t>(position), source.numel(),
           output_or_null<int8_t>(kept));
  });
  return kept;
}

std::tuple<Tensor, Tensor> write_edges_op(const Tensor& source, const Tensor& destination,
                                          const Tensor& position, const Tensor& kept,
                                          const Tensor& after, int64_t count) {
  const DeviceScope scope(source.get_device_index());
  Tensor edges = torch::stable::new_empty(source, {2, count}, source.scalar_type());
  Tensor edge = torch::stable::new_empty(source, {count}, ScalarType::Long);
  with_index(source.scalar_type(), [&]<class I>(I*) {
    I* to = output_or_null<I>(edges);
    launch(write_edges_kernel<I>, count > 0 ? blocks_for(source.numel()) : 0, kThreads, 0,
           scope.stream(), data<I>(source), data<I>(destination), data<int32_t>(position),
           data<int8_t>(kept), data<int64_t>(after), source.numel(), to, to + count,
           output_or_null<int64_t>(edge));
  });
  return {edges, edge};
}

Rows rows_of(const Tensor& row_ptr, const Tensor& col, const Tensor& index,
             const Tensor& position) {
  return {data<int64_t>(row_ptr), data<int32_t>(col), data<int64_t>(index), data<int32_t>(position),
          index.numel()};
}

Tensor degrees_op(const Tensor& row_ptr, const Tensor& col, const Tensor& index,
                  const Tensor& position) {
  const DeviceScope scope(row_ptr.get_device_index());
  Tensor degree = torch::stable::new_empty(index, {index.numel()}, ScalarType::Long);
  launch(degree_kernel, (index.numel() + kWarps - 1) / kWarps, kThreads, 0, scope.stream(),
         rows_of(row_ptr, col, index, position), output_or_null<int64_t>(degree));
  return degree;
}

std::tuple<Tensor, Tensor, Tensor> write_rows_op(const Tensor& row_ptr, const Tensor& col,
                                                 const Tensor& edge_id, const Tensor& edge_type,
                                                 const Tensor& index, const Tensor& position,
                                                 const Tensor& kept_ptr, int64_t count) {
  const DeviceScope scope(row_ptr.get_device_index());
  const bool typed = edge_type.numel() > 0;
  Tensor kept_col = torch::stable::new_empty(index, {count}, ScalarType::Int);
  Tensor edge = torch::stable::new_empty(index, {count}, ScalarType::Long);
  Tensor type = torch::stable::new_empty(index, {typed ? count : 0}, ScalarType::Byte);
  launch(write_rows_kernel, count > 0 ? (index.numel() + kWarps - 1) / kWarps : 0, kThreads, 0,
         scope.stream(), rows_of(row_ptr, col, index, position), data<int64_t>(edge_id),
         data<uint8_t>(edge_type), data<int64_t>(kept_ptr), output_or_null<int32_t>(kept_col),
         output_or_null<int64_t>(edge), output_or_null<uint8_t>(type));
  return {kept_col, edge, type};
}

Tensor gather_pairs_op(const Tensor& entry, const Tensor& ptr, const Tensor& pair_ptr,
                       const Tensor& index, const Tensor& kept_ptr, const Tensor& kept_pair_ptr,
                       int64_t num_pairs) {
  const DeviceScope scope(entry.get_device_index());
  Tensor out = torch::stable::new_empty(entry, {num_pairs}, entry.scalar_type());
  const auto run = [&]<class E>(E*) {
    launch(pairs_kernel<E>, ptr.numel() - 1, kThreads, 0, scope.stream(), data<E>(entry),
           data<int64_t>(ptr), data<int64_t>(pair_ptr), data<int64_t>(index),
           data<int64_t>(kept_ptr), data<int64_t>(kept_pair_ptr), output_or_null<E>(out));
  };
  entry.scalar_type() == ScalarType::Byte ? run(static_cast<uint8_t*>(nullptr))
                                          : run(static_cast<int16_t*>(nullptr));
  return out;
}

}  // namespace
}  // namespace gtkern::token_dropping

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::token_dropping::kSelectSchema);
  m.def(gtkern::token_dropping::kGateBackwardSchema);
  m.def(gtkern::token_dropping::kGatherSchema);
  m.def(gtkern::token_dropping::kGatherBackwardSchema);
  m.def(gtkern::token_dropping::kScatterSchema);
  m.def(gtkern::token_dropping::kGatherPairsSchema);
}
#endif

STABLE_TORCH_LIBRARY_FRAGMENT(GTKERN_NAMESPACE, m) {
  m.def(gtkern::token_dropping::kKeptEdgesSchema);
  m.def(gtkern::token_dropping::kWriteEdgesSchema);
  m.def(gtkern::token_dropping::kDegreesSchema);
  m.def(gtkern::token_dropping::kWriteRowsSchema);
}

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("token_select", TORCH_BOX(&gtkern::token_dropping::select_op));
  m.impl("token_gate_bwd", TORCH_BOX(&gtkern::token_dropping::gate_backward_op));
  m.impl("token_gather", TORCH_BOX(&gtkern::token_dropping::gather_op));
  m.impl("token_gather_bwd", TORCH_BOX(&gtkern::token_dropping::gather_backward_op));
  m.impl("token_scatter", TORCH_BOX(&gtkern::token_dropping::scatter_op));
  m.impl("token_kept_edges", TORCH_BOX(&gtkern::token_dropping::kept_edges_op));
  m.impl("token_write_edges", TORCH_BOX(&gtkern::token_dropping::write_edges_op));
  m.impl("token_degrees", TORCH_BOX(&gtkern::token_dropping::degrees_op));
  m.impl("token_write_rows", TORCH_BOX(&gtkern::token_dropping::write_rows_op));
  m.impl("token_gather_pairs", TORCH_BOX(&gtkern::token_dropping::gather_pairs_op));
}
