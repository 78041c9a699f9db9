#pragma once

// What the GPU kernels of softmax attention share.
//
// Who works on what. A team of 2^n lanes of one warp owns one (item, head); an item is a row with
// at most kHeavyRowEdges edges, or a piece of a heavier row; a row of a fixed number of places is
// one item, however many they are. Inside a team, groups of `lanes` lanes each own every
// (team / lanes)-th edge of the item: a lane holds 16 bytes of a row (two times 16 for fp32 rows
// wider than 128), so a group reads K[j, h, :] as one contiguous run. Teams of a row's heads are
// neighbours, so a warp reads all heads of an edge together.
//
// Every warp step thus moves up to 32 x 16 bytes for each of two gathered rows and each unrolled
// edge; that, not arithmetic (1 to 2 flop/B), is what the kernels are built around: all gathers of
// a step are issued before the first is used, and the indices of the next step before those.
//
// Loops run as often as the busiest team of the warp needs, with dead edges masked: all 32 lanes
// then reach every shuffle together.

#include "common/attention/gpu.h"
#include "common/philox.h"
#include "common/warp.cuh"

namespace gtkern::attention::gpu {

constexpr int kThreads = 128;
// HEAVY_ROW_EDGES of gtkern/graph.py: rows above it come as items of Edges::heavy
constexpr int64_t kHeavyRowEdges = 1024;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;
constexpr float kInfinity = __builtin_huge_valf();

// What a kernel is compiled for. Kernels without a feature do not pay for it in registers.
enum class Features {
  kLean,   // scale, temperature, eps
  kTyped,  // and what costs a few scalars an edge: tables by type, bias, clamp, dropout, scores
  kFull,   // and vectors by edge: key_edge, edge_query with edge_attr; rows of any alignment
};

// How a launch is laid out.
struct Work {
  int64_t items;           // heavy pieces first: they take longest; then all rows
  int64_t items_per_team;  // consecutive items that one team does one after the other
  int64_t teams;
  int heads;
  int team;   // lanes of a team, a power of two
  int lanes;  // lanes of a group, a power of two
};

// The options and optional inputs of a score; scores are in units of log2 inside the kernels.
template <typename T>
struct Terms {
  const float* key_table;   // [T, H, D]
  const float* bias_table;  // [T, H]
  const float* key_edge;    // [E, H, D]
  const float* bias_edge;   // [E, H]
  const T* edge_query;      // [N_dst, H, De]
  const T* edge_attr;       // [E, De]
  int edge_width;
  float product_scale;  // scale / temperature
  float bias_scale;     // 1 / temperature
  float clamp;
  float keep_scale;  // 1 / (1 - dropout)
  uint32_t drop_below;
  bool dropout;
  uint64_t seed;
};

// Where this lane sits.
struct Seat {
  int lane;   // in its group
  int lanes;  // of a group
  int slot;   // of its group in the team
  int slots;
  int head;
  int64_t number;  // of the team among the teams of its head
  bool exists;     // the last warp has teams without work
};

template <int LANES>
__device__ __forceinline__ Seat take_seat(const Work& work) {
  Seat seat;
  seat.lanes = LANES > 0 ? LANES : work.lanes;
  const int thread = static_cast<int>(threadIdx.x);
  const int in_team = thread & (work.team - 1);
  seat.lane = in_team & (seat.lanes - 1);
  seat.slot = in_team / seat.lanes;
  seat.slots = work.team / seat.lanes;
  const int64_t team =
      static_cast<int64_t>(blockIdx.x) * (kThreads / work.team) + thread / work.team;
  seat.exists = team < work.teams;
  if (work.teams <= 0xffffffffLL) {
    const uint32_t small = static_cast<uint32_t>(team), heads = static_cast<uint32_t>(work.heads);
    seat.number = small / heads;
    seat.head = static_cast<int>(small % heads);
  } else {
    seat.number = team / work.heads;
    seat.head = static_cast<int>(team % work.heads);
  }
  return seat;
}

struct Item {
  int64_t row, begin, end;
  int64_t piece;  // number of the heavy piece, or -1: a whole row
  bool exists;    // false: nothing to read and nothing to write
};

__device__ __forceinline__ Item take_item(const Edges& edges, int64_t number, bool exists) {
  Item item = {0, 0, 0, -1, exists};
  if (!exists) return item;
  if (number < edges.num_heavy) {
    const int64_t* piece = edges.heavy + 3 * number;
    item.exists = piece[0] >= 0;
    return item.exists ? Item{piece[0], piece[1], piece[2], number, true} : item;
  }
  item.row = number - edges.num_heavy;
  if (edges.ptr == nullptr) {
    item.begin = item.row * edges.degree;
    item.end = item.begin + edges.degree;
    return item;
  }
  item.begin = edges.ptr[item.row];
  item.end = edges.ptr[item.row + 1];
  if (item.end - item.begin > kHeavyRowEdges) {
    item.end = item.begin;
    item.exists = false;
  }
  return item;
}

// Steps of UNROLL edges for each group until the busiest team of this warp is done.
template <int UNROLL>
__device__ __forceinline__ int count_steps(const Item& item, const Seat& seat) {
  const int edges = static_cast<int>(item.end - item.begin), step = seat.slots * UNROLL;
  return warp_max((edges + step - 1) / step);
}

// A group's next UNROLL places; those without an edge are dead. Members that a kernel does not use
// cost nothing.
template <int UNROLL>
struct Batch {
  int64_t id[UNROLL];
  int32_t other[UNROLL];
  int type[UNROLL];
  bool live[UNROLL];
};

template <Features FEATURES, int UNROLL>
__device__ __forceinline__ Batch<UNROLL> load_batch(const Edges& edges, const Item& item,
                                                    const Seat& seat, int step) {
  Batch<UNROLL> batch;
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    const int64_t at = item.begin + (int64_t{step} * UNROLL + u) * seat.slots + seat.slot;
    const int32_t other = at < item.end ? __ldg(edges.index + at) : -1;
    batch.live[u] = other >= 0;
    batch.other[u] = batch.live[u] ? other : 0;
    batch.type[u] = 0;
    batch.id[u] = at;
    if constexpr (FEATURES != Features::kLean) {
      if (edges.type != nullptr && batch.live[u]) batch.type[u] = __ldg(edges.type + at);
      if (edges.id != nullptr && batch.live[u]) batch.id[u] = __ldg(edges.id + at);
    }
  }
  return batch;
}

// A lane's part of a row: chunk c holds elements (c * lanes + lane) * size and the next.
template <int CHUNKS, int SIZE>
struct Slice {
  float x[CHUNKS][SIZE];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < SIZE; ++i) x[c][i] = 0.0f;
    }
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < SIZE; ++i) x[c][i] *= factor;
    }
  }
  __device__ __forceinline__ void multiply(const Slice& other) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < SIZE; ++i) x[c][i] *= other.x[c][i];
    }
  }
  __device__ __forceinline__ void add(float factor, const Slice& other) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < SIZE; ++i) x[c][i] += factor * other.x[c][i];
    }
  }
  __device__ __forceinline__ void add_product(const Slice& a, const Slice& b) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < SIZE; ++i) x[c][i] += a.x[c][i] * b.x[c][i];
    }
  }
  __device__ __forceinline__ float dot(const Slice& other) const {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
      for (int i = 0; i < SIZE; ++i) sum += x[c][i] * other.x[c][i];
    }
    return sum;
  }
  // sums over the groups of a team, in the order of a fixed tree
  __device__ __forceinline__ void merge(const Seat& seat) {
#pragma unroll 1
    for (int offset = seat.lanes; offset < seat.lanes * seat.slots; offset *= 2) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
#pragma unroll
        for (int i = 0; i < SIZE; ++i) x[c][i] += __shfl_xor_sync(kAllLanes, x[c][i], offset);
      }
    }
  }
};

// A lane's part of a row as loaded, still in flight or packed.
template <typename T, int ACCESS, int CHUNKS>
struct Packed {
  static constexpr int kSize = kPacketSize<T>;
  Packet<T> packet[CHUNKS];

  __device__ __forceinline__ void load(const T* row, const Seat& seat, int width, bool live) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      packet[c] = load_packet<ACCESS>(row, (c * seat.lanes + seat.lane) * kSize, width, live);
    }
  }
  __device__ __forceinline__ Slice<CHUNKS, kSize> floats() const {
    Slice<CHUNKS, kSize> slice;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) unpack(packet[c], slice.x[c]);
    return slice;
  }
};

template <typename T, int ACCESS, int CHUNKS>
__device__ __forceinline__ Slice<CHUNKS, kPacketSize<T>> load_slice(const T* row, const Seat& seat,
                                                                    int width, bool live) {
  Packed<T, ACCESS, CHUNKS> packed;
  packed.load(row, seat, width, live);
  return packed.floats();
}

template <int ACCESS, int CHUNKS, int SIZE>
__device__ __forceinline__ void load_float_slice(const float* row, const Seat& seat, int width,
                                                 bool live, Slice<CHUNKS, SIZE>& slice) {
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    load_floats<ACCESS>(row, (c * seat.lanes + seat.lane) * SIZE, width, live, slice.x[c]);
  }
}

template <int ACCESS, int CHUNKS, int SIZE>
__device__ __forceinline__ void store_float_slice(float* row, const Seat& seat, int width,
                                                  const Slice<CHUNKS, SIZE>& slice) {
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    store_floats<ACCESS>(row, (c * seat.lanes + seat.lane) * SIZE, width, slice.x[c]);
  }
}

template <typename T, int ACCESS, int CHUNKS>
__device__ __forceinline__ void store_slice(T* row, const Seat& seat, int width,
                                            const Slice<CHUNKS, kPacketSize<T>>& slice) {
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    store_elements<ACCESS>(row, (c * seat.lanes + seat.lane) * kPacketSize<T>, width, slice.x[c]);
  }
}

// The row of one side of every product, with the multiplier of the current edge type folded in.
// Where types rise inside a row, the table is read a few times a row, not once an edge.
template <int ACCESS, int CHUNKS, int SIZE>
struct ScaledByType {
  Slice<CHUNKS, SIZE> plain;
  Slice<CHUNKS, SIZE> scaled;
  int type;

  __device__ __forceinline__ void set(const Slice<CHUNKS, SIZE>& row) {
    plain = row;
    scaled = row;
    type = -1;
  }
  __device__ __forceinline__ void turn_to(int wanted, const float* table, const Seat& seat,
                                          int heads, int width) {
    if (table == nullptr || wanted == type) return;
    type = wanted;
    const int64_t row = int64_t{wanted} * heads + seat.head;
    load_float_slice<ACCESS>(table + row * width, seat, width, true, scaled);
    scaled.multiply(plain);
  }
};

// product: what the dot products gave, scaled. Returns the score in units of log2, -inf for a dead
// edge; `inside` tells whether the clamp lets a gradient through.
template <Features FEATURES, typename T>
__device__ __forceinline__ float finish_score(const Terms<T>& terms, float product, int heads,
                                              int head, int type, int64_t id, bool live,
                                              bool& inside) {
  inside = true;
  if constexpr (FEATURES != Features::kLean) {
    if (live && terms.bias_table != nullptr) {
      product += terms.bias_scale * __ldg(terms.bias_table + int64_t{type} * heads + head);
    }
    if (live && terms.bias_edge != nullptr) {
      product += terms.bias_scale * __ldg(terms.bias_edge + id * heads + head);
    }
    // comparisons, not fminf: a NaN stays a NaN
    inside = !(product < -terms.clamp || product > terms.clamp);
    product = product < -terms.clamp ? -terms.clamp : product > terms.clamp ? terms.clamp : product;
    product *= kLog2E;
  }
  return live ? product : -kInfinity;
}

// What dropout multiplies each edge of a batch of two with. A group's lanes share the Philox
// rounds: where there are several, even ones draw for the first edge and odd ones for the second.
template <typename T>
__device__ __forceinline__ void draw_keeps(const Terms<T>& terms, const Seat& seat, int64_t first,
                                           int64_t second, float (&keep)[2]) {
  keep[0] = 1.0f;
  keep[1] = 1.0f;
  if (!terms.dropout) return;
  const bool odd = seat.lane & 1;
  const uint32_t word = item_word(terms.seed, odd ? second : first, seat.head);
  const float drawn = word >= terms.drop_below ? terms.keep_scale : 0.0f;
  if (seat.lanes > 1) {
    keep[0] = __shfl_sync(kAllLanes, drawn, 0, 2);
    keep[1] = __shfl_sync(kAllLanes, drawn, 1, 2);
  } else {
    keep[0] = drawn;
    const uint32_t other = item_word(terms.seed, second, seat.head);
    keep[1] = other >= terms.drop_below ? terms.keep_scale : 0.0f;
  }
}

enum class Direction { kForward, kBackward };

// Edges in flight in each group. Backward needs gathered rows twice, so they stay unpacked in
// between: four edges of 16-bit rows would then take 128 registers for the rows alone.
__host__ __device__ constexpr int edges_in_flight(size_t element_size, Features features,
                                                  int chunks, Direction direction) {
  const bool narrow = element_size == 4 || direction == Direction::kForward;
  return features == Features::kLean && chunks == 1 && narrow ? 4 : 2;
}

// Blocks that must fit on a multiprocessor at once, which bounds a kernel's registers to 65536 /
// (kThreads * n). Lean kernels live from occupancy; the others, left alone, take 90 to 240
// registers. None of them spills.
template <Features FEATURES, int LEAN_BLOCKS>
constexpr int kMinBlocks = FEATURES == Features::kLean ? LEAN_BLOCKS : 1;

}  // namespace gtkern::attention::gpu
