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
#include <utility>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "common/simd.h"

namespace gtkern::sampled_attention {

using attention::Backward;
using attention::Inputs;
using attention::Results;

#if defined(__AVX512BW__) && defined(__AVX512VL__)

namespace {

using simd::F16;
using simd::Mask16;

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kMostHeads = simd::kLanes;
// edges of a source whose rows are summed at a time
constexpr int kChunk = 128;

GTKERN_INLINE F16 load(const float* p, Mask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
GTKERN_INLINE F16 load(const c10::BFloat16* p, Mask16 mask) {
  const __m256i x = _mm256_maskz_loadu_epi16(mask, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
GTKERN_INLINE F16 load(const c10::Half* p, Mask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

GTKERN_INLINE void store(float* p, Mask16 mask, F16 x) { _mm512_mask_storeu_ps(p, mask, x); }
// rounds to nearest, ties to even; a NaN stays one
GTKERN_INLINE void store(c10::BFloat16* p, Mask16 mask, F16 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                  _mm512_set1_epi32(0x7FC00000));
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
GTKERN_INLINE void store(c10::Half* p, Mask16 mask, F16 x) {
  _mm256_mask_storeu_epi16(p, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// The sums over each of P runs of 16 / P lanes of the vectors f(0), f(1), ...: lane e * P + p holds
// run p of vector e.
template <int P, class F>
GTKERN_INLINE F16 reduce_runs(const F& f) {
  using namespace simd::detail;
  const auto quad = [&](int e) {
    return fold_pairs(fold_singles(f(e), f(e + 1)), fold_singles(f(e + 2), f(e + 3)));
  };
  if constexpr (P == 1) {
    return simd::reduce<1>(f);
  } else if constexpr (P == 2) {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_ps(order, fold_quarters(quad(0), quad(4)));
  } else {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(order, quad(0));
  }
}

// P weights, each in its run of 16 / P lanes.
template <int P>
GTKERN_INLINE F16 spread(const float* weights) {
  if constexpr (P == 1) {
    return _mm512_set1_ps(*weights);
  } else if constexpr (P == 2) {
    const __m512i run = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutevar_ps(simd::repeat<2>(weights), run);
  } else {
    const __m512i run = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutevar_ps(simd::repeat<4>(weights), run);
  }
}

// Lane l belongs to head l % slots, slots a power of two: the largest (sum) of each head, in all of
// its lanes.
template <class F>
GTKERN_INLINE F16 over_heads(F16 x, int slots, const F& f) {
  if (slots <= 8) x = f(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  if (slots <= 4) x = f(x, _mm512_shuffle_f32x4(x, x, 0xB1));
  if (slots <= 2) x = f(x, _mm512_permute_ps(x, 0x4E));
  if (slots <= 1) x = f(x, _mm512_permute_ps(x, 0xB1));
  return x;
}

// How a row [heads, width] falls into vectors. Where P heads fill a vector, as they lie, a part is
// one vector of P heads; else P is 1 and a part is one head, its last vector partly filled.
template <int P>
class Row {
 public:
  Row(int heads, int width)
      : parts((heads + P - 1) / P),
        last(P == 1 ? (width - 1) / simd::kLanes : 0),
        size(heads * width),
        step_(P == 1 ? width : simd::kLanes),
        tail_(simd::first_lanes(P == 1 ? width - last * simd::kLanes
                                       : size - (parts - 1) * simd::kLanes)) {}

  int begin(int part) const { return part * step_; }
  Mask16 mask(int part, int vector) const {
    return vector == last && (P == 1 || part == parts - 1) ? tail_ : kAll;
  }

  int parts;
  int last;  // number of a part's last vector
  int size;  // elements

 private:
  static constexpr Mask16 kAll = 0xFFFF;
  int step_;
  Mask16 tail_;
};

// The places of one source after those of another, each in the order of the places.
struct Place {
  std::int32_t row, number;
};

class BySource {
 public:
  BySource(const Places& places, std::int64_t rows, std::int64_t sources) : ptr(sources + 1) {
    const std::int64_t width = places.width, count = rows * width;
    std::vector<std::int64_t> next(sources);
    for (std::int64_t i = 0; i < count; ++i) {
      if (places.neighbor[i] >= 0) ++next[places.neighbor[i]];
    }
    std::int64_t total = 0;
    for (std::int64_t j = 0; j < sources; ++j) {
      ptr[j] = total;
      total += std::exchange(next[j], total);
    }
    ptr[sources] = total;
    place = std::make_unique_for_overwrite<Place[]>(total);
    const std::int32_t* neighbor = places.neighbor;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t s = 0; s < width; ++s, ++neighbor) {
        if (*neighbor < 0) continue;
        place[next[*neighbor]++] = {static_cast<std::int32_t>(row), static_cast<std::int32_t>(s)};
      }
    }
  }

  std::vector<std::int64_t> ptr;
  std::unique_ptr<Place[]> place;
};

// What a thread needs for one row of either pass.
template <class T>
struct Workspace {
  Workspace(std::int64_t edges, int slots, int floats)
      : key(edges),
        value(edges),
        table(edges),
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

template <class T, int P>
class Direct {
 public:
  Direct(const Places& places, const Inputs<T, float>& in)
      : places_(places),
        in_(in),
        key_(in.heads, in.width),
        value_(in.heads, in.value_width),
        slots_(static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(in.heads, P))))),
        shift_(std::countr_zero(static_cast<unsigned>(slots_ / P))),
        to_score_(static_cast<float>(in.numbers.scale / in.numbers.temperature * kLog2E)),
        bias_to_score_(static_cast<float>(kLog2E / in.numbers.temperature)),
        clamp_(static_cast<float>(in.numbers.clamp * kLog2E)),
        lowest_(in.numbers.eps > 0 ? static_cast<float>(std::log2(in.numbers.eps)) : -FLT_MAX),
        factor_(static_cast<float>(in.numbers.scale / in.numbers.temperature)),
        bias_factor_(static_cast<float>(1 / in.numbers.temperature)),
        threshold_(dropout_threshold(in.numbers.dropout)),
        kept_(static_cast<float>(1 / (1 - in.numbers.dropout))),
        blocks_(in.num_dst, block_rows(in.num_dst, places.width)) {}

  void forward(const Results<T, float>& to) const {
    for_each_block_with(
        blocks_.count(), [&] { return workspace(places_.width); },
        [&](std::int64_t block, Workspace<T>& work) {
          for (std::int64_t row = blocks_.begin(block); row < blocks_.end(block); ++row) {
            forward_row(row, to, work);
          }
        });
  }

  void backward(const Backward<T, float>& grad) const {
    const bool by_source = grad.k || grad.v;
    const std::int64_t place_floats = places_.width * slots_;
    const Scratch weights(by_source ? 2 * in_.num_dst * place_floats : 0);
    const std::int64_t table_floats = grad.key_table ? std::int64_t{in_.types} * key_.size : 0;
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
            float* kept = by_source ? weights.data() + 2 * row * place_floats : nullptr;
            destination_row(row, grad, table, bias, kept, work);
          }
        });
    // blocks do not depend on the thread count, so neither does the order of these sums
    add_parts(table_parts, table_floats, grad.key_table);
    add_parts(bias_parts, bias_floats, grad.bias_table);
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

  // Edges of a row, empty places left out; their rows, tables and places go to `work`.
  int collect(std::int64_t row, Workspace<T>& work) const {
    const std::int64_t at = row * places_.width;
    int n = 0;
    for (std::int64_t s = 0; s < places_.width; ++s) {
      const std::int64_t j = places_.neighbor[at + s];
      if (j < 0) continue;
      work.key[n] = in_.k + j * key_.size;
      work.value[n] = in_.v + j * value_.size;
      work.table[n] = table_of(at + s);
      work.place[n++] = static_cast<std::int32_t>(s);
    }
    return n;
  }

  int kind(std::int64_t place) const { return places_.type ? places_.type[place] : 0; }
  const float* table_of(std::int64_t place) const {
    return in_.key_table ? in_.key_table + kind(place) * std::int64_t{key_.size} : nullptr;
  }

  // A row in fp32: itself, or converted into `buffer`.
  static const float* widened(const float* row, int, std::vector<float>&) { return row; }
  template <class U>
  static const float* widened(const U* row, int size, std::vector<float>& buffer) {
    for (int i = 0; i < size; i += simd::kLanes) {
      const Mask16 mask = simd::first_lanes(std::min(size - i, simd::kLanes));
      store(buffer.data() + i, mask, load(row + i, mask));
    }
    return buffer.data();
  }

  template <bool kTable>
  static GTKERN_INLINE F16 dot(const Row<P>& shape, int part, const float* own, const T* other,
                               const float* table) {
    const int begin = shape.begin(part);
    F16 sum = simd::zero();
    for (int z = 0; z <= shape.last; ++z) {
      const int at = begin + z * simd::kLanes;
      const Mask16 mask = shape.mask(part, z);
      F16 x = load(own + at, mask);
      if constexpr (kTable) x = simd::mul(x, load(table + at, mask));
      sum = simd::fma(x, load(other + at, mask), sum);
    }
    return sum;
  }

  // The products of `own` with n rows, [n, slots].
  template <bool kTable>
  void products(const Row<P>& shape, const float* own, const T* const* rows,
                const float* const* tables, int n, float* to) const {
    const int count = n << shift_, within = (1 << shift_) - 1;
    for (int at = 0; at < count; at += simd::kLanes / P) {
      simd::store(to + at * P, reduce_runs<P>([&](int i) {
                    const int e = (at + i) >> shift_, part = (at + i) & within;
                    if (e >= n || part >= shape.parts) return simd::zero();
                    return dot<kTable>(shape, part, own, rows[e], tables[e]);
                  }));
    }
  }

  // Scores before the clamp, in units of log2, [n, slots].
  void scores(std::int64_t row, int n, Workspace<T>& work, float* to) const {
    const float* q = widened(in_.q + row * key_.size, key_.size, work.own);
    if (in_.key_table) {
      products<true>(key_, q, work.key.data(), work.table.data(), n, to);
    } else {
      products<false>(key_, q, work.key.data(), work.table.data(), n, to);
    }
    const bool biased = in_.bias_table || in_.bias_edge;
    for (int e = 0; biased && e < n; ++e) {
      const std::int64_t place = row * places_.width + work.place[e];
      const float* table = in_.bias_table + std::int64_t{kind(place)} * in_.heads;
      for (int h = 0; h < in_.heads; ++h) {
        float bias = in_.bias_table ? table[h] : 0.f;
        if (in_.bias_edge) bias += in_.bias_edge[place * in_.heads + h];
        work.bias[e * slots_ + h] = bias;
      }
    }
    const F16 factor = simd::splat(to_score_), bias_factor = simd::splat(bias_to_score_);
    for (int at = 0; at < n * slots_; at += simd::kLanes) {
      F16 score = simd::mul(simd::load(to + at), factor);
      if (biased) score = simd::fma(simd::load(work.bias.data() + at), bias_factor, score);
      simd::store(to + at, score);
    }
  }

  F16 clamped(F16 score) const {
    const F16 clamp = simd::splat(clamp_);
    return simd::max_of(simd::sub(simd::zero(), clamp), simd::min_of(clamp, score));
  }

  static Mask16 lanes_left(int lanes, int at) {
    return simd::first_lanes(std::min(lanes - at, simd::kLanes));
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
  bool dropout() const { return in_.numbers.dropout > 0; }

  // to = factor(part) * (start + sum weight_e * table_e * row_e)
  template <bool kTable, class U, class Weight, class Factor, class Out>
  static GTKERN_INLINE void weighted_sum(const Row<P>& shape, const U* const* rows,
                                         const float* const* tables, const Weight& weight, int n,
                                         const float* start, const Factor& factor, Out* to) {
    for (int part = 0; part < shape.parts; ++part) {
      const F16 by = factor(part);
      for (int z = 0; z <= shape.last; ++z) {
        const int at = shape.begin(part) + z * simd::kLanes;
        const Mask16 mask = shape.mask(part, z);
        F16 sum = start ? load(start + at, mask) : simd::zero();
        for (int e = 0; e < n; ++e) {
          F16 w = spread<P>(weight(e) + part * P);
          if constexpr (kTable) w = simd::mul(w, load(tables[e] + at, mask));
          sum = simd::fma(w, load(rows[e] + at, mask), sum);
        }
        store(to + at, mask, simd::mul(sum, by));
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
    top = over_heads(top, slots_, [](F16 a, F16 b) { return simd::max_of(a, b); });
    F16 total = simd::zero();
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 weight = simd::exp2(simd::sub(simd::load(weights + at), top));
      simd::store(weights + at, weight);
      total = simd::add(total, weight);
    }
    total = over_heads(total, slots_, [](F16 a, F16 b) { return simd::add(a, b); });
    if (in_.numbers.eps > 0) {
      total = simd::add(total, simd::exp2(simd::sub(simd::splat(lowest_), top)));
    }
    const Mask16 any = _mm512_cmp_ps_mask(total, simd::zero(), _CMP_NEQ_UQ);
    alignas(64) float totals[simd::kLanes], tops[simd::kLanes], inverse[simd::kLanes];
    simd::store(totals, total);
    simd::store(tops, top);
    simd::store(inverse, _mm512_maskz_div_ps(any, simd::splat(1.f), total));
    for (int h = 0; h < in_.heads; ++h) {
      to.lse[row * in_.heads + h] = (std::log2(totals[h]) + tops[h]) * kLn2;
    }
    for (int e = 0; to.scores && e < n; ++e) {
      float* place = to.scores + (row * places_.width + work.place[e]) * in_.heads;
      for (int h = 0; h < in_.heads; ++h) place[h] = weights[e * slots_ + h] * inverse[h];
    }
    if (dropout()) {
      fill_keep(row, n, work);
      for (int at = 0; at < lanes; at += simd::kLanes) {
        simd::store(weights + at,
                    simd::mul(simd::load(weights + at), simd::load(work.keep.data() + at)));
      }
    }
    weighted_sum<false>(
        value_, work.value.data(), work.table.data(), [&](int e) { return weights + e * slots_; },
        n, nullptr, [&](int part) { return spread<P>(inverse + part * P); },
        to.out + row * value_.size);
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
    products<false>(value_, grad_out, work.value.data(), work.table.data(), n, into);
    if (dropout()) fill_keep(row, n, work);

    const F16 lse = row_lse(grad.lse + row * in_.heads);
    F16 delta = simd::zero();
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 weight = simd::keep(lanes_left(lanes, at),
                                    simd::exp2(simd::sub(clamped(simd::load(ds + at)), lse)));
      F16 entering = simd::load(into + at);
      if (dropout()) entering = simd::mul(entering, simd::load(work.keep.data() + at));
      simd::store(into + at, entering);
      simd::store(p + at, weight);
    }
    for (int e = 0; grad.grad_scores && e < n; ++e) {
      const float* place = grad.grad_scores + (row * places_.width + work.place[e]) * in_.heads;
      for (int h = 0; h < in_.heads; ++h) into[e * slots_ + h] += place[h];
    }
    for (int at = 0; at < lanes; at += simd::kLanes) {
      delta = simd::fma(simd::load(p + at), simd::load(into + at), delta);
    }
    delta = over_heads(delta, slots_, [](F16 a, F16 b) { return simd::add(a, b); });
    const F16 clamp = simd::splat(clamp_);
    for (int at = 0; at < lanes; at += simd::kLanes) {
      const F16 weight = simd::load(p + at);
      const F16 d = simd::mul(weight, simd::sub(simd::load(into + at), delta));
      simd::store(ds + at, simd::keep(simd::within(simd::load(ds + at), clamp), d));
      if (dropout()) simd::store(p + at, simd::mul(weight, simd::load(work.keep.data() + at)));
    }
    if (kept) {
      for (int e = 0; e < n; ++e) {
        float* to = kept + work.place[e] * slots_;
        std::copy_n(ds + e * slots_, slots_, to);
        std::copy_n(p + e * slots_, slots_, to + places_.width * slots_);
      }
    }
    for (int e = 0; (bias || grad.bias_edge) && e < n; ++e) {
      const std::int64_t place = row * places_.width + work.place[e];
      for (int h = 0; h < in_.heads; ++h) {
        const float d = bias_factor_ * ds[e * slots_ + h];
        if (bias) bias[kind(place) * in_.heads + h] += d;
        if (grad.bias_edge) grad.bias_edge[place * in_.heads + h] = d;
      }
    }
    const auto weight = [&](int e) { return ds + e * slots_; };
    const auto factor = [&](int) { return simd::splat(factor_); };
    if (grad_q && in_.key_table) {
      weighted_sum<true>(key_, work.key.data(), work.table.data(), weight, n, nullptr, factor,
                         grad_q);
    } else if (grad_q) {
      weighted_sum<false>(key_, work.key.data(), work.table.data(), weight, n, nullptr, factor,
                          grad_q);
    }
    if (table) add_to_table(row, n, work, ds, table);
  }

  // table[type of e] += factor * ds_e * q * k_e
  void add_to_table(std::int64_t row, int n, Workspace<T>& work, const float* ds,
                    float* table) const {
    const float* q = widened(in_.q + row * key_.size, key_.size, work.own);
    for (int e = 0; e < n; ++e) {
      float* to = table + kind(row * places_.width + work.place[e]) * std::int64_t{key_.size};
      for (int part = 0; part < key_.parts; ++part) {
        const F16 w = simd::mul(spread<P>(ds + e * slots_ + part * P), simd::splat(factor_));
        for (int z = 0; z <= key_.last; ++z) {
          const int at = key_.begin(part) + z * simd::kLanes;
          const Mask16 mask = key_.mask(part, z);
          const F16 along = simd::mul(w, load(q + at, mask));
          store(to + at, mask, simd::fma(along, load(work.key[e] + at, mask), load(to + at, mask)));
        }
      }
    }
  }

  // A row's lse in units of log2, at every lane of each head.
  F16 row_lse(const float* lse) const {
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
    for (std::int64_t at = from; at < stop; at += kChunk) {
      const int n = static_cast<int>(std::min<std::int64_t>(kChunk, stop - at));
      for (int e = 0; e < n; ++e) {
        const Place place = sources.place[at + e];
        work.key[e] = in_.q + place.row * std::int64_t{key_.size};
        work.value[e] = grad.grad_out + place.row * std::int64_t{value_.size};
        work.weight[e] = weights + 2 * place.row * place_floats + place.number * slots_;
        work.table[e] = table_of(place.row * places_.width + place.number);
      }
      const bool first = at == from, last = at + n == stop;
      const auto ds = [&](int e) { return work.weight[e]; };
      const auto p = [&](int e) { return work.weight[e] + place_floats; };
      if (grad_k && in_.key_table) {
        source_sum<true>(key_, work.key.data(), ds, n, factor_, first, last, work, work.own,
                         grad_k);
      } else if (grad_k) {
        source_sum<false>(key_, work.key.data(), ds, n, factor_, first, last, work, work.own,
                          grad_k);
      }
      if (grad_v) {
        source_sum<false>(value_, work.value.data(), p, n, 1.f, first, last, work, work.other,
                          grad_v);
      }
    }
  }

  // One chunk of a source's sum; `so_far` holds it between chunks.
  template <bool kTable, class Weight>
  static GTKERN_INLINE void source_sum(const Row<P>& shape, const T* const* rows,
                                       const Weight& weight, int n, float factor, bool first,
                                       bool last, Workspace<T>& work, std::vector<float>& so_far,
                                       T* to) {
    const float* start = first ? nullptr : so_far.data();
    if (last) {
      weighted_sum<kTable>(
          shape, rows, work.table.data(), weight, n, start,
          [&](int) { return simd::splat(factor); }, to);
    } else {
      weighted_sum<kTable>(
          shape, rows, work.table.data(), weight, n, start, [](int) { return simd::splat(1.f); },
          so_far.data());
    }
  }

  void add_parts(const std::vector<float>& parts, std::int64_t size, float* to) const {
    if (!to) return;
    std::fill_n(to, size, 0.f);
    for (std::int64_t block = 0; block < blocks_.count(); ++block) {
      for (std::int64_t i = 0; i < size; ++i) to[i] += parts[block * size + i];
    }
  }

  const Places& places_;
  const Inputs<T, float>& in_;
  Row<P> key_, value_;
  int slots_, shift_;  // slots: heads, rounded up to a power of two; P << shift
  float to_score_, bias_to_score_, clamp_, lowest_, factor_, bias_factor_;
  std::uint32_t threshold_;
  float kept_;
  RowRange blocks_;
};

template <class T>
bool takes(const Inputs<T, float>& in) {
  return in.heads <= kMostHeads && !in.key_edge && in.attr_width == 0;
}

// Calls f with P as a constant.
template <class T, class F>
void with_heads_per_vector(const Inputs<T, float>& in, const F& f) {
  if (in.width == 8 && in.value_width == 8) return f(std::integral_constant<int, 2>());
  if (in.width == 4 && in.value_width == 4) return f(std::integral_constant<int, 4>());
  f(std::integral_constant<int, 1>());
}

}  // namespace

template <class T>
bool forward_direct(const Places& places, const Inputs<T, float>& in, const Results<T, float>& to) {
  if (!takes(in)) return false;
  with_heads_per_vector(in, [&](auto heads) { Direct<T, heads()>(places, in).forward(to); });
  return true;
}

template <class T>
bool backward_direct(const Places& places, const Inputs<T, float>& in,
                     const Backward<T, float>& grad) {
  if (!takes(in)) return false;
  with_heads_per_vector(in, [&](auto heads) { Direct<T, heads()>(places, in).backward(grad); });
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
