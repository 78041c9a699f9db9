// Reading tensors of the stable ABI: a typed pointer, or null for a tensor that is not there.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace gtkern {

using OptionalTensor = std::optional<torch::stable::Tensor>;

template <class T>
const T* pointer_or_null(const torch::stable::Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <class T>
const T* pointer_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

template <class T>
T* output_or_null(const torch::stable::Tensor& tensor) {
  return tensor.numel() > 0 ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

}  // namespace gtkern
