// Groups an edge list by one end: a stable counting sort by (key, type, value).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "adjacency/schema.h"
#include "common/counting_sort.h"

namespace gtkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> group_edges(const Tensor& key, const Tensor& value,
                                                       const Tensor& edge_type, std::int64_t rows,
                                                       std::int64_t values) {
  const std::int64_t edges = key.numel();
  const bool typed = edge_type.numel() > 0;
  Tensor ptr = torch::stable::new_empty(key, {rows + 1}, ScalarType::Long);
  Tensor index = torch::stable::new_empty(key, {edges}, ScalarType::Int);
  Tensor order = torch::stable::new_empty(key, {edges}, ScalarType::Long);
  Tensor type = torch::stable::new_empty(edge_type, {edge_type.numel()}, ScalarType::Byte);

  const std::int32_t* keys = key.const_data_ptr<std::int32_t>();
  const std::int32_t* ends = value.const_data_ptr<std::int32_t>();
  const std::uint8_t* types = edge_type.const_data_ptr<std::uint8_t>();
  std::int32_t* out_index = index.mutable_data_ptr<std::int32_t>();
  std::int64_t* out_order = order.mutable_data_ptr<std::int64_t>();
  std::uint8_t* out_type = type.mutable_data_ptr<std::uint8_t>();

  // least significant digit first: by value where asked for, by type, by key
  std::vector<std::int64_t> sorted;
  const auto edge = [&](std::int64_t i) { return sorted.empty() ? i : sorted[i]; };
  const auto sort_by = [&](std::int64_t digits, const auto& digit) {
    std::vector<std::int64_t> next(edges);
    counting_sort(
        edges, digits, nullptr, [&](std::int64_t i) { return digit(edge(i)); },
        [&](std::int64_t i, std::int64_t at) { next[at] = edge(i); });
    sorted = std::move(next);
  };
  if (values > 0) sort_by(values, [&](std::int64_t e) { return ends[e]; });
  if (typed) sort_by(256, [&](std::int64_t e) { return types[e]; });
  counting_sort(
      edges, rows, ptr.mutable_data_ptr<std::int64_t>(),
      [&](std::int64_t i) { return keys[edge(i)]; },
      [&](std::int64_t i, std::int64_t at) {
        const std::int64_t e = edge(i);
        out_index[at] = ends[e];
        out_order[at] = e;
        if (typed) out_type[at] = types[e];
      });
  bool identity = true;
  for (std::int64_t i = 0; i < edges && identity; ++i) identity = out_order[i] == i;
  if (identity) order = torch::stable::new_empty(key, {0}, ScalarType::Long);
  return {ptr, index, order, type};
}

}  // namespace
}  // namespace gtkern

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) { m.def(gtkern::kGroupEdgesSchema); }

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("group_edges", TORCH_BOX(&gtkern::group_edges));
}
