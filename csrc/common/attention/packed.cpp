// Chooses the layout of packed.h for a problem, packs what has to be packed, runs the kernels over
// blocks of rows, and brings the sums back to the caller's layout.

#include "common/attention/packed.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/attention/interleave.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "common/simd.h"

namespace gtkern::attention {
namespace {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// in units of log2: 2 ** +-80, and sums of many of them, are normal numbers
constexpr float kSafeScore = 80.f;
// mean edges of one type in a row up to which a row is taken whole
constexpr std::int64_t kShortStretch = 16;
// rows whose gathered pairs outgrow this are fetched ahead of their use
constexpr std::int64_t kNearCacheBytes = std::int64_t{4} << 20;
// and rows are taken with all of their groups together, when they outgrow this
constexpr std::int64_t kLastCacheBytes = std::int64_t{32} << 20;

struct Layout {
  const Kernels* kernels = nullptr;
  int heads_per_group = 1, groups = 1;
  bool in_place = false;  // the caller's rows are already in this layout

  std::int64_t group_floats() const { return std::int64_t{kernels->vectors} * 16; }
  std::int64_t row_floats() const { return groups * group_floats(); }
};

template <class T>
Layout choose_layout(int heads, int width, int value_width) {
  const int widest = std::max(width, value_width);
  Layout layout;
  if (std::is_same_v<T, float> && width == value_width && width % 16 == 0 && width >= 32) {
    const Kernels* kernels = kernels_1(width / 16);
    if (kernels && kernels->vectors * 16 == width) return {kernels, 1, heads, true};
  }
  const auto kernels_of = [](int group, int vectors) {
    return group == 8   ? kernels_8(vectors)
           : group == 4 ? kernels_4(vectors)
           : group == 2 ? kernels_2(vectors)
                        : kernels_1(vectors);
  };
  for (int group = 8; group >= 1; group /= 2) {
    if (heads % group != 0) continue;
    const Kernels* kernels = kernels_of(group, (group * widest + 15) / 16);
    if (kernels) return {kernels, group, heads / group, false};
  }
  return layout;
}

// Calls f with HG as a constant.
template <class F>
void with_group(int heads_per_group, const F& f) {
  switch (heads_per_group) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 8>());
  }
}

// One row [heads, width] to [groups, NZ * 16] with heads interleaved.
template <class T>
void pack_row(const Layout& layout, const T* from, int width, float* to) {
  with_group(layout.heads_per_group, [&](auto group) {
    constexpr int kGroup = decltype(group)::value;
    const int filled = (width * kGroup + 15) / 16 * 16;
    for (int g = 0; g < layout.groups; ++g, from += kGroup * width, to += layout.group_floats()) {
      interleave<kGroup>(from, width, to);
      std::fill(to + filled, to + layout.group_floats(), 0.f);
    }
  });
}

template <class T>
void unpack_row(const Layout& layout, const float* from, int width, T* to) {
  with_group(layout.heads_per_group, [&](auto group) {
    constexpr int kGroup = decltype(group)::value;
    for (int g = 0; g < layout.groups; ++g, from += layout.group_floats(), to += kGroup * width) {
      deinterleave<kGroup>(from, width, to);
    }
  });
}

// The largest of many floats >= 0, from any thread. Their bits order as the numbers do.
class AtomicMax {
 public:
  void add(float x) {
    std::uint32_t bits, seen = bits_.load(std::memory_order_relaxed);
    std::memcpy(&bits, &x, sizeof bits);
    while (bits > seen && !bits_.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
    }
  }
  float get() const {
    const std::uint32_t bits = bits_.load(std::memory_order_relaxed);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

 private:
  std::atomic<std::uint32_t> bits_{0};
};

// A pair of [rows, heads, width] arrays as the kernels read them; `second` may be null.
template <class T>
class PackedRows {
 public:
  // `measured`: largest_norm() is asked for later.
  PackedRows(const Layout& layout, std::int64_t rows, int heads, const T* first, int first_width,
             const T* second, int second_width, bool measured)
      : scratch_(layout.in_place ? 0 : rows * layout.row_floats() * (second ? 2 : 1)) {
    const std::int64_t row_floats = layout.row_floats();
    rows_.group_stride = layout.group_floats();
    if (layout.in_place) {
      rows_.stride = std::int64_t{heads} * first_width;
      if constexpr (std::is_same_v<T, float>) {
        rows_.first = first;
        rows_.second = second;
      }
      return;
    }
    rows_.stride = row_floats * (second ? 2 : 1);
    rows_.first = scratch_.data();
    rows_.second = second ? scratch_.data() + row_floats : nullptr;
    AtomicMax largest;
    for_each_range(rows, 256, [&](std::int64_t begin, std::int64_t end) {
      float mine = 0;
      for (std::int64_t row = begin; row < end; ++row) {
        float* to = scratch_.data() + row * rows_.stride;
        const T* from = first + row * heads * first_width;
        pack_row(layout, from, first_width, to);
        if (second) {
          pack_row(layout, second + row * heads * second_width, second_width, to + row_floats);
        }
        for (int h = 0; measured && h < heads; ++h, from += first_width) {
          mine = std::max(mine, squared_norm(from, first_width));
        }
      }
      largest.add(mine);
    });
    if (measured) largest_norm_ = std::sqrt(largest.get());
  }

  const Rows& rows() const { return rows_; }
  // of one head of `first`; infinite where it was not measured
  float largest_norm() const { return largest_norm_; }

 private:
  static float squared_norm(const T* x, int width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < width; ++d) sum += static_cast<float>(x[d]) * static_cast<float>(x[d]);
    return sum;
  }

  Scratch scratch_;
  float largest_norm_ = std::numeric_limits<float>::infinity();
  Rows rows_;
};

std::vector<float> pack_table(const Layout& layout, const float* table, int types, int heads,
                              int width) {
  std::vector<float> packed;
  if (!table) return packed;
  packed.resize(types * layout.row_floats());
  for (int type = 0; type < types; ++type) {
    pack_row(layout, table + std::int64_t{type} * heads * width, width,
             packed.data() + type * layout.row_floats());
  }
  return packed;
}

template <class T>
Packed describe(const Inputs<T, float>& in, const Layout& layout, const float* key_table) {
  const Numbers& n = in.numbers;
  Packed p;
  p.groups = layout.groups;
  p.heads = in.heads;
  p.types = in.types;
  p.edges = &in.csr;
  p.to_score = static_cast<float>(n.scale / n.temperature * kLog2E);
  p.bias_to_score = static_cast<float>(kLog2E / n.temperature);
  p.clamp = static_cast<float>(n.clamp * kLog2E);
  p.first_factor = static_cast<float>(n.scale / n.temperature);
  p.bias_factor = static_cast<float>(1 / n.temperature);
  p.key_table = key_table;
  p.bias_table = in.bias_table;
  p.bias_edge = in.bias_edge;
  p.eps = static_cast<float>(n.eps);
  p.dropout = n.dropout > 0;
  p.threshold = dropout_threshold(n.dropout);
  p.kept = static_cast<float>(1 / (1 - n.dropout));
  p.seed = n.seed;
  return p;
}

// Whether every score is near enough to 0 for exp without taking off the row's maximum, by
// |q . k| <= |q| |k| or by the clamp. In units of log2: 2 ** +-80 and sums of it are normal
// numbers.
template <class T>
bool scores_bounded(const Inputs<T, float>& in, const Packed& p, const PackedRows<T>& queries,
                    const PackedRows<T>& pairs) {
  if (p.clamp < kSafeScore) return true;
  if (in.bias_edge) return false;
  const auto largest = [](const float* x, std::int64_t n) {
    float found = 0;
    for (std::int64_t i = 0; i < n; ++i) found = std::max(found, std::abs(x[i]));
    return found;
  };
  float bound = std::abs(p.to_score) * queries.largest_norm() * pairs.largest_norm();
  if (in.key_table) bound *= largest(in.key_table, std::int64_t{in.types} * in.heads * in.width);
  if (in.bias_table) {
    bound += p.bias_to_score * largest(in.bias_table, std::int64_t{in.types} * in.heads);
  }
  return bound < kSafeScore;
}

// What backward takes from forward: log2-sum-exp2 and delta of every destination and head.
template <class T>
void fill_statistics(const Inputs<T, float>& in, const Backward<T, float>& grad,
                     const Layout& layout, const Rows& queries, float* statistics) {
  const int hg = layout.heads_per_group;
  for_each_range(in.num_dst, 256, [&](std::int64_t begin, std::int64_t end) {
    const Scratch packed(layout.row_floats());
    alignas(64) float lanes[simd::kLanes];
    for (std::int64_t row = begin; row < end; ++row) {
      const T* from = grad.out + row * in.heads * in.value_width;
      const float* out = packed.data();
      if constexpr (std::is_same_v<T, float>) {
        if (layout.in_place) out = from;
      }
      if (!layout.in_place) pack_row(layout, from, in.value_width, packed.data());
      for (int g = 0; g < layout.groups; ++g, out += layout.group_floats()) {
        const float* grads = queries.second + row * queries.stride + g * queries.group_stride;
        simd::F16 sum = simd::zero();
        for (int i = 0; i < layout.group_floats(); i += simd::kLanes) {
          sum = simd::fma(simd::load(grads + i), simd::load(out + i), sum);
        }
        simd::store(lanes, sum);
        float* pair = statistics + (row * layout.groups + g) * 2 * hg;
        for (int h = 0; h < hg; ++h) {
          const float lse = grad.lse[row * in.heads + g * hg + h] * kLog2E;
          // a row without weight: exp(score - inf) = 0 for all of its edges
          pair[h] = lse == -std::numeric_limits<float>::infinity() ? -lse : lse;
          pair[hg + h] = 0;
          for (int lane = h; lane < simd::kLanes; lane += hg) pair[hg + h] += lanes[lane];
        }
      }
    }
  });
}

// The kernels for the rows of `edges`.
template <class T>
const Kernels& kernels_for(const Layout& layout, const Inputs<T, float>& in, const Edges& edges,
                           const Packed& p) {
  const bool typed = edges.type && (in.key_table || in.bias_table);
  const bool mixed = typed && in.types <= kMostMixedTypes &&
                     edges.count() <= kShortStretch * in.types * edges.rows;
  return *layout.kernels->variant(mixed           ? Variant::kMixed
                                  : p.fetched > 0 ? Variant::kFetching
                                                  : Variant::kPlain);
}

std::int64_t gathered_bytes(const Layout& layout, std::int64_t rows) {
  return 2 * rows * layout.row_floats() * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t fetched_edges(const Layout& layout, std::int64_t rows, std::int64_t edges) {
  return gathered_bytes(layout, rows) > kNearCacheBytes ? edges : 0;
}

// Calls f(first, last) for the rows begin .. end: for all of them, so that a group's rows stay in
// the cache while the block is computed; or for runs with few edges where no cache holds a group:
// the pages that the first group touches are then still known for the next ones.
template <class F>
void for_each_strip(const Layout& layout, std::int64_t gathered_rows, const Edges& edges,
                    std::int64_t begin, std::int64_t end, const F& f) {
  constexpr std::int64_t kStripEdges = 16;
  if (layout.groups == 1 || gathered_bytes(layout, gathered_rows) <= kLastCacheBytes) {
    return f(begin, end);
  }
  for (std::int64_t last; begin < end; begin = last) {
    last = begin + 1;
    while (last < end && edges.ptr[last + 1] - edges.ptr[begin] <= kStripEdges) ++last;
    f(begin, last);
  }
}

// Where sums go in the end; null: nowhere.
template <class T>
struct Sink {
  T* to;
  int width;
};

// The packed sums of a block of rows: the caller's array itself when it has this layout, else a
// buffer that `flush` unpacks.
template <class T>
class SinkBuffer {
 public:
  SinkBuffer(const Layout& layout, const Sink<T>& sink, int heads, std::int64_t begin,
             std::int64_t end)
      : layout_(layout),
        sink_(sink),
        heads_(heads),
        begin_(begin),
        end_(end),
        buffer_(layout.in_place && sink.to ? 0 : (end - begin) * layout.row_floats()) {}

  float* data() const {
    if constexpr (std::is_same_v<T, float>) {
      if (layout_.in_place && sink_.to) return sink_.to + begin_ * heads_ * sink_.width;
    }
    return buffer_.data();
  }

  void flush() const {
    if (layout_.in_place || !sink_.to) return;
    for (std::int64_t row = begin_; row < end_; ++row) {
      unpack_row(layout_, buffer_.data() + (row - begin_) * layout_.row_floats(), sink_.width,
                 sink_.to + row * heads_ * sink_.width);
    }
  }

 private:
  const Layout& layout_;
  const Sink<T>& sink_;
  int heads_;
  std::int64_t begin_, end_;
  Scratch buffer_;
};

}  // namespace

template <class T>
bool forward_packed(const Inputs<T, float>& in, const Results<T, float>& to) {
  const Layout layout = choose_layout<T>(in.heads, in.width, in.value_width);
  if (!layout.kernels || in.key_edge || in.attr_width > 0) return false;
  const int hg = layout.heads_per_group;
  const bool measured = in.numbers.clamp * kLog2E >= kSafeScore;
  const PackedRows<T> queries(layout, in.num_dst, in.heads, in.q, in.width, nullptr, 0, measured);
  const PackedRows<T> pairs(layout, in.num_src, in.heads, in.k, in.width, in.v, in.value_width,
                            measured);
  const std::vector<float> table = pack_table(layout, in.key_table, in.types, in.heads, in.width);
  const Scratch statistics(2 * in.num_dst * in.heads);
  Packed p = describe(in, layout, table.empty() ? nullptr : table.data());
  p.self = queries.rows();
  p.gather = pairs.rows();
  p.statistics = statistics.data();
  p.bounded = scores_bounded(in, p, queries, pairs);
  p.fetched = fetched_edges(layout, in.num_src, in.csr.count());

  const Kernels& kernels = kernels_for(layout, in, in.csr, p);
  const RowBlocks blocks(in.csr.ptr, in.csr.rows);
  const Sink<T> sink{to.out, in.value_width};
  for_each_block(blocks.count(), [&](std::int64_t block) {
    const std::int64_t begin = blocks.begin(block), end = blocks.end(block);
    const SinkBuffer<T> out(layout, sink, in.heads, begin, end);
    for_each_strip(
        layout, in.num_src, in.csr, begin, end, [&](std::int64_t first, std::int64_t last) {
          kernels.forward(p, first, last, out.data() + (first - begin) * layout.row_floats());
        });
    out.flush();
    for (std::int64_t row = begin; row < end; ++row) {
      for (int h = 0; h < in.heads; ++h) {
        float* lse = p.statistics + (row * layout.groups + h / hg) * 2 * hg + h % hg;
        to.lse[row * in.heads + h] = *lse * kLn2;
        // a row without weight: exp(score - inf) = 0 for all of its edges
        if (*lse == -std::numeric_limits<float>::infinity()) *lse = -*lse;
      }
    }
    if (to.scores) kernels.scores(p, begin, end, to.scores);
  });
  return true;
}

template <class T>
bool backward_packed(const Inputs<T, float>& in, const Backward<T, float>& grad) {
  const Layout layout = choose_layout<T>(in.heads, in.width, in.value_width);
  if (!layout.kernels || in.key_edge || in.attr_width > 0) return false;
  const PackedRows<T> pairs(layout, in.num_src, in.heads, in.k, in.width, in.v, in.value_width,
                            false);
  const PackedRows<T> queries(layout, in.num_dst, in.heads, in.q, in.width, grad.grad_out,
                              in.value_width, false);
  const std::vector<float> table = pack_table(layout, in.key_table, in.types, in.heads, in.width);
  const Scratch statistics(2 * in.num_dst * in.heads);
  fill_statistics(in, grad, layout, queries.rows(), statistics.data());

  Packed p = describe(in, layout, table.empty() ? nullptr : table.data());
  p.grad_scores = grad.grad_scores;
  p.statistics = statistics.data();
  p.self = queries.rows();
  p.gather = pairs.rows();
  p.fetched = fetched_edges(layout, in.num_src, in.csr.count());
  const Kernels& kernels = kernels_for(layout, in, in.csr, p);
  const RowBlocks blocks(in.csr.ptr, in.csr.rows);
  if (grad.grad_scores) {
    for_each_block(blocks.count(), [&](std::int64_t block) {
      kernels.scores(p, blocks.begin(block), blocks.end(block), nullptr);
    });
  }
  const std::int64_t table_floats = grad.key_table ? in.types * layout.row_floats() : 0;
  const std::int64_t bias_floats = grad.bias_table ? std::int64_t{in.types} * in.heads : 0;
  if (grad.q || grad.key_table || grad.bias_table || grad.bias_edge) {
    std::vector<float> table_parts(blocks.count() * table_floats);
    std::vector<float> bias_parts(blocks.count() * bias_floats);
    const Sink<T> sink{grad.q, in.width};
    for_each_block(blocks.count(), [&](std::int64_t block) {
      const std::int64_t begin = blocks.begin(block), end = blocks.end(block);
      const SinkBuffer<T> first(layout, sink, in.heads, begin, end);
      for_each_strip(
          layout, in.num_src, in.csr, begin, end, [&](std::int64_t low, std::int64_t high) {
            kernels.by_destination(
                p, low, high, grad.q ? first.data() + (low - begin) * layout.row_floats() : nullptr,
                grad.key_table ? table_parts.data() + block * table_floats : nullptr,
                grad.bias_table ? bias_parts.data() + block * bias_floats : nullptr,
                grad.bias_edge);
          });
      first.flush();
    });
    // blocks do not depend on the thread count, so neither does the order of these sums
    for (std::int64_t block = 1; block < blocks.count(); ++block) {
      for (std::int64_t i = 0; i < table_floats; ++i) {
        table_parts[i] += table_parts[block * table_floats + i];
      }
      for (std::int64_t i = 0; i < bias_floats; ++i) {
        bias_parts[i] += bias_parts[block * bias_floats + i];
      }
    }
    if (grad.key_table) {
      std::fill_n(grad.key_table, std::int64_t{in.types} * in.heads * in.width, 0.f);
      for (int type = 0; type < in.types && blocks.count() > 0; ++type) {
        unpack_row(layout, table_parts.data() + type * layout.row_floats(), in.width,
                   grad.key_table + std::int64_t{type} * in.heads * in.width);
      }
    }
    if (grad.bias_table) {
      std::fill_n(grad.bias_table, bias_floats, 0.f);
      if (blocks.count() > 0) std::copy_n(bias_parts.data(), bias_floats, grad.bias_table);
    }
  }
  if (!grad.k && !grad.v) return true;

  p.edges = &grad.csc;
  p.self = pairs.rows();
  p.gather = queries.rows();
  p.fetched = fetched_edges(layout, in.num_dst, grad.csc.count());
  const Kernels& column_kernels = kernels_for(layout, in, grad.csc, p);
  const RowBlocks columns(grad.csc.ptr, grad.csc.rows);
  const Sink<T> key_sink{grad.k, in.width}, value_sink{grad.v, in.value_width};
  for_each_block(columns.count(), [&](std::int64_t block) {
    const std::int64_t begin = columns.begin(block), end = columns.end(block);
    const SinkBuffer<T> first(layout, key_sink, in.heads, begin, end);
    const SinkBuffer<T> second(layout, value_sink, in.heads, begin, end);
    for_each_strip(layout, in.num_dst, grad.csc, begin, end,
                   [&](std::int64_t low, std::int64_t high) {
                     const std::int64_t at = (low - begin) * layout.row_floats();
                     column_kernels.by_source(p, low, high, first.data() + at, second.data() + at);
                   });
    first.flush();
    second.flush();
  });
  return true;
}

#define GTKERN_PACKED(T)                                                           \
  template bool forward_packed(const Inputs<T, float>&, const Results<T, float>&); \
  template bool backward_packed(const Inputs<T, float>&, const Backward<T, float>&);
GTKERN_PACKED(float)
GTKERN_PACKED(c10::BFloat16)
GTKERN_PACKED(c10::Half)
#undef GTKERN_PACKED

}  // namespace gtkern::attention
