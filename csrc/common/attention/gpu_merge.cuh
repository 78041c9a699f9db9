#pragma once

#include "common/attention/gpu_common.cuh"

namespace gtkern::attention::gpu {

// Rows that pieces of a heavy row left, and where their sum goes.
template <typename T>
struct Parts {
  const float* part;  // [M, H, width], or null: nothing to do
  T* result;          // [rows, H, width]
  int width;
};

template <typename T>
struct MergeParams {
  const int64_t* heavy;  // [M, 3]
  int64_t num_heavy;
  int heads;
  Parts<T> first, second;
  // of a softmax, else null: each piece weighs exp2(peak) / sum of exp2(peak) total
  const float* peak;   // [M, H]
  const float* total;  // [M, H]
  float log2_eps;
  float* lse;
};

// One block per (piece, head); only the first piece of each row works, for all of them. Each row is
// written by one block, its pieces added in the order of a fixed tree: no atomics, deterministic.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ MergeParams<T> p) {
  GTKERN_DYNAMIC_SHARED(float, shared);
  const int thread = static_cast<int>(threadIdx.x), heads = p.heads;
  const int64_t begin = blockIdx.x / heads;
  const int head = static_cast<int>(blockIdx.x % heads);
  const int64_t row = p.heavy[3 * begin];
  if (row < 0 || (begin > 0 && p.heavy[3 * (begin - 1)] == row)) return;
  // pieces are in the order of their rows: the first of a later row ends this one
  int64_t end = begin + 1;
  for (int64_t high = p.num_heavy; end < high;) {
    const int64_t middle = end + (high - end) / 2;
    if (p.heavy[3 * middle] == row) {
      end = middle + 1;
    } else {
      high = middle;
    }
  }

  float peak = -kInfinity, rescale = 1.0f;
  if (p.peak != nullptr) {
    for (int64_t i = begin + thread; i < end; i += kThreads) {
      peak = fmaxf(peak, p.peak[i * heads + head]);
    }
    peak = block_fold(peak, 1, shared, Larger());
    peak = peak == -kInfinity ? 0.0f : peak;
    float total = 0.0f;
    for (int64_t i = begin + thread; i < end; i += kThreads) {
      total += p.total[i * heads + head] * exp2f(p.peak[i * heads + head] - peak);
    }
    total = block_fold(total, 1, shared, Add());
    float base = total > 0.0f ? peak : -kInfinity;
    rescale = add_eps(p.log2_eps, base, total);
    rescale = total > 0.0f ? rescale / total : total;
    if (thread == 0) p.lse[row * heads + head] = (base + log2f(total)) * kLn2;
  }
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const Parts<T>& parts = which == 0 ? p.first : p.second;
    if (parts.part == nullptr) continue;
    int columns = 1;
    while (columns < parts.width && columns < kThreads) columns *= 2;
    const int slot = thread / columns, slots = kThreads / columns;
    for (int from = 0; from < parts.width; from += columns) {
      const int column = from + thread % columns;
      float sum = 0.0f;
      if (column < parts.width) {
#pragma unroll 4
        for (int64_t i = begin + slot; i < end; i += slots) {
          const float weight = p.peak != nullptr ? exp2f(p.peak[i * heads + head] - peak) : 1.0f;
          sum += weight * parts.part[(i * heads + head) * parts.width + column];
        }
      }
      sum = block_fold(sum, columns, shared, Add());
      if (slot == 0 && column < parts.width) {
        parts.result[(row * heads + head) * parts.width + column] = from_float<T>(sum * rescale);
      }
    }
  }
}

}  // namespace gtkern::attention::gpu
