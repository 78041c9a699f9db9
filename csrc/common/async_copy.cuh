#pragma once

// Copies from global to shared memory that run beside the thread which starts them (cp.async). On
// the host they are made when the thread waits for them.

#include "common/launch.h"

namespace gtkern {

// Starts to copy 16 bytes, or to write 16 zero bytes without `live`; both addresses are multiples
// of 16, and `from` is not read without `live`.
__device__ __forceinline__ void copy_16_async(void* to, const void* from, bool live) {
#if defined(GTKERN_EMULATE)
  emulate::copy_later(to, live ? from : nullptr, 16);
#else
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from),
               "r"(live ? 16 : 0)
               : "memory");
#endif
}

// Closes the group of copies started since the last call.
__device__ __forceinline__ void commit_async_copies() {
#if defined(GTKERN_EMULATE)
  emulate::commit_copies();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits for this thread's groups but the GROUPS_LEFT last ones; other threads see the copies after
// a __syncthreads().
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_async_copies() {
#if defined(GTKERN_EMULATE)
  emulate::wait_for_copies(GROUPS_LEFT);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(GROUPS_LEFT) : "memory");
#endif
}

}  // namespace gtkern
