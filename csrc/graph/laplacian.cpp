#include "graph/laplacian.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/philox.h"

namespace gtkern::graph {
namespace {

// The Ritz value is looked at every so many steps; a 2-core machine does 500 in a second at 10^5
// nodes of degree 30.
constexpr int kStepsBetweenChecks = 10;
constexpr int kMaxSteps = 500;
// Words of the start vector: the fourth counter word keeps them apart from the permutations' keys.
constexpr std::uint32_t kStartVector = 1;

// A symmetric tridiagonal matrix; off_diagonal[i] couples i and i + 1.
struct Tridiagonal {
  std::vector<double> diagonal, off_diagonal;
};

// How many eigenvalues lie above x: the negative pivots of x - T.
int count_above(const Tridiagonal& t, double x) {
  int above = 0;
  double pivot = 1;
  for (std::size_t i = 0; i < t.diagonal.size(); ++i) {
    const double coupling = i == 0 ? 0 : t.off_diagonal[i - 1];
    pivot = x - t.diagonal[i] - coupling * coupling / pivot;
    if (pivot == 0) pivot = 1e-300;
    above += pivot < 0;
  }
  return above;
}

double largest_eigenvalue(const Tridiagonal& t, double low, double high) {
  for (int i = 0; i < 100 && low < high; ++i) {
    const double middle = 0.5 * (low + high);
    if (middle <= low || middle >= high) break;
    (count_above(t, middle) > 0 ? low : high) = middle;
  }
  return high;
}

// |last component| of the unit eigenvector of the largest eigenvalue. The recurrence runs from the
// last component up, the way the entries grow, so rounding dies out.
double last_component(const Tridiagonal& t, double eigenvalue) {
  const std::size_t size = t.diagonal.size();
  double below = 0, here = 1, squares = 1;
  for (std::size_t i = size - 1; i > 0; --i) {
    const double coupling_below = i + 1 == size ? 0 : t.off_diagonal[i];
    const double above =
        ((eigenvalue - t.diagonal[i]) * here - coupling_below * below) / t.off_diagonal[i - 1];
    below = here;
    here = above;
    squares += here * here;
    if (squares > 1e200) return 0;
  }
  return 1 / std::sqrt(squares);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  // eight partial sums: one chain of additions would wait for itself
  double sums[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= a.size(); i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < a.size(); ++i) sums[0] += a[i] * b[i];
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

void remove_constant(std::vector<double>& x) {
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
  for (double& value : x) value -= mean;
}

std::vector<double> start_vector(std::size_t size) {
  std::vector<double> x(size);
  for (std::size_t i = 0; i < size; ++i) {
    const PhiloxWords words =
        philox4x32_10({{static_cast<std::uint32_t>(i), 0, 0, kStartVector}}, 0);
    x[i] = static_cast<double>(words.word[0]) / 4294967296.0;
  }
  return x;
}

}  // namespace

Neighbors group(std::int64_t num_nodes, const std::int64_t* source, const std::int64_t* destination,
                std::int64_t num_edges) {
  Neighbors result{std::vector<std::int64_t>(num_nodes + 1, 0),
                   std::vector<std::int32_t>(num_edges)};
  for (std::int64_t e = 0; e < num_edges; ++e) ++result.ptr[destination[e] + 1];
  std::partial_sum(result.ptr.begin(), result.ptr.end(), result.ptr.begin());
  std::vector<std::int64_t> next(result.ptr.begin(), result.ptr.end() - 1);
  for (std::int64_t e = 0; e < num_edges; ++e)
    result.index[next[destination[e]]++] = static_cast<std::int32_t>(source[e]);
  return result;
}

double spectral_gap(const Neighbors& neighbors, double residual) {
  const std::size_t size = neighbors.ptr.size() - 1;
  double max_degree = 0;
  for (std::size_t i = 0; i < size; ++i)
    max_degree = std::max(max_degree, static_cast<double>(neighbors.ptr[i + 1] - neighbors.ptr[i]));

  std::vector<double> previous(size, 0), basis = start_vector(size), product(size);
  remove_constant(basis);
  const double length = std::sqrt(dot(basis, basis));
  if (length == 0) return 0;
  for (double& value : basis) value /= length;

  // -L lies in [-2 max_degree, 0]
  const double low = -2 * max_degree - 1;
  Tridiagonal t;
  double coupling = 0;
  const int max_steps = static_cast<int>(std::min<std::size_t>(kMaxSteps, size));
  for (int step = 1; step <= max_steps; ++step) {
    for (std::size_t i = 0; i < size; ++i) {
      double sum = 0;
      for (std::int64_t at = neighbors.ptr[i]; at < neighbors.ptr[i + 1]; ++at)
        sum += basis[neighbors.index[at]];
      const double degree = static_cast<double>(neighbors.ptr[i + 1] - neighbors.ptr[i]);
      product[i] = sum - degree * basis[i] - coupling * previous[i];
    }
    const double projection = dot(product, basis);
    for (std::size_t i = 0; i < size; ++i) product[i] -= projection * basis[i];
    remove_constant(product);
    t.diagonal.push_back(projection);
    coupling = std::sqrt(dot(product, product));

    const bool exhausted = coupling <= 1e-10 * (1 + max_degree) || step == max_steps;
    if (exhausted || step % kStepsBetweenChecks == 0) {
      const double ritz = largest_eigenvalue(t, low, 1);
      if (exhausted || coupling * last_component(t, ritz) <= residual) return std::max(0.0, -ritz);
    }
    t.off_diagonal.push_back(coupling);
    for (std::size_t i = 0; i < size; ++i) {
      previous[i] = basis[i];
      basis[i] = product[i] / coupling;
    }
  }
  return 0;
}

}  // namespace gtkern::graph
