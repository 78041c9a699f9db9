// Picks the kernels for a problem: the fast ones where they take it.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

#include "common/attention/problem.h"

namespace gtkern::attention {

template <class T, class A>
void forward(const Inputs<T, A>& in, const Results<T, A>& to) {
  if constexpr (std::is_same_v<T, float>) {
    if (forward_narrow(in, to)) return;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (forward_packed(in, to)) return;
  }
  forward_general(in, to);
}

template <class T, class A>
void backward(const Inputs<T, A>& in, const Backward<T, A>& grad) {
  if constexpr (std::is_same_v<T, float>) {
    if (backward_narrow(in, grad)) return;
  }
  if constexpr (std::is_same_v<A, float>) {
    if (backward_packed(in, grad)) return;
  }
  backward_general(in, grad);
}

#define GTKERN_DISPATCH(T, A)                                       \
  template void forward(const Inputs<T, A>&, const Results<T, A>&); \
  template void backward(const Inputs<T, A>&, const Backward<T, A>&);
GTKERN_DISPATCH(float, float)
GTKERN_DISPATCH(double, double)
GTKERN_DISPATCH(c10::BFloat16, float)
GTKERN_DISPATCH(c10::Half, float)
#undef GTKERN_DISPATCH

}  // namespace gtkern::attention
