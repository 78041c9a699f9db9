// A row [HG, width] of heads and its packed form: element d of head h at d * HG + h, zeros behind
// the last up to a multiple of 16.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"

namespace gtkern::attention {

#ifdef __AVX512F__

namespace detail {

// Elements of one head that a vector holds.
template <int HG>
constexpr int kPerHead = simd::kLanes / HG;

// Lane l of a packed vector comes from lane (l % HG) * kPerHead + l / HG of the heads in a row.
template <int HG>
struct Lanes {
  alignas(64) std::int32_t packed[simd::kLanes], unpacked[simd::kLanes];
  constexpr Lanes() : packed(), unpacked() {
    for (int l = 0; l < simd::kLanes; ++l) {
      packed[l] = l % HG * kPerHead<HG> + l / HG;
      unpacked[packed[l]] = l;
    }
  }
};
template <int HG>
inline constexpr Lanes<HG> kLanesOf;

// The lanes that elements d .. of head h take, and where lane 0 of such a vector would be.
template <int HG>
GTKERN_INLINE __mmask16 lanes_of(int head, int d, int width) {
  return static_cast<__mmask16>(((1u << std::min(kPerHead<HG>, width - d)) - 1u)
                                << (head * kPerHead<HG>));
}
template <int HG, class P>
GTKERN_INLINE P* lane_zero(P* row, int head, int d, int width) {
  return row + (std::int64_t{head} * width + d - head * kPerHead<HG>);
}

}  // namespace detail

template <int HG>
inline void interleave(const float* from, int width, float* to) {
  const __m512i lanes = _mm512_load_si512(detail::kLanesOf<HG>.packed);
  for (int d = 0; d < width; d += detail::kPerHead<HG>, to += simd::kLanes) {
    simd::F16 x = simd::zero();
#pragma GCC unroll 8
    for (int h = 0; h < HG; ++h) {
      x = _mm512_mask_loadu_ps(x, detail::lanes_of<HG>(h, d, width),
                               detail::lane_zero<HG>(from, h, d, width));
    }
    simd::store(to, _mm512_maskz_permutexvar_ps(0xffff, lanes, x));
  }
}

template <int HG>
inline void deinterleave(const float* from, int width, float* to) {
  const __m512i lanes = _mm512_load_si512(detail::kLanesOf<HG>.unpacked);
  for (int d = 0; d < width; d += detail::kPerHead<HG>, from += simd::kLanes) {
    const simd::F16 x = _mm512_maskz_permutexvar_ps(0xffff, lanes, simd::load(from));
#pragma GCC unroll 8
    for (int h = 0; h < HG; ++h) {
      _mm512_mask_storeu_ps(detail::lane_zero<HG>(to, h, d, width),
                            detail::lanes_of<HG>(h, d, width), x);
    }
  }
}

#endif

// Any dtype.
template <int HG, class T>
inline void interleave(const T* from, int width, float* to) {
  for (int h = 0; h < HG; ++h) {
    for (int d = 0; d < width; ++d) to[d * HG + h] = static_cast<float>(from[h * width + d]);
  }
  const int end = (width * HG + simd::kLanes - 1) / simd::kLanes * simd::kLanes;
  std::fill(to + width * HG, to + end, 0.f);
}

template <int HG, class T>
inline void deinterleave(const float* from, int width, T* to) {
  for (int h = 0; h < HG; ++h) {
    for (int d = 0; d < width; ++d) to[h * width + d] = static_cast<T>(from[d * HG + h]);
  }
}

}  // namespace gtkern::attention
