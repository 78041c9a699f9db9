// The kernels behind packed.h for one (HG, NZ); each packed_<HG>.cpp instantiates its widths.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/attention/packed.h"
#include "common/philox.h"
#include "common/simd.h"

namespace gtkern::attention {

template <int HG, int NZ>
struct PackedKernels {
  static constexpr int kRow = NZ * simd::kLanes;      // floats of a group's row
  static constexpr int kBlock = simd::kLanes / HG;    // edges whose scores fill one vector
  static constexpr int kChunk = HG == 1 ? 64 : 256 / HG;  // edges scored before they are summed
  static constexpr int kScores = kChunk * HG + simd::kLanes;
  static constexpr int kAhead = NZ >= 4 ? 8 : 16;     // edges from a prefetch to its use
  // below this bound exp cannot overflow, so the running maximum is not needed
  static constexpr float kSafeClamp = 80.f;

  using F16 = simd::F16;

  // The stretch of a row with one edge type.
  struct Run {
    std::int64_t begin, end;
    int kind;
  };

  static Run next_run(const Packed& p, std::int64_t at, std::int64_t end) {
    const std::uint8_t* type = p.edges->type;
    if (!type || (!p.key_table && !p.bias_table)) return {at, end, 0};
    std::int64_t stop = at + 1;
    while (stop < end && type[stop] == type[at]) ++stop;
    return {at, stop, type[at]};
  }

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

  // The products of `self` with the rows of edges [0, n), plus `offset`, edge-major in `to`; lanes
  // past the last edge repeat it.
  template <bool kPrefetch>
  static GTKERN_INLINE void products(const F16* self, F16 offset, const Packed& p,
                                     const float* base, const float* other,
                                     const std::int32_t* index, int n,
                                     const std::int32_t* index_end, float* to) {
    const std::int64_t stride = p.gather.stride;
    for (int first = 0; first < n; first += kBlock) {
      F16 partial[kBlock];
      if (first + kBlock <= n) {
#pragma GCC unroll 16
        for (int e = 0; e < kBlock; ++e) {
          if constexpr (kPrefetch) {
            const std::int32_t* ahead = std::min(index + first + e + kAhead, index_end - 1);
            prefetch_row(base + *ahead * stride);
            prefetch_row(other + *ahead * stride);
          }
          partial[e] = dot(self, base + index[first + e] * stride);
        }
      } else {
        for (int e = 0; e < kBlock; ++e) {
          partial[e] = dot(self, base + index[std::min(first + e, n - 1)] * stride);
        }
      }
      simd::store(to + first * HG, simd::add(simd::reduce<HG>(partial), offset));
    }
  }

  static GTKERN_INLINE void scores_of(const F16* self, F16 offset, const Packed& p, int group,
                                      std::int64_t at, int n, float* to) {
    const std::int32_t* index = p.edges->index + at;
    const std::int32_t* index_end = p.edges->index + p.edges->ptr[p.edges->rows];
    const float* base = p.gather.first + group * p.gather.group_stride;
    const float* other = p.gather.second + group * p.gather.group_stride;
    if (p.prefetch) {
      products<true>(self, offset, p, base, other, index, n, index_end, to);
    } else {
      products<false>(self, offset, p, base, other, index, n, index_end, to);
    }
    if (!p.bias_edge) return;
    for (int e = 0; e < n; ++e) {
      const float* bias = p.bias_edge + p.edges->id(at + e) * p.heads + group * HG;
      for (int h = 0; h < HG; ++h) to[e * HG + h] += p.bias_to_score * bias[h];
    }
  }

  static GTKERN_INLINE F16 clamped(F16 score, F16 clamp) {
    return simd::max_of(simd::sub(simd::zero(), clamp), simd::min_of(clamp, score));
  }

  // The scaled keys-side vector of a run: self * table * to_score.
  static GTKERN_INLINE void scaled_self(const Packed& p, const float* self, int group, int kind,
                                        F16* to) {
    const F16 factor = simd::splat(p.to_score);
    const float* table =
        p.key_table ? p.key_table + (std::int64_t{kind} * p.groups + group) * kRow : nullptr;
#pragma GCC unroll 16
    for (int z = 0; z < NZ; ++z) {
      to[z] = simd::mul(simd::load(self + 16 * z), factor);
      if (table) to[z] = simd::mul(to[z], simd::load(table + 16 * z));
    }
  }

  static GTKERN_INLINE F16 run_bias(const Packed& p, int group, int kind) {
    if (!p.bias_table) return simd::zero();
    return simd::mul(simd::repeat<HG>(p.bias_table + std::int64_t{kind} * p.heads + group * HG),
                     simd::splat(p.bias_to_score));
  }

  // sum += weight_e * row_e over the edges of a chunk.
  static GTKERN_INLINE void add_rows(F16* sum, const float* weight, const float* base,
                                     std::int64_t stride, const std::int32_t* index, int n) {
    if constexpr (NZ <= 3) {
      // two chains hide the latency of a multiply-add
      F16 odd[NZ];
#pragma GCC unroll 16
      for (int z = 0; z < NZ; ++z) odd[z] = simd::zero();
      int e = 0;
      for (; e + 1 < n; e += 2) {
        const F16 w0 = simd::repeat<HG>(weight + e * HG);
        const F16 w1 = simd::repeat<HG>(weight + (e + 1) * HG);
        const float* row0 = base + index[e] * stride;
        const float* row1 = base + index[e + 1] * stride;
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) {
          sum[z] = simd::fma(w0, simd::load(row0 + 16 * z), sum[z]);
          odd[z] = simd::fma(w1, simd::load(row1 + 16 * z), odd[z]);
        }
      }
      if (e < n) {
        const F16 w = simd::repeat<HG>(weight + e * HG);
        const float* row = base + index[e] * stride;
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) sum[z] = simd::fma(w, simd::load(row + 16 * z), sum[z]);
      }
#pragma GCC unroll 16
      for (int z = 0; z < NZ; ++z) sum[z] = simd::add(sum[z], odd[z]);
    } else {
      for (int e = 0; e < n; ++e) {
        const F16 w = simd::repeat<HG>(weight + e * HG);
        const float* row = base + index[e] * stride;
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) sum[z] = simd::fma(w, simd::load(row + 16 * z), sum[z]);
      }
    }
  }

  // 0 or 1 / (1 - dropout) for each score of a chunk.
  static void keeps(const Packed& p, int group, std::int64_t at, int n, float* to) {
    for (int e = 0; e < n; ++e) {
      const std::int64_t id = p.edges->id(at + e);
      for (int h = 0; h < HG; ++h) {
        const std::uint32_t word = item_word(p.seed, id, group * HG + h);
        to[e * HG + h] = word >= p.threshold ? p.kept : 0.f;
      }
    }
  }

  static int vectors_of(int n) { return (n * HG + simd::kLanes - 1) / simd::kLanes; }

  // The lanes of vector x that belong to the n edges of a chunk.
  static GTKERN_INLINE simd::Mask16 live(int x, int n) {
    return simd::first_lanes(std::min(n * HG - x * simd::kLanes, simd::kLanes));
  }

  static void forward(const Packed& p, std::int64_t begin, std::int64_t end, float* out) {
    const F16 clamp = simd::splat(p.clamp), lowest = simd::splat(-FLT_MAX);
    const F16 nothing = simd::splat(-std::numeric_limits<float>::infinity());
    const bool bounded = p.clamp < kSafeClamp;
    alignas(64) float score[kScores], keep[kScores], last[16], peak[16];
    for (std::int64_t row = begin; row < end; ++row) {
      for (int g = 0; g < p.groups; ++g) {
        const float* self = p.self.first + row * p.self.stride + g * p.self.group_stride;
        F16 sum[NZ];
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) sum[z] = simd::zero();
        F16 top = bounded ? simd::zero() : lowest, total = simd::zero();
        Run run{0, p.edges->ptr[row], 0};
        while (run.end < p.edges->ptr[row + 1]) {
          run = next_run(p, run.end, p.edges->ptr[row + 1]);
          F16 scaled[NZ];
          scaled_self(p, self, g, run.kind, scaled);
          const F16 bias = run_bias(p, g, run.kind);
          for (std::int64_t at = run.begin; at < run.end; at += kChunk) {
            const int n = static_cast<int>(std::min<std::int64_t>(kChunk, run.end - at));
            const int vectors = vectors_of(n);
            scores_of(scaled, bias, p, g, at, n, score);
            if (!bounded) {
              F16 high = top;
              for (int x = 0; x < vectors; ++x) {
                const F16 s = clamped(simd::load(score + 16 * x), clamp);
                high = simd::max_of(high, simd::select(live(x, n), s, nothing));
              }
              high = simd::all_max<HG>(high);
              const F16 shrink = simd::exp2(simd::sub(top, high));
              top = high;
              total = simd::mul(total, shrink);
#pragma GCC unroll 16
              for (int z = 0; z < NZ; ++z) sum[z] = simd::mul(sum[z], shrink);
            }
            for (int x = 0; x < vectors; ++x) {
              const F16 s = clamped(simd::load(score + 16 * x), clamp);
              const F16 w = simd::keep(live(x, n), simd::exp2(simd::sub(s, top)));
              total = simd::add(total, w);
              simd::store(score + 16 * x, w);
            }
            if (p.dropout) {
              keeps(p, g, at, n, keep);
              for (int i = 0; i < n * HG; ++i) score[i] *= keep[i];
            }
            add_rows(sum, score, p.gather.second + g * p.gather.group_stride, p.gather.stride,
                     p.edges->index + at, n);
          }
        }
        total = simd::all_sum<HG>(total);
        if (p.eps > 0) {
          total = simd::fma(simd::splat(p.eps), simd::exp2(simd::sub(simd::zero(), top)), total);
        }
        simd::store(last, total);
        simd::store(peak, top);
        float* lse = p.statistics + (row * p.groups + g) * 2 * HG;
        for (int h = 0; h < HG; ++h) lse[h] = std::log2(last[h]) + peak[h];
        for (int l = 0; l < 16; ++l) last[l] = last[l] == 0 ? 0.f : 1 / last[l];
        const F16 inverse = simd::load(last);
        float* to = out + ((row - begin) * p.groups + g) * kRow;
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) simd::store(to + 16 * z, simd::mul(sum[z], inverse));
      }
    }
  }

  static void scores(const Packed& p, std::int64_t begin, std::int64_t end, float* scores) {
    const F16 clamp = simd::splat(p.clamp);
    alignas(64) float score[kScores];
    for (std::int64_t row = begin; row < end; ++row) {
      for (int g = 0; g < p.groups; ++g) {
        const float* self = p.self.first + row * p.self.stride + g * p.self.group_stride;
        float* statistics = p.statistics + (row * p.groups + g) * 2 * HG;
        const F16 lse = simd::repeat<HG>(statistics);
        Run run{0, p.edges->ptr[row], 0};
        while (run.end < p.edges->ptr[row + 1]) {
          run = next_run(p, run.end, p.edges->ptr[row + 1]);
          F16 scaled[NZ];
          scaled_self(p, self, g, run.kind, scaled);
          const F16 bias = run_bias(p, g, run.kind);
          for (std::int64_t at = run.begin; at < run.end; at += kChunk) {
            const int n = static_cast<int>(std::min<std::int64_t>(kChunk, run.end - at));
            scores_of(scaled, bias, p, g, at, n, score);
            for (int x = 0; x < vectors_of(n); ++x) {
              const F16 s = clamped(simd::load(score + 16 * x), clamp);
              simd::store(score + 16 * x, simd::exp2(simd::sub(s, lse)));
            }
            for (int e = 0; e < n; ++e) {
              const std::int64_t place = p.edges->id(at + e) * p.heads + g * HG;
              for (int h = 0; h < HG; ++h) {
                if (scores) {
                  scores[place + h] = score[e * HG + h];
                } else {
                  statistics[HG + h] += score[e * HG + h] * p.grad_scores[place + h];
                }
              }
            }
          }
        }
      }
    }
  }

  // into[i] = keep * into[i] + grad_scores: the gradient of each normalised score of a chunk.
  static void score_gradients(const Packed& p, int group, std::int64_t at, int n, float* keep,
                              float* into) {
    if (p.dropout) {
      keeps(p, group, at, n, keep);
      for (int i = 0; i < n * HG; ++i) into[i] *= keep[i];
    }
    if (!p.grad_scores) return;
    for (int e = 0; e < n; ++e) {
      const float* gradient = p.grad_scores + p.edges->id(at + e) * p.heads + group * HG;
      for (int h = 0; h < HG; ++h) into[e * HG + h] += gradient[h];
    }
  }

  static void by_destination(const Packed& p, std::int64_t begin, std::int64_t end, float* first,
                             float* key_table, float* bias_table, float* bias_edge) {
    const F16 clamp = simd::splat(p.clamp);
    alignas(64) float score[kScores], into[kScores], keep[kScores], lanes[16];
    for (std::int64_t row = begin; row < end; ++row) {
      for (int g = 0; g < p.groups; ++g) {
        const float* self = p.self.first + row * p.self.stride + g * p.self.group_stride;
        const float* other = p.self.second + row * p.self.stride + g * p.self.group_stride;
        const float* statistics = p.statistics + (row * p.groups + g) * 2 * HG;
        const F16 lse = simd::repeat<HG>(statistics), delta = simd::repeat<HG>(statistics + HG);
        float* to = first ? first + ((row - begin) * p.groups + g) * kRow : nullptr;
        const F16 factor = simd::splat(p.first_factor);
        bool fresh = true;
        Run run{0, p.edges->ptr[row], 0};
        while (run.end < p.edges->ptr[row + 1]) {
          run = next_run(p, run.end, p.edges->ptr[row + 1]);
          F16 scaled[NZ], sum[NZ];
          scaled_self(p, self, g, run.kind, scaled);
          const F16 bias = run_bias(p, g, run.kind);
          F16 ds_sum = simd::zero();
#pragma GCC unroll 16
          for (int z = 0; z < NZ; ++z) sum[z] = simd::zero();
          for (std::int64_t at = run.begin; at < run.end; at += kChunk) {
            const int n = static_cast<int>(std::min<std::int64_t>(kChunk, run.end - at));
            const std::int32_t* index = p.edges->index + at;
            scores_of(scaled, bias, p, g, at, n, score);
            F16 grad[NZ];
#pragma GCC unroll 16
            for (int z = 0; z < NZ; ++z) grad[z] = simd::load(other + 16 * z);
            const float* values = p.gather.second + g * p.gather.group_stride;
            products<false>(grad, simd::zero(), p, values, values, index, n, index + n, into);
            if (p.dropout || p.grad_scores) score_gradients(p, g, at, n, keep, into);
            for (int x = 0; x < vectors_of(n); ++x) {
              const F16 raw = simd::load(score + 16 * x);
              const F16 weight = simd::exp2(simd::sub(clamped(raw, clamp), lse));
              F16 ds = simd::mul(weight, simd::sub(simd::load(into + 16 * x), delta));
              ds = simd::keep(simd::within(raw, clamp), simd::keep(live(x, n), ds));
              ds_sum = simd::add(ds_sum, ds);
              simd::store(score + 16 * x, ds);
            }
            add_rows(sum, score, p.gather.first + g * p.gather.group_stride, p.gather.stride,
                     index, n);
            if (bias_edge) {
              for (int e = 0; e < n; ++e) {
                float* place = bias_edge + p.edges->id(at + e) * p.heads + g * HG;
                for (int h = 0; h < HG; ++h) place[h] = p.bias_factor * score[e * HG + h];
              }
            }
          }
          const std::int64_t entry = (std::int64_t{run.kind} * p.groups + g) * kRow;
#pragma GCC unroll 16
          for (int z = 0; z < NZ; ++z) {
            F16 along = simd::mul(sum[z], factor);
            if (key_table) {
              float* table = key_table + entry + 16 * z;
              simd::store(table, simd::fma(along, simd::load(self + 16 * z), simd::load(table)));
            }
            if (!to) continue;
            if (p.key_table) along = simd::mul(along, simd::load(p.key_table + entry + 16 * z));
            if (!fresh) along = simd::add(along, simd::load(to + 16 * z));
            simd::store(to + 16 * z, along);
          }
          fresh = false;
          if (bias_table) {
            simd::store(lanes, simd::all_sum<HG>(ds_sum));
            float* table = bias_table + std::int64_t{run.kind} * p.heads + g * HG;
            for (int h = 0; h < HG; ++h) table[h] += p.bias_factor * lanes[h];
          }
        }
        if (fresh && to) std::fill_n(to, kRow, 0.f);
      }
    }
  }

  static void by_source(const Packed& p, std::int64_t begin, std::int64_t end, float* first,
                        float* second) {
    const F16 clamp = simd::splat(p.clamp);
    alignas(64) float score[kScores], into[kScores], keep[kScores], lse[kScores], delta[kScores];
    const std::int64_t statistics_stride = std::int64_t{2} * HG * p.groups;
    for (std::int64_t row = begin; row < end; ++row) {
      for (int g = 0; g < p.groups; ++g) {
        const float* self = p.self.first + row * p.self.stride + g * p.self.group_stride;
        const float* other = p.self.second + row * p.self.stride + g * p.self.group_stride;
        float* to = first + ((row - begin) * p.groups + g) * kRow;
        float* to_second = second + ((row - begin) * p.groups + g) * kRow;
        const F16 factor = simd::splat(p.first_factor);
        F16 value_sum[NZ];
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) value_sum[z] = simd::zero();
        bool fresh = true;
        Run run{0, p.edges->ptr[row], 0};
        while (run.end < p.edges->ptr[row + 1]) {
          run = next_run(p, run.end, p.edges->ptr[row + 1]);
          F16 scaled[NZ], sum[NZ];
          scaled_self(p, self, g, run.kind, scaled);
          const F16 bias = run_bias(p, g, run.kind);
#pragma GCC unroll 16
          for (int z = 0; z < NZ; ++z) sum[z] = simd::zero();
          for (std::int64_t at = run.begin; at < run.end; at += kChunk) {
            const int n = static_cast<int>(std::min<std::int64_t>(kChunk, run.end - at));
            const std::int32_t* index = p.edges->index + at;
            scores_of(scaled, bias, p, g, at, n, score);
            F16 values[NZ];
#pragma GCC unroll 16
            for (int z = 0; z < NZ; ++z) values[z] = simd::load(other + 16 * z);
            const float* grads = p.gather.second + g * p.gather.group_stride;
            products<false>(values, simd::zero(), p, grads, grads, index, n, index + n, into);
            const bool adjusted = p.dropout || p.grad_scores;
            if (adjusted) score_gradients(p, g, at, n, keep, into);
            for (int e = 0; e < n; ++e) {
              const float* pair = p.statistics + index[e] * statistics_stride + g * 2 * HG;
              for (int h = 0; h < HG; ++h) lse[e * HG + h] = pair[h];
              for (int h = 0; h < HG; ++h) delta[e * HG + h] = pair[HG + h];
            }
            // `into` turns into the weights of the values
            for (int x = 0; x < vectors_of(n); ++x) {
              const F16 raw = simd::load(score + 16 * x);
              F16 weight = simd::exp2(simd::sub(clamped(raw, clamp), simd::load(lse + 16 * x)));
              const F16 change = simd::sub(simd::load(into + 16 * x), simd::load(delta + 16 * x));
              const F16 ds = simd::keep(simd::within(raw, clamp), simd::mul(weight, change));
              simd::store(score + 16 * x, ds);
              simd::store(into + 16 * x, weight);
            }
            if (p.dropout) {
              for (int i = 0; i < n * HG; ++i) into[i] *= keep[i];
            }
            add_rows(sum, score, p.gather.first + g * p.gather.group_stride, p.gather.stride,
                     index, n);
            add_rows(value_sum, into, grads, p.gather.stride, index, n);
          }
          const std::int64_t entry = (std::int64_t{run.kind} * p.groups + g) * kRow;
#pragma GCC unroll 16
          for (int z = 0; z < NZ; ++z) {
            F16 along = simd::mul(sum[z], factor);
            if (p.key_table) along = simd::mul(along, simd::load(p.key_table + entry + 16 * z));
            if (!fresh) along = simd::add(along, simd::load(to + 16 * z));
            simd::store(to + 16 * z, along);
          }
          fresh = false;
        }
        if (fresh) std::fill_n(to, kRow, 0.f);
#pragma GCC unroll 16
        for (int z = 0; z < NZ; ++z) simd::store(to_second + 16 * z, value_sum[z]);
      }
    }
  }

  static constexpr Kernels kTable{NZ, &forward, &scores, &by_destination, &by_source};
};

// The narrowest of the instantiated widths that holds `vectors`.
template <int HG, int... Widths>
const Kernels* narrowest(int vectors) {
  const Kernels* found = nullptr;
  ((found = !found && Widths >= vectors ? &PackedKernels<HG, Widths>::kTable : found), ...);
  return found;
}

}  // namespace gtkern::attention
