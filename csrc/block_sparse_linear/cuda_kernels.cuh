#pragma once

// The GPU kernels of block_sparse_linear. A strip is a block row of the weight, or in the gradient
// of x a block column. Its live blocks are walked as if they lay side by side: place p of a strip
// is row or column p % size of its live block p / size, so that a tile takes in several small
// blocks or a part of a large one. Tiles reach shared memory by asynchronous copies, kStages - 1
// ahead of the products.

#include "block_sparse_linear/cuda_tile.cuh"
#include "common/async_copy.cuh"

namespace gtkern::block_sparse_linear {

enum Activation { kNone = 0, kRelu = 1, kGelu = 2, kSilu = 3 };

constexpr int kStages = 3;
// Rows of x of a block, and of a warp; live columns of a tile of the gradient of the values.
constexpr int kTileRows = 128, kWarpRows = 32, kTilePlaces = 64;
// Depth of a tile: 64 bytes of a row.
template <typename T>
constexpr int kDepth = 64 / static_cast<int>(sizeof(T));
// Elements added to a row of shared memory, so that the rows which a warp reads at once fall into
// different banks.
template <typename T>
constexpr int kPad = 16 / static_cast<int>(sizeof(T));
constexpr int kTurnedPad = 8;

constexpr int kPullBackThreads = 128, kPullBackRows = 64;
// Blocks that a multiprocessor must hold at a time. The number is always said: left to choose,
// ptxas spills a few registers to fit in one block more. Two of the largest where 128 registers do.
constexpr int least_blocks(int threads, bool exact) { return threads > 128 && !exact ? 2 : 1; }

__device__ __forceinline__ float activate(float z, int activation) {
  if (activation == kRelu) return z < 0.0f ? 0.0f : z;  // a NaN stays one
  if (activation == kGelu) return z * (0.5f + 0.5f * erff(z * 0.70710678118654752f));
  if (activation == kSilu) return z / (1.0f + expf(-z));
  return z;
}

// grad times the slope of the activation, from relu's result, or from what gelu and silu were
// given.
__device__ __forceinline__ float pull_back(float grad, float kept, int activation) {
  if (activation == kRelu) return kept <= 0.0f ? 0.0f : grad;
  if (activation == kGelu) {
    const float below = 0.5f + 0.5f * erff(kept * 0.70710678118654752f);
    return grad * (below + kept * 0.39894228040143268f * expf(-0.5f * kept * kept));
  }
  if (activation == kSilu) {
    const float gate = 1.0f / (1.0f + expf(-kept));
    return grad * (gate * (1.0f + kept * (1.0f - gate)));
  }
  return grad;
}

// Where the live blocks of one strip are.
struct Strip {
  const int32_t *order, *index;
  int begin, places, size;

  struct Place {
    int64_t block;
    int within, column;
  };

  // `ptr` counts the blocks of each strip; `order` names them, where they do not lie one after the
  // other; `index` has the strip of each across this one.
  __device__ __forceinline__ Strip(const int32_t* ptr, const int32_t* order_, const int32_t* index_,
                                   int64_t strip, int size_)
      : order(order_), index(index_), begin(ptr[strip]), size(size_) {
    places = (ptr[strip + 1] - begin) * size;
  }

  // A place below `places`.
  __device__ __forceinline__ Place place(int number) const {
    const int slot = begin + number / size, within = number % size;
    const int block = order == nullptr ? slot : __ldg(order + slot);
    return {block, within, __ldg(index + block) * size + within};
  }
};

// A matrix of rows in global memory.
template <typename T>
struct Rows {
  const T* data;
  int64_t count, stride;
  int width;
};

// Whether packets of a matrix can be copied as such: they lie together at multiples of 16 bytes,
// and each is there or not as one.
template <bool WHOLE>
struct Packets {};

// Calls f(first, Packets<WHOLE>) for first = 0, STEP .. below COUNT. Only whole packets are worth
// many copies of the code.
template <int COUNT, int STEP, typename F>
__device__ __forceinline__ void for_each_step(bool whole, const F& f) {
  if (whole) {
#pragma unroll
    for (int first = 0; first < COUNT; first += STEP) f(first, Packets<true>());
  } else {
#pragma unroll 1
    for (int first = 0; first < COUNT; first += STEP) f(first, Packets<false>());
  }
}

// Writes one packet to shared memory: element(i) points at element i, or is null where 0 stands;
// the first tells for all of a whole packet.
template <bool WHOLE, typename T, typename F>
__device__ __forceinline__ void copy_packet(Packets<WHOLE>, T* to, const F& element) {
  if constexpr (WHOLE) {
    const T* const from = element(0);
    copy_16_async(to, from, from != nullptr);
  } else {
#pragma unroll 1
    for (int i = 0; i < kPacketSize<T>; ++i) {
      const T* const from = element(i);
      to[i] = from != nullptr ? *from : from_float<T>(0.0f);
    }
  }
}

// Runs `start(tile)` for every tile, kStages - 1 ahead of `use(tile)`.
template <typename Start, typename Use>
__device__ __forceinline__ void pipeline(int tiles, const Start& start, const Use& use) {
#pragma unroll
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < tiles) start(tile);
    commit_async_copies();
  }
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    wait_async_copies<kStages - 2>();
    // every thread's copies are there, and every warp is done with the stage that is filled next
    __syncthreads();
    if (tile + kStages - 1 < tiles) start(tile + kStages - 1);
    commit_async_copies();
    use(tile);
  }
}

// Writes one or two elements of a row; `together`: two, which lie at a multiple of their size.
template <typename T>
__device__ __forceinline__ void store_pair(T* to, const float (&x)[2], int count, bool together) {
  struct alignas(2 * sizeof(T)) Pair {
    T element[2];
  };
  const Pair pair{{from_float<T>(x[0]), from_float<T>(x[1])}};
  if (together) {
    *reinterpret_cast<Pair*>(to) = pair;
    return;
  }
  to[0] = pair.element[0];
  if (count > 1) to[1] = pair.element[1];
}

// The part of a block's shared memory through which a warp's sums pass, once no warp needs the
// tiles that lay there.
template <typename Tile, typename Sums, typename T>
__device__ __forceinline__ float* stage_of_warp(T* shared) {
  static_assert(Tile::kThreads / kWarpSize * Sums::kStageFloats * sizeof(float) <=
                Tile::kSharedBytes);
  __syncthreads();
  return reinterpret_cast<float*>(shared) +
         static_cast<int>(threadIdx.x) / kWarpSize * Sums::kStageFloats;
}

template <typename T>
struct Product {
  Rows<T> x;
  const T* values;
  const int32_t *ptr, *order, *index;
  const T* bias;
  T *out, *kept;
  int64_t strips;
  int out_width, size_n, size_k, activation;
  bool whole_x, whole_values;
};

template <typename T, bool TURNED, int BN>
struct ProductTile {
  static constexpr int kWarpColumns = BN < 64 ? BN : 64;
  static constexpr int kThreads = kTileRows / kWarpRows * (BN / kWarpColumns) * kWarpSize;
  static constexpr int kStrideA = kDepth<T> + kPad<T>;
  static constexpr int kStrideB = TURNED ? BN + kTurnedPad : kStrideA;
  static constexpr int kElementsA = kTileRows * kStrideA;
  static constexpr int kElements = kElementsA + (TURNED ? kDepth<T> : BN) * kStrideB;
  static constexpr size_t kSharedBytes = kStages * kElements * sizeof(T);
};

// A block owns kTileRows rows of one strip of out = activation(x Wᵀ + bias), a warp kWarpRows of
// them and up to 64 columns; with TURNED strips are block columns, and out = x W. Each entry is
// written by one thread: no atomics, deterministic.
template <typename T, bool EXACT, bool TURNED, int BN>
__global__ void __launch_bounds__(ProductTile<T, TURNED, BN>::kThreads,
                                  least_blocks(ProductTile<T, TURNED, BN>::kThreads, EXACT))
    product_kernel(const Product<T> p) {
  using Tile = ProductTile<T, TURNED, BN>;
  using Operands = Operand<T, Tile::kStrideA, false>;
  using Weights = Operand<T, Tile::kStrideB, TURNED>;
  constexpr int kPacket = kPacketSize<T>;
  GTKERN_DYNAMIC_SHARED(T, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t number = blockIdx.x % p.strips;
  const int64_t first_row = blockIdx.x / p.strips * kTileRows;
  const Strip strip(p.ptr, p.order, p.index, number, p.size_k);
  const int64_t block_elements = static_cast<int64_t>(p.size_n) * p.size_k;

  const auto start = [&](int tile) {
    T* const a = shared + tile % kStages * Tile::kElements;
    T* const b = a + Tile::kElementsA;
    // a thread copies one packet of several rows: what lies there is looked up once
    constexpr int kPackets = kDepth<T> / kPacket, kRowsAtOnce = Tile::kThreads / kPackets;
    const int offset = thread % kPackets * kPacket, at = tile * kDepth<T> + offset;
    const Strip::Place first = strip.place(at < strip.places ? at : 0);
    const auto place_of = [&](int i) { return i == 0 ? first : strip.place(at + i); };
    for_each_step<kTileRows, kRowsAtOnce>(p.whole_x, [&](int local, auto packets) {
      const int64_t row = first_row + local + thread / kPackets;
      T* const to = a + (local + thread / kPackets) * Tile::kStrideA + offset;
      copy_packet(packets, to, [&](int i) -> const T* {
        if (row >= p.x.count || at + i >= strip.places) return nullptr;
        const int column = place_of(i).column;
        return column < p.x.width ? p.x.data + row * p.x.stride + column : nullptr;
      });
    });
    if constexpr (!TURNED) {
      for_each_step<BN, kRowsAtOnce>(p.whole_values, [&](int local, auto packets) {
        const int n = local + thread / kPackets;
        if (BN % kRowsAtOnce != 0 && n >= BN) return;
        copy_packet(packets, b + n * Tile::kStrideB + offset, [&](int i) -> const T* {
          if (n >= p.size_n || at + i >= strip.places) return nullptr;
          const Strip::Place place = place_of(i);
          const T* const row = p.values + place.block * block_elements + n * p.size_k;
          return place.column < p.x.width ? row + place.within : nullptr;
        });
      });
    } else {
      constexpr int kRowPackets = BN / kPacket, kAll = kDepth<T> * kRowPackets;
      for_each_step<kAll, Tile::kThreads>(p.whole_values, [&](int local, auto packets) {
        const int packet = local + thread, k = packet / kRowPackets;
        if (kAll % Tile::kThreads != 0 && packet >= kAll) return;
        const int n = packet % kRowPackets * kPacket;
        const bool inside = tile * kDepth<T> + k < strip.places && n < p.size_n;
        const Strip::Place place = strip.place(inside ? tile * kDepth<T> + k : 0);
        const bool live = inside && place.column < p.x.width;
        const T* const row = p.values + place.block * block_elements + place.within * p.size_n;
        copy_packet(packets, b + k * Tile::kStrideB + n,
                    [&](int i) { return live && n + i < p.size_n ? row + n + i : nullptr; });
      });
    }
  };

  constexpr int kWarpsDown = kTileRows / kWarpRows;
  const int warp_row = thread / kWarpSize % kWarpsDown * kWarpRows;
  const int warp_column = thread / kWarpSize / kWarpsDown * Tile::kWarpColumns;
  using Sums = WarpTile<T, EXACT, kWarpRows, Tile::kWarpColumns>;
  Sums sums;
  pipeline((strip.places + kDepth<T> - 1) / kDepth<T>, start, [&](int tile) {
    const T* const a = shared + tile % kStages * Tile::kElements;
    sums.template add<kDepth<T>>(Operands{a}.below(warp_row),
                                 Weights{a + Tile::kElementsA}.below(warp_column));
  });

  const bool pairs = p.out_width % 2 == 0 && p.size_n % 2 == 0;
  sums.visit(stage_of_warp<Tile, Sums>(shared), [&](int down, int right, float (&x)[2]) {
    const int64_t row = first_row + warp_row + down;
    const int n = warp_column + right;
    const int64_t column = number * p.size_n + n;
    if (row >= p.x.count || n >= p.size_n || column >= p.out_width) return;
    const int count = min(p.size_n - n, p.out_width - static_cast<int>(column));
    const int64_t at = row * p.out_width + column;
    if constexpr (!TURNED) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (p.bias != nullptr && i < count) x[i] += to_float(p.bias[column + i]);
      }
      if (p.kept != nullptr) store_pair(p.kept + at, x, count, pairs);
      x[0] = activate(x[0], p.activation);
      x[1] = activate(x[1], p.activation);
    }
    store_pair(p.out + at, x, count, pairs);
  });
}

template <typename T>
struct WeightGradient {
  Rows<T> grad, x;
  const int32_t *row_ptr, *col;
  float* parts;  // [chunks, B, size_n, size_k], or null: there is one chunk, and it goes to `out`
  T* out;
  int64_t strips, tiles, chunk_rows, blocks;
  int size_n, size_k;
  bool whole_grad, whole_x;
};

template <typename T, int BI>
struct WeightTile {
  // warps side by side over BI rows of blocks and kTilePlaces live columns
  static constexpr int kThreads = 4 * kWarpSize;
  static constexpr int kWarpRowsHere = BI < kWarpRows ? BI : kWarpRows;
  static constexpr int kWarpsDown = BI / kWarpRowsHere;
  static constexpr int kWarpColumns = kTilePlaces * kWarpsDown / 4;
  static constexpr int kStrideA = BI + kTurnedPad, kStrideB = kTilePlaces + kTurnedPad;
  static constexpr int kElementsA = kDepth<T> * kStrideA;
  static constexpr int kElements = kElementsA + kDepth<T> * kStrideB;
  static constexpr size_t kSharedBytes = kStages * kElements * sizeof(T);
};

// A block owns kTilePlaces live columns of one block row of the gradient of the values, summed over
// one chunk of rows; a warp part of that tile. The grid has tiles for full block rows.
// Each entry of a chunk is written by one thread: no atomics, deterministic.
template <typename T, bool EXACT, int BI>
__global__ void __launch_bounds__(WeightTile<T, BI>::kThreads, 1)
    weight_kernel(const WeightGradient<T> p) {
  using Tile = WeightTile<T, BI>;
  using Grads = Operand<T, Tile::kStrideA, true>;
  using Operands = Operand<T, Tile::kStrideB, true>;
  constexpr int kPacket = kPacketSize<T>;
  GTKERN_DYNAMIC_SHARED(T, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t number = blockIdx.x / p.tiles % p.strips, chunk = blockIdx.x / p.tiles / p.strips;
  const Strip strip(p.row_ptr, nullptr, p.col, number, p.size_k);
  const int64_t wide_first_place = blockIdx.x % p.tiles * kTilePlaces;
  if (wide_first_place >= strip.places) return;
  const int first_place = static_cast<int>(wide_first_place);
  const int64_t first_row = chunk * p.chunk_rows;
  const int64_t end_row = min(first_row + p.chunk_rows, p.x.count);
  const int64_t first_column = number * p.size_n;

  // what a thread copies of every row
  constexpr int kPacketsA = BI / kPacket, kPacketsB = kTilePlaces / kPacket;
  const int offset_a = thread % kPacketsA * kPacket, offset_b = thread % kPacketsB * kPacket;
  const int at = first_place + offset_b;
  const Strip::Place first = strip.place(at < strip.places ? at : 0);

  const auto start = [&](int tile) {
    T* const a = shared + tile % kStages * Tile::kElements;
    T* const b = a + Tile::kElementsA;
    const int64_t tile_row = first_row + static_cast<int64_t>(tile) * kDepth<T>;
    constexpr int kRowsA = Tile::kThreads / kPacketsA, kRowsB = Tile::kThreads / kPacketsB;
    for_each_step<kDepth<T>, kRowsA>(p.whole_grad, [&](int local, auto packets) {
      const int k = local + thread / kPacketsA;
      if (kDepth<T> % kRowsA != 0 && k >= kDepth<T>) return;
      const int64_t row = tile_row + k;
      copy_packet(packets, a + k * Tile::kStrideA + offset_a, [&](int i) -> const T* {
        const int64_t column = first_column + offset_a + i;
        if (row >= end_row || offset_a + i >= p.size_n || column >= p.grad.width) return nullptr;
        return p.grad.data + row * p.grad.stride + column;
      });
    });
    for_each_step<kDepth<T>, kRowsB>(p.whole_x, [&](int local, auto packets) {
      const int k = local + thread / kPacketsB;
      if (kDepth<T> % kRowsB != 0 && k >= kDepth<T>) return;
      const int64_t row = tile_row + k;
      copy_packet(packets, b + k * Tile::kStrideB + offset_b, [&](int i) -> const T* {
        if (row >= end_row || at + i >= strip.places) return nullptr;
        const int column = i == 0 ? first.column : strip.place(at + i).column;
        return column < p.x.width ? p.x.data + row * p.x.stride + column : nullptr;
      });
    });
  };

  const int warp_row = thread / kWarpSize % Tile::kWarpsDown * Tile::kWarpRowsHere;
  const int warp_column = thread / kWarpSize / Tile::kWarpsDown * Tile::kWarpColumns;
  using Sums = WarpTile<T, EXACT, Tile::kWarpRowsHere, Tile::kWarpColumns>;
  Sums sums;
  const int tiles = static_cast<int>((end_row - first_row + kDepth<T> - 1) / kDepth<T>);
  pipeline(tiles, start, [&](int tile) {
    const T* const a = shared + tile % kStages * Tile::kElements;
    sums.template add<kDepth<T>>(Grads{a}.below(warp_row),
                                 Operands{a + Tile::kElementsA}.below(warp_column));
  });

  sums.visit(stage_of_warp<Tile, Sums>(shared), [&](int down, int right, float (&x)[2]) {
    const int n = warp_row + down, place_number = first_place + warp_column + right;
    if (n >= p.size_n) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (place_number + i >= strip.places) break;
      const Strip::Place place = strip.place(place_number + i);
      // 0 where a block reaches past the matrix, also beside a NaN
      const bool inside = first_column + n < p.grad.width && place.column < p.x.width;
      const float sum = inside ? x[i] : 0.0f;
      const int64_t at_out =
          ((chunk * p.blocks + place.block) * p.size_n + n) * p.size_k + place.within;
      if (p.parts != nullptr) {
        p.parts[at_out] = sum;
      } else {
        p.out[at_out] = from_float<T>(sum);
      }
    }
  });
}

template <typename T>
struct PullBack {
  const T *grad, *kept;  // kept: null without an activation
  T* grad_z;             // null: not wanted
  float* part;           // [chunks, width], or null: not wanted
  int64_t rows, width, column_blocks;
  int activation;
};

// A thread owns one column of kPullBackRows rows of the gradient before the activation, and its
// sum. Each entry is written by one thread: no atomics, deterministic.
template <typename T>
__global__ void __launch_bounds__(kPullBackThreads, 1) pull_back_kernel(const PullBack<T> p) {
  const int64_t chunk = blockIdx.x / p.column_blocks;
  const int64_t column = blockIdx.x % p.column_blocks * kPullBackThreads + threadIdx.x;
  if (column >= p.width) return;
  const int64_t begin = chunk * kPullBackRows, end = min(begin + kPullBackRows, p.rows);
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * p.width + column;
    float grad = to_float(p.grad[at]);
    if (p.kept != nullptr) grad = pull_back(grad, to_float(p.kept[at]), p.activation);
    if (p.grad_z != nullptr) p.grad_z[at] = from_float<T>(grad);
    sum += grad;
  }
  if (p.part != nullptr) p.part[chunk * p.width + column] = sum;
}

}  // namespace gtkern::block_sparse_linear
