// The activations and their derivatives, a vector at a time.
#pragma once

#include <cmath>

#include "block_sparse_linear/problem.h"
#include "common/lanes.h"

namespace gtkern::block_sparse_linear {

template <class A>
struct Activate {
  using L = Lanes<A>;
  using V = typename L::V;

  static GTKERN_INLINE V relu(V z) { return L::max_of(L::zero(), z); }
  static GTKERN_INLINE V silu(V z) {
    const V bounded = bound(z);
    return L::mul(L::max_of(L::splat(kLow), z), sigmoid(bounded));
  }
  static GTKERN_INLINE V silu_derivative(V z) {
    const V bounded = bound(z), s = sigmoid(bounded);
    return s * (L::splat(1) + bounded * (L::splat(1) - s));
  }
  static GTKERN_INLINE V gelu(V z) { return z * normal_cdf(z); }
  static GTKERN_INLINE V gelu_derivative(V z) {
    return normal_cdf(z) + bound(z) * normal_density(z);
  }

 private:
  // beyond it sigmoid and the normal density are 0 (1) to the last bit
  static constexpr A kLow = sizeof(A) == 4 ? -88 : -708;

  static GTKERN_INLINE V bound(V z) {
    const V low = L::max_of(L::splat(kLow), z);
    return L::zero() - L::max_of(L::splat(kLow), L::zero() - low);
  }
  static GTKERN_INLINE V exponential(V z) {
    return L::exp2(L::mul(z, L::splat(static_cast<A>(kLog2E))));
  }
  static GTKERN_INLINE V sigmoid(V bounded) {
    return L::splat(1) / (L::splat(1) + exponential(L::zero() - bounded));
  }
  static GTKERN_INLINE V normal_density(V z) {
    const V x = bound(z);
    return exponential(x * x * L::splat(static_cast<A>(-0.5))) *
           L::splat(static_cast<A>(0.3989422804014327));
  }
  static GTKERN_INLINE V normal_cdf(V z) {
    if constexpr (sizeof(A) == 8) {
      for (int l = 0; l < L::kCount; ++l) z[l] = std::erfc(z[l] * -0.7071067811865476) / 2;
      return z;
    } else {
      // erfc(t) = r exp(-t² + p(r)), r = 1 / (1 + t / 2), t >= 0: relative error below 2e-7
      const V t = bound(z) * L::splat(0.70710678f);
      const V size = L::max_of(t, L::zero() - t);
      const V r = L::splat(1) / L::fma(size, L::splat(0.5f), L::splat(1));
      V p = L::splat(0.17087277f);
      for (const float factor : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                                 0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f}) {
        p = L::fma(p, r, L::splat(factor));
      }
      const V tail = r * exponential(p - size * size) * L::splat(0.5f);
      // Φ(z) is the tail itself below 0, and 1 - tail above
      const V below = L::splat(0.5f) - tail;
      return L::splat(0.5f) + copy_sign(below, t);
    }
  }
  // x >= 0 with the sign of y; NaN in y comes through by x
  static GTKERN_INLINE V copy_sign(V x, V y) {
    using I = std::int32_t __attribute__((vector_size(64)));
    I a, b;
    std::memcpy(&a, &x, sizeof a);
    std::memcpy(&b, &y, sizeof b);
    a |= b & static_cast<std::int32_t>(0x80000000u);
    std::memcpy(&x, &a, sizeof a);
    return x;
  }
};

// f(activation as a constant), for loops that are compiled for each.
template <class F>
void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kNone: return f.template operator()<Activation::kNone>();
    case Activation::kRelu: return f.template operator()<Activation::kRelu>();
    case Activation::kGelu: return f.template operator()<Activation::kGelu>();
    case Activation::kSilu: return f.template operator()<Activation::kSilu>();
  }
}

template <Activation kActivation, class A>
GTKERN_INLINE typename Lanes<A>::V activated(typename Lanes<A>::V z) {
  using Act = Activate<A>;
  if constexpr (kActivation == Activation::kRelu) return Act::relu(z);
  if constexpr (kActivation == Activation::kGelu) return Act::gelu(z);
  if constexpr (kActivation == Activation::kSilu) return Act::silu(z);
  return z;
}

// The gradient before the activation from that behind it; `kept` is the output for relu, else what
// stood before the activation.
template <Activation kActivation, class A>
GTKERN_INLINE typename Lanes<A>::V gradient_before(typename Lanes<A>::V grad,
                                                   typename Lanes<A>::V kept) {
  using Act = Activate<A>;
  if constexpr (kActivation == Activation::kRelu) {
    const auto nothing = Lanes<A>::zero();
    return kept <= nothing ? nothing : grad;
  }
  if constexpr (kActivation == Activation::kGelu) return grad * Act::gelu_derivative(kept);
  if constexpr (kActivation == Activation::kSilu) return grad * Act::silu_derivative(kept);
  return grad;
}

}  // namespace gtkern::block_sparse_linear
