// Small kernels that test_emulator.py runs through csrc/emulate: `emulator_kernels CASE` prints
// what the kernel computed, or ends with exit code 3 and the emulator's message.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/philox.h"
#include "common/warp.cuh"

namespace {

constexpr int kBlocks = 3, kThreads = 96;

using Ints = std::vector<int>;

void print(const Ints& values) {
  for (const int value : values) std::printf("%d ", value);
}

__global__ void reverse(int* out, bool wait) {
  GTKERN_DYNAMIC_SHARED(int, shared);
  const int thread = static_cast<int>(threadIdx.x), last = static_cast<int>(blockDim.x) - 1;
  const int first = static_cast<int>(blockIdx.x * blockDim.x);
  shared[thread] = first + thread;
  if (wait) __syncthreads();
  out[first + thread] = shared[last - thread];
}

__global__ void reverse_fixed_size(int* out) {
  __shared__ int shared[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = static_cast<int>(blockIdx.x) * kThreads + thread;
  __syncthreads();
  out[static_cast<int>(blockIdx.x) * kThreads + thread] = shared[kThreads - 1 - thread];
}

__global__ void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* row = out + lane * 9;
  row[0] = __shfl_sync(gtkern::kAllLanes, lane, 5);
  row[1] = __shfl_sync(gtkern::kAllLanes, lane, 5, 4);
  row[2] = __shfl_xor_sync(gtkern::kAllLanes, lane, 3);
  row[3] = __shfl_up_sync(gtkern::kAllLanes, lane, 2, 8);
  row[4] = __shfl_down_sync(gtkern::kAllLanes, lane, 2, 8);
  row[5] = static_cast<int>(__ballot_sync(gtkern::kAllLanes, lane % 3 == 0) & 0xffff);
  row[6] = __any_sync(gtkern::kAllLanes, lane == 7) * 2 + __all_sync(gtkern::kAllLanes, lane < 31);
  row[7] = __reduce_add_sync(gtkern::kAllLanes, lane) * 100 +
           __reduce_max_sync(gtkern::kAllLanes, lane - 40) + 40 +
           __reduce_min_sync(gtkern::kAllLanes, lane + 1);
  // half a warp at a time
  row[8] = 0;
  if (lane < 16) {
    row[8] = __shfl_xor_sync(0x0000ffffu, lane, 8);
    __syncwarp(0x0000ffffu);
  }
}

__global__ void group_sums(int* out, int lanes) {
  float x[2] = {static_cast<float>(threadIdx.x), 1.0f};
  gtkern::group_sum<0>(x, lanes);
  out[threadIdx.x] = static_cast<int>(x[0]) * 100 + static_cast<int>(x[1]);
}

__global__ void block_sums(int* out) {
  GTKERN_DYNAMIC_SHARED(float, shared);
  const float sum = gtkern::block_fold(static_cast<float>(threadIdx.x), 4, shared, gtkern::Add());
  out[threadIdx.x] = static_cast<int>(sum);
}

// Copies rows of `width` through 16-byte packets and floats.
template <typename T, int ACCESS>
__global__ void copy_rows(const T* in, T* out, int width) {
  const int offset = static_cast<int>(threadIdx.x) * gtkern::kPacketSize<T>;
  float x[gtkern::kPacketSize<T>];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * width;
  gtkern::load_elements<ACCESS>(in + row, offset, width, true, x);
  gtkern::store_elements<ACCESS>(out + row, offset, width, x);
}

__global__ void finish_before_barrier() {
  if (threadIdx.x < 32) return;
  __syncthreads();
}

__global__ void barriers_of_two_branches() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lanes_that_do_not_come() {
  if (threadIdx.x < 16) __syncwarp();
}

__global__ void shuffle_from_absent_lane(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 16);
}

__global__ void write_behind_shared() {
  GTKERN_DYNAMIC_SHARED(char, shared);
  std::memset(shared, 0, 4096);
}

__global__ void nothing() {}

template <typename Kernel, typename... Arguments>
Ints run(Kernel kernel, int blocks, int threads, size_t shared, int count,
         const Arguments&... arguments) {
  Ints out(static_cast<size_t>(count), -1);
  gtkern::launch(kernel, blocks, threads, shared, nullptr, out.data(), arguments...);
  return out;
}

template <typename T, int ACCESS>
void print_copy(int width) {
  const int rows = 2, packets = (width + gtkern::kPacketSize<T> - 1) / gtkern::kPacketSize<T>;
  std::vector<T> in(static_cast<size_t>(rows * width)), out(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = gtkern::from_float<T>(static_cast<float>(i) * 0.37f - 3.0f);
  }
  gtkern::launch(copy_rows<T, ACCESS>, rows, packets, 0, nullptr, static_cast<const T*>(in.data()),
                 out.data(), width);
  std::printf("%d ", std::memcmp(in.data(), out.data(), in.size() * sizeof(T)) == 0);
}

template <typename T>
void print_rounded() {
  for (const float value : {0.1f, -1234.567f, 3.0e-6f, 65000.0f, 1.00390625f}) {
    std::printf("%.9g ", static_cast<double>(gtkern::to_float(gtkern::from_float<T>(value))));
  }
}

const std::map<std::string, std::function<void()>> kCases = {
    {"shared",
     [] { print(run(reverse, kBlocks, kThreads, kThreads * 4, kBlocks * kThreads, true)); }},
    {"shared_fixed_size",
     [] { print(run(reverse_fixed_size, kBlocks, kThreads, 0, kBlocks * kThreads)); }},
    {"missing_barrier",
     [] { print(run(reverse, kBlocks, kThreads, kThreads * 4, kBlocks * kThreads, false)); }},
    {"shuffles", [] { print(run(shuffles, 1, 32, 0, 32 * 9)); }},
    {"group_sums", [] { print(run(group_sums, 1, 32, 0, 32, 8)); }},
    {"block_sums", [] { print(run(block_sums, 1, 64, 64 * 4, 64)); }},
    {"copies",
     [] {
       print_copy<float, 16>(12);
       print_copy<float, gtkern::kElementwise>(7);
       print_copy<__half, 16>(16);
       print_copy<__half, 8>(12);
       print_copy<__nv_bfloat16, 8>(4);
       print_copy<__nv_bfloat16, gtkern::kElementwise>(13);
     }},
    {"misaligned", [] { print_copy<float, 16>(7); }},
    {"rounded_half", [] { print_rounded<__half>(); }},
    {"rounded_bfloat16", [] { print_rounded<__nv_bfloat16>(); }},
    {"philox",
     [] {
       for (int head = 0; head < 6; ++head) {
         std::printf("%u ", gtkern::item_word(0x1234567890abcdefull, 5000000007, head));
       }
       std::printf("%u", gtkern::dropout_threshold(0.3));
     }},
    {"finish_before_barrier", [] { gtkern::launch(finish_before_barrier, 1, 64, 0, nullptr); }},
    {"barriers_of_two_branches",
     [] { gtkern::launch(barriers_of_two_branches, 1, 64, 0, nullptr); }},
    {"lanes_that_do_not_come", [] { gtkern::launch(lanes_that_do_not_come, 1, 64, 0, nullptr); }},
    {"shuffle_from_absent_lane", [] { print(run(shuffle_from_absent_lane, 1, 32, 0, 32)); }},
    {"write_behind_shared", [] { gtkern::launch(write_behind_shared, 1, 1, 64, nullptr); }},
    {"too_many_threads", [] { gtkern::launch(nothing, 1, 2000, 0, nullptr); }},
    {"no_blocks", [] { gtkern::launch(finish_before_barrier, 0, 64, 0, nullptr); }},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 2 ? kCases.find(argv[1]) : kCases.end();
  if (found == kCases.end()) return 2;
  try {
    found->second();
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 3;
  }
  return 0;
}
