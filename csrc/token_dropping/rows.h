// Moving rows of tokens, on the CPU: each row of a result is written once, in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/parallel.h"

namespace gtkern::token_dropping {

// Rows that a thread takes at a time: about 64 KiB of them.
inline RowRange row_blocks(std::int64_t rows, std::int64_t row_bytes) {
  constexpr std::int64_t kBytes = 1 << 16;
  return RowRange(rows, std::max<std::int64_t>(1, kBytes / std::max<std::int64_t>(row_bytes, 16)));
}

// Calls f with a functor copy(to, from) for rows of so many bytes.
template <class F>
void with_copy(std::int64_t row_bytes, const F& f) {
  const auto fixed = [](auto size) {
    return [](char* to, const char* from) { std::memcpy(to, from, decltype(size)::value); };
  };
  switch (row_bytes) {
    case 1: return f(fixed(std::integral_constant<int, 1>()));
    case 2: return f(fixed(std::integral_constant<int, 2>()));
    case 4: return f(fixed(std::integral_constant<int, 4>()));
    case 8: return f(fixed(std::integral_constant<int, 8>()));
    case 128: return f(fixed(std::integral_constant<int, 128>()));
    case 256: return f(fixed(std::integral_constant<int, 256>()));
    case 512: return f(fixed(std::integral_constant<int, 512>()));
    default:
      return f([row_bytes](char* to, const char* from) { std::memcpy(to, from, row_bytes); });
  }
}

inline void gather_rows(const char* x, const std::int64_t* index, std::int64_t count,
                        std::int64_t row_bytes, char* out) {
  const RowRange blocks = row_blocks(count, row_bytes);
  with_copy(row_bytes, [&](const auto& copy) {
    for_each_block(blocks.count(), [&](std::int64_t block) {
      for (std::int64_t m = blocks.begin(block); m < blocks.end(block); ++m) {
        copy(out + m * row_bytes, x + index[m] * row_bytes);
      }
    });
  });
}

// A null y stands for zeros, and so does a null fill.
inline void scatter_rows(const char* y, const char* fill, const std::int32_t* position,
                         std::int64_t rows, std::int64_t row_bytes, char* out) {
  const RowRange blocks = row_blocks(rows, row_bytes);
  with_copy(row_bytes, [&](const auto& copy) {
    for_each_block(blocks.count(), [&](std::int64_t block) {
      for (std::int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
        const char* from = position[i] < 0 ? (fill ? fill + i * row_bytes : nullptr)
                           : y             ? y + static_cast<std::int64_t>(position[i]) * row_bytes
                                           : nullptr;
        if (from) {
          copy(out + i * row_bytes, from);
        } else {
          std::memset(out + i * row_bytes, 0, row_bytes);
        }
      }
    });
  });
}

template <class T, class A>
void gather_gated(const T* x, const T* gate, const std::int64_t* index, std::int64_t count,
                  std::int64_t width, T* out) {
  const RowRange blocks = row_blocks(count, width * static_cast<std::int64_t>(sizeof(T)));
  for_each_block(blocks.count(), [&](std::int64_t block) {
    for (std::int64_t m = blocks.begin(block); m < blocks.end(block); ++m) {
      const A factor = static_cast<A>(gate[m]);
      const T* from = x + index[m] * width;
      T* to = out + m * width;
      for (std::int64_t c = 0; c < width; ++c)
        to[c] = static_cast<T>(static_cast<A>(from[c]) * factor);
    }
  });
}

// The sum of the products of two rows: sixteen partial sums, whatever the vectors of the machine.
template <class A, class T>
A dot(const T* a, const T* b, std::int64_t width) {
  constexpr int kSums = 16;
  A sum[kSums] = {};
  std::int64_t c = 0;
  for (; c + kSums <= width; c += kSums) {
    for (int s = 0; s < kSums; ++s) sum[s] += static_cast<A>(a[c + s]) * static_cast<A>(b[c + s]);
  }
  for (; c < width; ++c) sum[c % kSums] += static_cast<A>(a[c]) * static_cast<A>(b[c]);
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int s = 0; s < half; ++s) sum[s] += sum[s + half];
  }
  return sum[0];
}

// Of out[m] = gate[m] x[index[m]]; null gradients are not wanted.
template <class T, class A>
void gather_gated_backward(const T* grad_out, const T* x, const T* gate,
                           const std::int32_t* position, std::int64_t rows, std::int64_t width,
                           T* grad_x, T* grad_gate) {
  const RowRange blocks = row_blocks(rows, width * static_cast<std::int64_t>(sizeof(T)));
  for_each_block(blocks.count(), [&](std::int64_t block) {
    for (std::int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      const std::int64_t m = position[i];
      if (m >= 0 && grad_gate) {
        grad_gate[m] = static_cast<T>(dot<A>(grad_out + m * width, x + i * width, width));
      }
      if (!grad_x) continue;
      T* to = grad_x + i * width;
      if (m < 0) {
        std::fill_n(to, width, T(0));
        continue;
      }
      const A factor = static_cast<A>(gate[m]);
      const T* from = grad_out + m * width;
      for (std::int64_t c = 0; c < width; ++c)
        to[c] = static_cast<T>(static_cast<A>(from[c]) * factor);
    }
  });
}

}  // namespace gtkern::token_dropping
