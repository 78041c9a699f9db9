// Lays out the launches of the kernels in gpu_*.cuh.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <tuple>
#include <type_traits>

#include "common/attention/gpu.h"
#include "common/attention/gpu_backward.cuh"
#include "common/attention/gpu_forward.cuh"
#include "common/attention/gpu_merge.cuh"
#include "common/check.h"
#include "common/launch.h"
#include "common/sum_rows.cuh"

namespace gtkern::attention::gpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using TermTensors = attention::Terms;

float log2_eps(const Numbers& numbers) {
  return numbers.eps > 0 ? static_cast<float>(std::log2(numbers.eps)) : -kInfinity;
}

bool typed(const TermTensors& terms) { return terms.key_table || terms.bias_table; }

// What a launch reads of the edges: types and numbers only where its kernels need them.
Edges reduced(Edges edges, bool types, bool ids) {
  if (!types) edges.type = nullptr;
  if (!ids) edges.id = nullptr;
  return edges;
}

template <typename T>
Terms<T> terms_of(const TermTensors& tensors, const Numbers& numbers) {
  Terms<T> terms;
  terms.key_table = pointer_or_null<float>(tensors.key_table);
  terms.bias_table = pointer_or_null<float>(tensors.bias_table);
  terms.key_edge = pointer_or_null<float>(tensors.key_edge);
  terms.bias_edge = pointer_or_null<float>(tensors.bias_edge);
  terms.edge_query = pointer_or_null<T>(tensors.edge_query);
  terms.edge_attr = pointer_or_null<T>(tensors.edge_attr);
  terms.edge_width = tensors.attr_width();
  terms.product_scale = static_cast<float>(numbers.scale / numbers.temperature);
  terms.bias_scale = static_cast<float>(1.0 / numbers.temperature);
  terms.clamp = static_cast<float>(numbers.clamp);
  terms.keep_scale = static_cast<float>(1.0 / (1.0 - numbers.dropout));
  terms.drop_below = dropout_threshold(numbers.dropout);
  terms.dropout = numbers.dropout > 0;
  terms.seed = numbers.seed;
  return terms;
}

int power_of_two_from(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Which kernels run, and how lanes share a row.
struct Plan {
  Features features;
  int access;
  int lanes;
  int chunks;
  size_t element_size;

  int unroll(Direction direction) const {
    return edges_in_flight(element_size, features, chunks, direction);
  }
};

template <typename T>
Plan make_plan(Features features, std::initializer_list<int> widths,
               std::initializer_list<const void*> rows) {
  constexpr int kSize = kPacketSize<T>;
  int widest = 1;
  bool by_16 = true, by_8 = sizeof(T) == 2 && features != Features::kFull;
  for (const int width : widths) {
    widest = std::max(widest, width);
    by_16 = by_16 && width % kSize == 0;
    by_8 = by_8 && width % 4 == 0;
  }
  for (const void* row : rows) {
    by_16 = by_16 && reinterpret_cast<uintptr_t>(row) % 16 == 0;
    by_8 = by_8 && reinterpret_cast<uintptr_t>(row) % 16 == 0;
  }
  const int packets = static_cast<int>(divide_up(widest, kSize));
  Plan plan;
  plan.access = by_16 ? 16 : by_8 ? 8 : kElementwise;
  plan.features = plan.access == kElementwise ? Features::kFull : features;
  plan.lanes = power_of_two_from(std::min(packets, kWarpSize));
  plan.chunks = static_cast<int>(divide_up(packets, kWarpSize));
  plan.element_size = sizeof(T);
  return plan;
}

// A team gets more groups while an average row still gives each of them a full step of edges.
Work make_work(int lanes, int unroll, const Edges& edges, int heads) {
  const int64_t average = edges.places / std::max<int64_t>(edges.rows, 1);
  int slots = 1;
  while (lanes * slots * 2 <= kWarpSize && int64_t{slots} * 2 * unroll <= average) slots *= 2;
  const int64_t items = edges.num_heavy + edges.rows;
  return {items, 1, items * heads, heads, lanes * slots, lanes};
}

int64_t blocks_of(const Work& work) { return divide_up(work.teams, kThreads / work.team); }

// Calls f.operator()<FEATURES, ACCESS, LANES, CHUNKS>() for the plan. Lean kernels know the width
// of a group; the others take it at run time, which costs them a loop around the shuffles.
template <typename T, typename F>
void dispatch_full(const Plan& plan, const F& f) {
  constexpr Features kFull = Features::kFull;
  if constexpr (sizeof(T) == 4) {
    if (plan.chunks == 2) {
      return plan.access == 16 ? f.template operator()<kFull, 16, 0, 2>()
                               : f.template operator()<kFull, kElementwise, 0, 2>();
    }
  }
  plan.access == 16 ? f.template operator()<kFull, 16, 0, 1>()
                    : f.template operator()<kFull, kElementwise, 0, 1>();
}

template <typename T, typename F>
void dispatch(const Plan& plan, const F& f) {
  constexpr Features kLean = Features::kLean, kTyped = Features::kTyped;
  if (plan.features == Features::kFull) return dispatch_full<T>(plan, f);
  const bool lean = plan.features == kLean;
  if constexpr (sizeof(T) == 4) {
    if (plan.chunks == 2) {
      return lean ? f.template operator()<kLean, 16, 32, 2>()
                  : f.template operator()<kTyped, 16, 0, 2>();
    }
  } else {
    if (plan.access == 8) {
      return lean ? f.template operator()<kLean, 8, 0, 1>()
                  : f.template operator()<kTyped, 8, 0, 1>();
    }
  }
  if (!lean) return f.template operator()<kTyped, 16, 0, 1>();
  switch (plan.lanes) {
    case 1: return f.template operator()<kLean, 16, 1, 1>();
    case 2: return f.template operator()<kLean, 16, 2, 1>();
    case 4: return f.template operator()<kLean, 16, 4, 1>();
    case 8: return f.template operator()<kLean, 16, 8, 1>();
    case 16: return f.template operator()<kLean, 16, 16, 1>();
    default: return f.template operator()<kLean, 16, 32, 1>();
  }
}

// Calls f with a null pointer that names the element type.
template <typename F>
void dispatch_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<__nv_bfloat16*>(nullptr));
    case ScalarType::Half: return f(static_cast<__half*>(nullptr));
    default: STD_TORCH_CHECK(false, "q must be float32, bfloat16 or float16 on a GPU");
  }
}

Tensor empty_floats(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

float* floats(const Tensor& tensor) { return output_or_null<float>(tensor); }

template <typename T>
void launch_merge(const MergeParams<T>& params, cudaStream_t stream) {
  launch(merge_kernel<T>, params.num_heavy * params.heads, kThreads, kThreads * sizeof(float),
         stream, params);
}

Features features_of(const TermTensors& terms, const Numbers& numbers, bool scores) {
  if (terms.key_edge || terms.edge_attr) return Features::kFull;
  const bool scalars =
      typed(terms) || terms.bias_edge || scores || numbers.dropout > 0 || numbers.clamp < INFINITY;
  return scalars ? Features::kTyped : Features::kLean;
}

bool needs_ids(const TermTensors& terms, const Numbers& numbers) {
  return terms.key_edge || terms.bias_edge || terms.edge_attr || numbers.dropout > 0;
}

}  // namespace

FourTensors forward(const Tensor& q, const Tensor& k, const Tensor& v, const Edges& csr,
                    const TermTensors& tensors, const Numbers& numbers,
                    const std::vector<int64_t>& scores_sizes) {
  const DeviceScope scope(q.get_device_index());
  const int64_t num_dst = q.size(0), heads = q.size(1), value_width = v.size(2);
  const int64_t edge_width = tensors.attr_width(), pieces = csr.num_heavy;
  const bool return_scores = !scores_sizes.empty();

  const Tensor out = torch::stable::new_empty(q, {num_dst, heads, value_width});
  const Tensor edge_out = tensors.edge_attr
                              ? torch::stable::new_empty(q, {num_dst, heads, edge_width})
                              : torch::stable::new_empty(q, {0});
  const Tensor lse = empty_floats(q, {num_dst, heads});
  const Tensor scores = return_scores ? torch::stable::new_empty(q, scores_sizes, ScalarType::Float)
                                      : empty_floats(q, {0});
  const Tensor part_peak = empty_floats(q, {pieces, heads});
  const Tensor part_total = empty_floats(q, {pieces, heads});
  const Tensor part_out = empty_floats(q, {pieces, heads, value_width});
  const Tensor part_edge_out = empty_floats(q, {pieces, heads, edge_width});

  dispatch_dtype(q.scalar_type(), [&]<typename T>(T*) {
    ForwardParams<T> p;
    p.terms = terms_of<T>(tensors, numbers);
    p.q = data<T>(q);
    p.k = data<T>(k);
    p.v = data<T>(v);
    p.key_width = static_cast<int>(q.size(2));
    p.value_width = static_cast<int>(value_width);
    p.out = output_or_null<T>(out);
    p.edge_out = output_or_null<T>(edge_out);
    p.lse = floats(lse);
    p.scores = floats(scores);
    p.log2_eps = log2_eps(numbers);
    p.part_peak = floats(part_peak);
    p.part_total = floats(part_total);
    p.part_out = floats(part_out);
    p.part_edge_out = floats(part_edge_out);
    const Plan plan = make_plan<T>(features_of(tensors, numbers, return_scores),
                                   {p.key_width, p.value_width, p.terms.edge_width},
                                   {p.q, p.k, p.v, p.terms.key_table, p.terms.key_edge,
                                    p.terms.edge_query, p.terms.edge_attr});
    p.edges = reduced(csr, typed(tensors), return_scores || needs_ids(tensors, numbers));
    p.work = make_work(plan.lanes, plan.unroll(Direction::kForward), csr, static_cast<int>(heads));
    dispatch<T>(plan, [&]<Features FEATURES, int ACCESS, int LANES, int CHUNKS>() {
      launch(forward_kernel<T, FEATURES, ACCESS, LANES, CHUNKS>, blocks_of(p.work), kThreads, 0,
             scope.stream(), p);
    });
    if (pieces == 0) return;
    MergeParams<T> merge;
    merge.heavy = p.edges.heavy;
    merge.num_heavy = pieces;
    merge.heads = p.work.heads;
    merge.first = {p.part_out, p.out, p.value_width};
    merge.second = {p.part_edge_out, p.edge_out, p.terms.edge_width};
    merge.peak = p.part_peak;
    merge.total = p.part_total;
    merge.log2_eps = p.log2_eps;
    merge.lse = p.lse;
    launch_merge(merge, scope.stream());
    if (p.scores != nullptr) {
      const int blocks_per_piece = static_cast<int>(divide_up(kHeavyRowEdges * heads, kThreads));
      launch(heavy_scores_kernel<T>, pieces * blocks_per_piece, kThreads, 0, scope.stream(), p,
             blocks_per_piece);
    }
  });
  return {out, edge_out, lse, scores};
}

namespace {

// Parts of table gradients take at most this many floats, whatever the graph.
constexpr int64_t kTablePartFloats = int64_t{1} << 23;
constexpr int64_t kMostWalkers = 16384, kLeastWalkers = 32;

// Gives each team a run of items, so that no more than the affordable number of groups have a part
// of the table gradients. Depends on sizes alone: the sums are the same from run to run.
void limit_walkers(Work& work, int64_t floats_per_walker) {
  const int64_t affordable = kTablePartFloats / std::max<int64_t>(floats_per_walker, 1);
  const int64_t walkers = std::clamp(affordable, kLeastWalkers, kMostWalkers);
  const int64_t runs = std::max<int64_t>(walkers / (work.team / work.lanes), 1);
  work.items_per_team = std::max<int64_t>(divide_up(work.items, runs), 1);
  work.teams = divide_up(work.items, work.items_per_team) * work.heads;
}

}  // namespace

NineTensors backward(const Tensor& grad_out, const OptionalTensor& grad_edge_out,
                     const OptionalTensor& grad_scores, const Tensor& q, const Tensor& k,
                     const Tensor& v, const Tensor& out, const Tensor& edge_out, const Tensor& lse,
                     const Edges& csr, const Edges& csc, const TermTensors& tensors,
                     const Numbers& numbers, int64_t needs) {
  const DeviceScope scope(q.get_device_index());
  const int64_t num_dst = q.size(0), heads = q.size(1), num_edges = csr.places;
  const int64_t edge_width = tensors.attr_width(), pieces = csr.num_heavy;

  const OptionalTensor inputs[9] = {q,
                                    k,
                                    v,
                                    tensors.key_table,
                                    tensors.bias_table,
                                    tensors.key_edge,
                                    tensors.bias_edge,
                                    tensors.edge_query,
                                    tensors.edge_attr};
  std::array<Tensor, 9> grads;
  for (int i = 0; i < 9; ++i) {
    const bool wanted = (needs >> i & 1) && inputs[i].has_value();
    grads[i] = wanted ? torch::stable::empty_like(*inputs[i]) : torch::stable::new_empty(q, {0});
    // places without an edge are not visited
    const bool by_edge = i == 5 || i == 6 || i == 8;
    if (wanted && by_edge && csr.ptr == nullptr) torch::stable::zero_(grads[i]);
  }
  const auto& [grad_q, grad_k, grad_v, grad_key_table, grad_bias_table, grad_key_edge,
               grad_bias_edge, grad_edge_query, grad_edge_attr] = grads;

  dispatch_dtype(q.scalar_type(), [&]<typename T>(T*) {
    DestinationParams<T> p;
    p.terms = terms_of<T>(tensors, numbers);
    p.q = data<T>(q);
    p.k = data<T>(k);
    p.v = data<T>(v);
    p.out = data<T>(out);
    p.edge_out = pointer_or_null<T>(edge_out);
    p.grad_out = data<T>(grad_out);
    p.grad_edge_out = tensors.edge_attr ? pointer_or_null<T>(grad_edge_out) : nullptr;
    p.grad_scores = pointer_or_null<float>(grad_scores);
    p.lse = data<float>(lse);
    p.key_width = static_cast<int>(q.size(2));
    p.value_width = static_cast<int>(v.size(2));
    const Plan plan = make_plan<T>(
        p.grad_scores != nullptr ? Features::kFull : features_of(tensors, numbers, false),
        {p.key_width, p.value_width, p.terms.edge_width},
        {p.q, p.k, p.v, p.out, p.edge_out, p.grad_out, p.grad_edge_out, p.terms.key_table,
         p.terms.key_edge, p.terms.edge_query, p.terms.edge_attr});
    const bool full = plan.features == Features::kFull;
    const bool ids = full || needs_ids(tensors, numbers);
    p.edges = reduced(csr, typed(tensors), ids);
    p.work = make_work(plan.lanes, plan.unroll(Direction::kBackward), csr, static_cast<int>(heads));

    const bool source_pass = grad_k.numel() > 0 || grad_v.numel() > 0;
    const bool edge_grads_wanted = full && (source_pass || grad_edge_attr.numel() > 0);
    const Tensor stats = empty_floats(q, {num_dst, heads, 2});
    const Tensor edge_grads = empty_floats(q, {edge_grads_wanted ? num_edges : 0, heads, 2});
    const Tensor score_delta = empty_floats(q, {p.grad_scores != nullptr ? num_dst : 0, heads});
    const Tensor piece_delta = empty_floats(q, {p.grad_scores != nullptr ? pieces : 0, heads});
    const Tensor part_q = empty_floats(q, {pieces, heads, p.key_width});
    const Tensor part_edge_query = empty_floats(q, {pieces, heads, edge_width});
    MergeParams<float> merge_delta{};
    merge_delta.heavy = p.edges.heavy;
    merge_delta.num_heavy = pieces;
    merge_delta.heads = p.work.heads;
    p.stats = reinterpret_cast<float2*>(floats(stats));
    p.edge_grads = reinterpret_cast<float2*>(floats(edge_grads));
    p.score_delta = nullptr;
    if (p.grad_scores != nullptr) {
      const ScoreDelta delta{floats(score_delta), floats(piece_delta)};
      dispatch_full<T>(plan, [&]<Features FEATURES, int ACCESS, int LANES, int CHUNKS>() {
        launch(score_delta_kernel<T, FEATURES, ACCESS, LANES, CHUNKS>, blocks_of(p.work), kThreads,
               0, scope.stream(), p, delta);
      });
      merge_delta.first = {delta.pieces, delta.rows, 1};
      launch_merge(merge_delta, scope.stream());
      p.score_delta = delta.rows;
    }

    p.grad_q = output_or_null<T>(grad_q);
    p.grad_edge_query = output_or_null<T>(grad_edge_query);
    p.grad_key_edge = floats(grad_key_edge);
    p.grad_bias_edge = floats(grad_bias_edge);
    p.part_q = floats(part_q);
    p.part_edge_query = floats(part_edge_query);
    const bool tables = grad_key_table.numel() > 0 || grad_bias_table.numel() > 0;
    if (tables) limit_walkers(p.work, grad_key_table.numel() + grad_bias_table.numel());
    const int64_t walkers = p.work.teams / heads * (p.work.team / p.work.lanes);
    p.key_types = tensors.key_table ? static_cast<int>(tensors.key_table->size(0)) : 0;
    p.bias_types = tensors.bias_table ? static_cast<int>(tensors.bias_table->size(0)) : 0;
    const auto zeros = [&](const Tensor& table) {
      const int64_t parts = table.numel() > 0 ? walkers : 0;
      return torch::stable::new_zeros(q, {parts, table.numel()}, ScalarType::Float);
    };
    const Tensor part_key_table = zeros(grad_key_table), part_bias_table = zeros(grad_bias_table);
    p.part_key_table = floats(part_key_table);
    p.part_bias_table = floats(part_bias_table);
    p.walk = p.grad_q != nullptr || p.grad_edge_query != nullptr || p.grad_key_edge != nullptr ||
             p.grad_bias_edge != nullptr || tables || edge_grads_wanted;
    if (p.walk || source_pass) {
      dispatch<T>(plan, [&]<Features FEATURES, int ACCESS, int LANES, int CHUNKS>() {
        launch(destination_kernel<T, FEATURES, ACCESS, LANES, CHUNKS>, blocks_of(p.work), kThreads,
               0, scope.stream(), p);
      });
    }
    MergeParams<T> merge{};
    merge.heavy = p.edges.heavy;
    merge.num_heavy = pieces;
    merge.heads = p.work.heads;
    if (p.grad_q != nullptr) merge.first = {p.part_q, p.grad_q, p.key_width};
    if (p.grad_edge_query != nullptr) {
      merge.second = {p.part_edge_query, p.grad_edge_query, p.terms.edge_width};
    }
    launch_merge(merge, scope.stream());
    if (grad_key_table.numel() > 0)
      sum_rows<float>(part_key_table, walkers, grad_key_table, scope.stream());
    if (grad_bias_table.numel() > 0) {
      sum_rows<float>(part_bias_table, walkers, grad_bias_table, scope.stream());
    }
    if (grad_edge_attr.numel() > 0) {
      EdgeAttrParams<T> attr;
      attr.edges = reduced(csr, false, true);
      const int lanes = power_of_two_from(std::min<int>(p.terms.edge_width, kWarpSize));
      attr.work = make_work(lanes, 1, csr, 1);
      attr.heads = p.work.heads;
      attr.edge_width = p.terms.edge_width;
      attr.edge_query = p.terms.edge_query;
      attr.grad_edge_out = p.grad_edge_out;
      attr.edge_grads = p.edge_grads;
      attr.grad_edge_attr = output_or_null<T>(grad_edge_attr);
      launch(edge_attr_kernel<T>, blocks_of(attr.work), kThreads, 0, scope.stream(), attr);
    }
    if (!source_pass) return;

    SourceParams<T> s;
    s.terms = p.terms;
    s.edges = reduced(csc, typed(tensors), ids);
    s.work = make_work(plan.lanes, plan.unroll(Direction::kBackward), csc, static_cast<int>(heads));
    s.q = p.q;
    s.k = p.k;
    s.v = p.v;
    s.grad_out = p.grad_out;
    s.stats = p.stats;
    s.edge_grads = p.edge_grads;
    s.key_width = p.key_width;
    s.value_width = p.value_width;
    s.grad_k = output_or_null<T>(grad_k);
    s.grad_v = output_or_null<T>(grad_v);
    const Tensor part_k = empty_floats(q, {csc.num_heavy, heads, p.key_width});
    const Tensor part_v = empty_floats(q, {csc.num_heavy, heads, p.value_width});
    s.part_k = floats(part_k);
    s.part_v = floats(part_v);
    dispatch<T>(plan, [&]<Features FEATURES, int ACCESS, int LANES, int CHUNKS>() {
      launch(source_kernel<T, FEATURES, ACCESS, LANES, CHUNKS>, blocks_of(s.work), kThreads, 0,
             scope.stream(), s);
    });
    MergeParams<T> merge_t{};
    merge_t.heavy = s.edges.heavy;
    merge_t.num_heavy = csc.num_heavy;
    merge_t.heads = s.work.heads;
    if (s.grad_k != nullptr) merge_t.first = {s.part_k, s.grad_k, s.key_width};
    if (s.grad_v != nullptr) merge_t.second = {s.part_v, s.grad_v, s.value_width};
    launch_merge(merge_t, scope.stream());
  });
  return {grad_q,        grad_k,         grad_v,          grad_key_table, grad_bias_table,
          grad_key_edge, grad_bias_edge, grad_edge_query, grad_edge_attr};
}

}  // namespace gtkern::attention::gpu
