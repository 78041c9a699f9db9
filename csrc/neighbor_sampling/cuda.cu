// sample_neighbors for CUDA tensors: lays out the launches of cuda_kernels.cuh.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/launch.h"
#include "neighbor_sampling/cuda_kernels.cuh"
#include "neighbor_sampling/schema.h"

namespace gtkern::neighbor_sampling {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> sample(const Tensor& row_ptr, const Tensor& col,
                                          const Tensor& edge_id, const Tensor& edge_type,
                                          const OptionalTensor& weight,
                                          const OptionalTensor& prefix,
                                          const std::vector<int64_t>& k, int64_t seed,
                                          int64_t epoch, bool top, bool pad) {
  STD_TORCH_CHECK(!weight || prefix, "the CUDA kernels take weights with their table");
  const DeviceScope scope(row_ptr.get_device_index());
  const int64_t rows = row_ptr.numel() - 1, num_edges = col.numel();
  int64_t places = 0, most_drawn = 0;
  for (const int64_t count : k) {
    places += rows * count;
    if (!top && count <= kMostDrawn) most_drawn = count > most_drawn ? count : most_drawn;
  }
  Tensor index = torch::stable::new_empty(row_ptr, {places}, ScalarType::Int);
  Tensor edge = torch::stable::new_empty(row_ptr, {places}, ScalarType::Long);
  const bool typed = edge_type.numel() > 0;
  Tensor type = torch::stable::new_empty(row_ptr, {typed ? places : 0}, ScalarType::Byte);
  // layers run one after the other on the stream and share these
  Tensor partial = torch::stable::new_empty(row_ptr, {rows * most_drawn}, ScalarType::Int);
  Tensor taken = torch::stable::new_empty(row_ptr, {most_drawn > 0 ? rows : 0}, ScalarType::Int);

  int64_t begin = 0;
  for (size_t i = 0; i < k.size(); ++i) {
    Params p{};
    p.ptr = row_ptr.const_data_ptr<int64_t>();
    p.col = col.const_data_ptr<int32_t>();
    p.edge_id = pointer_or_null<int64_t>(edge_id);
    p.edge_type = pointer_or_null<uint8_t>(edge_type);
    p.weight = pointer_or_null<float>(weight);
    p.prefix = pointer_or_null<uint32_t>(prefix);
    if (weight && weight->size(0) > 1) {
      p.weight += static_cast<int64_t>(i) * num_edges;
      p.prefix += static_cast<int64_t>(i) * num_edges;
    }
    p.rows = rows;
    p.k = k[i];
    p.draws = top || k[i] > kMostDrawn ? 0 : static_cast<int>((2 * k[i] + 15) / 16 * 16);
    p.seed = static_cast<uint64_t>(seed);
    p.layer = static_cast<uint32_t>(i);
    p.epoch = static_cast<uint32_t>(epoch);
    p.top = top;
    p.pad = pad;
    p.index = index.mutable_data_ptr<int32_t>() + begin;
    p.edge = edge.mutable_data_ptr<int64_t>() + begin;
    p.type = typed ? type.mutable_data_ptr<uint8_t>() + begin : nullptr;
    p.partial = output_or_null<int32_t>(partial);
    p.taken = output_or_null<int32_t>(taken);
    if (p.draws > 0) {
      launch(draw_kernel, (rows + kWarps - 1) / kWarps, kThreads, 0, scope.stream(), p);
    }
    launch(race_kernel, rows, kThreads, 0, scope.stream(), p);
    begin += rows * k[i];
  }
  return {index, edge, type};
}

}  // namespace
}  // namespace gtkern::neighbor_sampling

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::neighbor_sampling::kSampleSchema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("sample_neighbors", TORCH_BOX(&gtkern::neighbor_sampling::sample));
}
