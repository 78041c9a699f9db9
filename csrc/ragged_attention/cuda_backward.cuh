#pragma once

#include "ragged_attention/cuda_common.cuh"

namespace gtkern::ragged_attention {

// Two halves: queries walk along the keys for delta (grad_out . out), the gradient of q and those
// of the tables; then keys walk along the queries for the gradients of k and v. One block does both
// for a graph of few nodes, its queries' delta being all that the second half waits for; larger
// graphs take a launch for each half. The prefix's gradients are those of keys that walk along a
// chunk of the batch's queries (those that see their set), chunk after chunk; what chunks leave is
// then summed.

constexpr int kQueries = 1, kKeys = 2;

template <typename T>
struct Backward {
  const T* grad_out;  // [N, H, Dv]
  const T* out;
  const float* lse;  // [N, H]
  float* delta;      // [N, H]
  T* grad_q;         // or null, as the others
  T* grad_k;
  T* grad_v;
  int halves;  // kQueries, kKeys or both
  bool whole;  // a block has all rows of its graph
  // Tables. A group adds a pair's gradient to its column of its warp's histogram in shared memory
  // [bins, columns], for entries first_bin and the next; groups that share a column take turns.
  // Each block leaves its sums in its row of part_table.
  float* part_table;  // [blocks of a head, B, H]
  int64_t first_bin, table_rows;
  int bins, columns;
  // The prefix, where chunk_rows > 0: the launch's keys are its slots.
  int64_t chunk_rows, rows;
  float* part_k;  // [chunks, S, P, H, D]
  float* part_v;  // [chunks, S, P, H, Dv]
};

template <typename T, int CHUNKS>
__device__ __forceinline__ void count_pairs(const Call<T>& call, const Backward<T>& b,
                                            const Seat& seat, float* histogram,
                                            const int64_t (&item)[kAtOnce],
                                            const bool (&live)[kAtOnce],
                                            const float (&grad)[kAtOnce]) {
  const int group = static_cast<int>(threadIdx.x) % kWarpSize / seat.lanes;
  const int turns = kWarpSize / seat.lanes / b.columns, mine = group / b.columns;
#pragma unroll 1
  for (int m = 0; m < call.biases.count; ++m) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      int64_t bin = -1;
      if (live[u] && seat.lane == 0) {
        bin = call.biases.first_row[m] + call.biases.entry(m, item[u]) - b.first_bin;
      }
#pragma unroll 1
      for (int turn = 0; turn < turns; ++turn) {
        if (turn == mine && bin >= 0 && bin < b.bins) {
          histogram[bin * b.columns + group % b.columns] += grad[u];
        }
        if (turns > 1) __syncwarp();
      }
    }
  }
}

// The block's queries `first` and the next of a graph.
template <typename T, int ACCESS, int CHUNKS>
__device__ __forceinline__ void query_rows(const Call<T>& call, const Backward<T>& b,
                                           const Place& place, int64_t first, Seat seat,
                                           float* histogram) {
  using Row = Slice<CHUNKS, kPacketSize<T>>;
  const int64_t local = first + static_cast<int>(threadIdx.x) / seat.lanes;
  seat.exists = local < place.count;
  const int64_t row = place.begin + (seat.exists ? local : 0);
  const int64_t head_row = row * call.heads + seat.head;
  const int width = call.width, value_width = call.value_width;
  const Row grad_out = load_slice<T, ACCESS, CHUNKS>(b.grad_out + head_row * value_width, seat,
                                                     value_width, seat.exists);
  float delta[1] = {grad_out.dot(load_slice<T, ACCESS, CHUNKS>(b.out + head_row * value_width, seat,
                                                               value_width, seat.exists))};
  group_sum<0>(delta, seat.lanes);
  if (seat.exists && seat.lane == 0) b.delta[head_row] = delta[0];
  if (b.grad_q == nullptr && b.bins == 0) return;

  const float natural = seat.exists ? b.lse[head_row] : -kInfinity;
  // exp2(score - inf) = 0: a row without a key has no weights
  const float lse = natural == -kInfinity ? kInfinity : natural * kLog2E;
  Row query = load_slice<T, ACCESS, CHUNKS>(call.q + head_row * width, seat, width, seat.exists);
  query.scale(call.scale * kLog2E);
  Row grad_q;
  grad_q.clear();
  const int64_t slot = call.first_slot(place.begin);
#pragma unroll 1
  for (int part = b.grad_q != nullptr && slot >= 0 ? 0 : 1; part < 2; ++part) {
    Stream<T> keys;
    if (part == 0) {
      keys = {call.prefix_k + call.key_at(slot, seat.head),
              call.prefix_v + call.value_at(slot, seat.head),
              call.prefixes,
              call.prefix_item(row, 0),
              1,
              false};
    } else {
      keys = {call.k + call.key_at(place.begin, seat.head),
              call.v + call.value_at(place.begin, seat.head),
              place.count,
              call.pair_ptr[place.graph] + local * place.count,
              1,
              true};
    }
#pragma unroll 1
    for (int64_t at = 0; at < keys.rows; at += kAtOnce) {
      const Step<T, ACCESS, CHUNKS> step(call, keys, at, seat);
      float dots[2 * kAtOnce], keep[kAtOnce], grad[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        dots[u] = query.dot(step.first[u].floats());
        dots[kAtOnce + u] = grad_out.dot(step.second[u].floats());
      }
      group_sum<0>(dots, seat.lanes);
      draw_keeps(call, seat, step.item, keep);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const float weight = exp2f(dots[u] + step.bias[u] - lse);
        grad[u] = step.live[u] ? weight * (dots[kAtOnce + u] * keep[u] - delta[0]) : 0.0f;
        grad_q.add(grad[u], step.first[u].floats());
      }
      if (part == 1 && b.bins > 0) {
        count_pairs<T, CHUNKS>(call, b, seat, histogram, step.item, step.live, grad);
      }
    }
  }
  if (!seat.exists || b.grad_q == nullptr) return;
  grad_q.scale(call.scale);
  store_slice<T, ACCESS, CHUNKS>(b.grad_q + head_row * width, seat, width, grad_q);
}

// One key and value of a group, and where their gradients go: to T or, as parts, to floats.
template <typename T>
struct KeyRow {
  const T* k;
  const T* v;
  T* grad_k;
  T* grad_v;
  float* part_k;
  float* part_v;
};

// `row` from `queries`, which are the rows from `begin` on of the batch.
template <typename T, int ACCESS, int CHUNKS>
__device__ __forceinline__ void key_row(const Call<T>& call, const Backward<T>& b,
                                        const KeyRow<T>& row, const Stream<T>& queries,
                                        int64_t begin, const Seat& seat) {
  using Row = Slice<CHUNKS, kPacketSize<T>>;
  const int width = call.width, value_width = call.value_width;
  Row key = load_slice<T, ACCESS, CHUNKS>(row.k, seat, width, seat.exists);
  const Row value = load_slice<T, ACCESS, CHUNKS>(row.v, seat, value_width, seat.exists);
  key.scale(call.scale * kLog2E);
  Row grad_k, grad_v;
  grad_k.clear();
  grad_v.clear();
#pragma unroll 1
  for (int64_t at = 0; at < queries.rows; at += kAtOnce) {
    if (queries.row_set != nullptr) {
      bool some = false;
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) some = some || queries.has(at + u);
      if (!some) continue;
    }
    const Step<T, ACCESS, CHUNKS> step(call, queries, at, seat);
    float dots[2 * kAtOnce], keep[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      dots[u] = key.dot(step.first[u].floats());
      dots[kAtOnce + u] = value.dot(step.second[u].floats());
    }
    group_sum<0>(dots, seat.lanes);
    draw_keeps(call, seat, step.item, keep);
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      // plain loads: this block may have written delta
      const int64_t stat = (begin + at + u) * call.heads + seat.head;
      const float natural = step.live[u] ? b.lse[stat] : -kInfinity;
      const float delta = step.live[u] ? b.delta[stat] : 0.0f;
      const float lse = natural == -kInfinity ? kInfinity : natural * kLog2E;
      const float weight = step.live[u] ? exp2f(dots[u] + step.bias[u] - lse) : 0.0f;
      const float grad = weight * (dots[kAtOnce + u] * keep[u] - delta);
      grad_v.add(weight * keep[u], step.second[u].floats());
      grad_k.add(step.live[u] ? grad : 0.0f, step.first[u].floats());
    }
  }
  if (!seat.exists) return;
  grad_k.scale(call.scale);
  if (row.grad_k != nullptr) store_slice<T, ACCESS, CHUNKS>(row.grad_k, seat, width, grad_k);
  if (row.grad_v != nullptr) store_slice<T, ACCESS, CHUNKS>(row.grad_v, seat, value_width, grad_v);
  if (row.part_k != nullptr) store_float_slice<ACCESS>(row.part_k, seat, width, grad_k);
  if (row.part_v != nullptr) store_float_slice<ACCESS>(row.part_v, seat, value_width, grad_v);
}

template <typename T>
__device__ __forceinline__ T* at_or_null(T* base, int64_t at) {
  return base != nullptr ? base + at : nullptr;
}

// The block's keys `first` and the next of a graph.
template <typename T, int ACCESS, int CHUNKS>
__device__ __forceinline__ void key_rows(const Call<T>& call, const Backward<T>& b,
                                         const Place& place, int64_t first, Seat seat) {
  const int64_t local = first + static_cast<int>(threadIdx.x) / seat.lanes;
  seat.exists = local < place.count;
  const int64_t row = place.begin + (seat.exists ? local : 0);
  const int64_t key_at = call.key_at(row, seat.head), value_at = call.value_at(row, seat.head);
  const Stream<T> queries = {call.q + call.key_at(place.begin, seat.head),
                             b.grad_out + call.value_at(place.begin, seat.head),
                             place.count,
                             call.pair_ptr[place.graph] + local,
                             place.count,
                             true};
  key_row<T, ACCESS, CHUNKS>(call, b,
                             {call.k + key_at, call.v + value_at, at_or_null(b.grad_k, key_at),
                              at_or_null(b.grad_v, value_at), nullptr, nullptr},
                             queries, place.begin, seat);
}

// Slots `first` and the next of a set of the prefix, from one chunk of the batch's queries.
template <typename T, int ACCESS, int CHUNKS>
__device__ __forceinline__ void prefix_rows(const Call<T>& call, const Backward<T>& b,
                                            int64_t chunk, int64_t set, int64_t first, Seat seat) {
  const int64_t slot = first + static_cast<int>(threadIdx.x) / seat.lanes;
  seat.exists = slot < call.prefixes;
  const int64_t known = set * call.prefixes + (seat.exists ? slot : 0);
  const int64_t part = chunk * call.sets * call.prefixes + known;
  const int64_t begin = chunk * b.chunk_rows;
  const Stream<T> queries = {call.q + call.key_at(begin, seat.head),
                             b.grad_out + call.value_at(begin, seat.head),
                             min(b.chunk_rows, b.rows - begin),
                             call.prefix_item(begin, slot),
                             call.prefixes,
                             false,
                             call.row_set != nullptr ? call.row_set + begin : nullptr,
                             set};
  key_row<T, ACCESS, CHUNKS>(call, b,
                             {call.prefix_k + call.key_at(known, seat.head),
                              call.prefix_v + call.value_at(known, seat.head), nullptr, nullptr,
                              at_or_null(b.part_k, call.key_at(part, seat.head)),
                              at_or_null(b.part_v, call.value_at(part, seat.head))},
                             queries, begin, seat);
}

// One block per (run of items, head); a group of lanes per row. Each row of a gradient is written
// by one group, each histogram's column by one thread at a time: no atomics, deterministic.
template <typename T, int ACCESS, int CHUNKS>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Call<T> call, const __grid_constant__ Backward<T> b,
                    const __grid_constant__ Work work) {
  GTKERN_DYNAMIC_SHARED(float, shared);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int rows_per_block = threads / call.lanes;
  const int warp_row = thread / kWarpSize * (kWarpSize / call.lanes);
  const int head = static_cast<int>(blockIdx.x % call.heads);
  const int64_t run = blockIdx.x / call.heads;
  const Seat seat = take_seat(call, head);
  const int floats = b.bins * b.columns, warps = threads / kWarpSize;
  float* const histogram = shared + thread / kWarpSize * floats;
  for (int i = thread; i < warps * floats; i += threads) shared[i] = 0.0f;
  if (b.bins > 0) __syncthreads();

  int64_t end = (run + 1) * work.items_per_block;
  end = end < work.items ? end : work.items;
#pragma unroll 1
  for (int64_t item = run * work.items_per_block; item < end; ++item) {
    if (b.chunk_rows > 0) {
      const int64_t first = item % work.tiles * rows_per_block, number = item / work.tiles;
      if (first + warp_row >= call.prefixes) continue;
      prefix_rows<T, ACCESS, CHUNKS>(call, b, number / call.sets, number % call.sets, first, seat);
      continue;
    }
    const Place place = take_place(call, work, item, rows_per_block);
    const int64_t stop = b.whole ? place.count : min(place.count, place.first + rows_per_block);
    if (b.halves & kQueries) {
#pragma unroll 1
      for (int64_t first = place.first; first + warp_row < stop; first += rows_per_block) {
        query_rows<T, ACCESS, CHUNKS>(call, b, place, first, seat, histogram);
      }
    }
    if (b.halves == (kQueries | kKeys)) __syncthreads();
    if (b.halves & kKeys) {
#pragma unroll 1
      for (int64_t first = place.first; first + warp_row < stop; first += rows_per_block) {
        key_rows<T, ACCESS, CHUNKS>(call, b, place, first, seat);
      }
    }
  }

  if (b.bins == 0) return;
  __syncthreads();
  for (int bin = thread; bin < b.bins; bin += threads) {
    float sum = 0.0f;
    for (int warp = 0; warp < warps; ++warp) {
      for (int column = 0; column < b.columns; ++column) {
        sum += shared[warp * floats + bin * b.columns + column];
      }
    }
    b.part_table[(run * b.table_rows + b.first_bin + bin) * call.heads + head] = sum;
  }
}

}  // namespace gtkern::ragged_attention
