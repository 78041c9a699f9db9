// propagate for CPU tensors: reads the arguments and solves.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/check.h"
#include "common/dispatch.h"
#include "common/memory.h"
#include "propagation/problem.h"
#include "propagation/schema.h"

namespace gtkern::propagation {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, std::int64_t, double> solve_op(const Tensor& x, const OptionalTensor& start,
                                                  const Tensor& ptr, const Tensor& index,
                                                  const OptionalTensor& weight,
                                                  const OptionalTensor& scale,
                                                  const OptionalTensor& own, double alpha,
                                                  double tol, std::int64_t limit, bool chebyshev) {
  Tensor z = new_output_like(x);
  Outcome outcome;
  dispatch(x.scalar_type(), [&]<class T, class A>(T*, A*) {
    Matrix<A> matrix;
    matrix.rows = x.size(0);
    matrix.edges = index.size(0);
    matrix.ptr = ptr.const_data_ptr<std::int64_t>();
    matrix.index = pointer_or_null<std::int32_t>(index);
    matrix.weight = pointer_or_null<A>(weight);
    matrix.own = pointer_or_null<A>(own);
    matrix.damping = static_cast<A>(1 - alpha);
    if (const A* factor = pointer_or_null<A>(scale)) {
      matrix.scale.assign(factor, factor + matrix.rows);
      matrix.sum_factor = matrix.squared_unit = matrix.scale;
      for (A& s : matrix.sum_factor) s = matrix.damping * s * s;
      for (A& s : matrix.squared_unit) s = A(1) / (s * s);
    }
    outcome = solve(matrix, {alpha, tol, limit, chebyshev}, pointer_or_null<T>(x),
                    pointer_or_null<T>(start), x.size(1), output_or_null<T>(z));
  });
  return {z, outcome.sweeps, outcome.residual};
}

}  // namespace
}  // namespace gtkern::propagation

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) { m.def(gtkern::propagation::kSolveSchema); }

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("propagate_solve", TORCH_BOX(&gtkern::propagation::solve_op));
}
