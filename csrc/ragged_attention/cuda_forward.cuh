#pragma once

#include "ragged_attention/cuda_common.cuh"

namespace gtkern::ragged_attention {

// One group of lanes per (query, head); a block has neighbouring queries of one graph. Each row of
// `out` and each entry of `lse` is written by one group: no atomics, deterministic.
template <typename T, int ACCESS, int CHUNKS>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ Call<T> call, const __grid_constant__ Work work, T* out,
                   float* lse) {
  using Row = Slice<CHUNKS, kPacketSize<T>>;
  const int thread = static_cast<int>(threadIdx.x), lanes = call.lanes;
  const int rows_per_block = static_cast<int>(blockDim.x) / lanes;
  const int head = static_cast<int>(blockIdx.x % call.heads);
  const Place place = take_place(call, work, blockIdx.x / call.heads, rows_per_block);
  // warps without a row leave whole
  if (place.first + thread / kWarpSize * (kWarpSize / lanes) >= place.count) return;
  const int64_t local = place.first + thread / lanes, row = place.begin + local;
  Seat seat = take_seat(call, head);
  seat.exists = local < place.count;
  const int64_t head_row = row * call.heads + head;

  Row query = load_slice<T, ACCESS, CHUNKS>(call.q + (seat.exists ? head_row * call.width : 0),
                                            seat, call.width, seat.exists);
  query.scale(call.scale * kLog2E);
  Row sum;
  sum.clear();
  float peak = -kInfinity, total = 0.0f;
  const int64_t slot = call.first_slot(place.begin);
#pragma unroll 1
  for (int part = slot >= 0 ? 0 : 1; part < 2; ++part) {
    Stream<T> keys;
    if (part == 0) {
      keys = {call.prefix_k + call.key_at(slot, head),
              call.prefix_v + call.value_at(slot, head),
              call.prefixes,
              call.prefix_item(row, 0),
              1,
              false};
    } else {
      keys = {call.k + call.key_at(place.begin, head),
              call.v + call.value_at(place.begin, head),
              place.count,
              call.pair_ptr[place.graph] + local * place.count,
              1,
              true};
    }
#pragma unroll 1
    for (int64_t at = 0; at < keys.rows; at += kAtOnce) {
      const Step<T, ACCESS, CHUNKS> step(call, keys, at, seat);
      float score[kAtOnce], keep[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) score[u] = query.dot(step.first[u].floats());
      group_sum<0>(score, lanes);
      draw_keeps(call, seat, step.item, keep);
      float higher = peak;
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        score[u] = step.live[u] ? score[u] + step.bias[u] : -kInfinity;
        higher = fmaxf(higher, score[u]);
      }
      // a row without a key has no largest score; any finite stand-in gives exp2(-inf) = 0
      const float base = higher == -kInfinity ? 0.0f : higher;
      const float rescale = exp2f(peak - base);
      peak = higher;
      total *= rescale;
      sum.scale(rescale);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const float weight = exp2f(score[u] - base);
        total += weight;
        sum.add(weight * keep[u], step.second[u].floats());
      }
    }
  }
  if (!seat.exists) return;
  const bool some = total != 0.0f;
  sum.scale(some ? 1.0f / total : 0.0f);
  store_slice<T, ACCESS, CHUNKS>(out + head_row * call.value_width, seat, call.value_width, sum);
  if (seat.lane == 0) lse[head_row] = some ? (peak + log2f(total)) * kLn2 : -kInfinity;
}

}  // namespace gtkern::ragged_attention
