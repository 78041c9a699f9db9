// additive_attention for CUDA tensors. A warp owns a row and a head: groups of lanes each take
// every so manieth edge, a lane holds four (or two times four) of its elements. A row is one warp's
// however many edges it has, so that a hub takes long; in return there is one set of kernels. Every
// result has one writer and every sum one order: no atomics, the same bits in every run.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <tuple>

#include "additive_attention/schema.h"
#include "common/check.h"
#include "common/launch.h"
#include "common/philox.h"
#include "common/sum_rows.cuh"
#include "common/warp.cuh"

namespace gtkern::additive_attention {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
// that must fit on a multiprocessor: up to 128 registers for a thread, of which none is spilled
constexpr int kBlocks = 4;
// rows that go on at once where each leaves a partial sum
constexpr int64_t kMostPartials = 1024;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;
constexpr float kInfinity = __builtin_huge_valf();

// The edges by one end, and the inputs; a null v is k, a null id the identity.
template <typename T>
struct Call {
  const T *q, *k, *v, *attention, *edge_attr;
  const int64_t* ptr;
  const int32_t* index;
  const int64_t* id;
  int64_t rows;
  int heads, width;
  int lanes;     // of a group, a power of two
  bool packets;  // four elements of a row may be read at once
  float slope;
  bool dropout;
  uint32_t drop_below;
  float keep_scale;
  uint64_t seed;
};

// What backward reads besides.
template <typename T>
struct Given {
  const T* grad_out;
  const float* grad_scores;  // [E, H], or null
  const float* lse;          // [N_dst, H]
};

// Where a lane sits.
struct Seat {
  int lane, lanes;  // in its group
  int slot, slots;  // of its group in the warp
  int head;
  int64_t row;  // may be beyond the last
};

template <typename T>
__device__ __forceinline__ Seat take_seat(const Call<T>& in) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  return {thread % in.lanes,
          in.lanes,
          thread / in.lanes,
          kWarpSize / in.lanes,
          static_cast<int>(warp % in.heads),
          warp / in.heads};
}

// A lane's part of a row: chunk c holds elements (c * lanes + lane) * 4 and the next three.
template <int CHUNKS>
using Part = float[CHUNKS * 4];

template <typename T, int CHUNKS>
__device__ __forceinline__ void load(const T* row, const Seat& seat, const Call<T>& in, bool live,
                                     Part<CHUNKS>& x) {
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int first = (c * seat.lanes + seat.lane) * 4;
    T four[4] = {};
    if (in.packets) {
      if (live && first < in.width) {
        if constexpr (sizeof(T) == 4) {
          const float4 bits = __ldg(reinterpret_cast<const float4*>(row + first));
          memcpy(four, &bits, sizeof four);
        } else {
          const uint2 bits = __ldg(reinterpret_cast<const uint2*>(row + first));
          memcpy(four, &bits, sizeof four);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (live && first + i < in.width) four[i] = row[first + i];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x[c * 4 + i] = to_float(four[i]);
  }
}

template <typename T, int CHUNKS>
__device__ __forceinline__ void store(T* row, const Seat& seat, int width, const Part<CHUNKS>& x) {
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = (c * seat.lanes + seat.lane) * 4 + i;
      if (at < width) row[at] = from_float<T>(x[c * 4 + i]);
    }
  }
}

template <int N>
__device__ __forceinline__ float dot(const float (&a)[N], const float (&b)[N]) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

// The sums of all groups of the warp, in the order of a fixed tree.
template <int N>
__device__ __forceinline__ void merge(const Seat& seat, float (&x)[N]) {
#pragma unroll 1
  for (int offset = seat.lanes; offset < kWarpSize; offset *= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += __shfl_xor_sync(kAllLanes, x[i], offset);
  }
}

__device__ __forceinline__ float sum_of_group(const Seat& seat, float x) {
  float one[1] = {x};
  group_sum<0>(one, seat.lanes);
  return one[0];
}

// A group's edge in one step of its warp; a dead one is read nowhere.
struct Edge {
  int64_t other, id;
  bool live;
};

template <typename T>
__device__ __forceinline__ Edge take_edge(const Call<T>& in, int64_t at, int64_t end) {
  Edge edge = {0, 0, at < end};
  if (edge.live) {
    edge.other = in.index[at];
    edge.id = in.id != nullptr ? in.id[at] : at;
  }
  return edge;
}

// x becomes the sum that LeakyReLU is taken of; returns the score in units of log2, -inf for a dead
// edge. x comes with the other end's row in it.
template <typename T, int CHUNKS>
__device__ __forceinline__ float score_of(const Call<T>& in, const Seat& seat, const Edge& edge,
                                          const Part<CHUNKS>& own, const Part<CHUNKS>& attention,
                                          Part<CHUNKS>& x) {
  if (in.edge_attr != nullptr) {
    Part<CHUNKS> attr;
    load<T, CHUNKS>(in.edge_attr + (edge.id * in.heads + seat.head) * in.width, seat, in, edge.live,
                    attr);
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; ++i) x[i] += attr[i];
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < CHUNKS * 4; ++i) {
    x[i] += own[i];
    sum += attention[i] * (x[i] > 0.0f ? x[i] : in.slope * x[i]);
  }
  sum = sum_of_group(seat, sum);
  return edge.live ? sum * kLog2E : -kInfinity;
}

template <typename T>
__device__ __forceinline__ float keep_of(const Call<T>& in, const Seat& seat, const Edge& edge) {
  if (!in.dropout) return 1.0f;
  return item_word(in.seed, edge.id, seat.head) >= in.drop_below ? in.keep_scale : 0.0f;
}

// One warp per destination and head: online softmax over its edges, the groups merged at the end.
// It writes the row of out and of lse, and its edges' scores.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kBlocks)
    forward_kernel(const __grid_constant__ Call<T> in, T* out, float* lse, float* scores) {
  const Seat seat = take_seat(in);
  const bool exists = seat.row < in.rows;
  const int64_t place = seat.row * in.heads + seat.head;
  const int64_t begin = exists ? in.ptr[seat.row] : 0, end = exists ? in.ptr[seat.row + 1] : 0;
  Part<CHUNKS> own, attention, sum = {};
  load<T, CHUNKS>(in.q + place * in.width, seat, in, exists, own);
  load<T, CHUNKS>(in.attention + int64_t{seat.head} * in.width, seat, in, true, attention);
  float peak = -kInfinity, total = 0.0f;
#pragma unroll 1
  for (int64_t step = begin; step < end; step += seat.slots) {
    const Edge edge = take_edge(in, step + seat.slot, end);
    const int64_t other = (edge.other * in.heads + seat.head) * in.width;
    Part<CHUNKS> x, value;
    load<T, CHUNKS>(in.k + other, seat, in, edge.live, x);
    if (in.v != nullptr) {
      load<T, CHUNKS>(in.v + other, seat, in, edge.live, value);
    } else {
#pragma unroll
      for (int i = 0; i < CHUNKS * 4; ++i) value[i] = x[i];
    }
    const float score = score_of<T, CHUNKS>(in, seat, edge, own, attention, x);
    if (scores != nullptr && edge.live && seat.lane == 0) {
      scores[edge.id * in.heads + seat.head] = score;
    }
    // while every score is -inf, any finite base gives weights exp2(-inf) = 0
    const float highest = fmaxf(peak, score);
    const float base = highest == -kInfinity ? 0.0f : highest;
    const float rescale = exp2f(peak - base), weight = exp2f(score - base);
    peak = highest;
    total = total * rescale + weight;
    const float kept = weight * keep_of(in, seat, edge);
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; ++i) sum[i] = sum[i] * rescale + kept * value[i];
  }
#pragma unroll 1
  for (int offset = seat.lanes; offset < kWarpSize; offset *= 2) {
    const float other_peak = __shfl_xor_sync(kAllLanes, peak, offset);
    const float other_total = __shfl_xor_sync(kAllLanes, total, offset);
    const float highest = fmaxf(peak, other_peak);
    const float base = highest == -kInfinity ? 0.0f : highest;
    const float mine = exp2f(peak - base), theirs = exp2f(other_peak - base);
    peak = highest;
    total = total * mine + other_total * theirs;
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; ++i) {
      sum[i] = sum[i] * mine + __shfl_xor_sync(kAllLanes, sum[i], offset) * theirs;
    }
  }
  // group 0 writes; the others may have added in another order, and only its bits count
  const float base = peak == -kInfinity ? 0.0f : peak;
  float log2_lse = total == 0.0f ? -kInfinity : base + log2f(total);
  log2_lse = __shfl_sync(kAllLanes, log2_lse, 0);
  if (!exists) return;
  if (seat.slot == 0) {
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; ++i) sum[i] *= inverse;
    store<T, CHUNKS>(out + place * in.width, seat, in.width, sum);
    if (seat.lane == 0) lse[place] = log2_lse * kLn2;
  }
  if (scores == nullptr || seat.lane != 0) return;
  const float base_of_scores = log2_lse == -kInfinity ? kInfinity : log2_lse;
  for (int64_t at = begin + seat.slot; at < end; at += seat.slots) {
    const Edge edge = take_edge(in, at, end);
    float* const score = scores + edge.id * in.heads + seat.head;
    *score = exp2f(*score - base_of_scores);
  }
}

// What exp2(score - .) is 0 of in a row without weight.
__device__ __forceinline__ float log2_of(float lse) {
  return lse == -kInfinity ? kInfinity : lse * kLog2E;
}

// One warp per head and every so manieth destination: writes the rows of delta and grad_q, their
// edges' grad_attr, and the sum of their shares in the vector's gradient into its row of `partial`.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kBlocks)
    destination_kernel(const __grid_constant__ Call<T> in, Given<T> given, const T* out,
                       float* delta, T* grad_q, T* grad_attr, float* partial, int64_t partials) {
  Seat seat = take_seat(in);
  const int64_t program = seat.row;
  if (program >= partials) return;
  Part<CHUNKS> attention, attention_sum = {};
  load<T, CHUNKS>(in.attention + int64_t{seat.head} * in.width, seat, in, true, attention);
#pragma unroll 1
  for (seat.row = program; seat.row < in.rows; seat.row += partials) {
    const int64_t place = seat.row * in.heads + seat.head;
    const int64_t begin = in.ptr[seat.row], end = in.ptr[seat.row + 1];
    const float log2_lse = log2_of(given.lse[place]);
    Part<CHUNKS> own, grad, sum = {};
    load<T, CHUNKS>(out + place * in.width, seat, in, true, own);
    load<T, CHUNKS>(given.grad_out + place * in.width, seat, in, true, grad);
    float mean = sum_of_group(seat, dot(own, grad));
    load<T, CHUNKS>(in.q + place * in.width, seat, in, true, own);
    if (given.grad_scores != nullptr) {
      float extra[1] = {};
#pragma unroll 1
      for (int64_t step = begin; step < end; step += seat.slots) {
        const Edge edge = take_edge(in, step + seat.slot, end);
        Part<CHUNKS> x;
        load<T, CHUNKS>(in.k + (edge.other * in.heads + seat.head) * in.width, seat, in, edge.live,
                        x);
        const float score = score_of<T, CHUNKS>(in, seat, edge, own, attention, x);
        if (edge.live) {
          extra[0] += exp2f(score - log2_lse) * given.grad_scores[edge.id * in.heads + seat.head];
        }
      }
      merge(seat, extra);
      mean += extra[0];
    }
    if (seat.lane == 0 && seat.slot == 0) delta[place] = mean;
#pragma unroll 1
    for (int64_t step = begin; step < end; step += seat.slots) {
      const Edge edge = take_edge(in, step + seat.slot, end);
      const int64_t other = (edge.other * in.heads + seat.head) * in.width;
      Part<CHUNKS> x;
      load<T, CHUNKS>(in.k + other, seat, in, edge.live, x);
      float into;
      if (in.v != nullptr) {
        Part<CHUNKS> value;
        load<T, CHUNKS>(in.v + other, seat, in, edge.live, value);
        into = dot(value, grad);
      } else {
        into = dot(x, grad);
      }
      into = sum_of_group(seat, into) * keep_of(in, seat, edge);
      const float score = score_of<T, CHUNKS>(in, seat, edge, own, attention, x);
      float ds = 0.0f;
      if (edge.live) {
        if (given.grad_scores != nullptr) {
          into += given.grad_scores[edge.id * in.heads + seat.head];
        }
        ds = exp2f(score - log2_lse) * (into - mean);
      }
#pragma unroll
      for (int i = 0; i < CHUNKS * 4; ++i) {
        const float inside = x[i] > 0.0f ? ds : in.slope * ds;
        // a dead edge adds nothing, even if the row itself is not finite
        if (edge.live) attention_sum[i] += inside * x[i];
        x[i] = inside * attention[i];
        if (edge.live) sum[i] += x[i];
      }
      if (grad_attr != nullptr && edge.live) {
        store<T, CHUNKS>(grad_attr + (edge.id * in.heads + seat.head) * in.width, seat, in.width,
                         x);
      }
    }
    if (grad_q != nullptr) {
      merge(seat, sum);
      if (seat.slot == 0) store<T, CHUNKS>(grad_q + place * in.width, seat, in.width, sum);
    }
  }
  merge(seat, attention_sum);
  if (seat.slot == 0) {
    store<float, CHUNKS>(partial + (program * in.heads + seat.head) * in.width, seat, in.width,
                         attention_sum);
  }
}

// One warp per source and head: writes its rows of grad_k and grad_v; without a v, of their sum.
template <typename T, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kBlocks)
    source_kernel(const __grid_constant__ Call<T> in, Given<T> given, const float* delta, T* grad_k,
                  T* grad_v) {
  const Seat seat = take_seat(in);
  if (seat.row >= in.rows) return;
  const int64_t place = seat.row * in.heads + seat.head;
  const int64_t begin = in.ptr[seat.row], end = in.ptr[seat.row + 1];
  Part<CHUNKS> own, value, attention, sum = {}, value_sum = {};
  load<T, CHUNKS>(in.k + place * in.width, seat, in, true, own);
  load<T, CHUNKS>((in.v != nullptr ? in.v : in.k) + place * in.width, seat, in, true, value);
  load<T, CHUNKS>(in.attention + int64_t{seat.head} * in.width, seat, in, true, attention);
#pragma unroll 1
  for (int64_t step = begin; step < end; step += seat.slots) {
    const Edge edge = take_edge(in, step + seat.slot, end);
    const int64_t other = edge.other * in.heads + seat.head;
    Part<CHUNKS> x, grad;
    load<T, CHUNKS>(in.q + other * in.width, seat, in, edge.live, x);
    load<T, CHUNKS>(given.grad_out + other * in.width, seat, in, edge.live, grad);
    const float keep = keep_of(in, seat, edge);
    float into = sum_of_group(seat, dot(value, grad)) * keep;
    const float score = score_of<T, CHUNKS>(in, seat, edge, own, attention, x);
    float weight = 0.0f, ds = 0.0f;
    if (edge.live) {
      if (given.grad_scores != nullptr) into += given.grad_scores[edge.id * in.heads + seat.head];
      weight = exp2f(score - log2_of(given.lse[other]));
      ds = weight * (into - delta[other]);
      weight *= keep;
    }
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; ++i) {
      const float inside = x[i] > 0.0f ? ds : in.slope * ds;
      if (edge.live) {
        sum[i] += inside * attention[i];
        value_sum[i] += weight * grad[i];
      }
    }
  }
  merge(seat, sum);
  merge(seat, value_sum);
  if (seat.slot != 0) return;
  if (in.v == nullptr) {
#pragma unroll
    for (int i = 0; i < CHUNKS * 4; ++i) sum[i] += value_sum[i];
  }
  if (grad_k != nullptr) store<T, CHUNKS>(grad_k + place * in.width, seat, in.width, sum);
  if (grad_v != nullptr) store<T, CHUNKS>(grad_v + place * in.width, seat, in.width, value_sum);
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

// Calls f<T, CHUNKS>.
template <typename F>
void with_kernels(ScalarType dtype, int64_t width, const F& f) {
  with_dtype(dtype, [&]<typename T>(T*) {
    width > 4 * kWarpSize ? f.template operator()<T, 2>() : f.template operator()<T, 1>();
  });
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Options {
  double slope, dropout;
  int64_t seed;
};

template <typename T>
Call<T> describe(const Tensor& q, const Tensor& k, const OptionalTensor& v, const Tensor& attention,
                 const OptionalTensor& edge_attr, const Options& options) {
  Call<T> in{};
  in.q = pointer_or_null<T>(q);
  in.k = pointer_or_null<T>(k);
  in.v = pointer_or_null<T>(v);
  in.attention = pointer_or_null<T>(attention);
  in.edge_attr = pointer_or_null<T>(edge_attr);
  in.heads = static_cast<int>(q.size(1));
  in.width = static_cast<int>(q.size(2));
  in.lanes = 1;
  while (in.lanes < kWarpSize && in.lanes * 4 < in.width) in.lanes *= 2;
  in.slope = static_cast<float>(options.slope);
  in.dropout = options.dropout > 0;
  in.drop_below = dropout_threshold(options.dropout);
  in.keep_scale = static_cast<float>(1 / (1 - options.dropout));
  in.seed = static_cast<uint64_t>(options.seed);
  return in;
}

template <typename T>
void set_edges(Call<T>& in, const Tensor& ptr, const Tensor& index, const Tensor& id) {
  in.ptr = ptr.const_data_ptr<int64_t>();
  in.index = pointer_or_null<int32_t>(index);
  in.id = pointer_or_null<int64_t>(id);
  in.rows = ptr.numel() - 1;
}

// Whether rows of all these arrays may be read by fours.
template <typename T>
bool in_packets(int width, std::initializer_list<const T*> rows) {
  return width % 4 == 0 && std::all_of(rows.begin(), rows.end(), [](const T* row) {
           return reinterpret_cast<uintptr_t>(row) % (4 * sizeof(T)) == 0;
         });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k,
                                           const OptionalTensor& v, const Tensor& attention,
                                           const OptionalTensor& edge_attr, const Tensor& row_ptr,
                                           const Tensor& col, const Tensor& edge_id, double slope,
                                           double dropout, int64_t seed, bool return_scores) {
  const DeviceScope scope(q.get_device_index());
  const int64_t heads = q.size(1);
  const Tensor out = torch::stable::new_empty(q, q.sizes());
  const Tensor lse = torch::stable::new_empty(q, {q.size(0), heads}, ScalarType::Float);
  const Tensor scores = return_scores
                            ? torch::stable::new_empty(q, {col.numel(), heads}, ScalarType::Float)
                            : torch::stable::new_empty(q, {0}, ScalarType::Float);
  with_kernels(q.scalar_type(), q.size(2), [&]<typename T, int CHUNKS>() {
    Call<T> in = describe<T>(q, k, v, attention, edge_attr, {slope, dropout, seed});
    set_edges(in, row_ptr, col, edge_id);
    in.packets = in_packets<T>(in.width, {in.q, in.k, in.v, in.attention, in.edge_attr});
    launch(forward_kernel<T, CHUNKS>, divide_up(in.rows * heads, kWarps), kThreads, 0,
           scope.stream(), in, output_or_null<T>(out), output_or_null<float>(lse),
           output_or_null<float>(scores));
  });
  return {out, lse, scores};
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors backward(const Tensor& grad_out, const OptionalTensor& grad_scores, const Tensor& q,
                     const Tensor& k, const OptionalTensor& v, const Tensor& attention,
                     const OptionalTensor& edge_attr, const Tensor& out, const Tensor& lse,
                     const Tensor& row_ptr, const Tensor& col, const Tensor& edge_id,
                     const Tensor& col_ptr, const Tensor& row_of, const Tensor& edge_id_t,
                     double slope, double dropout, int64_t seed, int64_t needs) {
  const DeviceScope scope(q.get_device_index());
  const int64_t heads = q.size(1);
  const auto wanted = [&](int bit, const OptionalTensor& like) {
    const bool there = (needs >> bit & 1) && like.has_value();
    return there ? torch::stable::new_empty(*like, like->sizes())
                 : torch::stable::new_empty(q, {0});
  };
  const Tensor grad_q = wanted(0, q), grad_k = wanted(1, k), grad_v = wanted(2, v);
  const Tensor grad_attention = wanted(3, attention), grad_attr = wanted(4, edge_attr);
  const Tensor delta = torch::stable::new_empty(lse, lse.sizes());
  const int64_t partials = std::min(q.size(0), kMostPartials);
  const Tensor partial =
      torch::stable::new_empty(q, {partials, heads * q.size(2)}, ScalarType::Float);
  with_kernels(q.scalar_type(), q.size(2), [&]<typename T, int CHUNKS>() {
    Call<T> in = describe<T>(q, k, v, attention, edge_attr, {slope, dropout, seed});
    set_edges(in, row_ptr, col, edge_id);
    const Given<T> given{pointer_or_null<T>(grad_out), pointer_or_null<float>(grad_scores),
                         pointer_or_null<float>(lse)};
    in.packets = in_packets<T>(in.width, {in.q, in.k, in.v, in.attention, in.edge_attr,
                                          given.grad_out, pointer_or_null<T>(out)});
    // it writes delta too
    launch(destination_kernel<T, CHUNKS>, divide_up(partials * heads, kWarps), kThreads, 0,
           scope.stream(), in, given, pointer_or_null<T>(out), output_or_null<float>(delta),
           output_or_null<T>(grad_q), output_or_null<T>(grad_attr), output_or_null<float>(partial),
           partials);
    sum_rows<T>(partial, partials, grad_attention, scope.stream());
    if (!(needs & 0b00110)) return;
    set_edges(in, col_ptr, row_of, edge_id_t);
    launch(source_kernel<T, CHUNKS>, divide_up(in.rows * heads, kWarps), kThreads, 0,
           scope.stream(), in, given, pointer_or_null<float>(delta), output_or_null<T>(grad_k),
           output_or_null<T>(grad_v));
  });
  return {grad_q, grad_k, grad_v, grad_attention, grad_attr};
}

}  // namespace
}  // namespace gtkern::additive_attention

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::additive_attention::kForwardSchema);
  m.def(gtkern::additive_attention::kBackwardSchema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("additive_attention_fwd", TORCH_BOX(&gtkern::additive_attention::forward));
  m.impl("additive_attention_bwd", TORCH_BOX(&gtkern::additive_attention::backward));
}
