// The kernels behind packed.h for one (HG, NZ); each packed_<HG>.cpp instantiates its widths.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/attention/packed.h"
#include "common/philox.h"
#include "common/simd.h"

namespace gtkern::attention {

template <int HG, int NZ, Variant kVariant>
struct PackedKernels {
  // Mixed: a stretch is a whole row, and every edge looks up what its type does to the score.
  // Otherwise a stretch has one type, whose factors stay in registers.
  static constexpr bool kMixed = kVariant == Variant::kMixed;
  static constexpr int kRow = NZ * simd::kLanes;    // floats of a group's row
  static constexpr int kBlock = simd::kLanes / HG;  // edges whose scores fill one vector
  static constexpr int kMaxRows = kMixed ? kMostMixedTypes : 1;
  static constexpr int kAhead = NZ >= 4 ? 16 : 32;  // edges from a fetch to its use
  // edges scored before they are summed: enough to hide latencies, few enough that the rows read
  // twice are still in the nearest cache
  static constexpr int kChunk = std::max(kBlock, std::min(128, 4096 / kRow) / kBlock * kBlock);

  using F16 = simd::F16;

  static GTKERN_INLINE F16 dot(const F16* a, const float* b) {
    F16 sum = simd::mul(a[0], simd::load(b));
#pragma GCC unroll 16
    for (int z = 1; z < NZ; ++z) sum = simd::fma(a[z], simd::load(b + 16 * z), sum);
    return sum;
  }

  static GTKERN_INLINE void prefetch_row(const float* row) {
#pragma GCC unroll 16
    for (int z = 0; z < NZ; ++z) __builtin_prefetch(row + 16 * z);
  }

  // kBlock edges, whose scores fill one vector: number `at` and the n - 1 after it. Past the n-th,
  // `index` and `type` (kMixed only) repeat the last edge, and `live` is off. `ahead` is the index
  // of kBlock edges to fetch meanwhile; null: none.
  struct Block {
    const std::int32_t* index;
    const std::int32_t* ahead;
    const std::uint8_t* type;
    std::int64_t at;
    int n;
    simd::Mask16 live;
  };

  // The index of the edges to fetch while number `at` and those after it are computed on. Fetches
  // go among the arithmetic one by one: a burst of them fills the queue of misses and stops it.
  static GTKERN_INLINE const std::int32_t* ahead_of(const Packed& p, std::int64_t at) {
    if constexpr (kVariant == Variant::kPlain) return nullptr;
    const std::int64_t place = at + kAhead;
    return place + kChunk <= p.fetched ? p.edges->index + place : nullptr;
  }

  // Calls f(block) for the edges from .. stop.
  template <class F>
  static GTKERN_INLINE void for_each_edge_block(const Packed& p, std::int64_t from,
                                                std::int64_t stop, const F& f) {
    std::int32_t padded[kBlock];
    std::uint8_t padded_type[simd::kLanes];
    for (std::int64_t at = from; at < stop; at += kBlock) {
      Block block{p.edges->index + at,
                  ahead_of(p, at),
                  kMixed ? p.edges->type + at : nullptr,
                  at,
                  kBlock,
                  simd::first_lanes(simd::kLanes)};
      if (at + kBlock > stop) {
        block.n = static_cast<int>(stop - at);
        block.live = simd::first_lanes(block.n * HG);
        for (int e = 0; e < kBlock; ++e) {
          padded[e] = block.index[std::min(e, block.n - 1)];
          if constexpr (kMixed) padded_type[e] = block.type[std::min(e, block.n - 1)];
        }
        block.index = padded;
        if constexpr (kMixed) block.type = padded_type;
      }
      f(block);
    }
  }

  // The products of `self` with the rows of a block's edges, edge-major.
  static GTKERN_INLINE F16 products(const F16* self, const float* base, std::int64_t stride,
                                    const Block& block) {
    if constexpr (kVariant == Variant::kPlain) {
      return simd::reduce<HG>([&](int e) { return dot(self, base + block.index[e] * stride); });
    }
    return simd::reduce<HG>([&](int e) GTKERN_INLINE_LAMBDA {
      if (block.ahead) prefetch_row(base + block.ahead[e] * stride);
      return dot(self, base + block.index[e] * stride);
    });
  }

  // One value for each score of a block from an [E, heads] array.
  static GTKERN_INLINE F16 by_edge(const Packed& p, const float* values, int group,
                                   const Block& block) {
    alignas(64) float lanes[simd::kLanes] = {};
    for (int e = 0; e < block.n; ++e) {
      const float* from = values + p.edges->id(block.at + e) * p.heads + group * HG;
      for (int h = 0; h < HG; ++h) lanes[e * HG + h] = from[h];
    }
    return simd::load(lanes);
  }

  // 0 or 1 / (1 - dropout) for each score of a block.
  static F16 keeps(const Packed& p, int group, const Block& block) {
    alignas(64) float lanes[simd::kLanes] = {};
    for (int e = 0; e < block.n; ++e) {
      const std::int64_t id = p.edges->id(block.at + e);
      for (int h = 0; h < HG; ++h) {
        const std::uint32_t word = item_word(p.seed, id, group * HG + h);
        lanes[e * HG + h] = word >= p.threshold ? p.kept : 0.f;
      }
    }
    return simd::load(lanes);
  }

  // What the scores of a stretch are made of: its own vector times the factors of the edges' type
  // and to_score; for kMixed one such vector for each type.
  struct Self {
    F16 scaled[kMaxRows * NZ];
    F16 bias;
    int rows;  // 1 without factors by type

    Self(const Packed& p, const float* self, int group, int kind)
        : rows(kMixed && p.key_table ? p.types : 1) {
      const F16 factor = simd::splat(p.to_score);
      F16 own[NZ];
#pragma GCC unroll 16
      for (int z = 0; z < NZ; ++z) own[z] = simd::mul(simd::load(self + 16 * z), factor);
      for (int row = 0; row < rows; ++row) {
        const float* table = table_row(p, kMixed ? row : kind, group);
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) {
          scaled[row * NZ + z] = table ? simd::mul(own[z], simd::load(table + 16 * z)) : own[z];
        }
      }
      bias = kMixed ? simd::zero() : run_bias(p, group, kind);
    }

    GTKERN_INLINE int row_of(int type) const { return rows > 1 ? type * NZ : 0; }
  };

  static GTKERN_INLINE const float* table_row(const Packed& p, int kind, int group) {
    return p.key_table ? p.key_table + (std::int64_t{kind} * p.groups + group) * kRow : nullptr;
  }

  static GTKERN_INLINE F16 run_bias(const Packed& p, int group, int kind) {
    if (!p.bias_table) return simd::zero();
    return simd::mul(simd::repeat<HG>(p.bias_table + std::int64_t{kind} * p.heads + group * HG),
                     simd::splat(p.bias_to_score));
  }

  // Sums of weight_e * row_e, apart for each row of Self.
  struct Sums {
    F16 of[kMaxRows * NZ];

    explicit GTKERN_INLINE Sums(int rows) {
      for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) of[row * NZ + z] = simd::zero();
      }
    }

    GTKERN_INLINE void add(const Self& self, const float* weights, const Packed& p,
                           const float* base, std::int64_t at, int n) {
      const std::int32_t* index = p.edges->index + at;
      if (kMixed && self.rows > 1) {
        for (int e = 0; e < n; ++e) {
          const F16 w = simd::repeat<HG>(weights + e * HG);
          const float* row = base + index[e] * p.gather.stride;
          F16* sum = of + self.row_of(p.edges->type[at + e]);
#pragma GCC unroll 16
          for (int z = 0; z < NZ; ++z) sum[z] = simd::fma(w, simd::load(row + 16 * z), sum[z]);
        }
      } else {
        add_rows(of, weights, base, p.gather.stride, index, n);
      }
    }
  };

  static GTKERN_INLINE F16 scores_of(const Self& self, const Packed& p, const float* base,
                                     int group, const Block& block) {
    F16 score;
    if constexpr (kMixed) {
      const float* bias = p.bias_table ? p.bias_table + group * HG : nullptr;
      alignas(64) float lanes[simd::kLanes] = {};
      if (bias) {
        for (int e = 0; e < kBlock; ++e) {
          std::memcpy(lanes + e * HG, bias + block.type[e] * p.heads, HG * sizeof(float));
        }
      }
      score = simd::reduce<HG>([&](int e) GTKERN_INLINE_LAMBDA {
        if (block.ahead) prefetch_row(base + block.ahead[e] * p.gather.stride);
        return dot(self.scaled + self.row_of(block.type[e]),
                   base + block.index[e] * p.gather.stride);
      });
      score = simd::fma(simd::splat(p.bias_to_score), simd::load(lanes), score);
    } else {
      score = simd::add(products(self.scaled, base, p.gather.stride, block), self.bias);
    }
    if (p.bias_edge) {
      score = simd::fma(simd::splat(p.bias_to_score), by_edge(p, p.bias_edge, group, block), score);
    }
    return score;
  }

  static GTKERN_INLINE F16 clamped(F16 score, F16 clamp) {
    return simd::max_of(simd::sub(simd::zero(), clamp), simd::min_of(clamp, score));
  }

  // sum += weight_e * row_e over n edges, a chunk; `weights` is edge-major. `ahead`: as in Block.
  // The chunk is added up apart: like terms, one after the other, are all rounded the same way, and
  // a hub has thousands of them.
  static GTKERN_INLINE void add_rows(F16* sum, const float* weights, const float* base,
                                     std::int64_t stride, const std::int32_t* index, int n,
                                     const std::int32_t* ahead = nullptr) {
    // few vectors: two chains hide the latency of a multiply-add
    constexpr bool kTwo = NZ <= 4;
    F16 even[NZ], odd[NZ];
    int e = 0;
#pragma GCC unroll 16
    for (int z = 0; z < NZ; ++z) even[z] = odd[z] = simd::zero();
    if constexpr (kTwo) {
      for (; e + 1 < n; e += 2) {
        if (ahead) {
          prefetch_row(base + ahead[e] * stride);
          prefetch_row(base + ahead[e + 1] * stride);
        }
        const F16 w0 = simd::repeat<HG>(weights + e * HG);
        const F16 w1 = simd::repeat<HG>(weights + (e + 1) * HG);
        const float* row0 = base + index[e] * stride;
        const float* row1 = base + index[e + 1] * stride;
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) {
          even[z] = simd::fma(w0, simd::load(row0 + 16 * z), even[z]);
          odd[z] = simd::fma(w1, simd::load(row1 + 16 * z), odd[z]);
        }
      }
    }
    for (; e < n; ++e) {
      if (ahead) prefetch_row(base + ahead[e] * stride);
      const F16 w = simd::repeat<HG>(weights + e * HG);
      const float* row = base + index[e] * stride;
#pragma GCC unroll 16
      for (int z = 0; z < NZ; ++z) even[z] = simd::fma(w, simd::load(row + 16 * z), even[z]);
    }
#pragma GCC unroll 16
    for (int z = 0; z < NZ; ++z) {
      if constexpr (kTwo) even[z] = simd::add(even[z], odd[z]);
      sum[z] = simd::add(sum[z], even[z]);
    }
  }

  static GTKERN_INLINE void load_row(F16* to, const float* from) {
#pragma GCC unroll 16
    for (int z = 0; z < NZ; ++z) to[z] = simd::load(from + 16 * z);
  }

  static GTKERN_INLINE void store_row(float* to, const F16* from) {
#pragma GCC unroll 16
    for (int z = 0; z < NZ; ++z) simd::store(to + 16 * z, from[z]);
  }

  // Adds vector z of a type's sum, times the type's factors, to a row.
  static GTKERN_INLINE void add_along(const Packed& p, int type, int group, int z, F16 along,
                                      float* to) {
    const float* table = table_row(p, type, group);
    if (table) along = simd::mul(along, simd::load(table + 16 * z));
    simd::store(to + 16 * z, simd::add(along, simd::load(to + 16 * z)));
  }

  static void forward(const Packed& p, std::int64_t begin, std::int64_t end, float* out) {
    const F16 clamp = simd::splat(p.clamp);
    const F16 nothing = simd::splat(-std::numeric_limits<float>::infinity());
    // what is taken off every score of a row, and its denominator so far, by lane
    std::vector<float> tops(simd::kLanes * (end - begin)), totals(simd::kLanes * (end - begin));
    alignas(64) float weights[kChunk * HG], lanes[simd::kLanes], peak[simd::kLanes];
    for (int g = 0; g < p.groups; ++g) {
      const float* keys = p.gather.first + g * p.gather.group_stride;
      const float* values = p.gather.second + g * p.gather.group_stride;
      const auto sum_of = [&](std::int64_t row) {
        return out + ((row - begin) * p.groups + g) * kRow;
      };
      for (std::int64_t row = begin; row < end; ++row) std::fill_n(sum_of(row), kRow, 0.f);
      std::fill(totals.begin(), totals.end(), 0.f);
      std::fill(tops.begin(), tops.end(), p.bounded ? 0.f : -FLT_MAX);
      for_each_segment(*p.edges, !kMixed && (p.key_table || p.bias_table), begin, end,
                       [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
                         F16 sum[NZ];
                         load_row(sum, sum_of(row));
                         const Self scaled(
                             p, p.self.first + row * p.self.stride + g * p.self.group_stride, g,
                             kind);
                         F16 top = simd::load(tops.data() + (row - begin) * 16);
                         F16 total = simd::load(totals.data() + (row - begin) * 16);
                         if (!p.bounded) {
                           // online softmax, a stretch at a time; its keys are then still in the
                           // near cache
                           F16 high = top;
                           for_each_edge_block(p, from, stop, [&](const Block& block) {
                             const F16 score = clamped(scores_of(scaled, p, keys, g, block), clamp);
                             high = simd::max_of(high, simd::select(block.live, score, nothing));
                           });
                           high = simd::all_max<HG>(high);
                           const F16 shrink = simd::exp2(simd::sub(top, high));
                           total = simd::mul(total, shrink);
#pragma GCC unroll 16
                           for (int z = 0; z < NZ; ++z) sum[z] = simd::mul(sum[z], shrink);
                           top = high;
                           simd::store(tops.data() + (row - begin) * 16, top);
                         }
                         for (std::int64_t at = from; at < stop; at += kChunk) {
                           const std::int64_t end_of_chunk = std::min(at + kChunk, stop);
                           F16 of_chunk = simd::zero();
                           for_each_edge_block(p, at, end_of_chunk, [&](const Block& block) {
                             const F16 score = clamped(scores_of(scaled, p, keys, g, block), clamp);
                             F16 weight = simd::keep(block.live, simd::exp2(simd::sub(score, top)));
                             of_chunk = simd::add(of_chunk, weight);
                             if (p.dropout) weight = simd::mul(weight, keeps(p, g, block));
                             simd::store(weights + (block.at - at) * HG, weight);
                           });
                           total = simd::add(total, of_chunk);
                           add_rows(sum, weights, values, p.gather.stride, p.edges->index + at,
                                    static_cast<int>(end_of_chunk - at), ahead_of(p, at));
                         }
                         store_row(sum_of(row), sum);
                         simd::store(totals.data() + (row - begin) * 16, total);
                       });
      for (std::int64_t row = begin; row < end; ++row) {
        F16 top = simd::load(tops.data() + (row - begin) * 16), shrink = simd::splat(1);
        F16 total = simd::all_sum<HG>(simd::load(totals.data() + (row - begin) * 16));
        if (p.eps > 0) {
          // one edge more, of score log(eps): nothing overflows, however low the others are
          const F16 high = simd::max_of(top, simd::splat(std::log2(p.eps)));
          shrink = simd::exp2(simd::sub(top, high));
          total = simd::fma(simd::splat(p.eps), simd::exp2(simd::sub(simd::zero(), high)),
                            simd::mul(total, shrink));
          top = high;
        }
        simd::store(lanes, total);
        simd::store(peak, top);
        float* lse = p.statistics + (row * p.groups + g) * 2 * HG;
        for (int h = 0; h < HG; ++h) lse[h] = std::log2(lanes[h]) + peak[h];
        for (float& lane : lanes) lane = lane == 0 ? 0.f : 1 / lane;
        const F16 inverse = simd::mul(simd::load(lanes), shrink);
        F16 sum[NZ];
        load_row(sum, sum_of(row));
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) sum[z] = simd::mul(sum[z], inverse);
        store_row(sum_of(row), sum);
      }
    }
  }

  static void scores(const Packed& p, std::int64_t begin, std::int64_t end, float* scores) {
    const F16 clamp = simd::splat(p.clamp);
    alignas(64) float lanes[simd::kLanes];
    for (int g = 0; g < p.groups; ++g) {
      const float* keys = p.gather.first + g * p.gather.group_stride;
      for_each_segment(
          *p.edges, !kMixed && (p.key_table || p.bias_table), begin, end,
          [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
            float* statistics = p.statistics + (row * p.groups + g) * 2 * HG;
            const F16 lse = simd::repeat<HG>(statistics);
            const Self scaled(p, p.self.first + row * p.self.stride + g * p.self.group_stride, g,
                              kind);
            for_each_edge_block(p, from, stop, [&](const Block& block) {
              const F16 score = clamped(scores_of(scaled, p, keys, g, block), clamp);
              simd::store(lanes, simd::exp2(simd::sub(score, lse)));
              for (int e = 0; e < block.n; ++e) {
                const std::int64_t place = p.edges->id(block.at + e) * p.heads + g * HG;
                for (int h = 0; h < HG; ++h) {
                  if (scores) {
                    scores[place + h] = lanes[e * HG + h];
                  } else {
                    statistics[HG + h] += lanes[e * HG + h] * p.grad_scores[place + h];
                  }
                }
              }
            });
          });
    }
  }

  static void by_destination(const Packed& p, std::int64_t begin, std::int64_t end, float* first,
                             float* key_table, float* bias_table, float* bias_edge) {
    const F16 clamp = simd::splat(p.clamp), factor = simd::splat(p.first_factor);
    alignas(64) float ds_of[kChunk * HG], lanes[simd::kLanes];
    if (first) std::fill_n(first, (end - begin) * p.groups * kRow, 0.f);
    for (int g = 0; g < p.groups; ++g) {
      const float* keys = p.gather.first + g * p.gather.group_stride;
      const float* values = p.gather.second + g * p.gather.group_stride;
      for_each_segment(
          *p.edges, !kMixed && (p.key_table || p.bias_table), begin, end,
          [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
            const float* self = p.self.first + row * p.self.stride + g * p.self.group_stride;
            const float* statistics = p.statistics + (row * p.groups + g) * 2 * HG;
            const F16 lse = simd::repeat<HG>(statistics), delta = simd::repeat<HG>(statistics + HG);
            const Self scaled(p, self, g, kind);
            F16 grad[NZ], ds_sum = simd::zero();
            load_row(grad, p.self.second + row * p.self.stride + g * p.self.group_stride);
            Sums sums(scaled.rows);
            for (std::int64_t at = from; at < stop; at += kChunk) {
              const std::int64_t end_of_chunk = std::min(at + kChunk, stop);
              for_each_edge_block(p, at, end_of_chunk, [&](const Block& block) {
                const F16 raw = scores_of(scaled, p, keys, g, block);
                F16 into = products(grad, values, p.gather.stride, block);
                if (p.dropout) into = simd::mul(into, keeps(p, g, block));
                if (p.grad_scores) into = simd::add(into, by_edge(p, p.grad_scores, g, block));
                const F16 weight = simd::exp2(simd::sub(clamped(raw, clamp), lse));
                F16 ds = simd::mul(weight, simd::sub(into, delta));
                ds = simd::keep(simd::within(raw, clamp), simd::keep(block.live, ds));
                ds_sum = simd::add(ds_sum, ds);
                simd::store(ds_of + (block.at - at) * HG, ds);
              });
              sums.add(scaled, ds_of, p, keys, at, static_cast<int>(end_of_chunk - at));
              for (std::int64_t e = at; kMixed && bias_table && e < end_of_chunk; ++e) {
                float* table = bias_table + p.edges->type[e] * p.heads + g * HG;
                for (int h = 0; h < HG; ++h) table[h] += p.bias_factor * ds_of[(e - at) * HG + h];
              }
              for (std::int64_t e = at; bias_edge && e < end_of_chunk; ++e) {
                float* place = bias_edge + p.edges->id(e) * p.heads + g * HG;
                for (int h = 0; h < HG; ++h) place[h] = p.bias_factor * ds_of[(e - at) * HG + h];
              }
            }
            float* to = first ? first + ((row - begin) * p.groups + g) * kRow : nullptr;
            for (int r = 0; r < scaled.rows; ++r) {
              const int type = kMixed ? r : kind;
              float* table = key_table + (std::int64_t{type} * p.groups + g) * kRow;
#pragma GCC unroll 16
              for (int z = 0; z < NZ; ++z) {
                F16 along = simd::mul(sums.of[r * NZ + z], factor);
                if (key_table) {
                  simd::store(table + 16 * z, simd::fma(along, simd::load(self + 16 * z),
                                                        simd::load(table + 16 * z)));
                }
                if (to) add_along(p, type, g, z, along, to);
              }
            }
            if (bias_table && !kMixed) {
              simd::store(lanes, simd::all_sum<HG>(ds_sum));
              float* table = bias_table + std::int64_t{kind} * p.heads + g * HG;
              for (int h = 0; h < HG; ++h) table[h] += p.bias_factor * lanes[h];
            }
          });
    }
  }

  static void by_source(const Packed& p, std::int64_t begin, std::int64_t end, float* first,
                        float* second) {
    const F16 clamp = simd::splat(p.clamp), factor = simd::splat(p.first_factor);
    alignas(64) float ds_of[kChunk * HG], kept_of[kChunk * HG], lse[kChunk * HG],
        delta[kChunk * HG];
    const std::int64_t statistics_stride = std::int64_t{2} * HG * p.groups;
    std::fill_n(first, (end - begin) * p.groups * kRow, 0.f);
    std::fill_n(second, (end - begin) * p.groups * kRow, 0.f);
    for (int g = 0; g < p.groups; ++g) {
      const float* queries = p.gather.first + g * p.gather.group_stride;
      const float* grads = p.gather.second + g * p.gather.group_stride;
      for_each_segment(
          *p.edges, !kMixed && (p.key_table || p.bias_table), begin, end,
          [&](std::int64_t row, std::int64_t from, std::int64_t stop, int kind) {
            float* to = first + ((row - begin) * p.groups + g) * kRow;
            float* to_second = second + ((row - begin) * p.groups + g) * kRow;
            const Self scaled(p, p.self.first + row * p.self.stride + g * p.self.group_stride, g,
                              kind);
            Sums sums(scaled.rows);
            F16 value[NZ], value_sum[NZ];
            load_row(value, p.self.second + row * p.self.stride + g * p.self.group_stride);
            load_row(value_sum, to_second);
            for (std::int64_t at = from; at < stop; at += kChunk) {
              const std::int64_t end_of_chunk = std::min(at + kChunk, stop);
              const int n = static_cast<int>(end_of_chunk - at);
              const std::int32_t* index = p.edges->index + at;
              for (int e = 0; e < n; ++e) {
                const float* pair = p.statistics + index[e] * statistics_stride + g * 2 * HG;
                std::memcpy(lse + e * HG, pair, HG * sizeof(float));
                std::memcpy(delta + e * HG, pair + HG, HG * sizeof(float));
              }
              for_each_edge_block(p, at, end_of_chunk, [&](const Block& block) {
                const std::int64_t lane = (block.at - at) * HG;
                const F16 raw = scores_of(scaled, p, queries, g, block);
                F16 into = products(value, grads, p.gather.stride, block);
                const F16 weight =
                    simd::exp2(simd::sub(clamped(raw, clamp), simd::load(lse + lane)));
                F16 kept = weight;
                if (p.dropout) {
                  const F16 keep = keeps(p, g, block);
                  kept = simd::mul(kept, keep);
                  into = simd::mul(into, keep);
                }
                if (p.grad_scores) into = simd::add(into, by_edge(p, p.grad_scores, g, block));
                const F16 ds = simd::mul(weight, simd::sub(into, simd::load(delta + lane)));
                simd::store(ds_of + lane, simd::keep(simd::within(raw, clamp), ds));
                simd::store(kept_of + lane, kept);
              });
              sums.add(scaled, ds_of, p, queries, at, n);
              add_rows(value_sum, kept_of, grads, p.gather.stride, index, n);
            }
            store_row(to_second, value_sum);
            for (int r = 0; r < scaled.rows; ++r) {
#pragma GCC unroll 16
              for (int z = 0; z < NZ; ++z) {
                const F16 along = simd::mul(sums.of[r * NZ + z], factor);
                add_along(p, kMixed ? r : kind, g, z, along, to);
              }
            }
          });
    }
  }

  static const Kernels* variant(Variant wanted) {
    switch (wanted) {
      case Variant::kPlain: return &PackedKernels<HG, NZ, Variant::kPlain>::kTable;
      case Variant::kFetching: return &PackedKernels<HG, NZ, Variant::kFetching>::kTable;
      default: return &PackedKernels<HG, NZ, Variant::kMixed>::kTable;
    }
  }

  static constexpr Kernels kTable{NZ, &variant, &forward, &scores, &by_destination, &by_source};
};

// The narrowest of the instantiated widths that holds `vectors`.
template <int HG, int... Widths>
const Kernels* narrowest(int vectors) {
  const Kernels* found = nullptr;
  ((found =
        !found && Widths >= vectors ? &PackedKernels<HG, Widths, Variant::kPlain>::kTable : found),
   ...);
  return found;
}

}  // namespace gtkern::attention
