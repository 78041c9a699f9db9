// CPU attention for one head of width up to 4: Spexphormer's narrow networks.
//
// A source's [k | v] and a destination's [q | grad_out] are 8 floats, so one vector holds the pairs
// of two edges, and four vectors those of eight. Multiplied with the row's own pair and folded by
// four, they give, lane quarter by lane quarter, [q.k of edges 0-3 | grad.v of 0-3 | q.k of 4-7 |
// grad.v of 4-7]: everything the score, its gradient and both weighted sums need, in one register.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/attention/problem.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace gtkern::attention {

#ifndef __AVX512F__

bool forward_narrow(const Inputs<float, float>&, const Results<float, float>&) { return false; }
bool backward_narrow(const Inputs<float, float>&, const Backward<float, float>&) { return false; }

#else

namespace {

using simd::F16;

constexpr int kWidth = 4, kPair = 2 * kWidth, kEdges = 8;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// in units of log2; see packed.cpp
constexpr float kSafe = 80.f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool takes(const Inputs<float, float>& in) {
  return in.heads == 1 && in.width <= kWidth && in.value_width <= kWidth && !in.key_edge &&
         !in.bias_edge && in.attr_width == 0 && in.numbers.dropout == 0 &&
         in.num_dst < (std::int64_t{1} << 30);  // twice a row's number fits the gathers' 32 bits
}

struct Pairs {
  explicit Pairs(std::int64_t rows) : data(rows * kPair) {}
  float* row(std::int64_t r) const { return data.data() + r * kPair; }
  Scratch data;
};

// [first, 0 .. | second, 0 ..] for each row; returns the largest |first|.
float pack(const Pairs& pairs, std::int64_t rows, const float* first, int first_width,
           const float* second, int second_width) {
  const RowRange blocks(rows, 4096);
  std::vector<float> norms(blocks.count());
  for_each_block(blocks.count(), [&](std::int64_t block) {
    float largest = 0;
    for (std::int64_t r = blocks.begin(block); r < blocks.end(block); ++r) {
      float* to = pairs.row(r);
      float norm = 0;
      for (int d = 0; d < kWidth; ++d) {
        to[d] = d < first_width ? first[r * first_width + d] : 0.f;
        to[kWidth + d] = second && d < second_width ? second[r * second_width + d] : 0.f;
        norm += to[d] * to[d];
      }
      largest = std::max(largest, norm);
    }
    norms[block] = largest;
  });
  float largest = 0;
  for (float norm : norms) largest = std::max(largest, norm);
  return std::sqrt(largest);
}

// The numbers of a call in units of log2, and the tables of every edge type.
struct Setup {
  explicit Setup(const Inputs<float, float>& in)
      : to_score(static_cast<float>(in.numbers.scale / in.numbers.temperature) * kLog2E),
        bias_to_score(kLog2E / static_cast<float>(in.numbers.temperature)),
        clamp(static_cast<float>(in.numbers.clamp) * kLog2E),
        by_type(in.key_table || in.bias_table) {
    for (int type = 0; type < in.types; ++type) {
      for (int d = 0; d < kWidth; ++d) {
        const bool inside = in.key_table && d < in.width;
        table.push_back(inside ? in.key_table[type * in.width + d] : 1.f);
        largest_table = std::max(largest_table, in.key_table ? std::abs(table.back()) : 1.f);
      }
      bias.push_back(in.bias_table ? in.bias_table[type] * bias_to_score : 0.f);
      largest_bias = std::max(largest_bias, std::abs(bias.back()));
    }
  }

  bool bounded(float query_norm, float key_norm) const {
    return clamp < kSafe ||
           std::abs(to_score) * query_norm * key_norm * largest_table + largest_bias < kSafe;
  }

  float to_score, bias_to_score, clamp;
  bool by_type;
  std::vector<float> table, bias;  // [types, 4], [types]
  float largest_table = 0, largest_bias = 0;
};

GTKERN_INLINE F16 quarters(__m128 a, __m128 b, __m128 c, __m128 d) {
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1);
  const __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(c), d, 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

GTKERN_INLINE F16 alternate(float even, float odd) {
  const __m128 a = _mm_set1_ps(even), b = _mm_set1_ps(odd);
  return quarters(a, b, a, b);
}

// The pairs of eight edges: vector i holds those of edges i and 4 + i.
struct Eight {
  F16 pair[4];
  int n;  // edges that exist; the others repeat the last
};

GTKERN_INLINE void load_eight(const Pairs& rows, const std::int32_t* index, Eight* to) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    to->pair[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(rows.row(index[i]))),
                                     _mm256_loadu_ps(rows.row(index[4 + i])), 1);
  }
}

// Lane quarters of the first n of eight edges.
GTKERN_INLINE simd::Mask16 live(int n) {
  const unsigned low = n >= 4 ? 0xFu : (1u << n) - 1u;
  const unsigned high = n >= 4 ? (1u << (n - 4)) - 1u : 0u;
  return static_cast<simd::Mask16>(low | low << 4 | high << 8 | high << 12);
}

GTKERN_INLINE F16 folded(F16 self, const Eight& edges) {
  using namespace simd::detail;
  return fold_pairs(fold_singles(simd::mul(self, edges.pair[0]), simd::mul(self, edges.pair[1])),
                    fold_singles(simd::mul(self, edges.pair[2]), simd::mul(self, edges.pair[3])));
}

// sum += weight of each edge and half * pair: lane i of a weight quarter belongs to vector i.
GTKERN_INLINE void add_pairs(F16 weight, const Eight& edges, F16* even, F16* odd) {
  *even = simd::fma(_mm512_permute_ps(weight, 0x00), edges.pair[0], *even);
  *odd = simd::fma(_mm512_permute_ps(weight, 0x55), edges.pair[1], *odd);
  *even = simd::fma(_mm512_permute_ps(weight, 0xAA), edges.pair[2], *even);
  *odd = simd::fma(_mm512_permute_ps(weight, 0xFF), edges.pair[3], *odd);
}

// Calls f(index, n, at) for groups of up to eight edges of from .. stop.
template <class F>
GTKERN_INLINE void for_each_eight(const Edges& edges, std::int64_t from, std::int64_t stop,
                                  const F& f) {
  std::int32_t padded[kEdges];
  for (std::int64_t at = from; at < stop; at += kEdges) {
    const std::int32_t* index = edges.index + at;
    int n = kEdges;
    if (at + kEdges > stop) {
      n = static_cast<int>(stop - at);
      for (int e = 0; e < kEdges; ++e) padded[e] = index[std::min(e, n - 1)];
      index = padded;
    }
    f(index, n, at);
  }
}

GTKERN_INLINE __m128 first_halves(F16 x) {
  return _mm_add_ps(_mm512_extractf32x4_ps(x, 0), _mm512_extractf32x4_ps(x, 2));
}
GTKERN_INLINE __m128 second_halves(F16 x) {
  return _mm_add_ps(_mm512_extractf32x4_ps(x, 1), _mm512_extractf32x4_ps(x, 3));
}
GTKERN_INLINE float lane_sum(__m128 x) {
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}

// [to_score * table * first | second] of a row, twice.
GTKERN_INLINE F16 own_pair(const Setup& setup, const float* row, int kind) {
  const __m128 first = _mm_mul_ps(_mm_mul_ps(_mm_loadu_ps(row), _mm_set1_ps(setup.to_score)),
                                  _mm_loadu_ps(setup.table.data() + kind * kWidth));
  const __m128 second = _mm_loadu_ps(row + kWidth);
  return quarters(first, second, first, second);
}

void write(float* to, __m128 x, int width) {
  alignas(16) float lanes[4];
  _mm_store_ps(lanes, x);
  for (int d = 0; d < width; ++d) to[d] = lanes[d];
}

// The weights of eight edges from their folded products: ds in the quarters of the first halves,
// the normalised score in those of the second.
GTKERN_INLINE F16 edge_weights(F16 products, F16 bias, F16 clamp, F16 statistics, int n) {
  const F16 raw = simd::add(products, bias);
  const F16 held = simd::max_of(simd::sub(simd::zero(), clamp), simd::min_of(clamp, raw));
  const F16 less = simd::sub(held, statistics);  // [score - lse | into - delta | ...]
  const F16 swapped = _mm512_shuffle_f32x4(less, less, 0xB1);
  const F16 p = simd::exp2(simd::select(0xF0F0, swapped, less));
  const F16 both = _mm512_mask_mul_ps(p, 0x0F0F, p, swapped);
  return simd::keep(simd::within(raw, clamp) & live(n), both);
}

}  // namespace

bool forward_narrow(const Inputs<float, float>& in, const Results<float, float>& to) {
  if (!takes(in) || to.scores) return false;
  const Setup setup(in);
  const Pairs pairs(in.num_src), own(in.num_dst);
  const float key_norm = pack(pairs, in.num_src, in.k, in.width, in.v, in.value_width);
  const float query_norm = pack(own, in.num_dst, in.q, in.width, nullptr, 0);
  if (!setup.bounded(query_norm, key_norm)) return false;

  const F16 clamp = simd::splat(setup.clamp);
  const float eps = static_cast<float>(in.numbers.eps);
  const RowBlocks blocks(in.csr.ptr, in.csr.rows);
  for_each_block(blocks.count(), [&](std::int64_t block) {
    const std::int64_t begin = blocks.begin(block), end = blocks.end(block);
    std::vector<float> totals(end - begin, 0.f), sums((end - begin) * kWidth, 0.f);
    for_each_segment(
        in.csr, setup.by_type, begin, end,
        [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
          const F16 self = own_pair(setup, own.row(row), kind);
          const F16 bias = simd::splat(setup.bias[kind]);
          F16 even = simd::zero(), odd = simd::zero(), total = simd::zero();
          for_each_eight(in.csr, from, stop, [&](const std::int32_t* index, int n, std::int64_t) {
            Eight edges;
            load_eight(pairs, index, &edges);
            F16 score = simd::add(folded(self, edges), bias);
            score =
                _mm512_shuffle_f32x4(score, score, 0xA0);  // over the quarters of the values too
            score = simd::max_of(simd::sub(simd::zero(), clamp), simd::min_of(clamp, score));
            const F16 weight = simd::keep(live(n), simd::exp2(score));
            total = simd::add(total, weight);
            add_pairs(weight, edges, &even, &odd);
          });
          float* sum = sums.data() + (row - begin) * kWidth;
          const F16 both = simd::add(even, odd);
          _mm_storeu_ps(sum, _mm_add_ps(_mm_loadu_ps(sum), second_halves(both)));
          totals[row - begin] += lane_sum(first_halves(total));
        });
    for (std::int64_t row = begin; row < end; ++row) {
      const float total = totals[row - begin] + eps;
      const float inverse = total == 0 ? 0.f : 1 / total;
      to.lse[row] = std::log(total);
      for (int d = 0; d < in.value_width; ++d) {
        to.out[row * in.value_width + d] = sums[(row - begin) * kWidth + d] * inverse;
      }
    }
  });
  return true;
}

bool backward_narrow(const Inputs<float, float>& in, const Backward<float, float>& grad) {
  if (!takes(in) || grad.grad_scores) return false;
  const Setup setup(in);
  const Pairs pairs(in.num_src), own(in.num_dst);
  pack(pairs, in.num_src, in.k, in.width, in.v, in.value_width);
  pack(own, in.num_dst, in.q, in.width, grad.grad_out, in.value_width);
  const Scratch statistics(2 * in.num_dst);
  const RowRange ranges(in.num_dst, 4096);
  for_each_block(ranges.count(), [&](std::int64_t block) {
    for (std::int64_t row = ranges.begin(block); row < ranges.end(block); ++row) {
      float delta = 0;
      for (int d = 0; d < in.value_width; ++d) {
        delta += grad.out[row * in.value_width + d] * own.row(row)[kWidth + d];
      }
      // a row without weight: exp(score - inf) = 0 for all of its edges
      const float lse = grad.lse[row] * kLog2E;
      statistics.data()[2 * row] = lse == -kInfinity ? kInfinity : lse;
      statistics.data()[2 * row + 1] = delta;
    }
  });

  const F16 clamp = alternate(setup.clamp, kInfinity);
  const float factor = static_cast<float>(in.numbers.scale / in.numbers.temperature);
  const RowBlocks blocks(in.csr.ptr, in.csr.rows);
  std::vector<float> tables(blocks.count() * in.types * kWidth, 0.f);
  std::vector<float> biases(blocks.count() * in.types, 0.f);
  for_each_block(blocks.count(), [&](std::int64_t block) {
    const std::int64_t begin = blocks.begin(block), end = blocks.end(block);
    std::vector<float> sums((end - begin) * kWidth, 0.f);
    float* table = tables.data() + block * in.types * kWidth;
    float* bias_sum = biases.data() + block * in.types;
    for_each_segment(
        in.csr, setup.by_type, begin, end,
        [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
          const F16 self = own_pair(setup, own.row(row), kind);
          const F16 bias = alternate(setup.bias[kind], 0.f);
          const float* pair = statistics.data() + 2 * row;
          const F16 statistic = alternate(pair[0], pair[1]);
          F16 even = simd::zero(), odd = simd::zero(), ds_sum = simd::zero();
          for_each_eight(in.csr, from, stop, [&](const std::int32_t* index, int n, std::int64_t) {
            Eight edges;
            load_eight(pairs, index, &edges);
            const F16 weight = edge_weights(folded(self, edges), bias, clamp, statistic, n);
            ds_sum = simd::add(ds_sum, weight);
            add_pairs(weight, edges, &even, &odd);
          });
          const __m128 along = _mm_mul_ps(first_halves(simd::add(even, odd)), _mm_set1_ps(factor));
          float* sum = sums.data() + (row - begin) * kWidth;
          const __m128 scaled = _mm_mul_ps(along, _mm_loadu_ps(setup.table.data() + kind * kWidth));
          _mm_storeu_ps(sum, _mm_add_ps(_mm_loadu_ps(sum), scaled));
          float* entry = table + kind * kWidth;
          const __m128 by_query = _mm_mul_ps(along, _mm_loadu_ps(own.row(row)));
          _mm_storeu_ps(entry, _mm_add_ps(_mm_loadu_ps(entry), by_query));
          bias_sum[kind] += lane_sum(first_halves(ds_sum));
        });
    for (std::int64_t row = begin; grad.q && row < end; ++row) {
      write(grad.q + row * in.width, _mm_loadu_ps(sums.data() + (row - begin) * kWidth), in.width);
    }
  });
  // blocks do not depend on the thread count, so neither does the order of these sums
  for (int type = 0; type < in.types; ++type) {
    float bias = 0, table[kWidth] = {};
    for (std::int64_t block = 0; block < blocks.count(); ++block) {
      bias += biases[block * in.types + type];
      for (int d = 0; d < kWidth; ++d) table[d] += tables[(block * in.types + type) * kWidth + d];
    }
    if (grad.bias_table) {
      grad.bias_table[type] = bias / static_cast<float>(in.numbers.temperature);
    }
    for (int d = 0; grad.key_table && d < in.width; ++d) {
      grad.key_table[type * in.width + d] = table[d];
    }
  }
  if (!grad.k && !grad.v) return true;

  const RowBlocks columns(grad.csc.ptr, grad.csc.rows);
  // lane l of an eight reads statistic `which[l]` of edge `edge[l]`
  const __m512i which = _mm512_set_epi32(1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i edge = _mm512_set_epi32(7, 6, 5, 4, 7, 6, 5, 4, 3, 2, 1, 0, 3, 2, 1, 0);
  for_each_block(columns.count(), [&](std::int64_t block) {
    const std::int64_t begin = columns.begin(block), end = columns.end(block);
    std::vector<float> sums((end - begin) * kPair, 0.f);
    for_each_segment(
        grad.csc, setup.by_type, begin, end,
        [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
          const F16 self = own_pair(setup, pairs.row(row), kind);
          const F16 bias = alternate(setup.bias[kind], 0.f);
          F16 even = simd::zero(), odd = simd::zero();
          for_each_eight(grad.csc, from, stop, [&](const std::int32_t* index, int n, std::int64_t) {
            Eight edges;
            load_eight(own, index, &edges);
            const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
            const __m512i rows = _mm512_permutexvar_epi32(edge, _mm512_castsi256_si512(eight));
            const __m512i low = _mm512_slli_epi32(rows, 1);
            const F16 statistic =
                _mm512_i32gather_ps(_mm512_add_epi32(low, which), statistics.data(), sizeof(float));
            const F16 weight = edge_weights(folded(self, edges), bias, clamp, statistic, n);
            add_pairs(weight, edges, &even, &odd);
          });
          const F16 both = simd::add(even, odd);
          float* sum = sums.data() + (row - begin) * kPair;
          const __m128 scaled = _mm_mul_ps(_mm_mul_ps(first_halves(both), _mm_set1_ps(factor)),
                                           _mm_loadu_ps(setup.table.data() + kind * kWidth));
          _mm_storeu_ps(sum, _mm_add_ps(_mm_loadu_ps(sum), scaled));
          _mm_storeu_ps(sum + kWidth, _mm_add_ps(_mm_loadu_ps(sum + kWidth), second_halves(both)));
        });
    for (std::int64_t row = begin; row < end; ++row) {
      const float* sum = sums.data() + (row - begin) * kPair;
      if (grad.k) write(grad.k + row * in.width, _mm_loadu_ps(sum), in.width);
      if (grad.v) write(grad.v + row * in.value_width, _mm_loadu_ps(sum + kWidth), in.value_width);
    }
  });
  return true;
}

#endif

}  // namespace gtkern::attention
