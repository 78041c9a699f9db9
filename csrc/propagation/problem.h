// What a solve on the CPU works on, read from its tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace gtkern::propagation {

// The rows of a matrix, and what each row's sum is multiplied with. Iterates are y = scale * z:
// a sweep of them adds up rows of y as they lie, and only own rows meet a factor.
template <class A>
struct Matrix {
  std::int64_t rows, edges;
  const std::int64_t* ptr;
  const std::int32_t* index;
  const A* weight;              // null: ones
  const A* own;                 // null: zeros
  std::vector<A> scale;         // of rows of z; empty: ones
  std::vector<A> sum_factor;    // (1 - alpha) scale^2; empty: 1 - alpha
  std::vector<A> squared_unit;  // 1 / scale^2, of squares of y; empty: ones
  A damping;                    // 1 - alpha
};

struct Options {
  double alpha, tol;
  std::int64_t limit;
  bool chebyshev;
};

struct Outcome {
  std::int64_t sweeps = 0;
  double residual = 0;
};

// Solves for all columns of x [rows, columns], a tile of them after the other. A null start is x.
template <class T, class A>
Outcome solve(const Matrix<A>& matrix, const Options& options, const T* x, const T* start,
              std::int64_t columns, T* z);

}  // namespace gtkern::propagation
