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

#include "common/async_copy.cuh"
#include "common/philox.h"
#include "common/tensor_core.cuh"
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

__device__ float entry_a(int row, int k) { return static_cast<float>((3 * row + 5 * k) % 7 - 3); }
__device__ float entry_b(int column, int k) { return static_cast<float>((column + 2 * k) % 5 - 2); }

// A [16, 16] times B [16, 16] on tensor cores, from rows in shared memory, or from columns.
template <typename T, bool TURNED>
__global__ void product_of_halves(int* out) {
  GTKERN_DYNAMIC_SHARED(T, shared);
  const int lane = static_cast<int>(threadIdx.x);
  T *a = shared, *b = shared + 256;
  for (int i = lane; i < 256; i += 32) {
    const int row = TURNED ? i % 16 : i / 16, k = TURNED ? i / 16 : i % 16;
    a[i] = gtkern::from_float<T>(entry_a(row, k));
    b[i] = gtkern::from_float<T>(entry_b(row, k));
  }
  __syncwarp();
  // rows of matrices in the order of the registers: a down first, b along the depth first
  const int in = lane % 8, first = lane / 8 % 2 * 8, second = lane / 16 * 8;
  uint32_t part_a[4], part_b[4];
  gtkern::load_matrices<TURNED>(
      part_a, TURNED ? a + (second + in) * 16 + first : a + (first + in) * 16 + second);
  gtkern::load_matrices<TURNED>(
      part_b, TURNED ? b + (first + in) * 16 + second : b + (second + in) * 16 + first);
  for (int half = 0; half < 2; ++half) {
    float d[4] = {};
    gtkern::multiply_add<T>(d, part_a, part_b[2 * half], part_b[2 * half + 1]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = half * 8 + lane % 4 * 2 + i % 2;
      out[row * 16 + column] = static_cast<int>(d[i]);
    }
  }
}

// A [16, 8] times B [8, 8] in tf32.
__global__ void product_of_tf32(int* out) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = gtkern::to_tf32(entry_a(g + i % 2 * 8, t + i / 2 * 4));
  float d[4] = {};
  gtkern::multiply_add<float>(d, a, gtkern::to_tf32(entry_b(g, t)),
                              gtkern::to_tf32(entry_b(g, t + 4)));
  for (int i = 0; i < 4; ++i) {
    out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = static_cast<int>(d[i]);
  }
}

// What shared memory holds before and after the waits for three copies.
__global__ void async_copies(int* out, const int* in) {
  GTKERN_DYNAMIC_SHARED(int, shared);
  gtkern::copy_16_async(shared, in, true);
  gtkern::commit_async_copies();
  gtkern::copy_16_async(shared + 4, in + 4, true);
  gtkern::copy_16_async(shared + 8, in, false);
  gtkern::commit_async_copies();
  out[0] = shared[3];
  gtkern::wait_async_copies<1>();
  out[1] = shared[3];
  out[2] = shared[7];
  gtkern::wait_async_copies<0>();
  out[3] = shared[7];
  out[4] = shared[11];
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
    {"product_half", [] { print(run(product_of_halves<__half, false>, 1, 32, 1024, 256)); }},
    {"product_half_turned", [] { print(run(product_of_halves<__half, true>, 1, 32, 1024, 256)); }},
    {"product_bfloat16",
     [] { print(run(product_of_halves<__nv_bfloat16, false>, 1, 32, 1024, 256)); }},
    {"product_tf32", [] { print(run(product_of_tf32, 1, 32, 0, 128)); }},
    {"rounded_tf32",
     [] {
       for (const float value : {1.0f, 1.00048828125f, -1.0003f, 3.0e38f}) {
         std::printf("%.12g ", static_cast<double>(__uint_as_float(gtkern::to_tf32(value))));
       }
     }},
    {"async_copies",
     [] {
       alignas(16) const int in[8] = {1, 2, 3, 4, 5, 6, 7, 8};
       print(run(async_copies, 1, 1, 48, 5, static_cast<const int*>(in)));
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
