#pragma once

// What the CUDA kernels of neighbor_sampling do; README.md of the op defines every bit of it.
//
// draw_kernel gives each row to a warp, and each lane every 32nd of its draws. race_kernel gives
// the rows that are left, and all rows where nothing is drawn, to a block each: it counts keys
// below fifteen limits at a time to find the k-th smallest, four bits in each pass, and makes the
// keys anew in each pass. Counts are integers, so their order does not matter.

#include "common/exponential.h"
#include "common/philox.h"
#include "common/warp.cuh"

namespace gtkern::neighbor_sampling {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr uint32_t kDrawStream = 1u << 30, kFillStream = 1u << 31;
constexpr int kMostDrawn = 64;
constexpr int kMostDraws = 2 * kMostDrawn;
constexpr int kInfinity = 0x7f800000;

struct Params {
  const int64_t* ptr;
  const int32_t* col;
  const int64_t* edge_id;    // null: the identity
  const uint8_t* edge_type;  // null: no types
  const float* weight;       // by position; null: all 1
  const uint32_t* prefix;    // null: all alike
  int64_t rows, k;
  int draws;  // 0: nothing is drawn
  uint64_t seed;
  uint32_t layer, epoch;
  bool top, pad;
  int32_t* index;
  int64_t* edge;
  uint8_t* type;
  // what draw_kernel leaves of rows that are not complete: places in the row, and how many
  int32_t* partial;  // [rows, k]
  int32_t* taken;    // [rows]
};

__device__ __forceinline__ void store_edge(const Params& p, int64_t at, int64_t position) {
  const bool real = position >= 0;
  p.index[at] = real ? p.col[position] : -1;
  p.edge[at] = real && p.edge_id != nullptr ? p.edge_id[position] : position;
  if (p.type != nullptr) p.type[at] = real ? p.edge_type[position] : 0;
}

// The word of a draw from a row.
__device__ __forceinline__ uint32_t draw_word(const Params& p, int64_t row, int64_t draw,
                                              uint32_t stream) {
  const PhiloxWords words = philox4x32_10(
      {{static_cast<uint32_t>(row), static_cast<uint32_t>(draw >> 2), p.layer | stream, p.epoch}},
      p.seed);
  const uint32_t low = (draw & 1) ? words.word[1] : words.word[0];
  const uint32_t high = (draw & 1) ? words.word[3] : words.word[2];
  return (draw & 2) ? high : low;
}

// The place in its row, of n edges, that a word hits.
__device__ __forceinline__ int64_t hit(const Params& p, int64_t begin, int64_t n, uint32_t word) {
  if (p.prefix == nullptr) {
    return static_cast<int64_t>((static_cast<uint64_t>(word) * static_cast<uint64_t>(n)) >> 32);
  }
  const uint32_t* base = p.prefix + begin;
  const uint32_t target = __umulhi(word, base[n - 1]);
  int64_t place = 0;
  for (int64_t left = n; left > 1;) {
    const int64_t half = left / 2;
    if (base[place + half - 1] <= target) place += half;
    left -= half;
  }
  return place + (base[place] <= target ? 1 : 0);
}

// One warp per row. Every result of a row is written by its warp.
__global__ void __launch_bounds__(kThreads) draw_kernel(Params p) {
  __shared__ int32_t shared[kWarps][kMostDraws];
  __shared__ uint8_t shared_new[kWarps][kMostDraws];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= p.rows) return;
  const int64_t begin = p.ptr[row], n = p.ptr[row + 1] - begin;
  const bool drawn = n >= 2 * p.k && n > p.k && n < (int64_t{1} << 31) &&
                     (p.prefix == nullptr || p.prefix[begin + n - 1] > 0);
  if (!drawn) {
    if (lane == 0) p.taken[row] = 0;
    return;
  }
  int32_t* place = shared[warp];
  uint8_t* chosen = shared_new[warp];
  for (int draw = lane; draw < p.draws; draw += kWarpSize) {
    place[draw] = static_cast<int32_t>(hit(p, begin, n, draw_word(p, row, draw, kDrawStream)));
  }
  __syncwarp();
  int taken = 0;
  for (int first = 0; first < p.draws; first += kWarpSize) {
    const int draw = first + lane;
    bool fresh = draw < p.draws;
    for (int other = 0; fresh && other < draw; ++other) fresh = place[other] != place[draw];
    const unsigned mask = __ballot_sync(kAllLanes, fresh);
    fresh = fresh && taken + __popc(mask & ((1u << lane) - 1u)) < static_cast<int>(p.k);
    if (draw < p.draws) chosen[draw] = fresh;
    taken += __popc(mask);
  }
  __syncwarp();
  const bool complete = taken >= static_cast<int>(p.k);
  for (int draw = lane; draw < p.draws; draw += kWarpSize) {
    if (!chosen[draw]) continue;
    int rank = 0;
    for (int other = 0; other < p.draws; ++other) {
      rank += chosen[other] && place[other] < place[draw];
    }
    const int64_t at = row * p.k + rank;
    if (complete) {
      store_edge(p, at, begin + place[draw]);
    } else {
      p.partial[at] = place[draw];
    }
  }
  if (lane == 0) p.taken[row] = complete ? static_cast<int>(p.k) : taken;
}

// The four keys from position `quad` on, a multiple of 4, of the row begin .. end: kInfinity for
// what is no candidate or outside, 0 for the `taken` places at `partial`, in order.
__device__ __forceinline__ void race_keys(const Params& p, int64_t quad, int64_t begin, int64_t end,
                                          const int32_t* partial, int taken, int (&key)[4]) {
  PhiloxWords words{};
  if (!p.top) {
    const uint64_t number = static_cast<uint64_t>(quad) >> 2;
    words = philox4x32_10(
        {{static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32), p.layer, p.epoch}},
        p.seed);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t position = quad + i;
    key[i] = kInfinity;
    if (position < begin || position >= end) continue;
    const float weight = p.weight != nullptr ? p.weight[position] : 1.0f;
    if (!(weight >= 0x1p-100f && weight <= 0x1p100f)) continue;
    // IEEE operations that no compiler may fuse
    key[i] = p.top ? kInfinity - __float_as_int(weight)
                   : __float_as_int(__fmul_rn(exponential(words.word[i]), __frcp_rn(weight)));
    int low = 0;
    for (int left = taken; left > 0;) {
      const int middle = left / 2;
      const bool before = begin + partial[low + middle] < position;
      low += before ? middle + 1 : 0;
      left = before ? left - middle - 1 : middle;
    }
    if (low < taken && begin + partial[low] == position) key[i] = 0;
  }
}

// The sum of x over the block, for every thread. `shared` has a place for each warp.
__device__ __forceinline__ int block_sum(int x, int* shared) {
  x = __reduce_add_sync(kAllLanes, x);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp];
  return sum;
}

// The sum of x over the threads before this one; `total` gets that over all.
__device__ __forceinline__ int block_prefix(int x, int* shared, int* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int sum = x;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int before = __shfl_up_sync(kAllLanes, sum, offset);
    sum += lane >= offset ? before : 0;
  }
  __syncthreads();
  if (lane == kWarpSize - 1) shared[warp] = sum;
  __syncthreads();
  int earlier = 0, all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    earlier += w < warp ? shared[w] : 0;
    all += shared[w];
  }
  *total = all;
  return earlier + sum - x;
}

// One block per row that is not complete. Every result of a row is written by its block.
__global__ void __launch_bounds__(kThreads) race_kernel(Params p) {
  __shared__ int shared[kWarps];
  __shared__ int counts[kWarps][16];
  const int64_t row = static_cast<int64_t>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
  const int drawn = p.draws > 0 ? p.taken[row] : 0;
  if (p.draws > 0 && drawn == static_cast<int>(p.k)) return;
  const int64_t begin = p.ptr[row], end = p.ptr[row + 1];
  const int64_t aligned = begin / 4 * 4;
  const int32_t* partial = p.draws > 0 ? p.partial + row * p.k : nullptr;
  constexpr int64_t kStep = 4 * kThreads;

  // candidates of the row: a graph's rows have fewer than 2**31
  int candidates = 0;
  int key[4];
  for (int64_t start = aligned; start < end; start += kStep) {
    race_keys(p, start + 4 * thread, begin, end, partial, drawn, key);
#pragma unroll
    for (int i = 0; i < 4; ++i) candidates += key[i] < kInfinity;
  }
  candidates = block_sum(candidates, shared);
  const int taken = candidates < p.k ? candidates : static_cast<int>(p.k);

  // at all times fewer than `taken` keys are below `largest`
  int largest = kInfinity, below = candidates;
  if (taken < candidates) {
    largest = 0;
    below = 0;
    for (int shift = 28; shift >= 0; shift -= 4) {
      int mine[16] = {};
      for (int64_t start = aligned; start < end; start += kStep) {
        race_keys(p, start + 4 * thread, begin, end, partial, drawn, key);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (key[i] == kInfinity || key[i] < largest) {
            mine[0] += key[i] < largest;
            continue;
          }
          const int digit = (key[i] - largest) >> shift;
#pragma unroll
          for (int j = 1; j < 16; ++j) mine[j] += digit < j;
        }
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int sum = __reduce_add_sync(kAllLanes, mine[j]);
        if (lane == 0) counts[thread / kWarpSize][j] = sum;
      }
      __syncthreads();
      int smaller = 0;  // keys below `largest`
#pragma unroll
      for (int w = 0; w < kWarps; ++w) smaller += counts[w][0];
      int digit = 0;
      below = smaller;
      for (int j = 1; j < 16; ++j) {
        int sum = smaller;
        for (int w = 0; w < kWarps; ++w) sum += counts[w][j];
        if (sum >= taken) break;
        digit = j;
        below = sum;
      }
      largest += digit << shift;
    }
  }

  int ties = taken - below, done = 0, done_ties = 0;
  for (int64_t start = aligned; start < end; start += kStep) {
    race_keys(p, start + 4 * thread, begin, end, partial, drawn, key);
    int equal = 0, total_equal, total_take;
#pragma unroll
    for (int i = 0; i < 4; ++i) equal += key[i] == largest && key[i] < kInfinity;
    int rank = done_ties + block_prefix(equal, shared, &total_equal);
    bool take[4];
    int count = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool tie = key[i] == largest && key[i] < kInfinity;
      take[i] = key[i] < largest || (tie && rank < ties);
      rank += tie;
      count += take[i];
    }
    int64_t at = row * p.k + done + block_prefix(count, shared, &total_take);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (take[i]) store_edge(p, at++, start + 4 * thread + i);
    }
    done += total_take;
    done_ties += total_equal;
  }

  for (int64_t place = taken + thread; place < p.k; place += kThreads) {
    int64_t position = -1;
    if (taken > 0 && !p.pad) {
      const uint32_t word = draw_word(p, row, place - taken, kFillStream);
      position = begin + hit(p, begin, end - begin, word);
    }
    store_edge(p, row * p.k + place, position);
  }
}

}  // namespace gtkern::neighbor_sampling
