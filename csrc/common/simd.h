// Sixteen fp32 lanes, and the few operations the attention kernels need on them.
//
// With AVX-512 each is one or a few instructions; elsewhere the compiler's vector extensions split
// them over narrower registers. "Heads interleaved" means that lane l belongs to head l % HG.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define GTKERN_INLINE inline __attribute__((always_inline))
// behind the parameters of a lambda
#define GTKERN_INLINE_LAMBDA __attribute__((always_inline))

namespace gtkern::simd {

constexpr int kLanes = 16;

#ifdef __AVX512F__

using F16 = __m512;
using Mask16 = __mmask16;

GTKERN_INLINE F16 zero() { return _mm512_setzero_ps(); }
GTKERN_INLINE F16 splat(float x) { return _mm512_set1_ps(x); }
GTKERN_INLINE F16 load(const float* p) { return _mm512_loadu_ps(p); }
GTKERN_INLINE void store(float* p, F16 x) { _mm512_storeu_ps(p, x); }
GTKERN_INLINE F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
GTKERN_INLINE F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
GTKERN_INLINE F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
GTKERN_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
// NaN in `x` comes through: the hardware returns the second operand
GTKERN_INLINE F16 max_of(F16 bound, F16 x) { return _mm512_max_ps(bound, x); }
GTKERN_INLINE F16 min_of(F16 bound, F16 x) { return _mm512_min_ps(bound, x); }
GTKERN_INLINE Mask16 within(F16 x, F16 bound) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), bound, _CMP_LE_OQ);
}
GTKERN_INLINE Mask16 first_lanes(int n) { return static_cast<Mask16>((1u << n) - 1u); }
GTKERN_INLINE F16 keep(Mask16 mask, F16 x) { return _mm512_maskz_mov_ps(mask, x); }
GTKERN_INLINE F16 select(Mask16 mask, F16 yes, F16 no) { return _mm512_mask_mov_ps(no, mask, yes); }

// 2 ** x; relative error below 3e-7. 0 below -150, NaN stays NaN.
GTKERN_INLINE F16 exp2(F16 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-160.f), x);
  const F16 n = _mm512_roundscale_ps(x, 8);
  const F16 f = _mm512_sub_ps(x, n);
  F16 p = _mm512_set1_ps(1.5353362e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3398874e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6184373e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503324e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022648e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314720e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, n);
}

namespace detail {
// [a.low | b.low] + [a.high | b.high] for the halves of 16, 4 and 2 lanes
GTKERN_INLINE F16 fold_halves(F16 a, F16 b) {
  return add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}
GTKERN_INLINE F16 fold_quarters(F16 a, F16 b) {
  return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}
GTKERN_INLINE F16 fold_pairs(F16 a, F16 b) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
GTKERN_INLINE F16 fold_singles(F16 a, F16 b) {
  return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
GTKERN_INLINE F16 four_quads(F16 a, F16 b, F16 c, F16 d) {
  return fold_quarters(fold_halves(a, b), fold_halves(c, d));
}
}  // namespace detail

// Sums of the 16 / HG vectors f(0), f(1), ... over the lanes of each head: lane e * HG + h holds
// head h of vector e. Asks for each vector once, close to where it is folded away.
template <int HG, class F>
GTKERN_INLINE F16 reduce(const F& f) {
  using namespace detail;
  if constexpr (HG == 16) {
    return f(0);
  } else if constexpr (HG == 8) {
    return fold_halves(f(0), f(1));
  } else if constexpr (HG == 4) {
    return four_quads(f(0), f(1), f(2), f(3));
  } else if constexpr (HG == 2) {
    return four_quads(fold_pairs(f(0), f(1)), fold_pairs(f(2), f(3)), fold_pairs(f(4), f(5)),
                      fold_pairs(f(6), f(7)));
  } else {
    const auto quad = [&](int e) {
      return fold_pairs(fold_singles(f(e), f(e + 1)), fold_singles(f(e + 2), f(e + 3)));
    };
    return four_quads(quad(0), quad(4), quad(8), quad(12));
  }
}

// HG floats repeated over the lanes: lane l gets p[l % HG].
template <int HG>
GTKERN_INLINE F16 repeat(const float* p) {
  if constexpr (HG == 1) {
    return _mm512_set1_ps(*p);
  } else if constexpr (HG == 2) {
    double two;
    std::memcpy(&two, p, sizeof two);
    return _mm512_castpd_ps(_mm512_set1_pd(two));
  } else if constexpr (HG == 4) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
  } else if constexpr (HG == 8) {
    return _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(_mm256_loadu_ps(p))));
  } else {
    return _mm512_loadu_ps(p);
  }
}

// The largest (sum) of the lanes of each head, in all of its lanes.
template <int HG>
GTKERN_INLINE F16 all_max(F16 x) {
  if constexpr (HG <= 8) x = max_of(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  if constexpr (HG <= 4) x = max_of(x, _mm512_shuffle_f32x4(x, x, 0xB1));
  if constexpr (HG <= 2) x = max_of(x, _mm512_permute_ps(x, 0x4E));
  if constexpr (HG <= 1) x = max_of(x, _mm512_permute_ps(x, 0xB1));
  return x;
}
template <int HG>
GTKERN_INLINE F16 all_sum(F16 x) {
  if constexpr (HG <= 8) x = add(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  if constexpr (HG <= 4) x = add(x, _mm512_shuffle_f32x4(x, x, 0xB1));
  if constexpr (HG <= 2) x = add(x, _mm512_permute_ps(x, 0x4E));
  if constexpr (HG <= 1) x = add(x, _mm512_permute_ps(x, 0xB1));
  return x;
}

#else

using F16 = float __attribute__((vector_size(64)));
using Mask16 = std::int32_t __attribute__((vector_size(64)));

GTKERN_INLINE F16 splat(float x) { return F16{} + x; }
GTKERN_INLINE F16 zero() { return F16{}; }
GTKERN_INLINE F16 load(const float* p) {
  F16 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
GTKERN_INLINE void store(float* p, F16 x) { std::memcpy(p, &x, sizeof x); }
GTKERN_INLINE F16 add(F16 a, F16 b) { return a + b; }
GTKERN_INLINE F16 sub(F16 a, F16 b) { return a - b; }
GTKERN_INLINE F16 mul(F16 a, F16 b) { return a * b; }
GTKERN_INLINE F16 fma(F16 a, F16 b, F16 c) { return a * b + c; }
GTKERN_INLINE F16 max_of(F16 bound, F16 x) { return bound > x ? bound : x; }
GTKERN_INLINE F16 min_of(F16 bound, F16 x) { return bound < x ? bound : x; }
GTKERN_INLINE Mask16 within(F16 x, F16 bound) { return (x <= bound) & (x >= -bound); }
GTKERN_INLINE Mask16 first_lanes(int n) {
  const Mask16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < n;
}
GTKERN_INLINE F16 select(Mask16 mask, F16 yes, F16 no) { return mask ? yes : no; }
GTKERN_INLINE F16 keep(Mask16 mask, F16 x) { return mask ? x : zero(); }

GTKERN_INLINE F16 exp2(F16 x) {
  const Mask16 tiny = x < -126.f;
  x = max_of(splat(-126.f), x);
  // adding 1.5 * 2 ** 23 rounds to the nearest integer, which then stands in the low bits
  const F16 shifted = x + 12582912.f;
  Mask16 n;
  std::memcpy(&n, &shifted, sizeof n);
  const F16 f = x - (shifted - 12582912.f);
  F16 p = splat(1.5353362e-4f);
  p = p * f + 1.3398874e-3f;
  p = p * f + 9.6184373e-3f;
  p = p * f + 5.5503324e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.9314720e-1f;
  p = p * f + 1.f;
  const Mask16 power = (n - 0x4B400000 + 127) << 23;
  F16 scale;
  std::memcpy(&scale, &power, sizeof scale);
  return tiny ? zero() : p * scale;
}

template <int HG, class F>
GTKERN_INLINE F16 reduce(const F& f) {
  F16 out;
  for (int e = 0; e < kLanes / HG; ++e) {
    const F16 x = f(e);
    for (int h = 0; h < HG; ++h) {
      float sum = 0;
      for (int l = h; l < kLanes; l += HG) sum += x[l];
      out[e * HG + h] = sum;
    }
  }
  return out;
}

template <int HG>
GTKERN_INLINE F16 repeat(const float* p) {
  F16 out;
  for (int l = 0; l < kLanes; ++l) out[l] = p[l % HG];
  return out;
}

template <int HG>
GTKERN_INLINE F16 all_max(F16 x) {
  F16 out;
  for (int l = 0; l < kLanes; ++l) {
    float best = x[l % HG];
    for (int o = l % HG; o < kLanes; o += HG) best = best > x[o] ? best : x[o];
    out[l] = best;
  }
  return out;
}
template <int HG>
GTKERN_INLINE F16 all_sum(F16 x) {
  F16 out;
  for (int l = 0; l < kLanes; ++l) {
    float sum = 0;
    for (int o = l % HG; o < kLanes; o += HG) sum += x[o];
    out[l] = sum;
  }
  return out;
}

#endif

}  // namespace gtkern::simd
