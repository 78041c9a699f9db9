// The kernels behind packed.h. One chain of additions, LeakyReLU and multiply-adds for each edge
// leaves the scores of HG heads in its lanes; those of an edge block fold into one vector.

#include "additive_attention/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/lanes.h"
#include "common/memory.h"
#include "common/philox.h"
#include "common/philox_lanes.h"

namespace gtkern::additive_attention {
namespace {

// Values that belong to heads by lane: lane l to head l % HG.
template <class A, int HG>
struct Heads;

template <int HG>
struct Heads<float, HG> {
  using V = simd::F16;
  template <class F>
  static GTKERN_INLINE V reduce(const F& f) {
    return simd::reduce<HG>(f);
  }
  static GTKERN_INLINE V repeat(const float* p) { return simd::repeat<HG>(p); }
  static GTKERN_INLINE V all_max(V x) { return simd::all_max<HG>(x); }
  static GTKERN_INLINE V all_sum(V x) { return simd::all_sum<HG>(x); }
};

template <>
struct Heads<double, 1> {
  using L = Lanes<double>;
  using V = L::V;
  template <class F>
  static V reduce(const F& f) {
    V out;
    for (int e = 0; e < L::kCount; ++e) out[e] = L::sum(f(e));
    return out;
  }
  static V repeat(const double* p) { return L::splat(*p); }
  static V all_max(V x) { return L::splat(L::largest(x)); }
  static V all_sum(V x) { return L::splat(L::sum(x)); }
};

// The vectors of a row that a kernel works on again and again: in registers where their number NZ
// is known, else (0) where they lie.
template <class A, int NZ>
struct Row {
  using L = Lanes<A>;
  using V = typename L::V;
  V x[NZ];
  GTKERN_INLINE Row(const A* from, int) {
#pragma GCC unroll 4
    for (int z = 0; z < NZ; ++z) x[z] = L::load(from + z * L::kCount);
  }
  GTKERN_INLINE V get(int z) const { return x[z]; }
  GTKERN_INLINE void set(int z, V value) { x[z] = value; }
};

template <class A>
struct Row<A, 0> {
  using L = Lanes<A>;
  using V = typename L::V;
  A* from;
  Row(const A* row, int) : from(const_cast<A*>(row)) {}
  GTKERN_INLINE V get(int z) const { return L::load(from + z * L::kCount); }
  GTKERN_INLINE void set(int z, V value) { L::store(from + z * L::kCount, value); }
};

// NZ: vectors of a group's row; 0: any number, and with edge_attr where there is one.
template <class A, int HG, int NZ>
struct Work {
  using L = Lanes<A>;
  using V = typename L::V;
  using H = Heads<A, HG>;
  static constexpr int kLanes = L::kCount;
  static constexpr int kBlock = kLanes / HG;  // edges whose scores fill a vector
  static constexpr int kMostEdges = 128;      // of a chunk
  static constexpr int kAhead = 24;           // edges from a fetch to its use
  static constexpr bool kMayHaveAttr = NZ == 0;

  static GTKERN_INLINE int vectors(const Packed<A>& p) { return NZ > 0 ? NZ : p.vectors; }

  // Edges scored before they are summed: enough to hide the latency of an exponential, few enough
  // that rows read twice are still in the nearest cache.
  static std::int64_t chunk_edges(const Packed<A>& p) {
    const int edges = 4096 / (vectors(p) * kLanes);
    return std::max(kBlock, std::min(kMostEdges, edges) / kBlock * kBlock);
  }

  static GTKERN_INLINE V where_positive(V x, V yes, V no) { return x > A(0) ? yes : no; }
  static GTKERN_INLINE V leaky(V x, V slope) { return where_positive(x, x, L::mul(x, slope)); }

  // Some edges of one row, as both passes see them.
  struct Chunk {
    const std::int32_t* index;
    std::int64_t at;
    int n;
    const A* attr;  // packed rows of the edges, one behind the other; null: none
  };

  // Calls f(chunk) for the edges of a row; `buffer` has room for a chunk's edge_attr.
  template <class F>
  static GTKERN_INLINE void for_each_chunk(const Packed<A>& p, std::int64_t row, int group,
                                           A* buffer, const F& f) {
    const std::int64_t stop = p.edges.ptr[row + 1], size = chunk_edges(p);
    for (std::int64_t at = p.edges.ptr[row]; at < stop; at += size) {
      const int n = static_cast<int>(std::min(size, stop - at));
      if (kMayHaveAttr && buffer) {
        for (int e = 0; e < n; ++e) {
          p.attr.read(p.attr, p.edges.number(at + e), group,
                      buffer + std::int64_t{e} * vectors(p) * kLanes);
        }
      }
      f(Chunk{p.edges.index + at, at, n, buffer});
    }
  }

  // The sum of a row, the other end's and the edge's at vector z.
  static GTKERN_INLINE V added(const Packed<A>& p, const Row<A, NZ>& own, const A* other,
                               const Chunk& chunk, int e, int z) {
    V x = L::add(own.get(z), L::load(other + z * kLanes));
    if (kMayHaveAttr && chunk.attr) {
      x = L::add(x, L::load(chunk.attr + (std::int64_t{e} * vectors(p) + z) * kLanes));
    }
    return x;
  }

  static GTKERN_INLINE void fetch(const Packed<A>& p, const A* base, std::int64_t at) {
    const std::int64_t later = at + kAhead;
    if (later >= p.fetched) return;
    const A* row = base + p.edges.index[later] * p.gather.stride;
    for (int z = 0; z < vectors(p); ++z) __builtin_prefetch(row + z * kLanes);
  }

  // Scores of kBlock edges of a chunk from `first` on, in units of log2 as `attention` has them;
  // past the last they are those of the last.
  static GTKERN_INLINE V scores(const Packed<A>& p, const Row<A, NZ>& own,
                                const Row<A, NZ>& attention, const A* base, const Chunk& chunk,
                                int first) {
    const int nz = vectors(p);
    const V slope = L::splat(p.slope);
    return H::reduce([&](int b) GTKERN_INLINE_LAMBDA {
      const int e = std::min(first + b, chunk.n - 1);
      fetch(p, base, chunk.at + e);
      const A* other = base + chunk.index[e] * p.gather.stride;
      V sum = L::zero();
      for (int z = 0; z < nz; ++z) {
        sum = L::fma(attention.get(z), leaky(added(p, own, other, chunk, e, z), slope), sum);
      }
      return sum;
    });
  }

  // Products of a row with those at the other ends, in the same places.
  static GTKERN_INLINE V products(const Packed<A>& p, const Row<A, NZ>& own, const A* base,
                                  const Chunk& chunk, int first) {
    const int nz = vectors(p);
    return H::reduce([&](int b) GTKERN_INLINE_LAMBDA {
      const int e = std::min(first + b, chunk.n - 1);
      if (p.gather.first != p.gather.second) fetch(p, base, chunk.at + e);
      const A* other = base + chunk.index[e] * p.gather.stride;
      V sum = L::zero();
      for (int z = 0; z < nz; ++z) {
        sum = L::fma(own.get(z), L::load(other + z * kLanes), sum);
      }
      return sum;
    });
  }

  // 0 or 1 / (1 - dropout) for each score of a block.
  static V keeps(const Packed<A>& p, int group, const Chunk& chunk, int first) {
    alignas(64) A factor[kLanes] = {};
    const int live = std::min(kBlock, chunk.n - first);
    if constexpr (kLanes == 16) {
      alignas(64) std::uint32_t low[kLanes] = {}, high[kLanes] = {}, head[kLanes] = {};
      for (int e = 0; e < live; ++e) {
        const std::uint64_t id = p.edges.number(chunk.at + first + e);
        for (int h = 0; h < HG; ++h) {
          low[e * HG + h] = static_cast<std::uint32_t>(id);
          high[e * HG + h] = static_cast<std::uint32_t>(id >> 32);
          head[e * HG + h] = static_cast<std::uint32_t>(group * HG + h);
        }
      }
      simd::U16 c0, c1, number, c3 = {};
      std::memcpy(&c0, low, sizeof c0);
      std::memcpy(&c1, high, sizeof c1);
      std::memcpy(&number, head, sizeof number);
      simd::U16 c2 = number >> 2;
      simd::philox_rounds(p.seed, c0, c1, c2, c3);
      number &= 3;
      const simd::U16 word = number < 2 ? (number == 0 ? c0 : c1) : (number == 2 ? c2 : c3);
      alignas(64) std::uint32_t words[kLanes];
      std::memcpy(words, &word, sizeof words);
      for (int l = 0; l < kLanes; ++l) factor[l] = words[l] >= p.threshold ? p.kept : A(0);
    } else {
      for (int e = 0; e < live; ++e) {
        const std::int64_t id = p.edges.number(chunk.at + first + e);
        for (int h = 0; h < HG; ++h) {
          const std::uint32_t word = item_word(p.seed, id, group * HG + h);
          factor[e * HG + h] = word >= p.threshold ? p.kept : A(0);
        }
      }
    }
    return L::load(factor);
  }

  // One value for each score of a block from an [E, heads] array.
  static V by_edge(const Packed<A>& p, const A* values, int group, const Chunk& chunk, int first) {
    alignas(64) A lanes[kLanes] = {};
    for (int e = 0; e < std::min(kBlock, chunk.n - first); ++e) {
      const A* from = values + p.edges.number(chunk.at + first + e) * p.heads + group * HG;
      for (int h = 0; h < HG; ++h) lanes[e * HG + h] = from[h];
    }
    return L::load(lanes);
  }

  static GTKERN_INLINE V masked(const Chunk& chunk, int first, V x) {
    return L::first(std::min(kLanes, (chunk.n - first) * HG), x, L::zero());
  }

  // The buffers of a call on some rows.
  struct Space {
    Scratch attr, attention;
    Space(const Packed<A>& p, std::int64_t rows)
        : attr(p.attr.from ? rows * vectors(p) * floats() : 0), attention(vectors(p) * floats()) {}
    static constexpr std::int64_t floats() { return kLanes * (sizeof(A) / sizeof(float)); }
    A* of_attr() const { return reinterpret_cast<A*>(attr.data()); }
    A* of_attention() const { return reinterpret_cast<A*>(attention.data()); }
  };

  // The group's vector, so that scores come in units of log2.
  static const A* attention_of(const Packed<A>& p, int group, A* to) {
    const int row = vectors(p) * kLanes;
    for (int i = 0; i < row; ++i) {
      to[i] = p.attention[std::int64_t{group} * row + i] * static_cast<A>(kLog2E);
    }
    return to;
  }

  static void forward(const Packed<A>& p, std::int64_t begin, std::int64_t end, A* out, A* lse,
                      A* scores_to) {
    const int nz = vectors(p), row_size = nz * kLanes;
    const Space space(p, chunk_edges(p));
    const V nothing = L::splat(-std::numeric_limits<A>::infinity());
    alignas(64) A weights[kMostEdges * HG];
    for (int g = 0; g < p.groups; ++g) {
      const Row<A, NZ> attention(attention_of(p, g, space.of_attention()), nz);
      const A* keys = p.gather.first + std::int64_t{g} * row_size;
      const A* values = p.gather.second + std::int64_t{g} * row_size;
      for (std::int64_t row = begin; row < end; ++row) {
        A* to = out + ((row - begin) * p.groups + g) * row_size;
        std::fill_n(to, row_size, A(0));
        const Row<A, NZ> own(p.self.first + row * p.self.stride + std::int64_t{g} * row_size, nz);
        Row<A, NZ> sum(to, nz);
        V top = L::splat(std::numeric_limits<A>::lowest()), total = L::zero();
        for_each_chunk(p, row, g, space.of_attr(), [&](const Chunk& chunk) {
          // online softmax, a chunk at a time
          V high = top;
          for (int e = 0; e < chunk.n; e += kBlock) {
            const V score = scores(p, own, attention, keys, chunk, e);
            L::store(weights + e * HG, score);
            high = L::max_of(high, L::first(std::min(kLanes, (chunk.n - e) * HG), score, nothing));
          }
          high = H::all_max(high);
          const V shrink = L::exp2(L::sub(top, high));
          top = high;
          total = L::mul(total, shrink);
#pragma GCC unroll 4
          for (int z = 0; z < nz; ++z) sum.set(z, L::mul(sum.get(z), shrink));
          for (int e = 0; e < chunk.n; e += kBlock) {
            if (scores_to) store_by_edge(p, g, chunk, e, weights + e * HG, scores_to);
            V weight = masked(chunk, e, L::exp2(L::sub(L::load(weights + e * HG), top)));
            total = L::add(total, weight);
            if (p.dropout) weight = L::mul(weight, keeps(p, g, chunk, e));
            L::store(weights + e * HG, weight);
          }
          for (int e = 0; e < chunk.n; ++e) {
            const V w = H::repeat(weights + e * HG);
            const A* value = values + chunk.index[e] * p.gather.stride;
#pragma GCC unroll 4
            for (int z = 0; z < nz; ++z) {
              sum.set(z, L::fma(w, L::load(value + z * kLanes), sum.get(z)));
            }
          }
        });
        total = H::all_sum(total);
        alignas(64) A lanes[2][kLanes];
        L::store(lanes[0], total);
        for (int l = 0; l < kLanes; ++l) lanes[1][l] = lanes[0][l] == 0 ? A(0) : 1 / lanes[0][l];
        const V inverse = L::load(lanes[1]);
        for (int z = 0; z < nz; ++z) L::store(to + z * kLanes, L::mul(sum.get(z), inverse));
        const V log = L::add(L::log2(total), top);
        L::store(lanes[0], log);
        for (int h = 0; h < HG; ++h) {
          lse[row * p.heads + g * HG + h] = lanes[0][h] * static_cast<A>(kLn2);
        }
        if (scores_to) normalize(p, g, row, log, scores_to);
      }
    }
  }

  static void store_by_edge(const Packed<A>& p, int group, const Chunk& chunk, int first,
                            const A* lanes, A* values) {
    for (int e = 0; e < std::min(kBlock, chunk.n - first); ++e) {
      A* to = values + p.edges.number(chunk.at + first + e) * p.heads + group * HG;
      for (int h = 0; h < HG; ++h) to[h] = lanes[e * HG + h];
    }
  }

  // Turns the scores of a row's edges into exp2(score - log).
  static void normalize(const Packed<A>& p, int group, std::int64_t row, V log, A* values) {
    const std::int64_t begin = p.edges.ptr[row];
    alignas(64) A lanes[kLanes];
    L::store(lanes, log);
    for (A& l : lanes) {
      if (l == -std::numeric_limits<A>::infinity()) l = -l;
    }
    log = L::load(lanes);
    for (std::int64_t at = begin; at < p.edges.ptr[row + 1]; at += kBlock) {
      const std::int64_t left = p.edges.ptr[row + 1] - at;
      const Chunk chunk{nullptr, at, static_cast<int>(std::min<std::int64_t>(left, kBlock)),
                        nullptr};
      const V score = L::exp2(L::sub(by_edge(p, values, group, chunk, 0), log));
      L::store(lanes, score);
      store_by_edge(p, group, chunk, 0, lanes, values);
    }
  }

  // log2-sum-exp2 and delta of a destination, in every lane of their heads.
  static GTKERN_INLINE void statistics_of(const Packed<A>& p, std::int64_t row, int group, V& lse,
                                          V& delta) {
    const A* from = p.statistics + (row * p.groups + group) * 2 * HG;
    lse = H::repeat(from);
    delta = H::repeat(from + HG);
  }

  static void score_delta(const Packed<A>& p, std::int64_t begin, std::int64_t end) {
    const int nz = vectors(p), row_size = nz * kLanes;
    const Space space(p, chunk_edges(p));
    for (int g = 0; g < p.groups; ++g) {
      const Row<A, NZ> attention(attention_of(p, g, space.of_attention()), nz);
      const A* keys = p.gather.first + std::int64_t{g} * row_size;
      for (std::int64_t row = begin; row < end; ++row) {
        const Row<A, NZ> own(p.self.first + row * p.self.stride + std::int64_t{g} * row_size, nz);
        V lse, delta, sum = L::zero();
        statistics_of(p, row, g, lse, delta);
        for_each_chunk(p, row, g, space.of_attr(), [&](const Chunk& chunk) {
          for (int e = 0; e < chunk.n; e += kBlock) {
            const V score = L::exp2(L::sub(scores(p, own, attention, keys, chunk, e), lse));
            const V share = L::mul(score, by_edge(p, p.grad_scores, g, chunk, e));
            sum = L::add(sum, masked(chunk, e, share));
          }
        });
        alignas(64) A lanes[kLanes];
        L::store(lanes, L::add(delta, H::all_sum(sum)));
        A* to = p.statistics + (row * p.groups + g) * 2 * HG + HG;
        std::copy_n(lanes, HG, to);
      }
    }
  }

  // The gradient of what p is multiplied with: keep (second . second) and the loss on scores.
  static GTKERN_INLINE V into_p(const Packed<A>& p, V product, V keep, int group,
                                const Chunk& chunk, int first) {
    V into = L::mul(product, keep);
    if (p.grad_scores) into = L::add(into, by_edge(p, p.grad_scores, group, chunk, first));
    return into;
  }

  // attention (slope sum_of_all + (1 - slope) sum_where_positive): a row's gradient, for
  // LeakyReLU' is slope, or 1 where its argument is positive. `attention` is in units of log2.
  static GTKERN_INLINE V row_gradient(const Packed<A>& p, V attention, V all, V positive) {
    const V inside = L::fma(L::splat(1 - p.slope), positive, L::mul(L::splat(p.slope), all));
    return L::mul(L::mul(attention, L::splat(static_cast<A>(kLn2))), inside);
  }

  static void by_destination(const Packed<A>& p, std::int64_t begin, std::int64_t end, A* to,
                             A* to_attention) {
    const int nz = vectors(p), row_size = nz * kLanes;
    const Space space(p, chunk_edges(p));
    const Scratch edge_space(p.attr.to ? nz * Space::floats() : 0);
    A* const edge_row = reinterpret_cast<A*>(edge_space.data());
    const V slope = L::splat(p.slope), one = L::splat(1);
    alignas(64) A gradients[kMostEdges * HG];
    for (int g = 0; g < p.groups; ++g) {
      const Row<A, NZ> attention(attention_of(p, g, space.of_attention()), nz);
      const A* keys = p.gather.first + std::int64_t{g} * row_size;
      const A* values = p.gather.second + std::int64_t{g} * row_size;
      Row<A, NZ> attention_sum(to_attention + std::int64_t{g} * row_size, nz);
      for (std::int64_t row = begin; row < end; ++row) {
        A* const row_to = to + ((row - begin) * p.groups + g) * row_size;
        std::fill_n(row_to, row_size, A(0));
        const std::int64_t place = row * p.self.stride + std::int64_t{g} * row_size;
        const Row<A, NZ> own(p.self.first + place, nz), grad(p.self.second + place, nz);
        Row<A, NZ> positive(row_to, nz);
        V lse, delta, all = L::zero();
        statistics_of(p, row, g, lse, delta);
        for_each_chunk(p, row, g, space.of_attr(), [&](const Chunk& chunk) {
          for (int e = 0; e < chunk.n; e += kBlock) {
            const V weight = L::exp2(L::sub(scores(p, own, attention, keys, chunk, e), lse));
            const V keep = p.dropout ? keeps(p, g, chunk, e) : one;
            const V product = products(p, grad, values, chunk, e);
            const V into = into_p(p, product, keep, g, chunk, e);
            const V ds = masked(chunk, e, L::mul(weight, L::sub(into, delta)));
            all = L::add(all, ds);
            L::store(gradients + e * HG, ds);
          }
          for (int e = 0; e < chunk.n; ++e) {
            const V ds = H::repeat(gradients + e * HG);
            const A* key = keys + chunk.index[e] * p.gather.stride;
#pragma GCC unroll 4
            for (int z = 0; z < nz; ++z) {
              const V x = added(p, own, key, chunk, e, z);
              positive.set(z, L::add(positive.get(z), where_positive(x, ds, L::zero())));
              attention_sum.set(z, L::fma(ds, leaky(x, slope), attention_sum.get(z)));
              if (kMayHaveAttr && p.attr.to) {
                const V along = L::mul(attention.get(z), L::splat(static_cast<A>(kLn2)));
                const V inside = where_positive(x, ds, L::mul(slope, ds));
                L::store(edge_row + z * kLanes, L::mul(along, inside));
              }
            }
            if (kMayHaveAttr && p.attr.to) {
              p.attr.write(p.attr, p.edges.number(chunk.at + e), g, edge_row);
            }
          }
        });
        all = H::all_sum(all);
#pragma GCC unroll 4
        for (int z = 0; z < nz; ++z) {
          L::store(row_to + z * kLanes, row_gradient(p, attention.get(z), all, positive.get(z)));
        }
      }
#pragma GCC unroll 4
      for (int z = 0; z < nz; ++z) {
        L::store(to_attention + std::int64_t{g} * row_size + z * kLanes, attention_sum.get(z));
      }
    }
  }

  static void by_source(const Packed<A>& p, std::int64_t begin, std::int64_t end, A* first,
                        A* second) {
    const int nz = vectors(p), row_size = nz * kLanes;
    const Space space(p, chunk_edges(p));
    const Scratch value_space(nz * Space::floats());
    A* const value_row = reinterpret_cast<A*>(value_space.data());
    const V one = L::splat(1);
    alignas(64) A gradients[kMostEdges * HG], weights[kMostEdges * HG];
    for (int g = 0; g < p.groups; ++g) {
      const Row<A, NZ> attention(attention_of(p, g, space.of_attention()), nz);
      const A* queries = p.gather.first + std::int64_t{g} * row_size;
      const A* grads = p.gather.second + std::int64_t{g} * row_size;
      for (std::int64_t row = begin; row < end; ++row) {
        A* const row_to = first + ((row - begin) * p.groups + g) * row_size;
        std::fill_n(row_to, row_size, A(0));
        std::fill_n(value_row, row_size, A(0));
        const std::int64_t place = row * p.self.stride + std::int64_t{g} * row_size;
        const Row<A, NZ> own(p.self.first + place, nz), value(p.self.second + place, nz);
        Row<A, NZ> positive(row_to, nz), value_sum(value_row, nz);
        V all = L::zero();
        for_each_chunk(p, row, g, space.of_attr(), [&](const Chunk& chunk) {
          for (int e = 0; e < chunk.n; e += kBlock) {
            alignas(64) A lse[kLanes] = {}, delta[kLanes] = {};
            for (int b = 0; b < std::min(kBlock, chunk.n - e); ++b) {
              const std::int64_t dst = chunk.index[e + b];
              const A* from = p.statistics + (dst * p.groups + g) * 2 * HG;
              std::memcpy(lse + b * HG, from, HG * sizeof(A));
              std::memcpy(delta + b * HG, from + HG, HG * sizeof(A));
            }
            const V weight =
                L::exp2(L::sub(scores(p, own, attention, queries, chunk, e), L::load(lse)));
            const V keep = p.dropout ? keeps(p, g, chunk, e) : one;
            const V product = products(p, value, grads, chunk, e);
            const V into = into_p(p, product, keep, g, chunk, e);
            const V ds = masked(chunk, e, L::mul(weight, L::sub(into, L::load(delta))));
            all = L::add(all, ds);
            L::store(gradients + e * HG, ds);
            L::store(weights + e * HG, L::mul(weight, keep));
          }
          for (int e = 0; e < chunk.n; ++e) {
            const V ds = H::repeat(gradients + e * HG), w = H::repeat(weights + e * HG);
            const std::int64_t other = chunk.index[e] * p.gather.stride;
#pragma GCC unroll 4
            for (int z = 0; z < nz; ++z) {
              const V x = added(p, own, queries + other, chunk, e, z);
              positive.set(z, L::add(positive.get(z), where_positive(x, ds, L::zero())));
              value_sum.set(z, L::fma(w, L::load(grads + other + z * kLanes), value_sum.get(z)));
            }
          }
        });
        all = H::all_sum(all);
        A* const second_to = second ? second + ((row - begin) * p.groups + g) * row_size : nullptr;
#pragma GCC unroll 4
        for (int z = 0; z < nz; ++z) {
          V key = row_gradient(p, attention.get(z), all, positive.get(z));
          if (second_to) {
            L::store(second_to + z * kLanes, value_sum.get(z));
          } else {
            key = L::add(key, value_sum.get(z));
          }
          L::store(row_to + z * kLanes, key);
        }
      }
    }
  }
};

template <class A, int HG, int NZ>
const Kernels<A>& table() {
  using W = Work<A, HG, NZ>;
  static constexpr Kernels<A> kernels = {NZ, &W::forward, &W::score_delta, &W::by_destination,
                                         &W::by_source};
  return kernels;
}

template <int HG>
const Kernels<float>& of_group(int vectors, bool edge_attr) {
  if (edge_attr || vectors > 4) return table<float, HG, 0>();
  return vectors <= 2 ? table<float, HG, 2>() : table<float, HG, 4>();
}

}  // namespace

template <>
const Kernels<float>& kernels_for(int heads_of_group, int vectors, bool edge_attr) {
  switch (heads_of_group) {
    case 1: return of_group<1>(vectors, edge_attr);
    case 2: return of_group<2>(vectors, edge_attr);
    case 4: return of_group<4>(vectors, edge_attr);
    default: return of_group<8>(vectors, edge_attr);
  }
}

template <>
const Kernels<double>& kernels_for(int, int, bool) {
  return table<double, 1, 0>();
}

}  // namespace gtkern::additive_attention
