// Groups an edge list by one end: a stable counting sort by (key, type, value).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "adjacency/schema.h"
#include "common/parallel.h"

namespace gtkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The stable order of `count` items by key(item) in [0, keys): calls place(item, position).
// Each chunk of items counts on its own, so chunks run in parallel and the order stays stable.
template <class Key, class Place>
void counting_sort(std::int64_t count, std::int64_t keys, std::int64_t* ptr, const Key& key,
                   const Place& place) {
  const std::int64_t wanted = static_cast<std::int64_t>(torch::stable::get_num_threads());
  const std::int64_t chunks =
      count < 4 * keys || count < 1 << 15 ? 1 : std::max<std::int64_t>(wanted, 1);
  std::vector<std::int64_t> next(chunks * keys, 0);
  const auto bounds = [&](std::int64_t chunk) { return count / chunks * chunk; };
  const auto end_of = [&](std::int64_t chunk) {
    return chunk + 1 == chunks ? count : bounds(chunk + 1);
  };
  for_each_block(chunks, [&](std::int64_t chunk) {
    std::int64_t* mine = next.data() + chunk * keys;
    for (std::int64_t i = bounds(chunk); i < end_of(chunk); ++i) ++mine[key(i)];
  });
  std::int64_t total = 0;
  for (std::int64_t k = 0; k < keys; ++k) {
    if (ptr) ptr[k] = total;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t size = next[chunk * keys + k];
      next[chunk * keys + k] = total;
      total += size;
    }
  }
  if (ptr) ptr[keys] = total;
  for_each_block(chunks, [&](std::int64_t chunk) {
    std::int64_t* mine = next.data() + chunk * keys;
    for (std::int64_t i = bounds(chunk); i < end_of(chunk); ++i) place(i, mine[key(i)]++);
  });
}

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
