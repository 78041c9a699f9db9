#pragma once

// Reductions between lanes and between the threads of a block, all in a fixed order, and 16-byte
// accesses to rows of any element type.

#include "common/launch.h"

namespace gtkern {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sums x[0 .. COUNT) over each group of `lanes` neighbouring lanes; every lane gets the same bits.
// LANES is the group's width where the compiler knows it, else 0.
template <int LANES, int COUNT>
__device__ __forceinline__ void group_sum(float (&x)[COUNT], int lanes) {
  if constexpr (LANES > 0) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) x[i] += __shfl_xor_sync(kAllLanes, x[i], offset);
    }
  } else {
#pragma unroll 1
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) x[i] += __shfl_xor_sync(kAllLanes, x[i], offset);
    }
  }
}

__device__ __forceinline__ int warp_max(int x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

// Folds x over the threads of a block whose number agrees modulo `stride`, as a fixed tree; threads
// 0 .. stride - 1 get the results. `shared` holds one float for each thread; threads / stride is a
// power of two. Every thread of the block must call.
template <typename Fold>
__device__ __forceinline__ float block_fold(float x, int stride, float* shared, Fold fold) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  shared[thread] = x;
  __syncthreads();
  for (int half = threads / 2; half >= stride; half /= 2) {
    if (thread < half) shared[thread] = fold(shared[thread], shared[thread + half]);
    __syncthreads();
  }
  const float result = shared[thread % stride];
  __syncthreads();
  return result;
}

struct Add {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Elements of T in 16 bytes: what one lane holds of a row at a time.
template <typename T>
constexpr int kPacketSize = 16 / static_cast<int>(sizeof(T));

// 16 bytes of a row, as loaded: they stay packed until they are used, which halves the registers
// that 16-bit elements in flight take.
template <typename T>
struct alignas(16) Packet {
  T element[kPacketSize<T>];
};

__device__ __forceinline__ void unpack(const Packet<float>& packet, float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = packet.element[i];
}

template <typename T>
__device__ __forceinline__ void unpack(const Packet<T>& packet, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = to_float(packet.element[i]);
}

// How rows may be read: ACCESS bytes at a time, where every row starts at a multiple of ACCESS
// bytes and its width is a multiple of ACCESS bytes; kElementwise: any row.
constexpr int kElementwise = 0;

// Elements offset .. offset + kPacketSize of a row of `width`; zeros beyond the row, or without
// `live`.
template <int ACCESS, typename T>
__device__ __forceinline__ Packet<T> load_packet(const T* row, int offset, int width, bool live) {
  constexpr int kSize = kPacketSize<T>;
  Packet<T> packet;
  if constexpr (ACCESS == 16) {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (live && offset < width) bits = __ldg(reinterpret_cast<const uint4*>(row + offset));
    memcpy(&packet, &bits, sizeof packet);
  } else if constexpr (ACCESS == 8) {
    uint2 bits[2] = {make_uint2(0, 0), make_uint2(0, 0)};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = offset + half * (kSize / 2);
      if (live && at < width) bits[half] = __ldg(reinterpret_cast<const uint2*>(row + at));
    }
    memcpy(&packet, bits, sizeof packet);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const bool inside = live && offset + i < width;
      packet.element[i] = inside ? row[offset + i] : from_float<T>(0.0f);
    }
  }
  return packet;
}

// As load_packet, into floats.
template <int ACCESS, typename T>
__device__ __forceinline__ void load_elements(const T* row, int offset, int width, bool live,
                                              float (&x)[kPacketSize<T>]) {
  unpack(load_packet<ACCESS>(row, offset, width, live), x);
}

// COUNT floats from a row of floats that goes with rows of another type: its start and width are
// multiples of 4 elements unless ACCESS is kElementwise. Plain loads: the row may be one that this
// thread also writes.
template <int ACCESS, int COUNT>
__device__ __forceinline__ void load_floats(const float* row, int offset, int width, bool live,
                                            float (&x)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    if constexpr (ACCESS != kElementwise) {
      float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (live && offset + i < width) four = *reinterpret_cast<const float4*>(row + offset + i);
      x[i] = four.x;
      x[i + 1] = four.y;
      x[i + 2] = four.z;
      x[i + 3] = four.w;
    } else {
#pragma unroll
      for (int k = i; k < i + 4; ++k) x[k] = live && offset + k < width ? row[offset + k] : 0.0f;
    }
  }
}

template <int ACCESS, int COUNT>
__device__ __forceinline__ void store_floats(float* row, int offset, int width,
                                             const float (&x)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i += 4) {
    if constexpr (ACCESS != kElementwise) {
      if (offset + i < width) {
        *reinterpret_cast<float4*>(row + offset + i) =
            make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
      }
    } else {
#pragma unroll
      for (int k = i; k < i + 4; ++k) {
        if (offset + k < width) row[offset + k] = x[k];
      }
    }
  }
}

// Writes elements offset .. offset + kPacketSize of a row of `width`, rounded to T.
template <int ACCESS, typename T>
__device__ __forceinline__ void store_elements(T* row, int offset, int width,
                                               const float (&x)[kPacketSize<T>]) {
  constexpr int kSize = kPacketSize<T>;
  Packet<T> packet;
#pragma unroll
  for (int i = 0; i < kSize; ++i) packet.element[i] = from_float<T>(x[i]);
  if constexpr (ACCESS == 16) {
    uint4 bits;
    memcpy(&bits, &packet, sizeof bits);
    if (offset < width) *reinterpret_cast<uint4*>(row + offset) = bits;
  } else if constexpr (ACCESS == 8) {
    uint2 bits[2];
    memcpy(bits, &packet, sizeof bits);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = offset + half * (kSize / 2);
      if (at < width) *reinterpret_cast<uint2*>(row + at) = bits[half];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (offset + i < width) row[offset + i] = packet.element[i];
    }
  }
}

}  // namespace gtkern
