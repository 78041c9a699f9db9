// One 64-byte vector of floats or doubles, and the few operations that kernels need on it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/simd.h"

namespace gtkern {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int kCount = 16;
  using V = simd::F16;
  using Quad = float __attribute__((vector_size(16)));

  static GTKERN_INLINE V zero() { return simd::zero(); }
  static GTKERN_INLINE V splat(float x) { return simd::splat(x); }
  static GTKERN_INLINE V load(const float* p) { return simd::load(p); }
  static GTKERN_INLINE void store(float* p, V x) { simd::store(p, x); }
  static GTKERN_INLINE V add(V a, V b) { return simd::add(a, b); }
  static GTKERN_INLINE V sub(V a, V b) { return simd::sub(a, b); }
  static GTKERN_INLINE V mul(V a, V b) { return simd::mul(a, b); }
  static GTKERN_INLINE V fma(V a, V b, V c) { return simd::fma(a, b, c); }
  static GTKERN_INLINE V max_of(V bound, V x) { return simd::max_of(bound, x); }
  static GTKERN_INLINE V exp2(V x) { return simd::exp2(x); }
  static GTKERN_INLINE float largest(V x) { return simd::all_max<1>(x)[0]; }
  static GTKERN_INLINE float sum(V x) { return simd::all_sum<1>(x)[0]; }

  // x in the first n lanes (0 <= n <= 16), `other` behind them
  static GTKERN_INLINE V first(int n, V x, V other) {
    return simd::select(simd::first_lanes(n), x, other);
  }
  // x where the lane's bit is set, else 0
  static GTKERN_INLINE V keep(std::uint32_t bits, V x) {
#ifdef __AVX512F__
    return simd::keep(static_cast<simd::Mask16>(bits), x);
#else
    const simd::Mask16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const simd::Mask16 bit = (static_cast<std::int32_t>(bits) >> lane) & 1;
    return simd::keep(bit == 1, x);
#endif
  }

  // log2 of x > 0, relative error below 3e-7; -inf for 0, NaN stays NaN.
  static GTKERN_INLINE V log2(V x) {
    using I = std::int32_t __attribute__((vector_size(64)));
    using U = std::uint32_t __attribute__((vector_size(64)));
    using F = float __attribute__((vector_size(64)));
    F value;
    std::memcpy(&value, &x, sizeof value);
    // without a sign: what nobody asks for, as of NaN or behind the last lane, may wrap
    U bits;
    std::memcpy(&bits, &x, sizeof bits);
    // x = f * 2 ** exponent, f in [sqrt(1/2), sqrt(2))
    const I exponent = reinterpret_cast<I>(bits - 0x3f3504f3u) >> 23;
    const U rest = bits - (reinterpret_cast<U>(exponent) << 23);
    F f, e;
    std::memcpy(&f, &rest, sizeof f);
    e = __builtin_convertvector(exponent, F);
    // log f = 2 atanh((f - 1) / (f + 1))
    const F s = (f - 1.f) / (f + 1.f), s2 = s * s;
    F series = s2 * 0.32059890f + 0.41219858f;
    series = series * s2 + 0.57707802f;
    series = series * s2 + 0.96179669f;
    series = series * s2 + 2.8853901f;
    F result = series * s + e;
    const F nothing = F{} - std::numeric_limits<float>::infinity();
    // an infinite or NaN sum comes through
    result = value <= 0.f ? nothing : result;
    result = value <= std::numeric_limits<float>::max() ? result : value;
    V out;
    std::memcpy(&out, &result, sizeof out);
    return out;
  }
};

template <>
struct Lanes<double> {
  static constexpr int kCount = 8;
  using V = double __attribute__((vector_size(64)));
  using Quad = double __attribute__((vector_size(32)));
  using I = std::int64_t __attribute__((vector_size(64)));

  static GTKERN_INLINE V zero() { return V{}; }
  static GTKERN_INLINE V splat(double x) { return V{} + x; }
  static GTKERN_INLINE V load(const double* p) {
    V x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static GTKERN_INLINE void store(double* p, V x) { std::memcpy(p, &x, sizeof x); }
  static GTKERN_INLINE V add(V a, V b) { return a + b; }
  static GTKERN_INLINE V sub(V a, V b) { return a - b; }
  static GTKERN_INLINE V mul(V a, V b) { return a * b; }
  static GTKERN_INLINE V fma(V a, V b, V c) { return a * b + c; }
  static GTKERN_INLINE V max_of(V bound, V x) { return bound > x ? bound : x; }
  static V exp2(V x) {
    return each(x, [](double y) { return std::exp2(y); });
  }
  static V log2(V x) {
    return each(x, [](double y) { return std::log2(y); });
  }
  static double largest(V x) {
    double best = x[0];
    for (int l = 1; l < kCount; ++l) best = best > x[l] ? best : x[l];
    return best;
  }
  static double sum(V x) {
    double total = 0;
    for (int l = 0; l < kCount; ++l) total += x[l];
    return total;
  }
  static GTKERN_INLINE V first(int n, V x, V other) {
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return lane < n ? x : other;
  }
  static GTKERN_INLINE V keep(std::uint32_t bits, V x) {
    const I lane = {0, 1, 2, 3, 4, 5, 6, 7};
    return ((static_cast<std::int64_t>(bits) >> lane) & 1) == 1 ? x : V{};
  }

 private:
  template <class F>
  static V each(V x, const F& f) {
    for (int l = 0; l < kCount; ++l) x[l] = f(x[l]);
    return x;
  }
};

// n rounded up to whole vectors.
template <class A>
constexpr std::int64_t padded(std::int64_t n) {
  return (n + Lanes<A>::kCount - 1) / Lanes<A>::kCount * Lanes<A>::kCount;
}

}  // namespace gtkern
