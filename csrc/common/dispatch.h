// From a tensor's dtype to the types that kernels are made for.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace gtkern {

// Calls f with a (T, A) pair of null pointers: T is the dtype's, A that of sums.
template <class F>
inline void dispatch(torch::headeronly::ScalarType dtype, const F& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<c10::BFloat16*>(nullptr), static_cast<float*>(nullptr));
    case ScalarType::Half: return f(static_cast<c10::Half*>(nullptr), static_cast<float*>(nullptr));
    default: STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

}  // namespace gtkern
