#include "sampled_attention/direct.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "common/simd.h"
#include "sampled_attention/by_source.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define GTKERN_DIRECT_KERNELS
#include "sampled_attention/rows.h"
#endif

namespace gtkern::sampled_attention {

using attention::Backward;
using attention::Inputs;
using attention::Results;

#ifdef GTKERN_DIRECT_KERNELS

namespace {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// edges of a source whose rows are summed at a time
constexpr int kChunk = 128;
// of a row, but where heads are wide; see takes()
constexpr std::int64_t kMostPlaces = 16;
// places from a prefetch to its use: by source, and, in whole rows, by destination
constexpr int kAhead = 12;
constexpr std::int64_t kFetched = 5;

// What a thread needs for one row of either pass. By edge; `key` and `value` by edge and part.
template <class T>
struct Workspace {
  Workspace(std::int64_t edges, int slots, int floats)
      : key(edges * slots),
        value(edges * slots),
        table(edges * slots),
        weight(edges),
        place(edges),
        first(padded(edges * slots)),
        second(padded(edges * slots)),
        third(padded(edges * slots)),
        bias(padded(edges * slots)),
        keep(padded(edges * slots)),
        own(padded(floats)),
        other(padded(floats)) {}
  static std::int64_t padded(std::int64_t n) { return n + simd::kLanes; }

  std::vector<const T*> key, value;
  std::vector<const float*> table, weight;
  std::vector<std::int32_t> place;
  std::vector<float> first, second, third, bias, keep, own, other;
};

template <class T>
class Direct {
 public:
  Direct(const Places& places, const Inputs<T, float>& in)
      : places_(places),
        in_(in),
        per_vector_(in.width != in.value_width ? 1
                    : in.width == 8            ? 2
                    : in.width == 4            ? 4
                                               : 1),
        key_(in.heads, in.width, per_vector_),
        value_(in.heads, in.value_width, per_vector_),
        slots_(std::bit_ceil(static_cast<unsigned>(std::max(in.heads, per_vector_)))),
        parts_(slots_ / per_vector_),
        products_of_keys_(in.key_table ? products_for<T, true>(per_vector_, key_.vectors)
                                       : products_for<T, false>(per_vector_, key_.vectors)),
        products_of_values_(products_for<T, false>(per_vector_, value_.vectors)),
        to_score_(static_cast<float>(in.numbers.scale / in.numbers.temperature * kLog2E)),
        bias_to_score_(static_cast<float>(kLog2E / in.numbers.temperature)),
        clamp_(static_cast<float>(in.numbers.clamp * kLog2E)),
        lowest_(in.numbers.eps > 0 ? static_cast<float>(std::log2(in.numbers.eps)) : -FLT_MAX),
        factor_(static_cast<float>(in.numbers.scale / in.numbers.temperature)),
        bias_factor_(static_cast<float>(1 / in.numbers.temperature)),
        threshold_(dropout_threshold(in.numbers.dropout)),
        kept_(static_cast<float>(1 / (1 - in.numbers.dropout))),
        rows_ahead_(std::max<std::int64_t>(1, kFetched / std::max<std::int64_t>(1, places.width))),
        blocks_(in.num_dst, block_rows(in.num_dst, places.width)) {}

  void forward(const Results<T, float>& to) const {
    for_each_block_with(
        blocks_.count(), [&] { return workspace(places_.width); },
        [&](std::int64_t block, Workspace<T>& work) {
          for (std::int64_t row = blocks_.begin(block); row < blocks_.end(block); ++row) {
            fetch(row + rows_ahead_, nullptr);
            forward_row(row, to, work);
          }
        });
  }

  void backward(const Backward<T, float>& grad) const {
    const bool by_source = grad.k || grad.v;
    const std::int64_t row_weights = 2 * places_.width * slots_;
    const Scratch weights(by_source ? in_.num_dst * row_weights + simd::kLanes : 0);
    const std::int64_t table_floats = grad.key_table ? std::int64_t{in_.types} * key_.padded() : 0;
    const std::int64_t bias_floats = grad.bias_table ? std::int64_t{in_.types} * in_.heads : 0;
    std::vector<float> table_parts(blocks_.count() * table_floats);
    std::vector<float> bias_parts(blocks_.count() * bias_floats);
    std::unique_ptr<BySource> sources;
    // the sort is a block among the others
    for_each_block_with(
        blocks_.count() + 1, [&] { return workspace(places_.width); },
        [&](std::int64_t block, Workspace<T>& work) {
          if (block == 0) {
            if (by_source) sources = std::make_unique<BySource>(places_, in_.num_dst, in_.num_src);
            return;
          }
          --block;
          float* table = grad.key_table ? table_parts.data() + block * table_floats : nullptr;
          float* bias = grad.bias_table ? bias_parts.data() + block * bias_floats : nullptr;
          for (std::int64_t row = blocks_.begin(block); row < blocks_.end(block); ++row) {
            fetch(row + rows_ahead_, grad.grad_out);
            destination_row(row, grad, table, bias,
                            by_source ? weights.data() + row * row_weights : nullptr, work);
          }
        });
    // blocks do not depend on the thread count, so neither does the order of these sums
    add_parts(table_parts, key_.padded(), key_.size, grad.key_table);
    add_parts(bias_parts, in_.heads, in_.heads, grad.bias_table);
    if (!by_source) return;
    const RowBlocks columns(sources->ptr.data(), in_.num_src);
    for_each_block_with(
        columns.count(), [&] { return workspace(kChunk); },
        [&](std::int64_t block, Workspace<T>& work) {
          for (std::int64_t j = columns.begin(block); j < columns.end(block); ++j) {
            source_row(*sources, j, grad, weights.data(), work);
          }
        });
  }

 private:
  static std::int64_t block_rows(std::int64_t rows, std::int64_t width) {
    const std::int64_t blocks = std::clamp<std::int64_t>(rows * (width + 8) / 4096, 1, 512);
    return std::max<std::int64_t>(1, (rows + blocks - 1) / blocks);
  }

  Workspace<T> workspace(std::int64_t edges) const {
    return {edges, slots_, std::max(key_.size, value_.size)};
  }

  bool dropout() const { return in_.numbers.dropout > 0; }
  int kind(std::int64_t place) const { return places_.type ? places_.type[place] : 0; }
  const float* table_of(std::int64_t place) const {
    return in_.key_table + kind(place) * std::int64_t{key_.size};
  }

  static GTKERN_INLINE void prefetch(const T* row, int size) {
    for (int i = 0; i < size; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(row + i);
  }

  // Brings near what a later row will read: its queries too, for among random rows the hardware
  // does not see that these follow each other.
  GTKERN_INLINE void fetch(std::int64_t row, const T* grad_out) const {
    if (row >= in_.num_dst) return;
    prefetch(in_.q + row * key_.size, key_.size);
    if (grad_out) prefetch(grad_out + row * value_.size, value_.size);
    for (std::int64_t i = row * places_.width; i < (row + 1) * places_.width; ++i) {
      const std::int64_t j = places_.neighbor[i];
      if (j < 0) continue;
      prefetch(in_.k + j * key_.size, key_.size);
      prefetch(in_.v + j * value_.size, value_.size);
    }
  }

  // The edges of a row, empty places left out: their parts and places go to `work`.
  int collect(std::int64_t row, Workspace<T>& work) const {
    const std::int64_t first = row * places_.width;
    int n = 0;
    for (std::int64_t s = 0; s < places_.width; ++s) {
      const std::int64_t j = places_.neighbor[first + s];
      if (j < 0) continue;
      work.place[n] = static_cast<std::int32_t>(s);
      const T *key = in_.k + j * key_.size, *value = in_.v + j * value_.size;
      for (int part = 0; part < parts_; ++part) {
        work.key[n * parts_ + part] = key + key_.begin[part];
        work.value[n * parts_ + part] = value + value_.begin[part];
      }
      if (in_.key_table) {
        const float* table = table_of(first + s);
        for (int part = 0; part < parts_; ++part) {
          work.table[n * parts_ + part] = table + key_.begin[part];
        }
      }
      ++n;
    }
    return n;
  }

  // A row in fp32: itself, or converted into `buffer`.
  static const float* widened(const float* row, int, std::vector<float>&) { return row; }
  template <class U>
  static const float* widened(const U* row, int size, std::vector<float>& buffer) {
    for (int i = 0; i < size; i += simd::kLanes) {
      simd::store(buffer.data() + i, load(row + i, lanes_left(size, i)));
    }
    return buffer.data();
  }

  // Scores before the clamp, in units of log2, [n, slots].
  GTKERN_INLINE void scores(std::int64_t row, int n, Workspace<T>& work, float* to) const {
    const float* q = widened(in_.q + row * key_.size, key_.size, work.own);
    products_of_keys_(key_, parts_ - 1, q, work.key.data(), work.table.data(), n * parts_,
                      to_score_, to);
    if (in_.bias_table || in_.bias_edge) add_bias(row, n, work, to);
  }

  void add_bias(std::int64_t row, int n, Workspace<T>& work, float* to) const {
    for (int e = 0; e < n; ++e) {
      const std::int64_t place = row * places_.width + work.place[e];
      const float* table = in_.bias_table + std::int64_t{kind(place)} * in_.heads;
      for (int h = 0; h < in_.heads; ++h) {
        float bias = in_.bias_table ? table[h] : 0.f;
        if (in_.bias_edge) bias += in_.bias_edge[place * in_.heads + h];
        work.bias[e * slots_ + h] = bias;
      }
    }
    const F16 factor = simd::splat(bias_to_score_);
    for (int at = 0; at < n * slots_; at += simd::kLanes) {
      simd::store(to + at,
                  simd::fma(simd::load(work.bias.data() + at), factor, simd::load(to + at)));
    }
  }

  GTKERN_INLINE F16 clamped(F16 score) const {
    const F16 clamp = simd::splat(clamp_);
    return simd::max_of(simd::sub(simd::zero(), clamp), simd::min_of(clamp, score));
  }

  // work.keep: 0 or 1 / (1 - dropout) for each score.
  void fill_keep(std::int64_t row, int n, Workspace<T>& work) const {
    for (int e = 0; e < n; ++e) {
      const std::int64_t place = row * places_.width + work.place[e];
      for (int h = 0; h < in_.heads; h += 4) {
        const PhiloxWords words =
            item_words(in_.numbers.seed, place, static_cast<std::uint32_t>(h / 4));
        for (int i = h; i < std::min(h + 4, in_.heads); ++i) {
          work.keep[e * slots_ + i] = words.word[i - h] >= threshold_ ? kept_ : 0.f;
        }
      }
    }
  }

  void forward_row(std::int64_t row, const Results<T, float>& to, Workspace<T>& work) const {
    const int n = collect(row, work), lanes = n * slots_;
    float* weights = work.first.data();
    scores(row, n, work, weights);
    F16 top = simd::splat(lowest_);
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 score = simd::select(lanes_left(lanes, at), clamped(simd::load(weights + at)),
                                     simd::splat(-kInfinity));
      simd::store(weights + at, score);
      top = simd::max_of(top, score);
    }
    top = largest_of_heads(top, slots_);
    F16 total = simd::zero();
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 weight = simd::exp2(simd::sub(simd::load(weights + at), top));
      simd::store(weights + at, weight);
      total = simd::add(total, weight);
    }
    total = sum_of_heads(total, slots_);
    if (in_.numbers.eps > 0) {
      // eps weighs in as one more score
      total = simd::add(total, simd::exp2(simd::sub(simd::splat(lowest_), top)));
    }
    const F16 lse = simd::mul(simd::add(log2(total), top), simd::splat(kLn2));
    store(to.lse + row * in_.heads, simd::first_lanes(in_.heads), lse);
    const Mask16 any = _mm512_cmp_ps_mask(total, simd::zero(), _CMP_NEQ_UQ);
    const F16 inverse = _mm512_maskz_div_ps(any, simd::splat(1.f), total);
    if (to.scores) write_scores(row, n, work, inverse, to.scores);
    if (dropout()) {
      fill_keep(row, n, work);
      for (int at = 0; at < lanes; at += simd::kLanes) {
        simd::store(weights + at,
                    simd::mul(simd::load(weights + at), simd::load(work.keep.data() + at)));
      }
    }
    weighted_sum<false, T>(
        value_, slots_, [&](int e) { return work.value[e * parts_]; }, no_table,
        [&](int e) { return weights + e * slots_; }, n, nullptr, inverse,
        to.out + row * value_.size);
  }

  void write_scores(std::int64_t row, int n, const Workspace<T>& work, F16 inverse,
                    float* to) const {
    alignas(64) float by_head[simd::kLanes];
    simd::store(by_head, inverse);
    for (int e = 0; e < n; ++e) {
      float* place = to + (row * places_.width + work.place[e]) * in_.heads;
      for (int h = 0; h < in_.heads; ++h) place[h] = work.first[e * slots_ + h] * by_head[h];
    }
  }

  // Writes the gradients that belong to a row, and for by_source its weights [2, K, slots].
  void destination_row(std::int64_t row, const Backward<T, float>& grad, float* table, float* bias,
                       float* kept, Workspace<T>& work) const {
    const int n = collect(row, work), lanes = n * slots_;
    T* grad_q = grad.q ? grad.q + row * key_.size : nullptr;
    if (n == 0) {
      if (grad_q) std::fill_n(grad_q, key_.size, T(0.f));
      return;
    }
    float *p = work.first.data(), *into = work.second.data(), *ds = work.third.data();
    scores(row, n, work, ds);
    const float* grad_out = widened(grad.grad_out + row * value_.size, value_.size, work.other);
    products_of_values_(value_, parts_ - 1, grad_out, work.value.data(), nullptr, n * parts_, 1.f,
                        into);
    if (dropout()) {
      fill_keep(row, n, work);
      for (int at = 0; at < lanes; at += simd::kLanes) {
        simd::store(into + at, simd::mul(simd::load(into + at), simd::load(work.keep.data() + at)));
      }
    }
    for (int e = 0; grad.grad_scores && e < n; ++e) {
      const float* place = grad.grad_scores + (row * places_.width + work.place[e]) * in_.heads;
      for (int h = 0; h < in_.heads; ++h) into[e * slots_ + h] += place[h];
    }
    const F16 lse = row_lse(grad.lse + row * in_.heads);
    F16 delta = simd::zero();
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 weight = simd::exp2(simd::sub(clamped(simd::load(ds + at)), lse));
      const F16 live = simd::keep(lanes_left(lanes, at), weight);
      delta = simd::fma(live, simd::load(into + at), delta);
      simd::store(p + at, live);
    }
    delta = sum_of_heads(delta, slots_);
    const F16 clamp = simd::splat(clamp_);
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 d = simd::mul(simd::load(p + at), simd::sub(simd::load(into + at), delta));
      simd::store(ds + at, simd::keep(simd::within(simd::load(ds + at), clamp), d));
      if (dropout()) {
        simd::store(p + at, simd::mul(simd::load(p + at), simd::load(work.keep.data() + at)));
      }
    }
    if (kept) {
      keep_weights(n, work, ds, kept);
      keep_weights(n, work, p, kept + places_.width * slots_);
    }
    if (bias || grad.bias_edge) write_bias(row, n, work, ds, bias, grad.bias_edge);
    if (in_.key_table) {
      sum_by_type(row, n, work, ds, grad_q, table);
    } else if (grad_q) {
      weighted_sum<false, T>(
          key_, slots_, [&](int e) { return work.key[e * parts_]; }, no_table,
          [&](int e) { return ds + e * slots_; }, n, nullptr, simd::splat(factor_), grad_q);
    }
  }

  // Brings the weights of a row's edges to its places.
  GTKERN_INLINE void keep_weights(int n, const Workspace<T>& work, const float* weights,
                                  float* to) const {
    if (work.place[n - 1] == n - 1) {  // no empty place before the last edge
      for (int at = 0; at < n * slots_; at += simd::kLanes) {
        store(to + at, lanes_left(n * slots_, at), simd::load(weights + at));
      }
      return;
    }
    for (int e = 0; e < n; ++e) {
      std::copy_n(weights + e * slots_, slots_, to + work.place[e] * slots_);
    }
  }

  void write_bias(std::int64_t row, int n, const Workspace<T>& work, const float* ds, float* table,
                  float* by_place) const {
    for (int e = 0; e < n; ++e) {
      const std::int64_t place = row * places_.width + work.place[e];
      for (int h = 0; h < in_.heads; ++h) {
        const float d = bias_factor_ * ds[e * slots_ + h];
        if (table) table[kind(place) * in_.heads + h] += d;
        if (by_place) by_place[place * in_.heads + h] = d;
      }
    }
  }

  // With u_t = factor * sum of ds_e k_e over the row's edges of type t, grad_q = sum_t table_t u_t,
  // and the gradient of table_t grows by q u_t. A run of edges of one type is summed in registers;
  // rows that sample_neighbors wrote have one run for each type. Rows of `table` are padded to full
  // vectors: a masked store would hold up the load that follows it.
  void sum_by_type(std::int64_t row, int n, Workspace<T>& work, const float* ds, T* grad_q,
                   float* table) const {
    if (!grad_q && !table) return;
    const float* q = widened(in_.q + row * key_.size, key_.size, work.own);
    for (int at = 0; at < key_.size; at += simd::kLanes) {
      const Mask16 mask = lanes_left(key_.size, at);
      const __m512i head = _mm512_loadu_si512(key_.head.data() + at);
      const F16 query = load(q + at, mask), factor = simd::splat(factor_);
      F16 total = simd::zero();
      for (int e = 0; e < n;) {
        const float* scale = work.table[e * parts_];
        const std::int64_t type = kind(row * places_.width + work.place[e]);
        F16 sum = simd::zero();
        do {
          const F16 weight = _mm512_permutexvar_ps(head, repeat(ds + e * slots_, slots_));
          sum = simd::fma(weight, load(work.key[e * parts_] + at, mask), sum);
        } while (++e < n && work.table[e * parts_] == scale);
        sum = simd::mul(sum, factor);
        total = simd::fma(sum, load(scale + at, mask), total);
        if (table) {
          float* to = table + type * key_.padded() + at;
          simd::store(to, simd::fma(sum, query, simd::load(to)));
        }
      }
      if (grad_q) store(grad_q + at, mask, total);
    }
  }

  // A row's lse in units of log2, at every lane of each head.
  GTKERN_INLINE F16 row_lse(const float* lse) const {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i head = _mm512_and_si512(lane, _mm512_set1_epi32(slots_ - 1));
    const F16 by_head = simd::mul(load(lse, simd::first_lanes(in_.heads)), simd::splat(kLog2E));
    // a row without weight: exp(score - inf) = 0 for all of its edges
    const Mask16 none = _mm512_cmp_ps_mask(by_head, simd::splat(-kInfinity), _CMP_EQ_OQ);
    return _mm512_permutexvar_ps(head, simd::select(none, simd::splat(kInfinity), by_head));
  }

  void source_row(const BySource& sources, std::int64_t j, const Backward<T, float>& grad,
                  const float* weights, Workspace<T>& work) const {
    const std::int64_t from = sources.ptr[j], stop = sources.ptr[j + 1];
    T* grad_k = grad.k ? grad.k + j * key_.size : nullptr;
    T* grad_v = grad.v ? grad.v + j * value_.size : nullptr;
    if (from == stop) {
      if (grad_k) std::fill_n(grad_k, key_.size, T(0.f));
      if (grad_v) std::fill_n(grad_v, value_.size, T(0.f));
    }
    const std::int64_t place_floats = places_.width * slots_;
    const std::int64_t ahead = std::min(stop + kAhead, sources.ptr[in_.num_src]);
    for (std::int64_t at = std::min(from + kAhead, ahead); at < ahead; ++at) {
      const Place place = sources.place[at];
      prefetch(in_.q + place.row * std::int64_t{key_.size}, key_.size);
      prefetch(grad.grad_out + place.row * std::int64_t{value_.size}, value_.size);
      __builtin_prefetch(weights + std::int64_t{2} * place.row * place_floats +
                         place.number * slots_);
    }
    for (std::int64_t at = from; at < stop; at += kChunk) {
      const int n = static_cast<int>(std::min<std::int64_t>(kChunk, stop - at));
      for (int e = 0; e < n; ++e) {
        const Place place = sources.place[at + e];
        work.key[e] = in_.q + place.row * std::int64_t{key_.size};
        work.value[e] = grad.grad_out + place.row * std::int64_t{value_.size};
        work.weight[e] =
            weights + std::int64_t{2} * place.row * place_floats + place.number * slots_;
        if (in_.key_table) {
          work.table[e] = table_of(place.row * places_.width + place.number);
        }
      }
      const bool first = at == from, last = at + n == stop;
      const auto ds = [&](int e) { return work.weight[e]; };
      const auto p = [&](int e) { return work.weight[e] + place_floats; };
      if (grad_k && in_.key_table) {
        source_sum<true>(key_, work.key, work, ds, n, factor_, first, last, work.own, grad_k);
      } else if (grad_k) {
        source_sum<false>(key_, work.key, work, ds, n, factor_, first, last, work.own, grad_k);
      }
      if (grad_v) {
        source_sum<false>(value_, work.value, work, p, n, 1.f, first, last, work.other, grad_v);
      }
    }
  }

  // One chunk of a source's sum; `so_far` holds it between chunks.
  template <bool kTable, class Weight>
  GTKERN_INLINE void source_sum(const Rows& shape, const std::vector<const T*>& rows,
                                const Workspace<T>& work, const Weight& weight, int n, float factor,
                                bool first, bool last, std::vector<float>& so_far, T* to) const {
    const float* start = first ? nullptr : so_far.data();
    const auto row = [&](int e) { return rows[e]; };
    const auto table = [&](int e) { return work.table[e]; };
    if (last) {
      weighted_sum<kTable, T>(shape, slots_, row, table, weight, n, start, simd::splat(factor), to);
    } else {
      weighted_sum<kTable, T>(shape, slots_, row, table, weight, n, start, simd::splat(1.f),
                              so_far.data());
    }
  }

  // Adds the blocks' tables of [types, stride] floats up to [types, size].
  void add_parts(const std::vector<float>& parts, std::int64_t stride, std::int64_t size,
                 float* to) const {
    if (!to) return;
    std::fill_n(to, in_.types * size, 0.f);
    for (std::int64_t block = 0; block < blocks_.count(); ++block) {
      for (std::int64_t type = 0; type < in_.types; ++type) {
        const float* from = parts.data() + (block * in_.types + type) * stride;
        for (std::int64_t i = 0; i < size; ++i) to[type * size + i] += from[i];
      }
    }
  }

  static constexpr auto no_table = [](int) -> const float* { return nullptr; };

  const Places& places_;
  const Inputs<T, float>& in_;
  int per_vector_;
  Rows key_, value_;
  int slots_, parts_;  // heads and parts, rounded up to a power of two
  Products<T> products_of_keys_, products_of_values_;
  float to_score_, bias_to_score_, clamp_, lowest_, factor_, bias_factor_;
  std::uint32_t threshold_;
  float kept_;
  std::int64_t rows_ahead_;
  RowRange blocks_;
};

template <class T>
bool takes(const Places& places, const Inputs<T, float>& in) {
  if (in.heads > kMostHeads || in.key_edge || in.attr_width > 0 ||
      in.num_dst > std::numeric_limits<std::int32_t>::max()) {
    return false;
  }
  // Measured, forward and backward: twice as fast as the packed kernels at K 5, even at K 16 to 32,
  // and slower beyond. Wide heads the others do not pack either: faster at every K. One head of
  // width 4 has kernels of its own, as fast at K 5 and faster from there on.
  const bool narrow = std::is_same_v<T, float> && in.heads == 1 && in.width <= 4;
  const bool wide = in.width == in.value_width && in.width % 16 == 0 && in.width >= 32;
  return !narrow && (wide || places.width <= kMostPlaces);
}

}  // namespace

template <class T>
bool forward_direct(const Places& places, const Inputs<T, float>& in, const Results<T, float>& to) {
  if (!takes(places, in)) return false;
  Direct<T>(places, in).forward(to);
  return true;
}

template <class T>
bool backward_direct(const Places& places, const Inputs<T, float>& in,
                     const Backward<T, float>& grad) {
  if (!takes(places, in)) return false;
  Direct<T>(places, in).backward(grad);
  return true;
}

#else

template <class T>
bool forward_direct(const Places&, const Inputs<T, float>&, const Results<T, float>&) {
  return false;
}
template <class T>
bool backward_direct(const Places&, const Inputs<T, float>&, const Backward<T, float>&) {
  return false;
}

#endif

#define GTKERN_DIRECT(T)                                                                          \
  template bool forward_direct(const Places&, const Inputs<T, float>&, const Results<T, float>&); \
  template bool backward_direct(const Places&, const Inputs<T, float>&, const Backward<T, float>&);
GTKERN_DIRECT(float)
GTKERN_DIRECT(c10::BFloat16)
GTKERN_DIRECT(c10::Half)
#undef GTKERN_DIRECT

}  // namespace gtkern::sampled_attention
