// gtkern._graph: NumPy in, NumPy out; the public functions are in gtkern/transforms.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "graph/expander.h"
#include "graph/laplacian.h"
#include "graph/structure.h"

namespace py = pybind11;

namespace gtkern::graph {
namespace {

using IndexArray = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

Algorithm algorithm_named(const std::string& name) {
  if (name == "hamiltonian") return Algorithm::kHamiltonian;
  if (name == "random_d") return Algorithm::kRandomD;
  if (name == "random_d_2") return Algorithm::kRandomD2;
  throw std::invalid_argument("unknown algorithm '" + name + "'");
}

void check_sizes(std::int64_t num_nodes, std::int64_t degree) {
  if (num_nodes < 1 || num_nodes > INT32_MAX || degree < 1 || degree >= num_nodes)
    throw std::invalid_argument("num_nodes must be 1 .. 2**31 - 1, and degree 1 .. num_nodes - 1");
}

py::array_t<std::int64_t> to_array(const EdgeList& edges) {
  const py::ssize_t size = static_cast<py::ssize_t>(edges.source.size());
  py::array_t<std::int64_t> array({py::ssize_t{2}, size});
  std::copy(edges.source.begin(), edges.source.end(), array.mutable_data());
  std::copy(edges.destination.begin(), edges.destination.end(), array.mutable_data() + size);
  return array;
}

py::tuple best_expander(const std::string& algorithm, std::int64_t num_nodes, std::int64_t degree,
                        std::uint64_t seed, int max_tries, double least_gap, double residual,
                        bool remove_duplicates) {
  const Algorithm kind = algorithm_named(algorithm);
  check_sizes(num_nodes, degree);
  EdgeList best;
  double best_gap = -1;
  {
    py::gil_scoped_release release;
    if (max_tries == 0) best = draw(kind, num_nodes, degree, seed, 0);
    for (int attempt = 0; attempt < max_tries && best_gap < least_gap; ++attempt) {
      EdgeList edges = draw(kind, num_nodes, degree, seed, static_cast<std::uint32_t>(attempt));
      const double gap =
          spectral_gap(group(num_nodes, edges.source.data(), edges.destination.data(),
                             static_cast<std::int64_t>(edges.source.size())),
                       residual);
      if (gap > best_gap) {
        best_gap = gap;
        best = std::move(edges);
      }
    }
    if (remove_duplicates) best = without_duplicates(best, num_nodes);
  }
  return py::make_tuple(to_array(best), best_gap);
}

double gap_of(const IndexArray& edge_index, std::int64_t num_nodes, double residual) {
  if (edge_index.ndim() != 2 || edge_index.shape(0) != 2)
    throw std::invalid_argument("edge_index must have shape [2, E]");
  if (num_nodes < 1 || num_nodes > INT32_MAX)
    throw std::invalid_argument("num_nodes must be 1 .. 2**31 - 1");
  const std::int64_t num_edges = edge_index.shape(1);
  const std::int64_t* source = edge_index.data();
  for (std::int64_t i = 0; i < 2 * num_edges; ++i)
    if (source[i] < 0 || source[i] >= num_nodes)
      throw std::invalid_argument("edge_index must be 0 .. num_nodes - 1");
  py::gil_scoped_release release;
  return spectral_gap(group(num_nodes, source, source + num_edges, num_edges), residual);
}

}  // namespace
}  // namespace gtkern::graph

PYBIND11_MODULE(_graph, m) {
  using namespace gtkern::graph;
  m.doc() = "Graph preprocessing in C++; see gtkern.transforms.";
  m.def("best_expander", &best_expander, py::arg("algorithm"), py::arg("num_nodes"),
        py::arg("degree"), py::arg("seed"), py::arg("max_tries"), py::arg("least_gap"),
        py::arg("residual"), py::arg("remove_duplicates"),
        "(edge_index int64 [2, E], spectral gap) of the first draw whose gap is at least "
        "least_gap, else of the best; max_tries = 0 takes the first draw untested (gap -1).");
  m.def("spectral_gap", &gap_of, py::arg("edge_index"), py::arg("num_nodes"), py::arg("residual"),
        "The second smallest eigenvalue of the Laplacian; edge_index holds both directions.");
  define_structure(m);
}
