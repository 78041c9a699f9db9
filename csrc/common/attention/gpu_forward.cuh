#pragma once

#include "common/attention/gpu_common.cuh"

namespace gtkern::attention::gpu {

template <typename T>
struct ForwardParams {
  Edges edges;
  Work work;
  Terms<T> terms;
  const T* q;
  const T* k;
  const T* v;
  int key_width, value_width;
  T* out;          // [N_dst, H, Dv]
  T* edge_out;     // [N_dst, H, De]
  float* lse;      // [N_dst, H]
  float* scores;   // [E, H], or null
  float log2_eps;  // -inf: no eps
  // of heavy pieces: [M, H], [M, H], [M, H, Dv], [M, H, De]
  float* part_peak;
  float* part_total;
  float* part_out;
  float* part_edge_out;
};

// One edge more for a row's softmax, with value 0 and score log(eps): that is what eps means. It
// never overflows, however low the row's scores are.
__device__ __forceinline__ float add_eps(float log2_eps, float& peak, float& total) {
  const float higher = fmaxf(peak, log2_eps);
  const float base = higher == -kInfinity ? 0.0f : higher;
  const float rescale = exp2f(peak - base);
  total = total * rescale + exp2f(log2_eps - base);
  peak = base;
  return rescale;
}

// One team per (item, head): online softmax over its edges, groups of the team merged at the end.
// Each row of out, edge_out, lse and each edge's score is written by one team: no atomics; heavy
// pieces leave (peak, total, sums) to merge_kernel.
template <typename T, Features FEATURES, int ACCESS, int LANES, int CHUNKS>
__global__ void __launch_bounds__(kThreads, kMinBlocks<FEATURES, ACCESS == 16 ? 5 : 4>)
    forward_kernel(const __grid_constant__ ForwardParams<T> p) {
  constexpr int kSize = kPacketSize<T>;
  constexpr int U = edges_in_flight(sizeof(T), FEATURES, CHUNKS, Direction::kForward);
  constexpr bool kTyped = FEATURES != Features::kLean, kFull = FEATURES == Features::kFull;
  using Row = Slice<CHUNKS, kSize>;
  const Seat seat = take_seat<LANES>(p.work);
  const int heads = p.work.heads;
  const Item item = take_item(p.edges, seat.number, seat.exists);
  const int64_t head_row = item.row * heads + seat.head;

  Row query =
      load_slice<T, ACCESS, CHUNKS>(p.q + head_row * p.key_width, seat, p.key_width, item.exists);
  query.scale(kTyped ? p.terms.product_scale : p.terms.product_scale * kLog2E);
  ScaledByType<ACCESS, CHUNKS, kSize> typed;
  Row edge_query, edge_sum;
  if constexpr (kTyped) typed.set(query);
  if constexpr (kFull) {
    const int width = p.terms.edge_width;
    edge_query = load_slice<T, ACCESS, CHUNKS>(p.terms.edge_query + head_row * width, seat, width,
                                               item.exists && width > 0);
    edge_query.scale(p.terms.product_scale);
    edge_sum.clear();
  }

  Row sum;
  sum.clear();
  float peak = -kInfinity, total = 0.0f;
  const int steps = count_steps<U>(item, seat);
  Batch<U> next = load_batch<FEATURES, U>(p.edges, item, seat, 0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const Batch<U> batch = next;
    Packed<T, ACCESS, CHUNKS> key[U], value[U], attr[kFull ? U : 1];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const int64_t other = int64_t{batch.other[u]} * heads + seat.head;
      key[u].load(p.k + other * p.key_width, seat, p.key_width, batch.live[u]);
      value[u].load(p.v + other * p.value_width, seat, p.value_width, batch.live[u]);
      if constexpr (kFull) {
        const int width = p.terms.edge_width;
        attr[u].load(p.terms.edge_attr + batch.id[u] * width, seat, width,
                     batch.live[u] && width > 0);
      }
    }
    next = load_batch<FEATURES, U>(p.edges, item, seat, step + 1);

    float score[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      Row row = key[u].floats();
      if constexpr (kFull) {
        if (p.terms.key_edge != nullptr) {
          Row factor;
          const int64_t at = (batch.id[u] * heads + seat.head) * p.key_width;
          load_float_slice<ACCESS>(p.terms.key_edge + at, seat, p.key_width, batch.live[u], factor);
          row.multiply(factor);
        }
      }
      if constexpr (kTyped) {
        if (batch.live[u]) {
          typed.turn_to(batch.type[u], p.terms.key_table, seat, heads, p.key_width);
        }
        score[u] = typed.scaled.dot(row);
      } else {
        score[u] = query.dot(row);
      }
      if constexpr (kFull) score[u] += edge_query.dot(attr[u].floats());
    }
    group_sum<LANES>(score, seat.lanes);

    float highest = peak;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      bool inside;
      score[u] = finish_score<FEATURES>(p.terms, score[u], heads, seat.head, batch.type[u],
                                        batch.id[u], batch.live[u], inside);
      highest = fmaxf(highest, score[u]);
      if constexpr (kTyped) {
        if (p.scores != nullptr && batch.live[u] && seat.lane == 0) {
          p.scores[batch.id[u] * heads + seat.head] = score[u];
        }
      }
    }
    // while every score is -inf, any finite base gives weights exp2(-inf) = 0
    const float base = highest == -kInfinity ? 0.0f : highest;
    const float rescale = exp2f(peak - base);
    peak = highest;
    total *= rescale;
    sum.scale(rescale);
    if constexpr (kFull) edge_sum.scale(rescale);
    float keep[U];
    if constexpr (kTyped) draw_keeps(p.terms, seat, batch.id[0], batch.id[1], keep);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      float weight = exp2f(score[u] - base);
      total += weight;
      if constexpr (kTyped) weight *= keep[u];
      sum.add(weight, value[u].floats());
      if constexpr (kFull) edge_sum.add(weight, attr[u].floats());
    }
  }

#pragma unroll 1
  for (int offset = seat.lanes; offset < p.work.team; offset *= 2) {
    const float other_peak = __shfl_xor_sync(kAllLanes, peak, offset);
    const float other_total = __shfl_xor_sync(kAllLanes, total, offset);
    const float highest = fmaxf(peak, other_peak);
    const float base = highest == -kInfinity ? 0.0f : highest;
    const float mine = exp2f(peak - base), theirs = exp2f(other_peak - base);
    peak = highest;
    total = total * mine + other_total * theirs;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        sum.x[c][i] = sum.x[c][i] * mine + __shfl_xor_sync(kAllLanes, sum.x[c][i], offset) * theirs;
        if constexpr (kFull) {
          edge_sum.x[c][i] = edge_sum.x[c][i] * mine +
                             __shfl_xor_sync(kAllLanes, edge_sum.x[c][i], offset) * theirs;
        }
      }
    }
  }

  const bool writes = item.exists && seat.slot == 0;
  if (item.piece >= 0) {
    const int64_t part = item.piece * heads + seat.head;
    if (writes) {
      if (seat.lane == 0) {
        p.part_peak[part] = peak;
        p.part_total[part] = total;
      }
      store_float_slice<ACCESS>(p.part_out + part * p.value_width, seat, p.value_width, sum);
      if constexpr (kFull) {
        const int width = p.terms.edge_width;
        store_float_slice<ACCESS>(p.part_edge_out + part * width, seat, width, edge_sum);
      }
    }
  }
  float rescale = add_eps(p.log2_eps, peak, total);
  rescale = total > 0.0f ? rescale / total : total;  // 0 for a row of weight 0; a NaN stays a NaN
  // one group's value for all: sums of different groups may differ in the last bit
  float log2_lse = __shfl_sync(kAllLanes, peak + log2f(total), 0, p.work.team);
  if (writes && item.piece < 0) {
    sum.scale(rescale);
    store_slice<T, ACCESS, CHUNKS>(p.out + head_row * p.value_width, seat, p.value_width, sum);
    if constexpr (kFull) {
      const int width = p.terms.edge_width;
      edge_sum.scale(rescale);
      store_slice<T, ACCESS, CHUNKS>(p.edge_out + head_row * width, seat, width, edge_sum);
    }
    if (seat.lane == 0) p.lse[head_row] = log2_lse * kLn2;
  }
  if constexpr (kTyped) {
    if (p.scores != nullptr) {
      __syncwarp();
      log2_lse = log2_lse == -kInfinity ? kInfinity : log2_lse;
      const int64_t begin = item.begin + seat.slot * seat.lanes + seat.lane;
      const int64_t end = item.exists && item.piece < 0 ? item.end : item.begin;
      for (int64_t at = begin; at < end; at += p.work.team) {
        float* const score =
            p.scores + (p.edges.id != nullptr ? p.edges.id[at] : at) * heads + seat.head;
        *score = p.edges.index[at] >= 0 ? exp2f(*score - log2_lse) : 0.0f;
      }
    }
  }
}

// One thread per (edge of a heavy piece, head), kHeavyRowEdges x heads threads for a piece: turns
// the raw score that forward_kernel left into a normalised one, once lse is known.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    heavy_scores_kernel(const __grid_constant__ ForwardParams<T> p, int blocks_per_piece) {
  const int heads = p.work.heads;
  const int64_t* piece = p.edges.heavy + 3 * static_cast<int64_t>(blockIdx.x / blocks_per_piece);
  const int64_t number =
      static_cast<int64_t>(blockIdx.x % blocks_per_piece) * kThreads + threadIdx.x;
  const int64_t at = piece[1] + number / heads;
  const int head = static_cast<int>(number % heads);
  if (at >= piece[2]) return;
  const float lse = p.lse[piece[0] * heads + head];
  float* const score = p.scores + (p.edges.id != nullptr ? p.edges.id[at] : at) * heads + head;
  *score = exp2f(*score - (lse == -kInfinity ? kInfinity : lse * kLog2E));
}

}  // namespace gtkern::attention::gpu
