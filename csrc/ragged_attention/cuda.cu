// ragged_attention for CUDA tensors: lays out the launches of cuda_forward.cuh and
// cuda_backward.cuh.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/launch.h"
#include "common/sum_rows.cuh"
#include "ragged_attention/cuda_backward.cuh"
#include "ragged_attention/cuda_forward.cuh"
#include "ragged_attention/schema.h"

namespace gtkern::ragged_attention {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using SixTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Graphs of at most so many nodes get their whole backward from one block.
constexpr int64_t kWholeNodes = 64;
// Floats of the histograms of a block: four blocks then fit beside each other.
constexpr int64_t kHistogramFloats = 12288;
// Parts of the tables' gradients take at most this many floats, whatever the batch.
constexpr int64_t kTablePartFloats = int64_t{1} << 23;
constexpr int64_t kMostRuns = 16384, kLeastRuns = 32;
// The prefix's gradients come from chunks of at least so many queries, of which there are at most
// so many; fewer where their parts would be large.
constexpr int64_t kChunkRows = 128, kMostChunks = 128, kLeastChunks = 16;
constexpr int64_t kPrefixPartFloats = int64_t{1} << 23;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int power_of_two_from(int64_t count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

// The arguments of both directions.
struct Arguments {
  const Tensor &q, &k, &v, &ptr, &pair_ptr;
  int64_t max_nodes;
  const std::vector<Tensor>& index;
  const OptionalTensor& table;
  const std::vector<int64_t>& first_row;
  const OptionalTensor &prefix_k, &prefix_v, &row_set;
  double scale, dropout;
  int64_t seed;

  int64_t rows() const { return q.size(0); }
  int64_t heads() const { return q.size(1); }
  int64_t graphs() const { return ptr.numel() - 1; }
  int64_t prefixes() const { return prefix_k ? prefix_k->size(row_set ? 1 : 0) : 0; }
  int64_t sets() const { return prefix_k && row_set ? prefix_k->size(0) : 1; }
};

// Which kernels run, and how many lanes share a row.
struct Plan {
  int access, chunks, lanes;

  // Threads of a block that has up to `rows` rows.
  int threads(int64_t rows) const {
    return static_cast<int>(std::clamp<int64_t>(divide_up(rows * lanes, kWarpSize), 1, 4)) *
           kWarpSize;
  }
};

template <typename T>
Plan make_plan(const Arguments& a, std::initializer_list<const void*> rows) {
  constexpr int kSize = kPacketSize<T>, kMostChunks = 16 / kSize;
  const int64_t widest = std::max(a.q.size(2), a.v.size(2));
  bool by_16 = a.q.size(2) % kSize == 0 && a.v.size(2) % kSize == 0;
  for (const void* row : rows) by_16 = by_16 && reinterpret_cast<uintptr_t>(row) % 16 == 0;
  const int64_t packets = divide_up(widest, kSize);
  Plan plan;
  plan.access = by_16 ? 16 : kElementwise;
  plan.chunks = by_16 ? std::min(power_of_two_from(packets), kMostChunks) : kMostChunks;
  plan.lanes = power_of_two_from(divide_up(packets, plan.chunks));
  return plan;
}

// Calls f.operator()<ACCESS, CHUNKS>() for the plan.
template <typename T, typename F>
void dispatch(const Plan& plan, const F& f) {
  constexpr int kMostChunks = 16 / kPacketSize<T>;
  if (plan.access != 16) return f.template operator()<kElementwise, kMostChunks>();
  if (plan.chunks == 1) return f.template operator()<16, 1>();
  if constexpr (kMostChunks == 4) {
    if (plan.chunks == 2) return f.template operator()<16, 2>();
  }
  f.template operator()<16, kMostChunks>();
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

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

Tensor empty_floats(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

template <typename T>
Call<T> make_call(const Arguments& a, int lanes) {
  STD_TORCH_CHECK(a.index.size() <= kMostBiases, "the CUDA kernels take at most ", kMostBiases,
                  " biases, got ", a.index.size());
  Call<T> call{};
  call.q = data<T>(a.q);
  call.k = data<T>(a.k);
  call.v = data<T>(a.v);
  call.prefix_k = pointer_or_null<T>(a.prefix_k);
  call.prefix_v = pointer_or_null<T>(a.prefix_v);
  call.ptr = data<int64_t>(a.ptr);
  call.pair_ptr = data<int64_t>(a.pair_ptr);
  call.biases.table = pointer_or_null<float>(a.table);
  call.biases.count = static_cast<int>(a.index.size());
  for (size_t m = 0; m < a.index.size(); ++m) {
    call.biases.index[m] = a.index[m].const_data_ptr();
    call.biases.first_row[m] = a.first_row[m];
    call.biases.wide[m] = a.index[m].scalar_type() == ScalarType::Short;
  }
  call.graphs = a.graphs();
  call.row_set = pointer_or_null<int64_t>(a.row_set);
  call.prefixes = a.prefixes();
  call.sets = a.sets();
  call.heads = static_cast<int>(a.heads());
  call.width = static_cast<int>(a.q.size(2));
  call.value_width = static_cast<int>(a.v.size(2));
  call.lanes = lanes;
  call.scale = static_cast<float>(a.scale);
  call.keep_scale = static_cast<float>(1.0 / (1.0 - a.dropout));
  call.drop_below = dropout_threshold(a.dropout);
  call.dropout = a.dropout > 0;
  call.seed = static_cast<uint64_t>(a.seed);
  return call;
}

// Tiles of `rows` rows of every graph. `tile_ptr` is made where numbering by the largest graph
// would leave most tiles empty; it must outlive the launches.
Work make_work(const Arguments& a, int rows, Tensor& tile_ptr, cudaStream_t stream) {
  const int64_t tiles = divide_up(a.max_nodes, rows), filled = a.rows() / rows + a.graphs();
  if (a.graphs() * tiles <= 4 * filled) return {a.graphs() * tiles, 1, tiles, nullptr};
  tile_ptr = torch::stable::new_empty(a.ptr, {a.graphs() + 1});
  int64_t* const numbers = tile_ptr.mutable_data_ptr<int64_t>();
  launch(count_tiles_kernel, 1, kThreads, 0, stream, a.ptr.const_data_ptr<int64_t>(), a.graphs(),
         rows, numbers);
  return {filled, 1, 1, numbers};
}

std::tuple<Tensor, Tensor> run_forward(const Arguments& a) {
  const DeviceScope scope(a.q.get_device_index());
  const Tensor out = torch::stable::new_empty(a.q, {a.rows(), a.heads(), a.v.size(2)});
  const Tensor lse = empty_floats(a.q, {a.rows(), a.heads()});
  if (a.rows() == 0) return {out, lse};
  dispatch_dtype(a.q.scalar_type(), [&]<typename T>(T*) {
    const Plan plan =
        make_plan<T>(a, {a.q.const_data_ptr(), a.k.const_data_ptr(), a.v.const_data_ptr(),
                         pointer_or_null<T>(a.prefix_k), pointer_or_null<T>(a.prefix_v)});
    const Call<T> call = make_call<T>(a, plan.lanes);
    const int threads = plan.threads(a.max_nodes);
    Tensor tile_ptr;
    const Work work = make_work(a, threads / plan.lanes, tile_ptr, scope.stream());
    dispatch<T>(plan, [&]<int ACCESS, int CHUNKS>() {
      launch(forward_kernel<T, ACCESS, CHUNKS>, work.items * a.heads(), threads, 0, scope.stream(),
             call, work, output_or_null<T>(out), output_or_null<float>(lse));
    });
  });
  return {out, lse};
}

// Starts `kernel` for the tables' gradients: again and again where shared memory does not hold the
// histograms of all entries at once. Later launches sum entries alone.
template <typename T, typename Kernel>
void launch_with_tables(const Kernel& kernel, const Call<T>& call, Backward<T> b, Work work,
                        int threads, const Tensor& grad_table, cudaStream_t stream) {
  const int64_t entries = grad_table.size(0), warps = threads / kWarpSize;
  int columns = kWarpSize / call.lanes;
  while (columns > 1 && entries * columns * warps > kHistogramFloats) columns /= 2;
  const int64_t at_once = std::min(entries, kHistogramFloats / (warps * columns));
  // depends on sizes alone: the sums are the same from run to run
  const int64_t affordable = kTablePartFloats / std::max<int64_t>(grad_table.numel(), 1);
  const int64_t most = std::clamp(affordable, kLeastRuns, kMostRuns);
  work.items_per_block = divide_up(work.items, most);
  const int64_t runs = divide_up(work.items, work.items_per_block);
  const Tensor parts = empty_floats(grad_table, {runs, grad_table.numel()});
  b.part_table = output_or_null<float>(parts);
  b.table_rows = entries;
  b.columns = columns;
  for (b.first_bin = 0; b.first_bin < entries; b.first_bin += at_once) {
    b.bins = static_cast<int>(std::min(at_once, entries - b.first_bin));
    const size_t shared = static_cast<size_t>(warps * b.bins * columns) * sizeof(float);
    launch(kernel, runs * call.heads, threads, shared, stream, call, b, work);
    b.grad_q = nullptr;
    b.halves = kQueries;
  }
  sum_rows<float>(parts, runs, grad_table, stream);
}

SixTensors run_backward(const Arguments& a, const Tensor& grad_out, const Tensor& out,
                        const Tensor& lse, int64_t needs) {
  const DeviceScope scope(a.q.get_device_index());
  const cudaStream_t stream = scope.stream();
  const OptionalTensor inputs[6] = {a.q, a.k, a.v, a.table, a.prefix_k, a.prefix_v};
  std::array<Tensor, 6> grads;
  for (int i = 0; i < 6; ++i) {
    const bool wanted = (needs >> i & 1) && inputs[i].has_value();
    grads[i] = wanted ? torch::stable::empty_like(*inputs[i]) : torch::stable::new_empty(a.q, {0});
    if (a.rows() == 0) torch::stable::zero_(grads[i]);
  }
  const auto& [grad_q, grad_k, grad_v, grad_table, grad_prefix_k, grad_prefix_v] = grads;
  const SixTensors result{grad_q, grad_k, grad_v, grad_table, grad_prefix_k, grad_prefix_v};
  if (a.rows() == 0) return result;

  dispatch_dtype(a.q.scalar_type(), [&]<typename T>(T*) {
    const Plan plan =
        make_plan<T>(a, {a.q.const_data_ptr(), a.k.const_data_ptr(), a.v.const_data_ptr(),
                         grad_out.const_data_ptr(), out.const_data_ptr(),
                         pointer_or_null<T>(a.prefix_k), pointer_or_null<T>(a.prefix_v)});
    const Call<T> call = make_call<T>(a, plan.lanes);
    const Tensor delta = empty_floats(a.q, {a.rows(), a.heads()});
    Backward<T> b{};
    b.grad_out = data<T>(grad_out);
    b.out = data<T>(out);
    b.lse = data<float>(lse);
    b.delta = output_or_null<float>(delta);
    b.grad_q = output_or_null<T>(grad_q);
    b.grad_k = output_or_null<T>(grad_k);
    b.grad_v = output_or_null<T>(grad_v);
    b.whole = a.max_nodes <= kWholeNodes;
    b.rows = a.rows();
    const bool keys = b.grad_k != nullptr || b.grad_v != nullptr;
    const int threads = plan.threads(a.max_nodes);
    Tensor tile_ptr;
    const Work work = b.whole ? Work{a.graphs(), 1, 1, nullptr}
                              : make_work(a, threads / plan.lanes, tile_ptr, stream);
    dispatch<T>(plan, [&]<int ACCESS, int CHUNKS>() {
      const auto kernel = backward_kernel<T, ACCESS, CHUNKS>;
      b.halves = b.whole && keys ? kQueries | kKeys : kQueries;
      if (grad_table.numel() > 0) {
        launch_with_tables(kernel, call, b, work, threads, grad_table, stream);
      } else {
        launch(kernel, work.items * a.heads(), threads, 0, stream, call, b, work);
      }
      b.halves = kKeys;
      if (keys && !b.whole) {
        launch(kernel, work.items * a.heads(), threads, 0, stream, call, b, work);
      }
      if (grad_prefix_k.numel() == 0 && grad_prefix_v.numel() == 0) return;
      const int64_t widest = std::max(grad_prefix_k.numel(), grad_prefix_v.numel());
      const int64_t most = std::clamp(kPrefixPartFloats / widest, kLeastChunks, kMostChunks);
      b.chunk_rows = std::max(kChunkRows, divide_up(a.rows(), most));
      const int64_t chunks = divide_up(a.rows(), b.chunk_rows);
      const Tensor part_k = empty_floats(a.q, {chunks, grad_prefix_k.numel()});
      const Tensor part_v = empty_floats(a.q, {chunks, grad_prefix_v.numel()});
      b.part_k = output_or_null<float>(part_k);
      b.part_v = output_or_null<float>(part_v);
      const int prefix_threads = plan.threads(a.prefixes());
      const int64_t tiles = divide_up(a.prefixes(), prefix_threads / plan.lanes);
      const int64_t items = chunks * a.sets() * tiles;
      launch(kernel, items * a.heads(), prefix_threads, 0, stream, call, b,
             Work{items, 1, tiles, nullptr});
      sum_rows<T>(part_k, chunks, grad_prefix_k, stream);
      sum_rows<T>(part_v, chunks, grad_prefix_v, stream);
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& ptr, const Tensor& pair_ptr, int64_t max_nodes,
                                   const std::vector<Tensor>& index, const OptionalTensor& table,
                                   const std::vector<int64_t>& first_row,
                                   const OptionalTensor& prefix_k, const OptionalTensor& prefix_v,
                                   const OptionalTensor& row_set, double scale, double dropout,
                                   int64_t seed) {
  return run_forward({q, k, v, ptr, pair_ptr, max_nodes, index, table, first_row, prefix_k,
                      prefix_v, row_set, scale, dropout, seed});
}

SixTensors backward(const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                    const Tensor& out, const Tensor& lse, const Tensor& ptr, const Tensor& pair_ptr,
                    int64_t max_nodes, const std::vector<Tensor>& index,
                    const OptionalTensor& table, const std::vector<int64_t>& first_row,
                    const OptionalTensor& prefix_k, const OptionalTensor& prefix_v,
                    const OptionalTensor& row_set, double scale, double dropout, int64_t seed,
                    int64_t needs) {
  return run_backward({q, k, v, ptr, pair_ptr, max_nodes, index, table, first_row, prefix_k,
                       prefix_v, row_set, scale, dropout, seed},
                      grad_out, out, lse, needs);
}

}  // namespace
}  // namespace gtkern::ragged_attention

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::ragged_attention::kForwardSchema);
  m.def(gtkern::ragged_attention::kBackwardSchema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("ragged_attention_fwd", TORCH_BOX(&gtkern::ragged_attention::forward));
  m.impl("ragged_attention_bwd", TORCH_BOX(&gtkern::ragged_attention::backward));
}
