#pragma once

// The tensor cores' instructions of one warp. Every lane of the warp must call.
//
// With g = lane / 4 and t = lane % 4, a lane holds of D [16, 8]
//   d[0 .. 3] = (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
// and, of 16-bit elements two in a register, of A [16, 16] and B [16, 8]
//   a[0 .. 3] = (g, 2 t ..), (g + 8, 2 t ..), (g, 2 t + 8 ..), (g + 8, 2 t + 8 ..)
//   b[0 .. 1] = (2 t .., g), (2 t + 8 .., g)
// or, of tf32 elements one in a register, of A [16, 8] and B [8, 8]
//   a[0 .. 3] = (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//   b[0 .. 1] = (t, g), (t + 4, g)
// (PTX ISA, "Matrix fragments for mma.m16n8k16" and ".m16n8k8").

#include "common/warp.cuh"

namespace gtkern {

// An fp32 number rounded to the 10 bits of fraction that tf32 has.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#if defined(GTKERN_EMULATE)
  const uint32_t bits = __float_as_uint(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & ~0x1fffu : bits;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

#if defined(GTKERN_EMULATE)
namespace emulate {

struct Fragments {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
float fragment_element(uint32_t bits, int half) {
  if constexpr (sizeof(T) == 4) return __uint_as_float(bits);
  const uint16_t part = static_cast<uint16_t>(half ? bits >> 16 : bits & 0xffffu);
  T value;
  std::memcpy(&value, &part, sizeof part);
  return to_float(value);
}

// D += A B of the fragments of 32 lanes.
template <typename T>
void multiply_fragments(void* const* lanes) {
  constexpr int kPerRegister = 4 / static_cast<int>(sizeof(T)), kHalf = 4 * kPerRegister;
  const auto of = [&](int lane) -> const Fragments& {
    return *static_cast<const Fragments*>(lanes[lane]);
  };
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float& sum = of(row % 8 * 4 + column / 2).d[row / 8 * 2 + column % 2];
      for (int k = 0; k < 2 * kHalf; ++k) {
        const int t = k % kHalf / kPerRegister, half = k % kPerRegister;
        const uint32_t a = of(row % 8 * 4 + t).a[row / 8 + k / kHalf * 2];
        const uint32_t b = of(column * 4 + t).b[k / kHalf];
        sum += fragment_element<T>(a, half) * fragment_element<T>(b, half);
      }
    }
  }
}

struct MatrixRows {
  const void* row;
  uint32_t* part;
};

template <bool TURNED>
void hand_out_matrices(void* const* lanes) {
  const auto of = [&](int lane) -> const MatrixRows& {
    return *static_cast<const MatrixRows*>(lanes[lane]);
  };
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      uint16_t two[2];
      for (int i = 0; i < 2; ++i) {
        const int first = lane / 4, second = lane % 4 * 2 + i;
        const int row = TURNED ? second : first, column = TURNED ? first : second;
        const char* start = static_cast<const char*>(of(matrix * 8 + row).row);
        std::memcpy(&two[i], start + column * 2, 2);
      }
      std::memcpy(&of(lane).part[matrix], two, sizeof two);
    }
  }
}

}  // namespace emulate
#endif

// d += A B, of 16-bit T, or of float, as tf32.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
#if defined(GTKERN_EMULATE)
  emulate::Fragments mine{d, a, {b0, b1}};
  emulate::combine_warp(&emulate::multiply_fragments<T>, &mine, {__FILE__, __LINE__});
#else
#define GTKERN_MULTIPLY_ADD(KIND)                                                   \
  asm volatile("mma.sync.aligned." KIND                                             \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (sizeof(T) == 4) {
    GTKERN_MULTIPLY_ADD("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (std::is_same_v<T, __half>) {
    GTKERN_MULTIPLY_ADD("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    GTKERN_MULTIPLY_ADD("m16n8k16.row.col.f32.bf16.bf16.f32");
  }
#undef GTKERN_MULTIPLY_ADD
#endif
}

// Four matrices [8, 8] of 16-bit elements from shared memory: lane 8 m + i brings the address of
// row i of matrix m, a multiple of 16 bytes; part[m] gets the elements (g, 2 t ..) of matrix m, or
// with TURNED of its transpose.
template <bool TURNED>
__device__ __forceinline__ void load_matrices(uint32_t (&part)[4], const void* row) {
#if defined(GTKERN_EMULATE)
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    emulate::fail("a row of a matrix does not start at a multiple of 16 bytes",
                  {__FILE__, __LINE__});
  }
  emulate::MatrixRows mine{row, part};
  emulate::combine_warp(&emulate::hand_out_matrices<TURNED>, &mine, {__FILE__, __LINE__});
#else
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (TURNED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                 : "r"(shared)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                 : "r"(shared)
                 : "memory");
  }
#endif
}

}  // namespace gtkern
