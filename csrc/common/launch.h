#pragma once

// What the host half of every .cu file shares: the device, the stream, and the one way to launch a
// kernel. The same .cu compiles twice: by nvcc for a GPU, and by the host's C++ compiler with
// -x c++ -DGTKERN_EMULATE, when launch() runs the kernel's threads as fibers (csrc/emulate).

#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>

#if defined(GTKERN_EMULATE)
#include "emulate/cuda_on_host.h"
// the block's dynamic shared memory as an array of `type`
#define GTKERN_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::gtkern::emulate::dynamic_shared())
// A library defines its ops in GTKERN_NAMESPACE for GTKERN_DISPATCH_KEY; the emulated one keeps out
// of the way of the CPU backend.
#define GTKERN_NAMESPACE gtkern_emulated
#define GTKERN_DISPATCH_KEY CPU
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#define GTKERN_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char gtkern_shared[]; \
  type* const name = reinterpret_cast<type*>(gtkern_shared)
#define GTKERN_NAMESPACE gtkern_C
#define GTKERN_DISPATCH_KEY CUDA
#endif

namespace gtkern {

// Makes a tensor's device current for its lifetime, and knows that device's current stream.
class DeviceScope {
 public:
#if defined(GTKERN_EMULATE)
  explicit DeviceScope(int32_t) {}
#else
  explicit DeviceScope(int32_t device) : guard_(device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif
  cudaStream_t stream() const { return stream_; }

 private:
#if !defined(GTKERN_EMULATE)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

// Starts `kernel` on `stream` and raises if it cannot start. A grid without blocks starts nothing.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  STD_TORCH_CHECK(blocks <= 2147483647, "a launch has at most 2147483647 blocks, got ", blocks);
  if (blocks == 0) return;
  const unsigned grid = static_cast<unsigned>(blocks), block = static_cast<unsigned>(threads);
#if defined(GTKERN_EMULATE)
  (void)stream;
  emulate::run({grid, 1, 1}, {block, 1, 1}, shared_bytes, [&] { kernel(arguments...); });
#else
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(grid);
    config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, arguments...);
  }
  STD_TORCH_CHECK(error == cudaSuccess, "a CUDA kernel did not start (", blocks, " blocks of ",
                  threads, " threads, ", shared_bytes,
                  " bytes of shared memory): ", cudaGetErrorString(error));
#endif
}

}  // namespace gtkern
