// CPU attention with every option, any dtype: plain loops over (row, head), the inner ones over the
// head width. Rows are independent; tables by edge type are summed over fixed blocks of rows.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <limits>
#include <vector>

#include "common/attention/problem.h"
#include "common/parallel.h"
#include "common/philox.h"

namespace gtkern::attention {
namespace {

template <class A, class T, class U>
A dot(const T* a, const U* b, int n) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int d = 0; d < n; ++d) sum += static_cast<A>(a[d]) * static_cast<A>(b[d]);
  return sum;
}

template <class A, class T>
void add_scaled(A* sum, A factor, const T* x, int n) {
#pragma omp simd
  for (int d = 0; d < n; ++d) sum[d] += factor * static_cast<A>(x[d]);
}

template <class A, class T>
void write(T* to, const A* from, int n) {
  for (int d = 0; d < n; ++d) to[d] = static_cast<T>(from[d]);
}

// One edge seen from either pass: its ends, number and type.
struct Edge {
  std::int64_t dst, src, id;
  int kind;
};

template <class T, class A>
class Scorer {
 public:
  explicit Scorer(const Inputs<T, A>& in)
      : in_(in),
        scale_(static_cast<A>(in.numbers.scale)),
        inverse_temperature_(static_cast<A>(1 / in.numbers.temperature)),
        threshold_(dropout_threshold(in.numbers.dropout)),
        kept_(static_cast<A>(1 / (1 - in.numbers.dropout))) {}

  // The score before the clamp.
  A raw(const Edge& e, int h) const {
    const int width = in_.width;
    const std::int64_t H = in_.heads;
    const T* q = in_.q + (e.dst * H + h) * width;
    const T* k = in_.k + (e.src * H + h) * width;
    A product = 0;
    if (!in_.key_table && !in_.key_edge) {
      product = dot<A>(q, k, width);
    } else {
      const A* table = in_.key_table ? in_.key_table + (e.kind * H + h) * width : nullptr;
      const A* edge = in_.key_edge ? in_.key_edge + (e.id * H + h) * width : nullptr;
      for (int d = 0; d < width; ++d) {
        A m = table ? table[d] : A(1);
        if (edge) m *= edge[d];
        product += static_cast<A>(q[d]) * m * static_cast<A>(k[d]);
      }
    }
    if (in_.edge_attr) {
      product += dot<A>(in_.edge_query + (e.dst * H + h) * in_.attr_width,
                        in_.edge_attr + e.id * in_.attr_width, in_.attr_width);
    }
    A score = scale_ * product;
    if (in_.bias_table) score += in_.bias_table[e.kind * H + h];
    if (in_.bias_edge) score += in_.bias_edge[e.id * H + h];
    return score * inverse_temperature_;
  }

  A clamped(A score) const {
    const A bound = static_cast<A>(in_.numbers.clamp);
    return score > bound ? bound : score < -bound ? -bound : score;
  }

  // 0 for a dropped score, else 1 / (1 - dropout).
  A keep(const Edge& e, int h) const {
    if (in_.numbers.dropout == 0) return 1;
    return item_word(in_.numbers.seed, e.id, h) >= threshold_ ? kept_ : A(0);
  }

  A scale() const { return scale_; }
  A inverse_temperature() const { return inverse_temperature_; }

 private:
  const Inputs<T, A>& in_;
  A scale_, inverse_temperature_;
  std::uint32_t threshold_;
  A kept_;
};

// The normalised score and the gradients of score and output that meet in one edge.
template <class A>
struct EdgeGradient {
  A p, kept_p, into_p, open;
};

template <class T, class A>
EdgeGradient<A> edge_gradient(const Inputs<T, A>& in, const Backward<T, A>& grad,
                              const Scorer<T, A>& scorer, const Edge& e, int h) {
  const std::int64_t H = in.heads;
  const A lse = grad.lse[e.dst * H + h];
  const A raw = scorer.raw(e, h);
  const bool empty = lse == -std::numeric_limits<A>::infinity();
  const A p = empty ? A(0) : std::exp(scorer.clamped(raw) - lse);
  A into = dot<A>(grad.grad_out + (e.dst * H + h) * in.value_width,
                  in.v + (e.src * H + h) * in.value_width, in.value_width);
  if (in.edge_attr && grad.grad_edge_out) {
    into += dot<A>(grad.grad_edge_out + (e.dst * H + h) * in.attr_width,
                   in.edge_attr + e.id * in.attr_width, in.attr_width);
  }
  const A keep = scorer.keep(e, h);
  into *= keep;
  if (grad.grad_scores) into += grad.grad_scores[e.id * H + h];
  const A open = std::abs(raw) <= static_cast<A>(in.numbers.clamp) ? A(1) : A(0);
  return {p, p * keep, into, open};
}

// sum p dP over all that a row attends to, its edges among it.
template <class T, class A>
A whole_delta(const Inputs<T, A>& in, const Backward<T, A>& grad, std::int64_t row) {
  A sum =
      dot<A>(grad.grad_out + row * in.value_width, grad.out + row * in.value_width, in.value_width);
  if (grad.edge_out && grad.grad_edge_out) {
    sum += dot<A>(grad.grad_edge_out + row * in.attr_width, grad.edge_out + row * in.attr_width,
                  in.attr_width);
  }
  return sum;
}

}  // namespace

template <class T, class A>
void forward_general(const Inputs<T, A>& in, const Results<T, A>& to) {
  const Scorer<T, A> scorer(in);
  const std::int64_t H = in.heads;
  const Edges& edges = in.csr;
  const RowBlocks blocks(edges.ptr, edges.rows);
  for_each_block(blocks.count(), [&](std::int64_t block) {
    std::vector<A> weight;
    A out[256], edge_out[256];
    for (std::int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      const std::int64_t begin = edges.ptr[i], degree = edges.ptr[i + 1] - begin;
      weight.resize(degree);
      const auto edge = [&](std::int64_t n) {
        return Edge{i, edges.index[begin + n], edges.id(begin + n), edges.kind(begin + n)};
      };
      for (int h = 0; h < H; ++h) {
        // eps is one edge more, of score log(eps): nothing overflows, however low the others are
        A peak = std::log(static_cast<A>(in.numbers.eps));
        for (std::int64_t n = 0; n < degree; ++n) {
          weight[n] = scorer.clamped(scorer.raw(edge(n), h));
          // NaN must reach the sum, so it may become the peak
          if (!(weight[n] <= peak)) peak = weight[n];
        }
        if (peak == -std::numeric_limits<A>::infinity()) peak = 0;
        A total = 0;
        for (std::int64_t n = 0; n < degree; ++n) total += weight[n] = std::exp(weight[n] - peak);
        total += static_cast<A>(in.numbers.eps) * std::exp(-peak);
        const A inverse = total == 0 ? A(0) : 1 / total;
        std::fill_n(out, in.value_width, A(0));
        std::fill_n(edge_out, in.attr_width, A(0));
        for (std::int64_t n = 0; n < degree; ++n) {
          const Edge e = edge(n);
          const A p = weight[n] * inverse;
          if (to.scores) to.scores[e.id * H + h] = p;
          const A kept = p * scorer.keep(e, h);
          add_scaled(out, kept, in.v + (e.src * H + h) * in.value_width, in.value_width);
          if (in.edge_attr) {
            add_scaled(edge_out, kept, in.edge_attr + e.id * in.attr_width, in.attr_width);
          }
        }
        to.lse[i * H + h] = std::log(total) + peak;
        write(to.out + (i * H + h) * in.value_width, out, in.value_width);
        if (in.attr_width > 0)
          write(to.edge_out + (i * H + h) * in.attr_width, edge_out, in.attr_width);
      }
    }
  });
}

template <class T, class A>
void backward_general(const Inputs<T, A>& in, const Backward<T, A>& grad) {
  const Scorer<T, A> scorer(in);
  const std::int64_t H = in.heads;
  const int width = in.width;
  const A to_product = scorer.scale() * scorer.inverse_temperature();
  std::vector<A> delta(in.num_dst * H);

  const RowBlocks blocks(in.csr.ptr, in.csr.rows);
  const std::int64_t key_size = grad.key_table ? in.types * H * width : 0;
  const std::int64_t bias_size = grad.bias_table ? in.types * H : 0;
  std::vector<A> key_parts(blocks.count() * key_size), bias_parts(blocks.count() * bias_size);

  for_each_block(blocks.count(), [&](std::int64_t block) {
    const Edges& edges = in.csr;
    A* key_part = key_parts.data() + block * key_size;
    A* bias_part = bias_parts.data() + block * bias_size;
    std::vector<EdgeGradient<A>> found;
    A q_sum[256], query_sum[256];
    std::vector<A> attr_sum;
    for (std::int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      const std::int64_t begin = edges.ptr[i], degree = edges.ptr[i + 1] - begin;
      found.resize(degree);
      if (grad.edge_attr) attr_sum.assign(degree * in.attr_width, A(0));
      const auto edge = [&](std::int64_t n) {
        return Edge{i, edges.index[begin + n], edges.id(begin + n), edges.kind(begin + n)};
      };
      for (int h = 0; h < H; ++h) {
        A sum = 0;
        for (std::int64_t n = 0; n < degree; ++n) {
          found[n] = edge_gradient(in, grad, scorer, edge(n), h);
          sum += found[n].p * found[n].into_p;
        }
        if (grad.partial) sum = whole_delta(in, grad, i * H + h);
        delta[i * H + h] = sum;
        const T* q = in.q + (i * H + h) * width;
        std::fill_n(q_sum, width, A(0));
        std::fill_n(query_sum, in.attr_width, A(0));
        for (std::int64_t n = 0; n < degree; ++n) {
          const Edge e = edge(n);
          const EdgeGradient<A>& g = found[n];
          const A ds = g.p * (g.into_p - sum) * g.open;
          const A product = ds * to_product;
          const T* k = in.k + (e.src * H + h) * width;
          const A* table = in.key_table ? in.key_table + (e.kind * H + h) * width : nullptr;
          const A* by_edge = in.key_edge ? in.key_edge + (e.id * H + h) * width : nullptr;
          if (grad.bias_table) bias_part[e.kind * H + h] += ds * scorer.inverse_temperature();
          if (grad.bias_edge) grad.bias_edge[e.id * H + h] = ds * scorer.inverse_temperature();
          A* key_table = grad.key_table ? key_part + (e.kind * H + h) * width : nullptr;
          A* key_edge = grad.key_edge ? grad.key_edge + (e.id * H + h) * width : nullptr;
          for (int d = 0; d < width; ++d) {
            const A by_table = table ? table[d] : A(1), by_one = by_edge ? by_edge[d] : A(1);
            const A along = product * static_cast<A>(k[d]);
            q_sum[d] += along * by_table * by_one;
            const A both = along * static_cast<A>(q[d]);
            if (key_table) key_table[d] += both * by_one;
            if (key_edge) key_edge[d] = both * by_table;
          }
          if (!in.edge_attr) continue;
          const T* attr = in.edge_attr + e.id * in.attr_width;
          add_scaled(query_sum, product, attr, in.attr_width);
          if (grad.edge_attr) {
            A* to = attr_sum.data() + n * in.attr_width;
            add_scaled(to, product, in.edge_query + (i * H + h) * in.attr_width, in.attr_width);
            if (grad.grad_edge_out) {
              add_scaled(to, g.kept_p, grad.grad_edge_out + (i * H + h) * in.attr_width,
                         in.attr_width);
            }
          }
        }
        if (grad.q) write(grad.q + (i * H + h) * width, q_sum, width);
        if (grad.edge_query) {
          write(grad.edge_query + (i * H + h) * in.attr_width, query_sum, in.attr_width);
        }
      }
      for (std::int64_t n = 0; grad.edge_attr && n < degree; ++n) {
        write(grad.edge_attr + edge(n).id * in.attr_width, attr_sum.data() + n * in.attr_width,
              in.attr_width);
      }
    }
  });
  const auto add_parts = [&](A* to, const std::vector<A>& parts, std::int64_t size) {
    std::fill_n(to, size, A(0));
    for (std::int64_t block = 0; block < blocks.count(); ++block) {
      add_scaled(to, A(1), parts.data() + block * size, static_cast<int>(size));
    }
  };
  if (grad.key_table) add_parts(grad.key_table, key_parts, key_size);
  if (grad.bias_table) add_parts(grad.bias_table, bias_parts, bias_size);
  if (!grad.k && !grad.v) return;

  const RowBlocks columns(grad.csc.ptr, grad.csc.rows);
  for_each_block(columns.count(), [&](std::int64_t block) {
    const Edges& edges = grad.csc;
    A k_sum[256], v_sum[256];
    for (std::int64_t j = columns.begin(block); j < columns.end(block); ++j) {
      for (int h = 0; h < H; ++h) {
        std::fill_n(k_sum, width, A(0));
        std::fill_n(v_sum, in.value_width, A(0));
        for (std::int64_t at = edges.ptr[j]; at < edges.ptr[j + 1]; ++at) {
          const Edge e{edges.index[at], j, edges.id(at), edges.kind(at)};
          const EdgeGradient<A> g = edge_gradient(in, grad, scorer, e, h);
          const A product = g.p * (g.into_p - delta[e.dst * H + h]) * g.open * to_product;
          const T* q = in.q + (e.dst * H + h) * width;
          const A* table = in.key_table ? in.key_table + (e.kind * H + h) * width : nullptr;
          const A* by_edge = in.key_edge ? in.key_edge + (e.id * H + h) * width : nullptr;
          for (int d = 0; d < width; ++d) {
            A m = table ? table[d] : A(1);
            if (by_edge) m *= by_edge[d];
            k_sum[d] += product * m * static_cast<A>(q[d]);
          }
          add_scaled(v_sum, g.kept_p, grad.grad_out + (e.dst * H + h) * in.value_width,
                     in.value_width);
        }
        if (grad.k) write(grad.k + (j * H + h) * width, k_sum, width);
        if (grad.v) write(grad.v + (j * H + h) * in.value_width, v_sum, in.value_width);
      }
    }
  });
}

#define GTKERN_GENERAL(T, A)                                                \
  template void forward_general(const Inputs<T, A>&, const Results<T, A>&); \
  template void backward_general(const Inputs<T, A>&, const Backward<T, A>&);
GTKERN_GENERAL(float, float)
GTKERN_GENERAL(double, double)
GTKERN_GENERAL(c10::BFloat16, float)
GTKERN_GENERAL(c10::Half, float)
#undef GTKERN_GENERAL

}  // namespace gtkern::attention
