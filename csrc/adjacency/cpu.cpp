// Groups an edge list by one end: a stable sort by (key, type, value).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "adjacency/schema.h"
#include "common/counting_sort.h"
#include "common/memory.h"
#include "common/parallel.h"

namespace gtkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An edge of a row, in the order that rows are sorted to.
struct Item {
  std::uint64_t key;  // type, then value
  std::int64_t edge;
  std::int32_t value;

  bool operator<(const Item& other) const {
    return key != other.key ? key < other.key : edge < other.edge;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> group_edges(const Tensor& key, const Tensor& value,
                                                       const Tensor& edge_type, std::int64_t rows,
                                                       std::int64_t values) {
  const std::int64_t edges = key.numel();
  const bool typed = edge_type.numel() > 0;
  Tensor ptr = new_tensor(key, {rows + 1}, ScalarType::Long);
  Tensor index = new_tensor(key, {edges}, ScalarType::Int);
  Tensor order = new_tensor(key, {edges}, ScalarType::Long);
  Tensor type = new_tensor(edge_type, {edge_type.numel()}, ScalarType::Byte);

  const std::int32_t* keys = key.const_data_ptr<std::int32_t>();
  const std::int32_t* ends = value.const_data_ptr<std::int32_t>();
  const std::uint8_t* types = edge_type.const_data_ptr<std::uint8_t>();
  std::int32_t* out_index = index.mutable_data_ptr<std::int32_t>();
  std::int64_t* out_order = order.mutable_data_ptr<std::int64_t>();
  std::uint8_t* out_type = type.mutable_data_ptr<std::uint8_t>();

  // A counting sort by row moves each edge once. Its row then lies in a core's cache, where sorting
  // by type and value is cheap; passes over all edges, digit by digit, would miss it each time.
  std::int64_t* row_ptr = ptr.mutable_data_ptr<std::int64_t>();
  counting_sort(
      edges, rows, row_ptr, [&](std::int64_t e) { return keys[e]; },
      [&](std::int64_t e, std::int64_t at) { out_order[at] = e; });
  const RowBlocks blocks(row_ptr, rows);
  for_each_block(blocks.count(), [&](std::int64_t block) {
    std::vector<Item> row;
    for (std::int64_t r = blocks.begin(block); r < blocks.end(block); ++r) {
      const std::int64_t begin = row_ptr[r], size = row_ptr[r + 1] - begin;
      row.resize(size);
      for (std::int64_t i = 0; i < size; ++i) {
        const std::int64_t e = out_order[begin + i];
        const std::uint64_t type = typed ? types[e] : 0;
        const auto value = static_cast<std::uint32_t>(ends[e]);
        row[i] = {type << 32 | (values > 0 ? value : 0), e, ends[e]};
      }
      // the edges of a row come in their own order, which breaks ties
      if (!std::is_sorted(row.begin(), row.end())) std::sort(row.begin(), row.end());
      for (std::int64_t i = 0; i < size; ++i) {
        out_index[begin + i] = row[i].value;
        out_order[begin + i] = row[i].edge;
        if (typed) out_type[begin + i] = static_cast<std::uint8_t>(row[i].key >> 32);
      }
    }
  });
  bool identity = true;
  for (std::int64_t i = 0; i < edges && identity; ++i) identity = out_order[i] == i;
  if (identity) order = new_tensor(key, {0}, ScalarType::Long);
  return {ptr, index, order, type};
}

}  // namespace
}  // namespace gtkern

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) { m.def(gtkern::kGroupEdgesSchema); }

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("group_edges", TORCH_BOX(&gtkern::group_edges));
}
