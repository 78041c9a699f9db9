// Forward of ragged_attention on the CPU. A task takes some heads of some graphs. For each graph
// and head: scores of a block of queries as one small product, softmax in vectors, their product
// with the values. Every output row is written by one task.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>

#include "ragged_attention/kernels.h"
#include "ragged_attention/pack.h"
#include "ragged_attention/product.h"

namespace gtkern::ragged_attention {
namespace {

// scores -> exp(score - the row's largest), with the row's largest and sum; `bits` drops some from
// the result, but not from the sum.
template <class A>
void soften(const Shape<A>& shape, std::int64_t rows, A* scores, const std::uint16_t* bits,
            A* largest, A* sum) {
  using L = Lanes<A>;
  using V = typename L::V;
  const std::int64_t last = shape.wide - L::kCount;
  const int tail = static_cast<int>(shape.keys - last);
  const V nothing = L::splat(-std::numeric_limits<A>::infinity());
  for (std::int64_t i = 0; i < rows; ++i, scores += shape.ld) {
    V best = nothing;
    for (std::int64_t j = 0; j < last; j += L::kCount) best = L::max_of(best, L::load(scores + j));
    const V end = L::first(tail, L::load(scores + last), nothing);
    L::store(scores + last, end);
    best = L::max_of(best, end);
    A peak = L::largest(best);
    // a row without keys has no largest score; any finite stand-in gives exp(-inf) = 0
    if (peak == -std::numeric_limits<A>::infinity()) peak = 0;
    const V base = L::splat(peak);
    V total = L::zero();
    for (std::int64_t j = 0; j < shape.wide; j += L::kCount) {
      V weight = L::exp2(L::sub(L::load(scores + j), base));
      total = L::add(total, weight);
      if (bits) weight = L::keep(bits[j / L::kCount], weight);
      L::store(scores + j, weight);
    }
    if (bits) bits += shape.ld / L::kCount;
    largest[i] = peak;
    sum[i] = L::sum(total);
  }
}

template <class T, class A>
class Worker {
 public:
  Worker(const Problem<T, A>& in, const Plan& plan, const QuadTable<A>& table,
         const Results<T, A>& to)
      : in_(in), plan_(plan), table_(table), to_(to), arena_(measure()) {
    const std::int64_t rows = padded<A>(in.max_nodes + in.slots);
    for (int c = 0; c < in.group(); ++c) {
      transposed_k_[c] = arena_.take(wide_ * rows);
      v_[c] = arena_.take(rows * wide_v_);
    }
    k_ = arena_.take(rows * wide_);
    q_ = arena_.take(most_block() * wide_);
    out_ = arena_.take(most_block() * wide_v_);
    scores_ = arena_.take(in.group() * most_scores());
    for (A** each : {&largest_, &sum_, &factor_}) *each = arena_.take(padded<A>(most_block()));
    if (in.dropout > 0) bits_.resize(kQuad * most_scores() / Lanes<A>::kCount);
  }

  void run(const Task& task) {
    for (std::int64_t graph = task.graph_begin; graph < task.graph_end; ++graph) {
      if (in_.size(graph) == 0) continue;
      const Shape<A> shape(in_.size(graph), in_.slots_of(graph), in_.group());
      std::int64_t begin = 0, end = shape.nodes;
      if (const Split* split = plan_.split_of(graph)) {
        begin = split->begin(task.part_begin, shape.nodes);
        end = split->begin(task.part_end, shape.nodes);
      }
      for (std::int64_t head = task.head_begin; head < task.head_end; head += in_.group()) {
        attend(graph, shape, head,
               static_cast<int>(std::min<std::int64_t>(in_.group(), task.head_end - head)), begin,
               end);
      }
    }
  }

 private:
  // a smaller graph may have larger blocks: see Shape
  std::int64_t most_block() const { return std::min<std::int64_t>(in_.max_nodes, 256); }
  std::int64_t most_scores() const {
    return Shape<A>::most_scores(in_.max_nodes, in_.slots, in_.group());
  }
  std::int64_t measure() {
    wide_ = padded<A>(in_.width);
    wide_v_ = padded<A>(in_.value_width);
    const std::int64_t rows = padded<A>(in_.max_nodes + in_.slots);
    return (in_.group() + 1) * rows * (wide_ + wide_v_) + most_block() * (wide_ + wide_v_) +
           in_.group() * most_scores() + 3 * padded<A>(most_block()) + 256;
  }

  void load_keys_and_values(std::int64_t graph, const Shape<A>& shape, std::int64_t head, int c) {
    const std::int64_t row = in_.heads * in_.width, row_v = in_.heads * in_.value_width;
    const std::int64_t first = in_.ptr[graph];
    widen<T, A>(in_.k + first * in_.k_row + head * in_.width, in_.k_row, shape.nodes, in_.width, 1,
                k_);
    widen<T, A>(in_.v + first * in_.v_row + head * in_.value_width, in_.v_row, shape.nodes,
                in_.value_width, 1, v_[c]);
    if (shape.keys > shape.nodes) {
      const std::int64_t slot = in_.set_of(graph) * in_.slots;
      widen<T, A>(in_.prefix_k + slot * row + head * in_.width, row, in_.slots, in_.width, 1,
                  k_ + shape.nodes * wide_);
      widen<T, A>(in_.prefix_v + slot * row_v + head * in_.value_width, row_v, in_.slots,
                  in_.value_width, 1, v_[c] + shape.nodes * wide_v_);
    }
    transpose<A>(k_, shape.keys, in_.width, shape.panel, transposed_k_[c]);
  }

  void prefetch(std::int64_t graph, const Shape<A>& shape, std::int64_t head) {
    if (head >= in_.heads) return;
    const std::int64_t first = in_.ptr[graph], n = shape.nodes;
    const std::int64_t column = head * in_.width, column_v = head * in_.value_width;
    const std::int64_t row_v = in_.heads * in_.value_width;
    prefetch_slices<false>(in_.q + first * in_.q_row + column, in_.q_row, n, in_.width);
    prefetch_slices<false>(in_.k + first * in_.k_row + column, in_.k_row, n, in_.width);
    prefetch_slices<false>(in_.v + first * in_.v_row + column_v, in_.v_row, n, in_.value_width);
    prefetch_slices<true>(to_.out + first * row_v + column_v, row_v, n, in_.value_width);
  }

  // The queries [begin, end) of a graph, by `count` heads.
  void attend(std::int64_t graph, const Shape<A>& shape, std::int64_t head, int count,
              std::int64_t begin, std::int64_t end) {
    if (!shape.whole()) {
      for (int c = 0; c < count; ++c) load_keys_and_values(graph, shape, head + c, c);
    }
    for (std::int64_t at = begin; at < end; at += shape.block) {
      const std::int64_t rows = std::min(shape.block, end - at);
      const std::int64_t head_stride = rows * shape.ld;
      if (!table_.empty()) {
        const std::int64_t pair = in_.pair_ptr[graph] + at * shape.nodes;
        table_.look_up(head / kQuad, count, pair, rows, shape, scores_, head_stride);
      }
      if (in_.dropout > 0) {
        draw_keep_bits(in_, graph, head / kQuad, at, rows, shape, bits_.data());
      }
      for (int c = 0; c < count; ++c) {
        const int slot = shape.whole() ? 0 : c;
        if (shape.whole()) {
          prefetch(graph, shape, head + c + 1);
          load_keys_and_values(graph, shape, head + c, 0);
        }
        block(in_.ptr[graph] + at, rows, shape, head + c, slot, scores_ + c * head_stride,
              bits_.empty() ? nullptr : bits_.data() + c * head_stride / Lanes<A>::kCount);
      }
    }
  }

  // `rows` queries from row `query` of the batch, by one head.
  void block(std::int64_t query, std::int64_t rows, const Shape<A>& shape, std::int64_t head,
             int slot, A* scores, const std::uint16_t* bits) {
    using L = Lanes<A>;
    const std::int64_t row_v = in_.heads * in_.value_width;
    widen<T, A>(in_.q + query * in_.q_row + head * in_.width, in_.q_row, rows, in_.width,
                static_cast<A>(in_.scale * kLog2E), q_);
    if (table_.empty()) {
      product_by_panels<A, Into::kSet>(q_, wide_, transposed_k_[slot], wide_, scores, shape.ld,
                                       rows, shape.wide, in_.width, shape.panel);
    } else {
      product_by_panels<A, Into::kAdd>(q_, wide_, transposed_k_[slot], wide_, scores, shape.ld,
                                       rows, shape.wide, in_.width, shape.panel);
    }
    soften(shape, rows, scores, bits, largest_, sum_);
    product<A, false, Into::kSet>(scores, shape.ld, v_[slot], wide_v_, out_, wide_v_, rows, wide_v_,
                                  shape.keys);
    const A kept = static_cast<A>(1 / (1 - in_.dropout));
    for (std::int64_t i = 0; i < rows; ++i) factor_[i] = sum_[i] == 0 ? A{0} : kept / sum_[i];
    for (std::int64_t i = 0; i < rows; i += L::kCount) {
      const auto log = L::add(L::log2(L::load(sum_ + i)), L::load(largest_ + i));
      L::store(largest_ + i, L::mul(log, L::splat(static_cast<A>(kLn2))));
    }
    for (std::int64_t i = 0; i < rows; ++i) to_.lse[(query + i) * in_.heads + head] = largest_[i];
    narrow<T, A>(out_, rows, in_.value_width, 1, factor_,
                 to_.out + query * row_v + head * in_.value_width, row_v);
  }

  const Problem<T, A>& in_;
  const Plan& plan_;
  const QuadTable<A>& table_;
  const Results<T, A>& to_;
  std::int64_t wide_ = 0, wide_v_ = 0;
  Arena<A> arena_;
  A *transposed_k_[kQuad] = {}, *v_[kQuad] = {}, *k_, *q_, *out_, *scores_;
  A *largest_, *sum_, *factor_;
  std::vector<std::uint16_t> bits_;
};

}  // namespace

template <class T, class A>
void forward(const Problem<T, A>& in, const Results<T, A>& to) {
  const QuadTable<A> table(in);
  const Plan cut = plan(in, std::numeric_limits<std::int64_t>::max());
  for_each_block_with(
      static_cast<std::int64_t>(cut.tasks.size()), [&] { return Worker<T, A>(in, cut, table, to); },
      [&](std::int64_t at, Worker<T, A>& worker) { worker.run(cut.tasks[at]); });
}

template void forward(const Problem<float, float>&, const Results<float, float>&);
template void forward(const Problem<double, double>&, const Results<double, double>&);
template void forward(const Problem<c10::BFloat16, float>&, const Results<c10::BFloat16, float>&);
template void forward(const Problem<c10::Half, float>&, const Results<c10::Half, float>&);

}  // namespace gtkern::ragged_attention
