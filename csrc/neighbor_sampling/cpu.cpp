// sample_neighbors for CPU tensors. Blocks of rows of about equal work are shared out. Most rows
// are drawn from, edge after edge, by their table; rows of few edges and what the draws left over
// are raced.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "neighbor_sampling/row_draws.h"
#include "neighbor_sampling/row_race.h"
#include "neighbor_sampling/schema.h"

namespace gtkern::neighbor_sampling {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

class Sampler {
 public:
  explicit Sampler(const Edges& edges) : edges_(edges), race_(edges) {}

  // Rows begin .. end. First the positions drawn, where the edges will stand; then, with all of
  // them known, what they stand for: reads far apart that are fetched ahead.
  void rows(const Layer& layer, std::int64_t begin, std::int64_t end) {
    if (layer_ != &layer) {
      layer_ = &layer;
      race_.start(layer);
      draws_.start(layer);
    }
    for (std::int64_t row = begin; row < end; ++row) draw(row);
    if (edges_.edge_id) {
      layer.type ? read<true, true>(begin * layer.k, end * layer.k)
                 : read<true, false>(begin * layer.k, end * layer.k);
    } else {
      layer.type ? read<false, true>(begin * layer.k, end * layer.k)
                 : read<false, false>(begin * layer.k, end * layer.k);
    }
  }

 private:
  void draw(std::int64_t row) {
    const std::int64_t begin = edges_.ptr[row], end = edges_.ptr[row + 1], k = layer_->k;
    std::int64_t* drawn = layer_->edge + row * k;
    std::int64_t taken = 0;
    if (!layer_->top && is_drawn(end - begin, k)) {
      const RowTable row_table = table(begin, end);
      taken = row_table.total() > 0 ? draws_.draw(row, begin, row_table, drawn) : 0;
      if (taken == k) return;
      if (row_table.total() > 0) taken = race_for_rest(begin, end, taken, drawn);
    } else if (end - begin > k) {
      taken = race_.race(begin, end, k, nullptr, 0, drawn);
    } else {
      taken = take_all(begin, end, drawn);
    }
    std::int64_t filled = taken;
    if (taken > 0 && taken < k && !layer_->pad) {
      draw_again(row, begin, end, taken, drawn);
      filled = k;
    }
    std::fill(drawn + filled, drawn + k, -1);
  }

  // The places that the draws left, behind the `taken` edges that they took.
  std::int64_t race_for_rest(std::int64_t begin, std::int64_t end, std::int64_t taken,
                             std::int64_t* drawn) {
    std::int64_t out[kMostDrawn];
    std::copy_n(drawn, taken, out);
    std::int64_t* rest = drawn + taken;
    const std::int64_t raced = race_.race(begin, end, layer_->k - taken, out, taken, rest);
    std::inplace_merge(drawn, rest, rest + raced);
    return taken + raced;
  }

  std::int64_t take_all(std::int64_t begin, std::int64_t end, std::int64_t* drawn) {
    if (!layer_->weight) {
      for (std::int64_t p = begin; p < end; ++p) drawn[p - begin] = p;
      return end - begin;
    }
    std::int64_t taken = 0;
    const bool sorted = layer_->sorted(edges_);
    for (std::int64_t p = begin; p < end; ++p) {
      drawn[taken] = p;
      taken += is_candidate(layer_->weight[sorted ? p : edges_.id(p)]);
    }
    return taken;
  }

  RowTable table(std::int64_t begin, std::int64_t end) {
    const std::int64_t n = end - begin;
    if (!layer_->weight) return {nullptr, n};
    if (layer_->prefix) return {layer_->prefix + begin, n};
    if (n > static_cast<std::int64_t>(weight_.size())) {
      weight_.resize(n);
      prefix_.resize(n + kLanes);
    }
    make_row_table(weights_of(edges_, *layer_, begin, end, weight_.data()), n, prefix_.data());
    return {prefix_.data(), n};
  }

  // Fills the places behind what was taken by draws in proportion to the weights.
  void draw_again(std::int64_t row, std::int64_t begin, std::int64_t end, std::int64_t taken,
                  std::int64_t* drawn) {
    const RowTable row_table = table(begin, end);
    PhiloxWords words{};
    for (std::int64_t draw = 0; draw < layer_->k - taken; ++draw) {
      if (draw % 4 == 0) {
        words =
            philox4x32_10({{static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(draw / 4),
                            layer_->number | kFillStream, layer_->epoch}},
                          layer_->seed);
      }
      drawn[taken + draw] = begin + row_table.hit(words.word[draw % 4]);
    }
  }

  template <bool IDS, bool TYPES>
  void read(std::int64_t begin, std::int64_t end) const {
    // edges are far apart, so they are fetched ahead
    constexpr std::int64_t kAhead = 32;
    const std::int32_t* col = edges_.col;
    const std::int64_t* edge_id = edges_.edge_id;
    const std::uint8_t* types = edges_.type;
    std::int32_t* index = layer_->index;
    std::int64_t* edge = layer_->edge;
    std::uint8_t* type = layer_->type;
    const auto fetch = [&](std::int64_t i) {
      // -1, none, is no place to fetch from
      const std::int64_t position = std::max<std::int64_t>(edge[i], 0);
      __builtin_prefetch(col + position);
      if constexpr (IDS) __builtin_prefetch(edge_id + position);
      if constexpr (TYPES) __builtin_prefetch(types + position);
    };
    for (std::int64_t i = begin; i < std::min(begin + kAhead, end); ++i) fetch(i);
    for (std::int64_t i = begin; i < end; ++i) {
      fetch(std::min(i + kAhead, end - 1));
      const std::int64_t position = edge[i];
      const bool real = position >= 0;
      index[i] = real ? col[position] : -1;
      if (IDS && real) edge[i] = edge_id[position];
      if constexpr (TYPES) type[i] = real ? types[position] : 0;
    }
  }

  const Edges& edges_;
  const Layer* layer_ = nullptr;
  RowRace race_;
  RowDraws draws_;
  // of the row at hand, where there is no table
  std::vector<float> weight_;
  std::vector<std::uint32_t> prefix_;
};

std::tuple<Tensor, Tensor, Tensor> sample(const Tensor& row_ptr, const Tensor& col,
                                          const Tensor& edge_id, const Tensor& edge_type,
                                          const OptionalTensor& weight,
                                          const OptionalTensor& prefix,
                                          const std::vector<std::int64_t>& k, std::int64_t seed,
                                          std::int64_t epoch, bool top, bool pad) {
  const Edges edges{row_ptr.numel() - 1,
                    col.numel(),
                    row_ptr.const_data_ptr<std::int64_t>(),
                    col.const_data_ptr<std::int32_t>(),
                    pointer_or_null<std::int64_t>(edge_id),
                    pointer_or_null<std::uint8_t>(edge_type)};
  std::int64_t places = 0;
  for (const std::int64_t count : k) places += edges.rows * count;
  Tensor index = new_output(row_ptr, {places}, ScalarType::Int);
  Tensor edge = new_output(row_ptr, {places}, ScalarType::Long);
  Tensor type = new_output(row_ptr, {edges.type ? places : 0}, ScalarType::Byte);

  std::vector<Layer> layers;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < k.size(); ++i) {
    const float* values = pointer_or_null<float>(weight);
    const std::uint32_t* sums = pointer_or_null<std::uint32_t>(prefix);
    if (weight && weight->size(0) > 1) {
      values += static_cast<std::int64_t>(i) * edges.count;
      if (sums) sums += static_cast<std::int64_t>(i) * edges.count;
    }
    layers.push_back({values, sums, k[i], static_cast<std::uint64_t>(seed),
                      static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(epoch), top, pad,
                      index.mutable_data_ptr<std::int32_t>() + begin,
                      edge.mutable_data_ptr<std::int64_t>() + begin,
                      edges.type ? type.mutable_data_ptr<std::uint8_t>() + begin : nullptr});
    begin += edges.rows * k[i];
  }
  // With a table, rows cost about the same whatever their edges; without, every edge is read.
  constexpr std::int64_t kRowWork = 16, kDrawnRowWork = 256;
  const RowBlocks blocks(edges.ptr, edges.rows,
                         !top && (prefix || !weight) ? kDrawnRowWork : kRowWork);
  for_each_block_with(
      blocks.count() * static_cast<std::int64_t>(layers.size()), [&] { return Sampler(edges); },
      [&](std::int64_t n, Sampler& sampler) {
        const std::int64_t block = n % blocks.count();
        sampler.rows(layers[n / blocks.count()], blocks.begin(block), blocks.end(block));
      });
  return {index, edge, type};
}

std::tuple<Tensor, Tensor> table(const Tensor& row_ptr, const Tensor& edge_id,
                                 const Tensor& weight) {
  const std::int64_t rows = row_ptr.numel() - 1, count = weight.size(1), layers = weight.size(0);
  const Edges edges{rows,
                    count,
                    row_ptr.const_data_ptr<std::int64_t>(),
                    nullptr,
                    pointer_or_null<std::int64_t>(edge_id),
                    nullptr};
  Tensor ordered = new_output(weight, {layers, count}, ScalarType::Float);
  Tensor prefix = new_output(weight, {layers, count}, ScalarType::UInt32);
  const float* in = weight.const_data_ptr<float>();
  float* out = ordered.mutable_data_ptr<float>();
  std::uint32_t* sums = static_cast<std::uint32_t*>(prefix.mutable_data_ptr());
  const RowBlocks blocks(edges.ptr, rows);
  for_each_block_with(
      blocks.count() * layers, [&] { return std::vector<std::uint32_t>(); },
      [&](std::int64_t n, std::vector<std::uint32_t>& buffer) {
        const std::int64_t block = n % blocks.count(), from = n / blocks.count() * count;
        Layer layer{};
        layer.weight = in + from;
        for (std::int64_t row = blocks.begin(block); row < blocks.end(block); ++row) {
          const std::int64_t begin = edges.ptr[row], end = edges.ptr[row + 1];
          float* mine = out + from + begin;
          const float* found = weights_of(edges, layer, begin, end, mine);
          if (found != mine) std::copy_n(found, end - begin, mine);
          buffer.resize(std::max<std::size_t>(buffer.size(), end - begin + kLanes));
          make_row_table(mine, end - begin, buffer.data());
          std::copy_n(buffer.data(), end - begin, sums + from + begin);
        }
      });
  return {ordered, prefix};
}

}  // namespace
}  // namespace gtkern::neighbor_sampling

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::neighbor_sampling::kSampleSchema);
  m.def(gtkern::neighbor_sampling::kTableSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("sample_neighbors", TORCH_BOX(&gtkern::neighbor_sampling::sample));
  m.impl("sampling_table", TORCH_BOX(&gtkern::neighbor_sampling::table));
}
