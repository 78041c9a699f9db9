#pragma once

// The schemas of propagate's native ops. Shapes: x, start [N, C]; ptr int64 [N + 1], index int32
// [E] and weight [E] by position: the rows of the matrix; scale, own [N]. Numbers beside x are
// float32, or float64 with a float64 x. See gtkern/ops/propagation/call.py for what each means.

namespace gtkern::propagation {

// A whole solve; tol = 0 makes `limit` sweeps.
inline constexpr const char* kSolveSchema =
    "propagate_solve(Tensor x, Tensor? start, Tensor ptr, Tensor index, Tensor? weight, "
    "Tensor? scale, Tensor? own, float alpha, float tol, int limit, bool chebyshev)"
    " -> (Tensor z, int sweeps, float residual)";

// One sweep of a tile of columns of x, from `first` on; see Sweep in
// gtkern/ops/propagation/iteration.py. now, before, next float32 [N, W], W a multiple of 4.
inline constexpr const char* kSweepSchema =
    "propagate_sweep(Tensor x, int first, Tensor now, Tensor before, Tensor(a!) next, Tensor ptr, "
    "Tensor index, Tensor heavy, Tensor? item, Tensor? weight, Tensor? scale, Tensor? own, "
    "float alpha, float omega, Tensor? inverse_size) -> Tensor squares";

}  // namespace gtkern::propagation
