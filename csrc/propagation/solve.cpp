// The sweeps. A tile of columns is solved to its end before the next begins: its iterate, one or
// two cache lines of each row, then stays in the last-level cache for all sweeps.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/dispatch.h"
#include "common/lanes.h"
#include "common/memory.h"
#include "propagation/problem.h"

namespace gtkern::propagation {
namespace {

constexpr int kTileVectors = 2;
// rows of one or two lines: far enough ahead that they come from memory in time
constexpr std::int64_t kAhead = 24;
// edges added up at a stretch: like terms, one after the other, are all rounded the same way, and
// with a hub's thousands of them the residual would stay far above what tolerances ask for
constexpr std::int64_t kStretch = 32;

template <class T, class A, int W>
class Tile {
 public:
  using L = Lanes<A>;
  using V = typename L::V;
  static constexpr int kWidth = W * L::kCount;

  // `space` holds three iterates of [rows, kWidth].
  Tile(const Matrix<A>& matrix, const RowBlocks& blocks, A* space)
      : matrix_(matrix),
        blocks_(blocks),
        now_(space),
        other_(space + matrix.rows * kWidth),
        source_(space + 2 * matrix.rows * kWidth),
        partial_(blocks.count() * 2 * kWidth) {}

  // Solves for `width` columns of arrays whose rows lie `stride` apart.
  Outcome run(const Options& options, const T* x, const T* start, T* z, std::int64_t stride,
              int width) {
    load(options, x, start, stride, width);
    Outcome outcome;
    outcome.residual = std::numeric_limits<double>::quiet_NaN();
    const double square = (1 - options.alpha) * (1 - options.alpha);
    double omega = 1;
    while (outcome.sweeps < options.limit) {
      ++outcome.sweeps;
      // the first sweep has nothing before it, and omega = 1 multiplies that with 0
      const A* before = outcome.sweeps == 1 ? now_ : other_;
      if (options.tol > 0) {
        sweep<true>(static_cast<A>(omega), before);
        outcome.residual = residual();
        // `now_` is what was measured; NaN ends the loop too
        if (!(outcome.residual > options.tol && std::isfinite(outcome.residual))) break;
      } else {
        sweep<false>(static_cast<A>(omega), before);
      }
      std::swap(now_, other_);
      if (options.chebyshev) {
        omega = outcome.sweeps == 1 ? 1 / (1 - square / 2) : 1 / (1 - square * omega / 4);
      }
    }
    store(z, stride, width);
    return outcome;
  }

 private:
  static void read(const T* from, int width, A (&to)[kWidth]) {
    if (width == kWidth) {
      for (int c = 0; c < kWidth; ++c) to[c] = static_cast<A>(from[c]);
    } else {
      for (int c = 0; c < width; ++c) to[c] = static_cast<A>(from[c]);
      std::fill(to + width, to + kWidth, A(0));
    }
  }

  // Reads the columns, and finds what their residuals are relative to.
  void load(const Options& options, const T* x, const T* start, std::int64_t stride, int width) {
    const A alpha = static_cast<A>(options.alpha);
    for_each_block(blocks_.count(), [&](std::int64_t block) {
      double* sums = partial_.data() + block * 2 * kWidth;
      std::fill_n(sums, 2 * kWidth, 0.0);
      for (std::int64_t i = blocks_.begin(block); i < blocks_.end(block); ++i) {
        const T* row = x + i * stride;
        __builtin_prefetch(row + 8 * stride);
        A source[kWidth], begin[kWidth];
        read(row, width, source);
        read(start ? start + i * stride : row, width, begin);
        const A scale = matrix_.scale.empty() ? A(1) : matrix_.scale[i];
        if (options.tol > 0) {
          for (int c = 0; c < kWidth; ++c) {
            const double a = source[c], b = begin[c];
            sums[c] += a * a;
            sums[kWidth + c] += b * b;
          }
        }
        for (int c = 0; c < kWidth; ++c) {
          source_[i * kWidth + c] = alpha * scale * source[c];
          now_[i * kWidth + c] = scale * begin[c];
        }
      }
    });
    for (int c = 0; c < kWidth; ++c) {
      double of_x = 0, of_start = 0;
      for (std::int64_t block = 0; block < blocks_.count(); ++block) {
        of_x += partial_[block * 2 * kWidth + c];
        of_start += partial_[block * 2 * kWidth + kWidth + c];
      }
      const double size = options.alpha * std::sqrt(of_x != 0 ? of_x : of_start);
      // comparing with NaN is false: it stays, and is found by the first residual
      inverse_size_[c] = static_cast<A>(1 / (size < 1e-30 ? 1e-30 : size));
    }
  }

  void store(T* z, std::int64_t stride, int width) const {
    for_each_block(blocks_.count(), [&](std::int64_t block) {
      for (std::int64_t i = blocks_.begin(block); i < blocks_.end(block); ++i) {
        const A* from = now_ + i * kWidth;
        T* to = z + i * stride;
        const A unscale = matrix_.scale.empty() ? A(1) : A(1) / matrix_.scale[i];
        for (int c = 0; c < width; ++c) to[c] = static_cast<T>(from[c] * unscale);
      }
    });
  }

  // other_ = omega g(now_) + (1 - omega) before, where g is the plain sweep; with TEST the squares
  // of g(now_) - now_ are left in partial_.
  template <bool TEST>
  void sweep(A omega, const A* before) {
    if (matrix_.weight) {
      sweep_rows<TEST, true>(omega, before);
    } else {
      sweep_rows<TEST, false>(omega, before);
    }
  }

  template <bool TEST, bool WEIGHTED>
  void sweep_rows(A omega, const A* before) {
    const std::int32_t* const index = matrix_.index;
    const A* const weight = matrix_.weight;
    const A* const now = now_;
    A* const next = other_;
    const bool scaled = !matrix_.scale.empty();
    const std::int64_t far = matrix_.edges - kAhead;
    const V keep = L::splat(A(1) - omega), take = L::splat(omega);
    for_each_block(blocks_.count(), [&, keep, take](std::int64_t block) {
      V unit[W], squares[W];
      for (int w = 0; w < W; ++w) {
        unit[w] = L::load(inverse_size_ + w * L::kCount);
        squares[w] = L::zero();
      }
      for (std::int64_t i = blocks_.begin(block); i < blocks_.end(block); ++i) {
        const std::int64_t end = matrix_.ptr[i + 1];
        V total[W], lost[W];
        for (int w = 0; w < W; ++w) total[w] = lost[w] = L::zero();
        const auto add = [&](std::int64_t e, V(&sum)[W]) GTKERN_INLINE_LAMBDA {
          if (e < far) {
            const A* later = now + static_cast<std::int64_t>(index[e + kAhead]) * kWidth;
            for (int w = 0; w < W; ++w) __builtin_prefetch(later + w * L::kCount);
          }
          const A* row = now + static_cast<std::int64_t>(index[e]) * kWidth;
          for (int w = 0; w < W; ++w) {
            const V value = L::load(row + w * L::kCount);
            sum[w] = WEIGHTED ? L::fma(L::splat(weight[e]), value, sum[w]) : L::add(sum[w], value);
          }
        };
        for (std::int64_t e = matrix_.ptr[i]; e < end;) {
          const std::int64_t stop = std::min(e + kStretch, end);
          V even[W], odd[W];
          for (int w = 0; w < W; ++w) even[w] = odd[w] = L::zero();
          for (; e + 1 < stop; e += 2) {
            add(e, even);
            add(e + 1, odd);
          }
          if (e < stop) add(e++, even);
          for (int w = 0; w < W; ++w) {
            add_exactly(L::add(even[w], odd[w]), total[w], lost[w]);
          }
        }
        const V factor = L::splat(scaled ? matrix_.sum_factor[i] : matrix_.damping);
        const V own = L::splat(matrix_.own ? matrix_.own[i] : A(0));
        const V unit_of_row = L::splat(scaled ? matrix_.squared_unit[i] : A(1));
        for (int w = 0; w < W; ++w) {
          const std::int64_t at = i * kWidth + w * L::kCount;
          const V mine = L::load(now + at);
          // of infinite sums nothing is lost, but inf - inf is NaN
          V moved = L::add(total[w], lost[w] == lost[w] ? lost[w] : L::zero());
          if (scaled) moved = L::fma(own, mine, moved);
          moved = L::fma(factor, moved, L::load(source_ + at));
          if (TEST) {
            const V gap = L::mul(L::sub(moved, mine), unit[w]);
            squares[w] = L::fma(L::mul(gap, unit_of_row), gap, squares[w]);
          }
          L::store(next + at, L::fma(keep, L::load(before + at), L::mul(take, moved)));
        }
      }
      if (TEST) {
        for (int w = 0; w < W; ++w) {
          A lanes[L::kCount];
          L::store(lanes, squares[w]);
          for (int l = 0; l < L::kCount; ++l) {
            partial_[block * 2 * kWidth + w * L::kCount + l] = static_cast<double>(lanes[l]);
          }
        }
      }
    });
  }

  // Knuth's two-sum: what rounding takes from the total goes to `lost`.
  static GTKERN_INLINE void add_exactly(V value, V& total, V& lost) {
    const V sum = L::add(total, value), of_value = L::sub(sum, total);
    const V of_total = L::sub(sum, of_value);
    lost = L::add(lost, L::add(L::sub(total, of_total), L::sub(value, of_value)));
    total = sum;
  }

  double residual() const {
    double largest = 0;
    for (int c = 0; c < kWidth; ++c) {
      double sum = 0;
      for (std::int64_t block = 0; block < blocks_.count(); ++block) {
        sum += partial_[block * 2 * kWidth + c];
      }
      // not std::max, which may drop a NaN
      if (!(sum <= largest)) largest = sum;
      if (std::isnan(sum)) break;
    }
    return std::sqrt(largest);
  }

  const Matrix<A>& matrix_;
  const RowBlocks& blocks_;
  A *now_, *other_, *source_;
  std::vector<double> partial_;
  alignas(64) A inverse_size_[kWidth];
};

}  // namespace

template <class T, class A>
Outcome solve(const Matrix<A>& matrix, const Options& options, const T* x, const T* start,
              std::int64_t columns, T* z) {
  constexpr int kWide = kTileVectors * Lanes<A>::kCount;
  const RowBlocks blocks(matrix.ptr, matrix.rows);
  const std::int64_t width = std::min<std::int64_t>(kWide, padded<A>(columns));
  const Scratch space(3 * matrix.rows * width *
                      static_cast<std::int64_t>(sizeof(A) / sizeof(float)));
  A* const memory = reinterpret_cast<A*>(space.data());
  Outcome worst;
  for (std::int64_t c = 0; c < columns; c += kWide) {
    const int left = static_cast<int>(std::min<std::int64_t>(columns - c, kWide));
    const auto solve_tile = [&](auto&& tile) {
      return tile.run(options, x + c, start ? start + c : nullptr, z + c, columns, left);
    };
    const Outcome outcome = left > Lanes<A>::kCount
                                ? solve_tile(Tile<T, A, kTileVectors>(matrix, blocks, memory))
                                : solve_tile(Tile<T, A, 1>(matrix, blocks, memory));
    worst.sweeps = std::max(worst.sweeps, outcome.sweeps);
    if (!(outcome.residual <= worst.residual)) worst.residual = outcome.residual;
    // a tile that failed makes the others useless
    if (options.tol > 0 && !(outcome.residual <= options.tol)) break;
  }
  return worst;
}

template Outcome solve(const Matrix<float>&, const Options&, const float*, const float*,
                       std::int64_t, float*);
template Outcome solve(const Matrix<double>&, const Options&, const double*, const double*,
                       std::int64_t, double*);
template Outcome solve(const Matrix<float>&, const Options&, const c10::BFloat16*,
                       const c10::BFloat16*, std::int64_t, c10::BFloat16*);
template Outcome solve(const Matrix<float>&, const Options&, const c10::Half*, const c10::Half*,
                       std::int64_t, c10::Half*);

}  // namespace gtkern::propagation
