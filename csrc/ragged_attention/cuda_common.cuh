#pragma once

// What the GPU kernels of ragged_attention share.
//
// A group of 2^n lanes of one warp owns one row (a query, or in the backward's second half a key)
// of one graph for one head, in registers: each lane holds up to 16 elements of it. The groups of a
// block are neighbouring rows of one graph, and walk along the graph's other side together: all
// read the same row of it at the same time, which is one access that the near cache serves. The
// softmax and all sums run inside a group, so a row's bits depend on its graph alone.
//
// This suits graphs of some ten nodes, which give no tensor core a full tile; the Triton kernels
// multiply tiles instead.

#include "common/attention/gpu_common.cuh"
#include "common/philox.h"
#include "common/warp.cuh"

namespace gtkern::ragged_attention {

using attention::gpu::kInfinity;
using attention::gpu::kLn2;
using attention::gpu::kLog2E;
using attention::gpu::load_slice;
using attention::gpu::Packed;
using attention::gpu::Seat;
using attention::gpu::Slice;
using attention::gpu::store_float_slice;
using attention::gpu::store_slice;

constexpr int kThreads = 128;
constexpr int kMostBiases = 32;
// Rows of the other side in flight in each group.
constexpr int kAtOnce = 2;

// Where biases come from: pair x gets row first_row[m] + index[m][x] of the table, for each m.
struct Biases {
  const float* table;  // [B, H]
  const void* index[kMostBiases];
  int64_t first_row[kMostBiases];
  bool wide[kMostBiases];  // int16, else uint8
  int count;

  // An entry of index m, or -1: masked.
  __device__ __forceinline__ int entry(int m, int64_t pair) const {
    if (wide[m]) return __ldg(static_cast<const int16_t*>(index[m]) + pair);
    const int value = __ldg(static_cast<const uint8_t*>(index[m]) + pair);
    return value == 255 ? -1 : value;
  }
};

template <typename T>
struct Call {
  const T* q;         // [N, H, D]
  const T* k;         // [N, H, D]
  const T* v;         // [N, H, Dv]
  const T* prefix_k;  // [S, P, H, D]
  const T* prefix_v;  // [S, P, H, Dv]
  const int64_t* ptr;
  const int64_t* pair_ptr;
  const int64_t* row_set;  // [N], or null: every row sees the only set
  Biases biases;
  int64_t graphs, prefixes, sets;
  int heads, width, value_width;
  int lanes;  // of a group
  float scale;
  float keep_scale;  // 1 / (1 - dropout)
  uint32_t drop_below;
  bool dropout;
  uint64_t seed;

  __device__ __forceinline__ int64_t key_at(int64_t row, int head) const {
    return (row * heads + head) * width;
  }
  __device__ __forceinline__ int64_t value_at(int64_t row, int head) const {
    return (row * heads + head) * value_width;
  }
  // The first slot that the graph of a row sees, among those of all sets; -1: it sees none.
  __device__ __forceinline__ int64_t first_slot(int64_t row) const {
    if (prefixes == 0) return -1;
    if (row_set == nullptr) return 0;
    const int64_t set = row_set[row];
    return set >= 0 && set < sets ? set * prefixes : -1;
  }
  // dropout counts the slots of the prefix after all pairs
  __device__ __forceinline__ int64_t prefix_item(int64_t row, int64_t slot) const {
    return pair_ptr[graphs] + row * prefixes + slot;
  }
};

// How the tiles of rows of a launch are numbered.
struct Work {
  int64_t items;
  int64_t items_per_block;  // consecutive items that one block does one after the other
  int64_t tiles;            // of each graph, as many as the largest one has
  const int64_t* tile_ptr;  // [G + 1] or null: number of the first tile of each graph instead
};

// Some rows of one graph.
struct Place {
  int64_t graph, begin, first;  // its first row in the batch; of the tile, in the graph
  int64_t count;                // rows of the graph; 0: there is nothing at this number
};

template <typename T>
__device__ __forceinline__ Place take_place(const Call<T>& call, const Work& work, int64_t item,
                                            int rows_per_block) {
  Place place = {0, 0, 0, 0};
  if (work.tile_ptr == nullptr) {
    place.graph = item / work.tiles;
    place.first = item % work.tiles * rows_per_block;
  } else {
    if (item >= work.tile_ptr[call.graphs]) return place;
    int64_t low = 0;  // the last graph whose tiles begin at or before this one
    for (int64_t left = call.graphs - 1; left > 0;) {
      const int64_t middle = (left + 1) / 2;
      const bool behind = work.tile_ptr[low + middle] > item;
      low += behind ? 0 : middle;
      left = behind ? middle - 1 : left - middle;
    }
    place.graph = low;
    place.first = (item - work.tile_ptr[low]) * rows_per_block;
  }
  place.begin = call.ptr[place.graph];
  place.count = call.ptr[place.graph + 1] - place.begin;
  return place;
}

// One block: tile_ptr [G + 1], for tiles of `rows` rows.
static __global__ void __launch_bounds__(kThreads)
    count_tiles_kernel(const int64_t* ptr, int64_t graphs, int rows, int64_t* tile_ptr) {
  __shared__ int64_t sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t chunk = (graphs + kThreads - 1) / kThreads;
  const int64_t begin = min(thread * chunk, graphs), end = min(begin + chunk, graphs);
  int64_t sum = 0;
  for (int64_t g = begin; g < end; ++g) sum += (ptr[g + 1] - ptr[g] + rows - 1) / rows;
  sums[thread] = sum;
  __syncthreads();
  int64_t before = 0;
  for (int t = 0; t < thread; ++t) before += sums[t];
  for (int64_t g = begin; g < end; ++g) {
    tile_ptr[g] = before;
    before += (ptr[g + 1] - ptr[g] + rows - 1) / rows;
  }
  if (thread == kThreads - 1) tile_ptr[graphs] = before;
}

// The other side, for one row: rows of two tensors, and the number of the pair with row 0. Where
// row_set is given, only the rows of one set count.
template <typename T>
struct Stream {
  const T* first;
  const T* second;
  int64_t rows;
  int64_t item, step;
  bool biased;
  const int64_t* row_set = nullptr;
  int64_t set = 0;

  __device__ __forceinline__ bool has(int64_t row) const {
    return row < rows && (row_set == nullptr || row_set[row] == set);
  }
};

// The next kAtOnce rows of a stream, and what the pairs with them have; dead behind its end.
template <typename T, int ACCESS, int CHUNKS>
struct Step {
  Packed<T, ACCESS, CHUNKS> first[kAtOnce], second[kAtOnce];
  int64_t item[kAtOnce];
  float bias[kAtOnce];  // in units of log2
  bool live[kAtOnce];

  __device__ __forceinline__ Step(const Call<T>& call, const Stream<T>& stream, int64_t at,
                                  const Seat& seat) {
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int64_t row = at + u;
      const bool inside = stream.has(row);
      const int64_t skip = inside ? row * call.heads : 0;
      first[u].load(stream.first + skip * call.width, seat, call.width, inside);
      second[u].load(stream.second + skip * call.value_width, seat, call.value_width, inside);
      item[u] = stream.item + row * stream.step;
      live[u] = inside && seat.exists;
      bias[u] = 0.0f;
    }
    if (!stream.biased) return;
#pragma unroll 1
    for (int m = 0; m < call.biases.count; ++m) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int entry = live[u] ? call.biases.entry(m, item[u]) : -1;
        live[u] = entry >= 0;
        if (live[u]) {
          const int64_t row = call.biases.first_row[m] + entry;
          bias[u] += kLog2E * __ldg(call.biases.table + row * call.heads + seat.head);
        }
      }
    }
  }
};

// What dropout multiplies the pairs of a step with. A group's lanes share the Philox rounds: where
// there are several, even ones draw for the first pair and odd ones for the second.
template <typename T>
__device__ __forceinline__ void draw_keeps(const Call<T>& call, const Seat& seat,
                                           const int64_t (&item)[2], float (&keep)[2]) {
  keep[0] = 1.0f;
  keep[1] = 1.0f;
  if (!call.dropout) return;
  const bool odd = seat.lane & 1;
  const uint32_t word = item_word(call.seed, odd ? item[1] : item[0], seat.head);
  const float drawn = word >= call.drop_below ? call.keep_scale : 0.0f;
  if (seat.lanes > 1) {
    keep[0] = __shfl_sync(kAllLanes, drawn, 0, 2);
    keep[1] = __shfl_sync(kAllLanes, drawn, 1, 2);
  } else {
    keep[0] = drawn;
    const uint32_t other = item_word(call.seed, item[1], seat.head);
    keep[1] = other >= call.drop_below ? call.keep_scale : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ Seat take_seat(const Call<T>& call, int head) {
  const int thread = static_cast<int>(threadIdx.x);
  Seat seat{};
  seat.lanes = call.lanes;
  seat.lane = thread & (call.lanes - 1);
  seat.head = head;
  return seat;
}

}  // namespace gtkern::ragged_attention
