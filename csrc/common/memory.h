// Fresh memory for results and scratch. Large pieces ask for huge pages: a kernel that fills fresh
// 4 KiB pages spends as long in page faults as in arithmetic.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gtkern {

inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t kPage = std::uintptr_t{1} << 21;
  if (bytes < 2 * kPage) return;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + kPage - 1) & ~(kPage - 1);
  const std::uintptr_t end = (address + bytes) & ~(kPage - 1);
  // a hint: a kernel that refuses it changes nothing but speed
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// As torch's, whose stable ABI keeps to itself why it failed: there is but one reason.
inline torch::stable::Tensor new_tensor(const torch::stable::Tensor& like,
                                        torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                        torch::headeronly::ScalarType dtype) {
  try {
    return torch::stable::new_empty(like, sizes, dtype);
  } catch (const std::exception&) {
    std::string shape;
    for (const std::int64_t size : sizes) {
      shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    }
    throw std::runtime_error("out of memory: cannot allocate a result of shape [" + shape + "]");
  }
}

// An uninitialised tensor on the device of `like`.
inline torch::stable::Tensor new_output(const torch::stable::Tensor& like,
                                        torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                        torch::headeronly::ScalarType dtype) {
  torch::stable::Tensor tensor = new_tensor(like, sizes, dtype);
  ask_for_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

inline torch::stable::Tensor new_output_like(const torch::stable::Tensor& like) {
  return new_output(like, like.sizes(), like.scalar_type());
}

// Uninitialised floats that start on a cache line.
class Scratch {
 public:
  explicit Scratch(std::int64_t floats) {
    const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    if (bytes == 0) return;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    ask_for_huge_pages(data_.get(), bytes);
  }
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
};

}  // namespace gtkern
