// additive_attention for CPU tensors: packs what the kernels gather, runs them over blocks of rows,
// and brings the sums back to the caller's layout.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "additive_attention/packed.h"
#include "additive_attention/schema.h"
#include "common/attention/interleave.h"
#include "common/check.h"
#include "common/dispatch.h"
#include "common/lanes.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox.h"

namespace gtkern::additive_attention {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// gathered rows that outgrow this are fetched ahead of their use
constexpr std::int64_t kNearCacheBytes = std::int64_t{1} << 20;

// heads so wide that folding their scores one by one costs little are read where they lie
constexpr int kWide = 64;

// How rows [heads, width] lie in memory for the kernels.
template <class A>
struct Layout {
  int heads, width, heads_of_group = 1, groups, vectors;
  bool whole;  // heads lie one by one, without padding: as the caller has them
  const Kernels<A>* kernels;

  Layout(int heads_, int width_, bool edge_attr)
      : heads(heads_), width(width_), whole(width >= kWide && width % Lanes<A>::kCount == 0) {
    if (std::is_same_v<A, float> && !whole) {
      while (heads_of_group < 8 && heads % (2 * heads_of_group) == 0) heads_of_group *= 2;
    }
    groups = heads / heads_of_group;
    vectors = static_cast<int>(padded<A>(heads_of_group * width) / Lanes<A>::kCount);
    kernels = &kernels_for<A>(heads_of_group, vectors, edge_attr);
    vectors = std::max(vectors, kernels->vectors);
  }
  std::int64_t group_size() const { return std::int64_t{vectors} * Lanes<A>::kCount; }
  std::int64_t row_size() const { return groups * group_size(); }
};

// Calls f with HG as a constant.
template <class F>
void with_group(int heads_of_group, const F& f) {
  switch (heads_of_group) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 8>());
  }
}

// A group's heads [HG, width] to its packed form, and back.
template <class T, class A>
void pack_group(const T* from, int heads_of_group, int width, std::int64_t size, A* to) {
  if constexpr (std::is_same_v<A, float>) {
    with_group(heads_of_group,
               [&](auto group) { attention::interleave<decltype(group)::value>(from, width, to); });
  } else {
    std::copy_n(from, width, to);
  }
  std::fill(to + heads_of_group * width, to + size, A(0));
}

template <class T, class A>
void unpack_group(const A* from, int heads_of_group, int width, T* to) {
  if constexpr (std::is_same_v<A, float>) {
    with_group(heads_of_group, [&](auto group) {
      attention::deinterleave<decltype(group)::value>(from, width, to);
    });
  } else {
    std::copy_n(from, width, to);
  }
}

template <class T, class A>
void pack_row(const Layout<A>& layout, const T* from, A* to) {
  const int taken = layout.heads_of_group * layout.width;
  for (int g = 0; g < layout.groups; ++g) {
    pack_group(from + std::int64_t{g} * taken, layout.heads_of_group, layout.width,
               layout.group_size(), to + g * layout.group_size());
  }
}

template <class T, class A>
void unpack_row(const Layout<A>& layout, const A* from, T* to) {
  const int taken = layout.heads_of_group * layout.width;
  for (int g = 0; g < layout.groups; ++g) {
    unpack_group(from + g * layout.group_size(), layout.heads_of_group, layout.width,
                 to + std::int64_t{g} * taken);
  }
}

template <class A>
constexpr std::int64_t floats(std::int64_t count) {
  return count * static_cast<std::int64_t>(sizeof(A) / sizeof(float));
}

// A pair of arrays [rows, heads, width], or a single one that is both; packed unless they lie as
// the kernels need them.
template <class T, class A>
class PackedRows {
 public:
  PackedRows(const Layout<A>& layout, std::int64_t rows, const T* first, const T* second)
      : memory_(in_place(layout) ? 0 : floats<A>(rows * layout.row_size() * (second ? 2 : 1))) {
    if constexpr (std::is_same_v<T, A>) {
      if (in_place(layout)) {
        rows_ = {first, second ? second : first, layout.row_size()};
        return;
      }
    }
    A* const to = reinterpret_cast<A*>(memory_.data());
    rows_.stride = layout.row_size() * (second ? 2 : 1);
    rows_.first = to;
    rows_.second = second ? to + layout.row_size() : to;
    const std::int64_t taken = std::int64_t{layout.heads} * layout.width;
    for_each_range(rows, 256, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        pack_row(layout, first + row * taken, to + row * rows_.stride);
        if (second) {
          pack_row(layout, second + row * taken, to + row * rows_.stride + layout.row_size());
        }
      }
    });
  }
  const Rows<A>& rows() const { return rows_; }

 private:
  static bool in_place(const Layout<A>& layout) { return std::is_same_v<T, A> && layout.whole; }

  Scratch memory_;
  Rows<A> rows_;
};

template <class T, class A>
void read_group(const EdgeRows<A>& rows, std::int64_t edge, int group, A* to) {
  const std::int64_t head = edge * rows.heads + group * rows.heads_of_group;
  pack_group(static_cast<const T*>(rows.from) + head * rows.width, rows.heads_of_group, rows.width,
             rows.size, to);
}

template <class T, class A>
void write_group(const EdgeRows<A>& rows, std::int64_t edge, int group, const A* from) {
  const std::int64_t head = edge * rows.heads + group * rows.heads_of_group;
  unpack_group(from, rows.heads_of_group, rows.width, static_cast<T*>(rows.to) + head * rows.width);
}

Edges edges_of(const Tensor& ptr, const Tensor& index, const Tensor& id) {
  return {ptr.numel() - 1, ptr.const_data_ptr<std::int64_t>(), pointer_or_null<std::int32_t>(index),
          pointer_or_null<std::int64_t>(id)};
}

// What a call's tensors say, with neither rows nor statistics yet.
template <class T, class A>
Packed<A> describe(const Layout<A>& layout, const Edges& edges, const OptionalTensor& edge_attr,
                   const A* attention, double slope, double dropout, std::int64_t seed) {
  Packed<A> p;
  p.groups = layout.groups;
  p.heads = layout.heads;
  p.vectors = layout.vectors;
  p.edges = edges;
  p.attr = {pointer_or_null<T>(edge_attr),
            nullptr,
            layout.heads,
            layout.width,
            layout.heads_of_group,
            layout.group_size(),
            &read_group<T, A>,
            &write_group<T, A>};
  p.attention = attention;
  p.slope = static_cast<A>(slope);
  p.dropout = dropout > 0;
  p.threshold = dropout_threshold(dropout);
  p.kept = static_cast<A>(1 / (1 - dropout));
  p.seed = static_cast<std::uint64_t>(seed);
  return p;
}

template <class A>
void set_gather(Packed<A>& p, const Rows<A>& rows, std::int64_t count) {
  p.gather = rows;
  const std::int64_t bytes = count * rows.stride * static_cast<std::int64_t>(sizeof(A));
  p.fetched = bytes > kNearCacheBytes ? p.edges.count() : 0;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k,
                                           const OptionalTensor& v, const Tensor& attention,
                                           const OptionalTensor& edge_attr, const Tensor& row_ptr,
                                           const Tensor& col, const Tensor& edge_id, double slope,
                                           double dropout, std::int64_t seed, bool return_scores) {
  const ScalarType dtype = q.scalar_type();
  const ScalarType sums = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const std::int64_t heads = q.size(1);
  Tensor out = new_output_like(q);
  Tensor lse = new_output(q, {q.size(0), heads}, sums);
  Tensor scores =
      return_scores ? new_output(q, {col.numel(), heads}, sums) : new_output(q, {0}, sums);
  dispatch(dtype, [&]<class T, class A>(T*, A*) {
    const Layout<A> layout(static_cast<int>(heads), static_cast<int>(q.size(2)),
                           edge_attr.has_value());
    const PackedRows<T, A> queries(layout, q.size(0), pointer_or_null<T>(q), nullptr);
    const PackedRows<T, A> pairs(layout, k.size(0), pointer_or_null<T>(k), pointer_or_null<T>(v));
    const PackedRows<T, A> weight(layout, 1, pointer_or_null<T>(attention), nullptr);
    Packed<A> p = describe<T, A>(layout, edges_of(row_ptr, col, edge_id), edge_attr,
                                 weight.rows().first, slope, dropout, seed);
    p.self = queries.rows();
    set_gather(p, pairs.rows(), k.size(0));
    T* const to = output_or_null<T>(out);
    const std::int64_t taken = heads * q.size(2);
    const RowBlocks blocks(p.edges.ptr, p.edges.rows);
    for_each_block(blocks.count(), [&](std::int64_t block) {
      const std::int64_t begin = blocks.begin(block), end = blocks.end(block);
      const Scratch memory(floats<A>((end - begin) * layout.row_size()));
      A* const rows = reinterpret_cast<A*>(memory.data());
      layout.kernels->forward(p, begin, end, rows, output_or_null<A>(lse),
                              output_or_null<A>(scores));
      for (std::int64_t row = begin; row < end; ++row) {
        unpack_row(layout, rows + (row - begin) * layout.row_size(), to + row * taken);
      }
    });
  });
  return {out, lse, scores};
}

// log2-sum-exp2 and grad_out . out of every destination and head.
template <class T, class A>
void fill_statistics(const Layout<A>& layout, const T* grad_out, const T* out, const A* lse,
                     std::int64_t rows, A* statistics) {
  const int hg = layout.heads_of_group;
  for_each_range(rows, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (int head = 0; head < layout.heads; ++head) {
        A* to = statistics + (row * layout.groups + head / hg) * 2 * hg + head % hg;
        const std::int64_t place = row * layout.heads + head;
        // a row without weight: exp(score - inf) = 0 for all of its edges
        const A log = lse[place] * static_cast<A>(kLog2E);
        to[0] = log == -std::numeric_limits<A>::infinity() ? -log : log;
        A delta = 0;
#pragma omp simd reduction(+ : delta)
        for (int d = 0; d < layout.width; ++d) {
          delta += static_cast<A>(grad_out[place * layout.width + d]) *
                   static_cast<A>(out[place * layout.width + d]);
        }
        to[hg] = delta;
      }
    }
  });
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

FiveTensors backward(const Tensor& grad_out, const OptionalTensor& grad_scores, const Tensor& q,
                     const Tensor& k, const OptionalTensor& v, const Tensor& attention,
                     const OptionalTensor& edge_attr, const Tensor& out, const Tensor& lse,
                     const Tensor& row_ptr, const Tensor& col, const Tensor& edge_id,
                     const Tensor& col_ptr, const Tensor& row_of, const Tensor& edge_id_t,
                     double slope, double dropout, std::int64_t seed, std::int64_t needs) {
  const auto wanted = [&](int bit, const OptionalTensor& like) {
    const bool there = (needs >> bit & 1) && like.has_value();
    return there ? new_output_like(*like) : new_output(q, {0}, q.scalar_type());
  };
  const Tensor grad_q = wanted(0, q), grad_k = wanted(1, k), grad_v = wanted(2, v);
  const Tensor grad_attention = wanted(3, attention), grad_attr = wanted(4, edge_attr);
  dispatch(q.scalar_type(), [&]<class T, class A>(T*, A*) {
    const Layout<A> layout(static_cast<int>(q.size(1)), static_cast<int>(q.size(2)),
                           edge_attr.has_value());
    const std::int64_t row_size = layout.row_size(), taken = q.size(1) * q.size(2);
    const PackedRows<T, A> pairs(layout, k.size(0), pointer_or_null<T>(k), pointer_or_null<T>(v));
    const PackedRows<T, A> weight(layout, 1, pointer_or_null<T>(attention), nullptr);
    const Scratch statistics(floats<A>(2 * q.size(0) * q.size(1)));
    Packed<A> p = describe<T, A>(layout, edges_of(row_ptr, col, edge_id), edge_attr,
                                 weight.rows().first, slope, dropout, seed);
    p.statistics = reinterpret_cast<A*>(statistics.data());
    p.grad_scores = pointer_or_null<A>(grad_scores);
    p.attr.to = output_or_null<T>(grad_attr);
    fill_statistics(layout, pointer_or_null<T>(grad_out), pointer_or_null<T>(out),
                    pointer_or_null<A>(lse), q.size(0), p.statistics);
    // an array without rows must still be a second one
    const T* const grads = static_cast<const T*>(grad_out.const_data_ptr());
    const PackedRows<T, A> queries(layout, q.size(0), pointer_or_null<T>(q), grads);
    p.self = queries.rows();
    set_gather(p, pairs.rows(), k.size(0));

    const RowBlocks blocks(p.edges.ptr, p.edges.rows);
    if (p.grad_scores) {
      for_each_block(blocks.count(), [&](std::int64_t block) {
        layout.kernels->score_delta(p, blocks.begin(block), blocks.end(block));
      });
    }
    if (needs & 0b11001) {
      std::vector<A> shares(blocks.count() * row_size);
      T* const to = output_or_null<T>(grad_q);
      for_each_block(blocks.count(), [&](std::int64_t block) {
        const std::int64_t begin = blocks.begin(block), end = blocks.end(block);
        const Scratch memory(floats<A>((end - begin) * row_size));
        A* const rows = reinterpret_cast<A*>(memory.data());
        layout.kernels->by_destination(p, begin, end, rows, shares.data() + block * row_size);
        for (std::int64_t row = begin; to && row < end; ++row) {
          unpack_row(layout, rows + (row - begin) * row_size, to + row * taken);
        }
      });
      // blocks do not depend on the thread count, so neither does the order of these sums
      std::vector<A> sum(row_size);
      for (std::int64_t block = 0; block < blocks.count(); ++block) {
        for (std::int64_t i = 0; i < row_size; ++i) sum[i] += shares[block * row_size + i];
      }
      if (T* to_attention = output_or_null<T>(grad_attention)) {
        unpack_row(layout, sum.data(), to_attention);
      }
    }
    if (!(needs & 0b00110)) return;

    p.edges = edges_of(col_ptr, row_of, edge_id_t);
    p.self = pairs.rows();
    set_gather(p, queries.rows(), q.size(0));
    T* const first_to = output_or_null<T>(grad_k);
    T* const second_to = output_or_null<T>(grad_v);
    const RowBlocks columns(p.edges.ptr, p.edges.rows);
    for_each_block(columns.count(), [&](std::int64_t block) {
      const std::int64_t begin = columns.begin(block), end = columns.end(block);
      const std::int64_t count = end - begin;
      const Scratch memory(floats<A>(count * row_size * (v ? 2 : 1)));
      A* const first = reinterpret_cast<A*>(memory.data());
      A* const second = v ? first + count * row_size : nullptr;
      layout.kernels->by_source(p, begin, end, first, second);
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t at = (row - begin) * row_size;
        if (first_to) unpack_row(layout, first + at, first_to + row * taken);
        if (second_to) unpack_row(layout, second + at, second_to + row * taken);
      }
    });
  });
  return {grad_q, grad_k, grad_v, grad_attention, grad_attr};
}

}  // namespace
}  // namespace gtkern::additive_attention

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::additive_attention::kForwardSchema);
  m.def(gtkern::additive_attention::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("additive_attention_fwd", TORCH_BOX(&gtkern::additive_attention::forward));
  m.impl("additive_attention_bwd", TORCH_BOX(&gtkern::additive_attention::backward));
}
