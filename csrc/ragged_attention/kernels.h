// The CPU kernels of ragged_attention: plain pointers in and out.
#pragma once

#include <cstdint>

#include "ragged_attention/pairs.h"
#include "ragged_attention/problem.h"

namespace gtkern::ragged_attention {

// [N, H, Dv] and [N, H].
template <class T, class A>
struct Results {
  T* out = nullptr;
  A* lse = nullptr;
};

// What came in, what forward left, and where to write; a null output is not wanted.
template <class T, class A>
struct Backward {
  const T* grad_out = nullptr;
  const A* lse = nullptr;
  T *q = nullptr, *k = nullptr, *v = nullptr;
  A* table = nullptr;
  T *prefix_k = nullptr, *prefix_v = nullptr;
};

template <class T, class A>
void forward(const Problem<T, A>& in, const Results<T, A>& to);
template <class T, class A>
void backward(const Problem<T, A>& in, const Backward<T, A>& grad);

}  // namespace gtkern::ragged_attention
