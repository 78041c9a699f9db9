// Backward of ragged_attention on the CPU. As forward, a task takes some heads of some graphs,
// computes the scores again from lse, and owns every row that it writes. What belongs to the whole
// batch (tables, prefix) is summed by chunk of graphs, and the chunks' sums are added in order.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>

#include "ragged_attention/kernels.h"
#include "ragged_attention/pack.h"
#include "ragged_attention/product.h"

namespace gtkern::ragged_attention {
namespace {

// Sums over the batch, one part for each chunk, and over the queries of split graphs, one part for
// each of theirs (see Split); null where not wanted.
template <class A>
struct Partial {
  A *table = nullptr, *prefix_k = nullptr, *prefix_v = nullptr;
  A *k = nullptr, *v = nullptr;
};

// scores and grad = dP -> dropped p, and ds = p (dP - delta). delta = sum of p dP is summed here:
// taken as grad_out . out it would bring in how `out` was rounded, which tables' gradients, sums of
// many ds, would show.
template <class A>
void differentiate(const Shape<A>& shape, std::int64_t rows, A* scores, A* grad,
                   const std::uint16_t* bits, A kept, const A* lse) {
  using L = Lanes<A>;
  using V = typename L::V;
  const std::int64_t last = shape.wide - L::kCount;
  const int tail = static_cast<int>(shape.keys - last);
  const V scale = L::splat(kept);
  for (std::int64_t i = 0; i < rows; ++i, scores += shape.ld, grad += shape.ld) {
    const V base = L::splat(lse[i]);
    V sum = L::zero();
    const auto first_pass = [&](std::int64_t j, V p, V d) {
      if (bits) d = L::keep(bits[j / L::kCount], L::mul(d, scale));
      sum = L::fma(p, d, sum);
      L::store(scores + j, p);
      L::store(grad + j, d);
    };
    for (std::int64_t j = 0; j < last; j += L::kCount) {
      first_pass(j, L::exp2(L::sub(L::load(scores + j), base)), L::load(grad + j));
    }
    first_pass(last, L::first(tail, L::exp2(L::sub(L::load(scores + last), base)), L::zero()),
               L::first(tail, L::load(grad + last), L::zero()));
    const V delta = L::splat(L::sum(sum));
    for (std::int64_t j = 0; j < shape.wide; j += L::kCount) {
      const V p = L::load(scores + j);
      L::store(grad + j, L::mul(p, L::sub(L::load(grad + j), delta)));
      if (bits) L::store(scores + j, L::keep(bits[j / L::kCount], L::mul(p, scale)));
    }
    if (bits) bits += shape.ld / L::kCount;
  }
}

template <class T, class A>
class Worker {
 public:
  Worker(const Problem<T, A>& in, const Plan& plan, const QuadTable<A>& table,
         const Backward<T, A>& to, const Partial<A>& partial)
      : in_(in), plan_(plan), table_(table), to_(to), partial_(partial), arena_(measure()) {
    const std::int64_t rows = padded<A>(in.max_nodes + in.slots);
    for (int c = 0; c < in.group(); ++c) {
      for (A** each : {&k_[c], &transposed_k_[c], &grad_k_[c]}) *each = arena_.take(rows * wide_);
      for (A** each : {&transposed_v_[c], &grad_v_[c]}) *each = arena_.take(rows * wide_v_);
    }
    v_ = arena_.take(rows * wide_v_);
    for (A** each : {&q_, &grad_q_}) *each = arena_.take(most_block() * wide_);
    grad_out_ = arena_.take(most_block() * wide_v_);
    for (A** each : {&scores_, &grad_scores_}) *each = arena_.take(in.group() * most_scores());
    lse_ = arena_.take(most_block());
    if (in.dropout > 0) bits_.resize(kQuad * most_scores() / Lanes<A>::kCount);
  }

  void run(const Task& task) {
    chunk_ = task.chunk;
    const std::int64_t heads = task.head_end - task.head_begin;
    const auto clear = [&](A* sums, std::int64_t size) {
      if (sums)
        std::fill_n(sums + (chunk_ * in_.heads + task.head_begin) * size, heads * size, A{});
    };
    clear(partial_.prefix_k, in_.sets * in_.slots * wide_);
    clear(partial_.prefix_v, in_.sets * in_.slots * wide_v_);
    if (partial_.table) {
      const std::int64_t first = task.head_begin / kQuad, end = (task.head_end + kQuad - 1) / kQuad;
      std::fill_n(table_sums(first), (end - first) * table_.quad_size(), A{});
    }
    for (std::int64_t graph = task.graph_begin; graph < task.graph_end; ++graph) {
      if (in_.size(graph) == 0) continue;
      const Shape<A> shape(in_.size(graph), in_.slots_of(graph), in_.group());
      const Split* split = plan_.split_of(graph);
      for (std::int64_t head = task.head_begin; head < task.head_end; head += in_.group()) {
        const int count =
            static_cast<int>(std::min<std::int64_t>(in_.group(), task.head_end - head));
        if (!split) {
          differentiate_graph(graph, shape, head, count, 0, shape.nodes, -1);
          continue;
        }
        for (std::int64_t part = task.part_begin; part < std::min(task.part_end, split->parts);
             ++part) {
          differentiate_graph(graph, shape, head, count, split->begin(part, shape.nodes),
                              split->begin(part + 1, shape.nodes),
                              split->first_row + part * in_.heads * shape.nodes);
        }
      }
    }
  }

 private:
  bool wants_keys() const { return to_.k || to_.prefix_k; }
  bool wants_values() const { return to_.v || to_.prefix_v; }
  bool wants_scores() const { return wants_keys() || to_.q || to_.table; }
  A* table_sums(std::int64_t quad) const {
    return partial_.table + (chunk_ * in_.quads() + quad) * table_.quad_size();
  }

  std::int64_t most_block() const { return std::min<std::int64_t>(in_.max_nodes, 256); }
  std::int64_t most_scores() const {
    return Shape<A>::most_scores(in_.max_nodes, in_.slots, in_.group());
  }
  std::int64_t measure() {
    wide_ = padded<A>(in_.width);
    wide_v_ = padded<A>(in_.value_width);
    const std::int64_t rows = padded<A>(in_.max_nodes + in_.slots);
    return in_.group() * rows * (3 * wide_ + 2 * wide_v_) + rows * wide_v_ +
           most_block() * (2 * wide_ + wide_v_) + 2 * in_.group() * most_scores() +
           padded<A>(most_block()) + 256;
  }

  void load_keys_and_values(std::int64_t graph, const Shape<A>& shape, std::int64_t head,
                            int slot) {
    const std::int64_t row = in_.heads * in_.width, row_v = in_.heads * in_.value_width;
    const std::int64_t first = in_.ptr[graph];
    A* k = k_[slot];
    widen<T, A>(in_.k + first * in_.k_row + head * in_.width, in_.k_row, shape.nodes, in_.width, 1,
                k);
    widen<T, A>(in_.v + first * in_.v_row + head * in_.value_width, in_.v_row, shape.nodes,
                in_.value_width, 1, v_);
    if (shape.keys > shape.nodes) {
      const std::int64_t first_slot = in_.set_of(graph) * in_.slots;
      widen<T, A>(in_.prefix_k + first_slot * row + head * in_.width, row, in_.slots, in_.width, 1,
                  k + shape.nodes * wide_);
      widen<T, A>(in_.prefix_v + first_slot * row_v + head * in_.value_width, row_v, in_.slots,
                  in_.value_width, 1, v_ + shape.nodes * wide_v_);
    }
    transpose<A>(k, shape.keys, in_.width, shape.panel, transposed_k_[slot]);
    if (wants_scores()) {
      transpose<A>(v_, shape.keys, in_.value_width, shape.panel, transposed_v_[slot]);
    }
  }

  void prefetch(std::int64_t graph, const Shape<A>& shape, std::int64_t head) {
    if (head >= in_.heads) return;
    const std::int64_t first = in_.ptr[graph], n = shape.nodes;
    const std::int64_t column = head * in_.width, column_v = head * in_.value_width;
    const std::int64_t row = in_.heads * in_.width, row_v = in_.heads * in_.value_width;
    prefetch_slices<false>(in_.q + first * in_.q_row + column, in_.q_row, n, in_.width);
    prefetch_slices<false>(in_.k + first * in_.k_row + column, in_.k_row, n, in_.width);
    prefetch_slices<false>(in_.v + first * in_.v_row + column_v, in_.v_row, n, in_.value_width);
    prefetch_slices<false>(to_.grad_out + first * row_v + column_v, row_v, n, in_.value_width);
    if (to_.q) prefetch_slices<true>(to_.q + first * row + column, row, n, in_.width);
    if (to_.k) prefetch_slices<true>(to_.k + first * row + column, row, n, in_.width);
    if (to_.v) prefetch_slices<true>(to_.v + first * row_v + column_v, row_v, n, in_.value_width);
  }

  // The part of the queries [begin, end) of a graph, by `count` heads. The sums over them become
  // the keys' and values' gradients, or those of a part of a split graph, whose rows of head 0
  // begin at `sums`.
  void differentiate_graph(std::int64_t graph, const Shape<A>& shape, std::int64_t head, int count,
                           std::int64_t begin, std::int64_t end, std::int64_t sums) {
    if (!shape.whole()) {
      for (int c = 0; c < count; ++c) load_keys_and_values(graph, shape, head + c, c);
    }
    for (std::int64_t at = begin; at < end; at += shape.block) {
      const std::int64_t rows = std::min(shape.block, end - at);
      const std::int64_t head_stride = rows * shape.ld;
      const std::int64_t pair = in_.pair_ptr[graph] + at * shape.nodes;
      if (!table_.empty()) {
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
        block(in_.ptr[graph] + at, rows, shape, head + c, slot, at == begin,
              scores_ + c * head_stride, grad_scores_ + c * head_stride,
              bits_.empty() ? nullptr : bits_.data() + c * head_stride / Lanes<A>::kCount);
        if (shape.whole()) store_keys_and_values(graph, shape, head + c, 0, sums);
      }
      if (partial_.table) {
        table_.scatter(count, pair, rows, shape, grad_scores_, head_stride,
                       table_sums(head / kQuad));
      }
    }
    if (!shape.whole()) {
      for (int c = 0; c < count; ++c) store_keys_and_values(graph, shape, head + c, c, sums);
    }
  }

  // The part of `rows` queries from row `query` of the batch, by one head.
  void block(std::int64_t query, std::int64_t rows, const Shape<A>& shape, std::int64_t head,
             int slot, bool first, A* scores, A* grad_scores, const std::uint16_t* bits) {
    const std::int64_t row = in_.heads * in_.width, row_v = in_.heads * in_.value_width;
    widen<T, A>(in_.q + query * in_.q_row + head * in_.width, in_.q_row, rows, in_.width,
                static_cast<A>(in_.scale * kLog2E), q_);
    widen<T, A>(to_.grad_out + query * row_v + head * in_.value_width, row_v, rows, in_.value_width,
                1, grad_out_);
    load_lse(query, rows, head);
    if (table_.empty()) {
      product_by_panels<A, Into::kSet>(q_, wide_, transposed_k_[slot], wide_, scores, shape.ld,
                                       rows, shape.wide, in_.width, shape.panel);
    } else {
      product_by_panels<A, Into::kAdd>(q_, wide_, transposed_k_[slot], wide_, scores, shape.ld,
                                       rows, shape.wide, in_.width, shape.panel);
    }
    if (wants_scores()) {
      product_by_panels<A, Into::kSet>(grad_out_, wide_v_, transposed_v_[slot], wide_v_,
                                       grad_scores, shape.ld, rows, shape.wide, in_.value_width,
                                       shape.panel);
    }
    differentiate(shape, rows, scores, grad_scores, bits, static_cast<A>(1 / (1 - in_.dropout)),
                  lse_);
    if (wants_values()) {
      gather(first, scores, shape, grad_out_, wide_v_, rows, grad_v_[slot]);
    }
    if (wants_keys()) gather(first, grad_scores, shape, q_, wide_, rows, grad_k_[slot]);
    if (to_.q) {
      product<A, false, Into::kSet>(grad_scores, shape.ld, k_[slot], wide_, grad_q_, wide_, rows,
                                    wide_, shape.keys);
      narrow<T, A>(grad_q_, rows, in_.width, static_cast<A>(in_.scale), nullptr,
                   to_.q + query * row + head * in_.width, row);
    }
  }

  // to[j] (+)= sum over queries i of weight[i][j] from[i].
  void gather(bool first, const A* weight, const Shape<A>& shape, const A* from, std::int64_t wide,
              std::int64_t rows, A* to) {
    if (first) {
      product<A, true, Into::kSet>(weight, shape.ld, from, wide, to, wide, shape.keys, wide, rows);
    } else {
      product<A, true, Into::kAdd>(weight, shape.ld, from, wide, to, wide, shape.keys, wide, rows);
    }
  }

  // In units of log2.
  void load_lse(std::int64_t query, std::int64_t rows, std::int64_t head) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const A lse = to_.lse[(query + i) * in_.heads + head];
      // a query without keys: exp(score - inf) = 0
      lse_[i] = lse == -std::numeric_limits<A>::infinity() ? -lse : lse * static_cast<A>(kLog2E);
    }
  }

  void store_keys_and_values(std::int64_t graph, const Shape<A>& shape, std::int64_t head, int slot,
                             std::int64_t sums) {
    const std::int64_t row = in_.heads * in_.width, row_v = in_.heads * in_.value_width;
    const std::int64_t first = in_.ptr[graph];
    // q_ has scale * log2(e) in it, and the scores' gradients are those of natural scores
    const A unit = static_cast<A>(kLn2);
    if (sums >= 0) {
      const std::int64_t at = sums + head * shape.nodes;
      if (to_.k) std::copy_n(grad_k_[slot], shape.nodes * wide_, partial_.k + at * wide_);
      if (to_.v) std::copy_n(grad_v_[slot], shape.nodes * wide_v_, partial_.v + at * wide_v_);
    } else {
      if (to_.k) {
        narrow<T, A>(grad_k_[slot], shape.nodes, in_.width, unit, nullptr,
                     to_.k + first * row + head * in_.width, row);
      }
      if (to_.v) {
        narrow<T, A>(grad_v_[slot], shape.nodes, in_.value_width, 1, nullptr,
                     to_.v + first * row_v + head * in_.value_width, row_v);
      }
    }
    const std::int64_t set = in_.set_of(graph);
    const auto add = [&](A* sums, const A* mine, std::int64_t size, A factor) {
      if (!sums || set < 0) return;
      sums += ((chunk_ * in_.heads + head) * in_.sets + set) * size;
      for (std::int64_t x = 0; x < size; ++x) sums[x] += factor * mine[x];
    };
    add(partial_.prefix_k, grad_k_[slot] + shape.nodes * wide_, in_.slots * wide_, unit);
    add(partial_.prefix_v, grad_v_[slot] + shape.nodes * wide_v_, in_.slots * wide_v_, 1);
  }

  const Problem<T, A>& in_;
  const Plan& plan_;
  const QuadTable<A>& table_;
  const Backward<T, A>& to_;
  const Partial<A>& partial_;
  std::int64_t wide_ = 0, wide_v_ = 0, chunk_ = 0;
  Arena<A> arena_;
  A *k_[kQuad] = {}, *transposed_k_[kQuad] = {}, *grad_k_[kQuad] = {};
  A *transposed_v_[kQuad] = {}, *grad_v_[kQuad] = {};
  A *v_, *q_, *grad_q_, *grad_out_, *scores_, *grad_scores_, *lse_;
  std::vector<std::uint16_t> bits_;
};

// to[slot][head][d] = the sum over chunks of [chunk][head][slot][wide], in order; slots of all
// sets.
template <class T, class A>
void merge_prefix(const Problem<T, A>& in, const A* partial, std::int64_t chunks,
                  std::int64_t width, T* to) {
  const std::int64_t wide = padded<A>(width), slots = in.sets * in.slots, size = slots * wide;
  std::vector<A> sum(size);
  for (std::int64_t head = 0; head < in.heads; ++head) {
    std::fill(sum.begin(), sum.end(), A{});
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const A* mine = partial + (chunk * in.heads + head) * size;
      for (std::int64_t x = 0; x < size; ++x) sum[x] += mine[x];
    }
    narrow<T, A>(sum.data(), slots, width, 1, nullptr, to + head * width, in.heads * width);
  }
}

// A graph's gradient to[i][head][d] = factor times the sum over its parts of
// [part][head][i][wide], in order.
template <class T, class A>
void merge_parts(const Problem<T, A>& in, const Plan& plan, A* partial, std::int64_t width,
                 A factor, T* to) {
  const std::int64_t wide = padded<A>(width), row = in.heads * width;
  const std::int64_t count = static_cast<std::int64_t>(plan.splits.size());
  for_each_block(count * in.heads, [&](std::int64_t at) {
    const Split& split = plan.splits[at / in.heads];
    const std::int64_t head = at % in.heads, nodes = in.size(split.graph);
    A* sum = partial + (split.first_row + head * nodes) * wide;
    for (std::int64_t part = 1; part < split.parts; ++part) {
      const A* mine = sum + part * in.heads * nodes * wide;
      for (std::int64_t x = 0; x < nodes * wide; ++x) sum[x] += mine[x];
    }
    narrow<T, A>(sum, nodes, width, factor, nullptr, to + in.ptr[split.graph] * row + head * width,
                 row);
  });
}

}  // namespace

template <class T, class A>
void backward(const Problem<T, A>& in, const Backward<T, A>& grad) {
  const QuadTable<A> table(in);
  const std::int64_t by_prefix =
      in.heads * in.sets * in.slots *
      ((grad.prefix_k ? padded<A>(in.width) : 0) + (grad.prefix_v ? padded<A>(in.value_width) : 0));
  const std::int64_t by_table = grad.table ? in.quads() * table.quad_size() : 0;
  // what the chunks' sums may take, in values
  constexpr std::int64_t kMostPartial = 1 << 22;
  const std::int64_t most_chunks = std::clamp<std::int64_t>(
      kMostPartial / std::max<std::int64_t>(by_prefix + by_table, 1), 4, 1 << 20);
  const Plan cut = plan(in, most_chunks);

  Arena<A> arena(cut.chunks * (by_prefix + by_table) + 64);
  Partial<A> partial;
  if (grad.table) partial.table = arena.take(cut.chunks * by_table);
  const std::int64_t rows = cut.chunks * in.heads * in.sets * in.slots;
  if (grad.prefix_k) partial.prefix_k = arena.take(rows * padded<A>(in.width));
  if (grad.prefix_v) partial.prefix_v = arena.take(rows * padded<A>(in.value_width));
  Arena<A> by_part(cut.split_rows *
                   ((grad.k ? padded<A>(in.width) : 0) + (grad.v ? padded<A>(in.value_width) : 0)));
  if (grad.k) partial.k = by_part.take(cut.split_rows * padded<A>(in.width));
  if (grad.v) partial.v = by_part.take(cut.split_rows * padded<A>(in.value_width));

  for_each_block_with(
      static_cast<std::int64_t>(cut.tasks.size()),
      [&] { return Worker<T, A>(in, cut, table, grad, partial); },
      [&](std::int64_t at, Worker<T, A>& worker) { worker.run(cut.tasks[at]); });

  if (grad.k) {
    // as in Worker: the products had scale * log2(e) in them
    merge_parts<T, A>(in, cut, partial.k, in.width, static_cast<A>(kLn2), grad.k);
  }
  if (grad.v) merge_parts<T, A>(in, cut, partial.v, in.value_width, 1, grad.v);
  if (grad.table) {
    table.merge(partial.table, cut.chunks, in.quads(), in.heads, in.table_rows, grad.table);
  }
  if (grad.prefix_k) merge_prefix(in, partial.prefix_k, cut.chunks, in.width, grad.prefix_k);
  if (grad.prefix_v) merge_prefix(in, partial.prefix_v, cut.chunks, in.value_width, grad.prefix_v);
}

template void backward(const Problem<float, float>&, const Backward<float, float>&);
template void backward(const Problem<double, double>&, const Backward<double, double>&);
template void backward(const Problem<c10::BFloat16, float>&, const Backward<c10::BFloat16, float>&);
template void backward(const Problem<c10::Half, float>&, const Backward<c10::Half, float>&);

}  // namespace gtkern::ragged_attention
