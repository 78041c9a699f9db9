// layer_batch for CPU tensors: one pass over the targets' rows numbers their neighbours as they
// come, through a table of all nodes.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/memory.h"
#include "neighbor_sampling/schema.h"

namespace gtkern::neighbor_sampling {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_batch(const Tensor& targets, const Tensor& index,
                                                       const Tensor& edge, const Tensor& type) {
  const std::int64_t count = targets.numel(), k = index.size(1);
  const std::int64_t* target = targets.const_data_ptr<std::int64_t>();
  const std::int32_t* neighbor = index.const_data_ptr<std::int32_t>();
  const std::int64_t* edge_of = edge.const_data_ptr<std::int64_t>();
  const std::uint8_t* type_of = pointer_or_null<std::uint8_t>(type);

  Tensor local = new_output(index, {count, k}, ScalarType::Int);
  Tensor edges = new_output(index, {count, k}, ScalarType::Long);
  Tensor types = new_output(index, {type_of ? count : 0, k}, ScalarType::Byte);
  std::int32_t* out_local = local.mutable_data_ptr<std::int32_t>();
  std::int64_t* out_edge = edges.mutable_data_ptr<std::int64_t>();
  std::uint8_t* out_type = types.mutable_data_ptr<std::uint8_t>();

  std::vector<std::int32_t> place(index.size(0), -1);
  std::vector<std::int64_t> nodes(target, target + count);
  for (std::int64_t i = 0; i < count; ++i) place[target[i]] = static_cast<std::int32_t>(i);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t from = target[i] * k, to = i * k;
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int32_t node = neighbor[from + j];
      if (node < 0) {
        out_local[to + j] = -1;
        continue;
      }
      STD_TORCH_CHECK(node < index.size(0), "neighbors must be below ", index.size(0), " (N), got ",
                      node);
      std::int32_t& at = place[node];
      if (at < 0) {
        at = static_cast<std::int32_t>(nodes.size());
        nodes.push_back(node);
      }
      out_local[to + j] = at;
    }
    std::copy_n(edge_of + from, k, out_edge + to);
    if (type_of) std::copy_n(type_of + from, k, out_type + to);
  }
  Tensor sources = new_output(targets, {static_cast<std::int64_t>(nodes.size())}, ScalarType::Long);
  std::copy(nodes.begin(), nodes.end(), sources.mutable_data_ptr<std::int64_t>());
  return {sources, local, edges, types};
}

}  // namespace
}  // namespace gtkern::neighbor_sampling

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) { m.def(gtkern::neighbor_sampling::kBatchSchema); }

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("layer_batch", TORCH_BOX(&gtkern::neighbor_sampling::layer_batch));
}
