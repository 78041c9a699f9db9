// sampled_attention for CPU tensors: the direct kernels where they take the problem. Else it drops
// the padding, groups the neighbours by edge type inside a row (and, for backward, by source), and
// calls the shared attention kernels.

#include <torch/csrc/stable/library.h>

#include <type_traits>
#include <vector>

#include "common/attention/binding.h"
#include "common/counting_sort.h"
#include "common/parallel.h"
#include "sampled_attention/direct.h"
#include "sampled_attention/schema.h"

namespace gtkern::sampled_attention {
namespace {

using torch::stable::Tensor;

// The neighbours as edges; an edge's number is its place i * K + s.
class Grouped {
 public:
  attention::Edges edges() const {
    return {static_cast<std::int64_t>(ptr_.size()) - 1, ptr_.data(), index_.data(), place_.data(),
            type_.empty() ? nullptr : type_.data()};
  }

  // Rows are destinations; ascending by type inside a row.
  static Grouped by_destination(const Tensor& neighbors, const Tensor& edge_type) {
    const std::int64_t rows = neighbors.size(0), width = neighbors.size(1);
    const std::int32_t* neighbor = neighbors.const_data_ptr<std::int32_t>();
    const std::uint8_t* type = pointer_or_null<std::uint8_t>(edge_type);
    Grouped grouped;
    grouped.ptr_.resize(rows + 1, 0);
    for (std::int64_t row = 0; row < rows; ++row) {
      std::int64_t real = 0;
      for (std::int64_t s = 0; s < width; ++s) real += neighbor[row * width + s] >= 0;
      grouped.ptr_[row + 1] = grouped.ptr_[row] + real;
    }
    grouped.resize(grouped.ptr_[rows], type != nullptr);
    for_each_range(rows, 1024, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t first = grouped.ptr_[row];
        std::int64_t last = first;
        for (std::int64_t place = row * width; place < (row + 1) * width; ++place) {
          if (neighbor[place] < 0) continue;
          // rows are short and nearly in order: insertion
          std::int64_t at = last++;
          for (; type && at > first && grouped.type_[at - 1] > type[place]; --at) {
            grouped.move(at - 1, at);
          }
          grouped.put(at, neighbor[place], place, type ? type[place] : 0);
        }
      }
    });
    return grouped;
  }

  // Rows are sources; ascending by type, then by destination.
  static Grouped by_source(const Grouped& rows, std::int64_t sources, std::int64_t width) {
    const std::int64_t edges = static_cast<std::int64_t>(rows.index_.size());
    const bool typed = !rows.type_.empty();
    std::vector<std::int64_t> by_type(typed ? edges : 0);
    if (typed) {
      counting_sort(
          edges, 256, nullptr, [&](std::int64_t i) { return rows.type_[i]; },
          [&](std::int64_t i, std::int64_t at) { by_type[at] = i; });
    }
    const auto edge = [&](std::int64_t i) { return typed ? by_type[i] : i; };
    Grouped grouped;
    grouped.ptr_.resize(sources + 1);
    grouped.resize(edges, typed);
    counting_sort(
        edges, sources, grouped.ptr_.data(), [&](std::int64_t i) { return rows.index_[edge(i)]; },
        [&](std::int64_t i, std::int64_t at) {
          const std::int64_t e = edge(i), place = rows.place_[e];
          grouped.put(at, static_cast<std::int32_t>(place / width), place,
                      typed ? rows.type_[e] : 0);
        });
    return grouped;
  }

 private:
  void resize(std::int64_t edges, bool typed) {
    index_.resize(edges);
    place_.resize(edges);
    if (typed) type_.resize(edges);
  }
  void put(std::int64_t at, std::int32_t index, std::int64_t place, std::uint8_t type) {
    index_[at] = index;
    place_[at] = place;
    if (!type_.empty()) type_[at] = type;
  }
  void move(std::int64_t from, std::int64_t to) {
    put(to, index_[from], place_[from], type_[from]);
  }

  std::vector<std::int64_t> ptr_, place_;
  std::vector<std::int32_t> index_;
  std::vector<std::uint8_t> type_;
};

Places places_of(const Tensor& neighbors, const Tensor& edge_type) {
  return {neighbors.size(1), neighbors.const_data_ptr<std::int32_t>(),
          pointer_or_null<std::uint8_t>(edge_type)};
}

attention::FourTensors forward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& neighbors, const Tensor& edge_type,
                               const OptionalTensor& key_table, const OptionalTensor& bias_table,
                               const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                               const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                               double scale, double clamp, double temperature, double dropout,
                               double eps, std::int64_t seed, bool return_scores) {
  std::vector<std::int64_t> scores_sizes;
  if (return_scores) scores_sizes = {neighbors.size(0), neighbors.size(1), q.size(1)};
  return attention::call_forward(
      q, k, v, {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, scores_sizes,
      true, [&]<class T, class A>(attention::Inputs<T, A> in, const attention::Results<T, A>& to) {
        if constexpr (std::is_same_v<A, float>) {
          if (forward_direct(places_of(neighbors, edge_type), in, to)) return;
        }
        const Grouped rows = Grouped::by_destination(neighbors, edge_type);
        in.csr = rows.edges();
        attention::forward(in, to);
      });
}

attention::NineTensors backward(const Tensor& grad_out, const OptionalTensor& grad_edge_out,
                                const OptionalTensor& grad_scores, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor&,
                                const Tensor& lse, const Tensor& neighbors, const Tensor& edge_type,
                                const std::vector<Tensor>&, const OptionalTensor& key_table,
                                const OptionalTensor& bias_table, const OptionalTensor& key_edge,
                                const OptionalTensor& bias_edge, const OptionalTensor& edge_query,
                                const OptionalTensor& edge_attr, double scale, double clamp,
                                double temperature, double dropout, double eps, std::int64_t seed,
                                std::int64_t needs) {
  return attention::call_backward(
      grad_out, grad_edge_out, grad_scores, q, k, v, out, lse,
      {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, needs, true,
      [&]<class T, class A>(attention::Inputs<T, A> in, attention::Backward<T, A> grad) {
        if constexpr (std::is_same_v<A, float>) {
          if (backward_direct(places_of(neighbors, edge_type), in, grad)) return;
        }
        const Grouped rows = Grouped::by_destination(neighbors, edge_type);
        const Grouped columns = Grouped::by_source(rows, k.size(0), neighbors.size(1));
        in.csr = rows.edges();
        grad.csc = columns.edges();
        attention::backward(in, grad);
      });
}

}  // namespace
}  // namespace gtkern::sampled_attention

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::sampled_attention::kForwardSchema);
  m.def(gtkern::sampled_attention::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("sampled_attention_fwd", TORCH_BOX(&gtkern::sampled_attention::forward));
  m.impl("sampled_attention_bwd", TORCH_BOX(&gtkern::sampled_attention::backward));
}
