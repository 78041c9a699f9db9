#pragma once

// The part of the CUDA language and runtime that our kernels use, for a host C++ compiler.
// Included by common/launch.h when GTKERN_EMULATE is defined.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulate/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local

#define threadIdx (::gtkern::emulate::thread().thread)
#define blockIdx (::gtkern::emulate::thread().block)
#define blockDim (::gtkern::emulate::thread().block_size)
#define gridDim (::gtkern::emulate::thread().grid_size)

// may_alias: kernels read rows of any element type through these
struct __attribute__((may_alias, aligned(8))) float2 {
  float x, y;
};
struct __attribute__((may_alias, aligned(16))) float4 {
  float x, y, z, w;
};
struct __attribute__((may_alias, aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((may_alias, aligned(16))) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __half2float(__half value) {
  return torch::headeronly::detail::fp16_ieee_to_fp32_value(value.bits);
}
inline __half __float2half_rn(float value) {
  return {torch::headeronly::detail::fp16_ieee_from_fp32_value(value)};
}
inline float2 __half22float2(__half2 value) {
  return {__half2float(value.x), __half2float(value.y)};
}
inline __half2 __float22half2_rn(float2 value) {
  return {__float2half_rn(value.x), __float2half_rn(value.y)};
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return torch::headeronly::detail::f32_from_bits(value.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {torch::headeronly::detail::round_to_nearest_even(value)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
  return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) {
  return {__float2bfloat16_rn(value.x), __float2bfloat16_rn(value.y)};
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
using std::max;
using std::min;

#define GTKERN_PLACE \
  ::gtkern::emulate::Place { file, line }
#define GTKERN_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GTKERN_CALLER) { ::gtkern::emulate::sync_block(GTKERN_PLACE); }

inline void __syncwarp(unsigned mask = 0xffffffffu, GTKERN_CALLER) {
  ::gtkern::emulate::sync_warp(::gtkern::emulate::Together::kSync, mask, 0, 0, GTKERN_PLACE);
}

namespace gtkern::emulate {

template <typename T>
T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = sync_warp(Together::kShuffle, mask, bits, source, place);
  T result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void check_width(int width, Place place) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("a shuffle's width must be a power of two in 1 .. 32", place);
  }
}

inline int reduce(Together what, unsigned mask, int value, Place place) {
  const uint64_t bits = static_cast<uint32_t>(value);
  return static_cast<int>(static_cast<uint32_t>(sync_warp(what, mask, bits, 0, place)));
}

}  // namespace gtkern::emulate

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GTKERN_CALLER) {
  ::gtkern::emulate::check_width(width, GTKERN_PLACE);
  const int lane = ::gtkern::emulate::thread().lane;
  source = (lane & ~(width - 1)) | (source & (width - 1));
  return ::gtkern::emulate::shuffle(mask, value, source, GTKERN_PLACE);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, GTKERN_CALLER) {
  ::gtkern::emulate::check_width(width, GTKERN_PLACE);
  const int lane = ::gtkern::emulate::thread().lane;
  const int source = lane ^ lanes;
  const bool inside = source <= (lane | (width - 1));
  return ::gtkern::emulate::shuffle(mask, value, inside ? source : lane, GTKERN_PLACE);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GTKERN_CALLER) {
  ::gtkern::emulate::check_width(width, GTKERN_PLACE);
  const int lane = ::gtkern::emulate::thread().lane;
  const int source = lane - static_cast<int>(delta);
  const bool inside = source >= (lane & ~(width - 1));
  return ::gtkern::emulate::shuffle(mask, value, inside ? source : lane, GTKERN_PLACE);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GTKERN_CALLER) {
  ::gtkern::emulate::check_width(width, GTKERN_PLACE);
  const int lane = ::gtkern::emulate::thread().lane;
  const int source = lane + static_cast<int>(delta);
  const bool inside = source <= (lane | (width - 1));
  return ::gtkern::emulate::shuffle(mask, value, inside ? source : lane, GTKERN_PLACE);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, GTKERN_CALLER) {
  const uint64_t value = predicate != 0;
  return static_cast<unsigned>(::gtkern::emulate::sync_warp(::gtkern::emulate::Together::kBallot,
                                                            mask, value, 0, GTKERN_PLACE));
}
inline int __any_sync(unsigned mask, int predicate, GTKERN_CALLER) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, GTKERN_CALLER) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
inline int __reduce_add_sync(unsigned mask, int value, GTKERN_CALLER) {
  return ::gtkern::emulate::reduce(::gtkern::emulate::Together::kSum, mask, value, GTKERN_PLACE);
}
inline int __reduce_min_sync(unsigned mask, int value, GTKERN_CALLER) {
  return ::gtkern::emulate::reduce(::gtkern::emulate::Together::kMin, mask, value, GTKERN_PLACE);
}
inline int __reduce_max_sync(unsigned mask, int value, GTKERN_CALLER) {
  return ::gtkern::emulate::reduce(::gtkern::emulate::Together::kMax, mask, value, GTKERN_PLACE);
}

#undef GTKERN_PLACE
#undef GTKERN_CALLER

using cudaStream_t = void*;
