// Dropout in one pass over the data: the mask is drawn where it is used and never stored. The
// draws are Philox words in halves, so that one decides two elements; backward draws them again.
//
// Group g of 128 elements has the words of counters (16 g + lane, 0, 0, 0); its element
// 32 w + 16 h + lane looks at half h of word w of that lane.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/check.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox_lanes.h"
#include "common/simd.h"

namespace gtkern::dropout {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGroup = 128, kBlock = 64 * kGroup;
constexpr double kLevels = 65536;

// 1 for elements that stay, else 0.
void fill_keep(std::uint64_t seed, std::int64_t group, std::int32_t dropped, float* keep) {
  using I16 = std::int32_t __attribute__((vector_size(64)));
  using F32 = float __attribute__((vector_size(64)));
  const simd::U16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const std::uint64_t first = static_cast<std::uint64_t>(group) * simd::kLanes;
  simd::U16 words[4] = {lane + static_cast<std::uint32_t>(first),
                        simd::U16{} + static_cast<std::uint32_t>(first >> 32),
                        {},
                        {}};
  simd::philox_rounds(seed, words[0], words[1], words[2], words[3]);
  for (int w = 0; w < 4; ++w) {
    for (int half = 0; half < 2; ++half) {
      const I16 draw = simd::bits_as<I16>(half ? words[w] >> 16 : words[w] & 0xFFFFu);
      const I16 one = simd::bits_as<I16>(F32{} + 1.f);
      const I16 kept = (draw >= dropped) & one;
      std::memcpy(keep + (2 * w + half) * simd::kLanes, &kept, sizeof kept);
    }
  }
}

// to = residual + (x or relu(x)) where kept, times the scale that keeps the mean.
template <class T, bool kRelu, bool kResidual>
void drop(const T* x, const T* residual, std::int64_t count, double probability, std::uint64_t seed,
          T* to) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  // a probability just below 1 must not round to 1
  const auto dropped =
      static_cast<std::int32_t>(std::min(std::round(probability * kLevels), kLevels - 1));
  const A scale = static_cast<A>(kLevels / (kLevels - dropped));
  const RowRange blocks(count, kBlock);
  for_each_block(blocks.count(), [&](std::int64_t block) {
    alignas(64) float keep[kGroup];
    for (std::int64_t at = blocks.begin(block); at < blocks.end(block); at += kGroup) {
      fill_keep(seed, at / kGroup, dropped, keep);
      const auto some = [&](std::int64_t n) GTKERN_INLINE_LAMBDA {
        for (std::int64_t i = 0; i < n; ++i) {
          A value = static_cast<A>(x[at + i]);
          if constexpr (kRelu) value = value < 0 ? A(0) : value;
          value *= static_cast<A>(keep[i]) * scale;
          if constexpr (kResidual) value += static_cast<A>(residual[at + i]);
          to[at + i] = static_cast<T>(value);
        }
      };
      const std::int64_t left = blocks.end(block) - at;
      if (left >= kGroup) {
        some(kGroup);
      } else {
        some(left);
      }
    }
  });
}

template <class F>
void dispatch(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    case ScalarType::Half: return f(static_cast<c10::Half*>(nullptr));
    default: STD_TORCH_CHECK(false, "x must be float32, float64, bfloat16 or float16");
  }
}

template <bool kRelu>
Tensor dropped(const Tensor& x, const OptionalTensor& residual, double probability,
               std::int64_t seed) {
  Tensor out = new_output_like(x);
  dispatch(x.scalar_type(), [&]<class T>(T*) {
    const T* from = static_cast<const T*>(x.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const auto bits = static_cast<std::uint64_t>(seed);
    if (residual) {
      drop<T, kRelu, true>(from, pointer_or_null<T>(residual), x.numel(), probability, bits, to);
    } else {
      drop<T, kRelu, false>(from, nullptr, x.numel(), probability, bits, to);
    }
  });
  return out;
}

Tensor forward(const Tensor& x, const OptionalTensor& residual, double probability,
               std::int64_t seed) {
  return dropped<false>(x, residual, probability, seed);
}

Tensor relu_forward(const Tensor& x, double probability, std::int64_t seed) {
  return dropped<true>(x, {}, probability, seed);
}

// An element that was dropped, or not above 0, is 0 in the output: no mask is needed.
Tensor relu_backward(const Tensor& grad, const Tensor& out, double probability) {
  Tensor to = new_output_like(grad);
  const double kept = kLevels - std::min(std::round(probability * kLevels), kLevels - 1);
  dispatch(grad.scalar_type(), [&]<class T>(T*) {
    using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const A scale = static_cast<A>(kLevels / kept);
    const T *from = static_cast<const T*>(grad.const_data_ptr()),
            *result = static_cast<const T*>(out.const_data_ptr());
    T* into = static_cast<T*>(to.mutable_data_ptr());
    const RowRange blocks(grad.numel(), kBlock);
    for_each_block(blocks.count(), [&](std::int64_t block) {
      for (std::int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
        const A value = static_cast<A>(from[i]) * scale;
        into[i] = static_cast<T>(static_cast<A>(result[i]) <= 0 ? A(0) : value);
      }
    });
  });
  return to;
}

}  // namespace
}  // namespace gtkern::dropout

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def("dropout(Tensor x, Tensor? residual, float probability, int seed) -> Tensor");
  m.def("relu_dropout(Tensor x, float probability, int seed) -> Tensor");
  m.def("relu_dropout_bwd(Tensor grad, Tensor out, float probability) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("dropout", TORCH_BOX(&gtkern::dropout::forward));
  m.impl("relu_dropout", TORCH_BOX(&gtkern::dropout::relu_forward));
  m.impl("relu_dropout_bwd", TORCH_BOX(&gtkern::dropout::relu_backward));
}
