#pragma once

// A warp's tile of a matrix product: [WM, WN] sums in registers, of operands in shared memory.
//
// 16-bit operands go through the tensor cores. So do fp32 ones as tf32; with EXACT they are
// multiplied as they are, one product after the other. Each sum runs along the depth in one order.

#include "common/tensor_core.cuh"

namespace gtkern::block_sparse_linear {

// An operand in shared memory: row r has its depth k at data[r * STRIDE + k], or with TURNED at
// data[k * STRIDE + r].
template <typename T, int STRIDE, bool TURNED>
struct Operand {
  const T* data;

  __device__ __forceinline__ const T* at(int row, int k) const {
    return data + (TURNED ? k * STRIDE + row : row * STRIDE + k);
  }
  // As many rows further on.
  __device__ __forceinline__ Operand below(int rows) const { return {at(rows, 0)}; }
};

template <typename T, bool EXACT, int WM, int WN>
class WarpTile {
  static_assert(WM % 16 == 0 && WN % 16 == 0);
  static constexpr bool kHalf = sizeof(T) == 2;

 public:
  // Adds A Bᵀ over a depth of DEPTH.
  template <int DEPTH, int A_STRIDE, bool A_TURNED, int B_STRIDE, bool B_TURNED>
  __device__ __forceinline__ void add(Operand<T, A_STRIDE, A_TURNED> a,
                                      Operand<T, B_STRIDE, B_TURNED> b) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    if constexpr (kHalf) {
#pragma unroll
      for (int k = 0; k < DEPTH; k += 16) {
        uint32_t part_a[WM / 16][4];
#pragma unroll
        for (int i = 0; i < WM / 16; ++i) {
          load_matrices<A_TURNED>(
              part_a[i], A_TURNED ? a.at(i * 16 + lane / 8 % 2 * 8, k + lane / 16 * 8 + lane % 8)
                                  : a.at(i * 16 + lane % 16, k + lane / 16 * 8));
        }
#pragma unroll
        for (int j = 0; j < WN / 16; ++j) {
          uint32_t part_b[4];
          load_matrices<B_TURNED>(
              part_b, B_TURNED ? b.at(j * 16 + lane / 16 * 8, k + lane / 8 % 2 * 8 + lane % 8)
                               : b.at(j * 16 + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
#pragma unroll
          for (int i = 0; i < WM / 16; ++i) {
            multiply_add<T>(sums_.quads[i][2 * j], part_a[i], part_b[0], part_b[1]);
            multiply_add<T>(sums_.quads[i][2 * j + 1], part_a[i], part_b[2], part_b[3]);
          }
        }
      }
    } else if constexpr (!EXACT) {
      const int g = lane / 4, t = lane % 4;
#pragma unroll
      for (int k = 0; k < DEPTH; k += 8) {
        uint32_t part_a[WM / 16][4];
#pragma unroll
        for (int i = 0; i < WM / 16; ++i) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            part_a[i][r] = to_tf32(*a.at(i * 16 + g + r % 2 * 8, k + t + r / 2 * 4));
          }
        }
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
          const uint32_t b0 = to_tf32(*b.at(j * 8 + g, k + t));
          const uint32_t b1 = to_tf32(*b.at(j * 8 + g, k + t + 4));
#pragma unroll
          for (int i = 0; i < WM / 16; ++i) multiply_add<T>(sums_.quads[i][j], part_a[i], b0, b1);
        }
      }
    } else {
      constexpr int kRows = WM / 4, kColumns = WN / 8;
#pragma unroll 2
      for (int k = 0; k < DEPTH; k += 4) {
        float part_a[kRows][4], part_b[kColumns][4];
#pragma unroll
        for (int i = 0; i < kRows; ++i) load_four(a, lane / 8 + 4 * i, k, part_a[i]);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) load_four(b, lane % 8 + 8 * j, k, part_b[j]);
#pragma unroll
        for (int step = 0; step < 4; ++step) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
              sums_.single[i][j] = fmaf(part_a[i][step], part_b[j][step], sums_.single[i][j]);
            }
          }
        }
      }
    }
  }

  // Floats of shared memory that visit() takes; the padding keeps the lanes' pairs in different
  // banks.
  static constexpr int kStageStride = WN + 8, kStageFloats = 16 * kStageStride;

  // Calls f(row, column, pair) for every two neighbouring sums of a row, from an even column on.
  // The sums pass through `stage`, memory of this warp alone: neighbouring lanes then hold
  // neighbouring pairs, and the code of f does not stand once for every register.
  template <typename F>
  __device__ __forceinline__ void visit(float* stage, const F& f) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    constexpr int kPairs = WN / 2;
#pragma unroll
    for (int slice = 0; slice < WM / 16; ++slice) {
      if (slice > 0) __syncwarp();
      put(slice, stage);
      __syncwarp();
#pragma unroll 1
      for (int i = lane; i < 16 * kPairs; i += kWarpSize) {
        const int row = i / kPairs, column = i % kPairs * 2;
        const float* const from = stage + row * kStageStride + column;
        float pair[2] = {from[0], from[1]};
        f(slice * 16 + row, column, pair);
      }
    }
  }

 private:
  template <int STRIDE, bool TURNED>
  static __device__ __forceinline__ void load_four(Operand<T, STRIDE, TURNED> operand, int row,
                                                   int k, float (&x)[4]) {
    if constexpr (TURNED) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = *operand.at(row, k + i);
    } else {
      const float4 four = *reinterpret_cast<const float4*>(operand.at(row, k));
      x[0] = four.x;
      x[1] = four.y;
      x[2] = four.z;
      x[3] = four.w;
    }
  }

  // Writes the sums of 16 rows to `stage`.
  __device__ __forceinline__ void put(int slice, float* stage) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    if constexpr (kHalf || !EXACT) {
#pragma unroll
      for (int j = 0; j < WN / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          stage[(lane / 4 + i / 2 * 8) * kStageStride + j * 8 + lane % 4 * 2 + i % 2] =
              sums_.quads[slice][j][i];
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < WN / 8; ++j) {
          stage[(lane / 8 + 4 * i) * kStageStride + lane % 8 + 8 * j] =
              sums_.single[4 * slice + i][j];
        }
      }
    }
  }

  struct Quads {
    float quads[WM / 16][WN / 8][4];
  };
  struct Singles {
    float single[WM / 4][WN / 8];
  };
  std::conditional_t<kHalf || !EXACT, Quads, Singles> sums_ = {};
};

}  // namespace gtkern::block_sparse_linear
