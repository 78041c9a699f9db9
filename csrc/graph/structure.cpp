#include "graph/structure.h"

#include <pybind11/numpy.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph/packed.h"
#include "graph/paths.h"
#include "graph/segments.h"
#include "graph/walks.h"

namespace py = pybind11;

namespace gtkern::graph {
namespace {

using IndexArray = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

// The functions below write where they are told, so what they are told is checked here too; the
// messages for users are those of gtkern/transforms/structure.py.
PackedGraphs view(const IndexArray& edge_index, const IndexArray& ptr) {
  if (edge_index.ndim() != 2 || edge_index.shape(0) != 2 || edge_index.shape(1) > INT32_MAX)
    throw std::invalid_argument("edge_index must have shape [2, E], E < 2**31");
  if (ptr.ndim() != 1 || ptr.shape(0) < 1 || ptr.shape(0) > INT32_MAX || ptr.data()[0] != 0)
    throw std::invalid_argument("ptr must have shape [G + 1] and begin with 0");
  const PackedGraphs graphs{ptr.shape(0) - 1, ptr.data(), edge_index.shape(1), edge_index.data(),
                            edge_index.data() + edge_index.shape(1)};
  for (std::int64_t g = 0; g < graphs.num_graphs; ++g)
    if (graphs.ptr[g + 1] < graphs.ptr[g] || graphs.ptr[g + 1] - graphs.ptr[g] > INT32_MAX)
      throw std::invalid_argument("ptr must not fall");
  const std::vector<std::int32_t> graph = graph_of_node(graphs);
  for (std::int64_t e = 0; e < graphs.num_edges; ++e) {
    const std::int64_t from = graphs.source[e], to = graphs.destination[e];
    if (from < 0 || from >= graphs.num_nodes() || to < 0 || to >= graphs.num_nodes() ||
        graph[from] != graph[to])
      throw std::invalid_argument("edge_index must join nodes of one graph");
  }
  return graphs;
}

void check_range(const char* name, int value, int high) {
  if (value < 1 || value > high)
    throw std::invalid_argument(std::string(name) + " must be 1 .. " + std::to_string(high));
}

py::array_t<std::int16_t> hops_of(const IndexArray& edge_index, const IndexArray& ptr, int max_hops,
                                  int threads) {
  check_range("max_hops", max_hops, INT16_MAX - 1);
  const PackedGraphs graphs = view(edge_index, ptr);
  py::array_t<std::int16_t> hops(pair_begins(graphs).back());
  std::int16_t* out = hops.mutable_data();
  {
    const py::gil_scoped_release release;
    hop_distances(graphs, max_hops, threads, out);
  }
  return hops;
}

py::array_t<std::int32_t> paths_of(const IndexArray& edge_index, const IndexArray& ptr,
                                   int max_length, int threads) {
  check_range("max_length", max_length, INT16_MAX);
  const PackedGraphs graphs = view(edge_index, ptr);
  py::array_t<std::int32_t> edges({pair_begins(graphs).back(), std::int64_t{max_length}});
  std::int32_t* out = edges.mutable_data();
  {
    const py::gil_scoped_release release;
    shortest_path_edges(graphs, max_length, threads, out);
  }
  return edges;
}

py::array_t<float> returns_of(const IndexArray& edge_index, const IndexArray& ptr, int steps,
                              int threads) {
  check_range("steps", steps, INT16_MAX);
  const PackedGraphs graphs = view(edge_index, ptr);
  py::array_t<float> returns({graphs.num_nodes(), std::int64_t{steps}});
  float* out = returns.mutable_data();
  {
    const py::gil_scoped_release release;
    return_probabilities(graphs, steps, threads, out);
  }
  return returns;
}

using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

void gather(const ByteArray& rows, const IndexArray& begins, const IndexArray& counts,
            ByteArray& out) {
  if (rows.ndim() != 2 || out.ndim() != 2 || rows.shape(1) != out.shape(1))
    throw std::invalid_argument("rows and out must have shape [rows, bytes]");
  if (begins.ndim() != 1 || counts.ndim() != 1 || begins.shape(0) != counts.shape(0))
    throw std::invalid_argument("begins and counts must have shape [B]");
  std::int64_t total = 0;
  for (py::ssize_t b = 0; b < begins.shape(0); ++b) {
    const std::int64_t begin = begins.data()[b], count = counts.data()[b];
    if (begin < 0 || count < 0 || begin > rows.shape(0) - count)
      throw std::invalid_argument("begins and counts must lie inside rows");
    total += count;
  }
  if (total != out.shape(0)) throw std::invalid_argument("out must have a row for each of counts");
  gather_segments(reinterpret_cast<const char*>(rows.data()), rows.shape(1), begins.data(),
                  counts.data(), begins.shape(0), reinterpret_cast<char*>(out.mutable_data()));
}

}  // namespace

void define_structure(py::module_& m) {
  m.def("hop_distances", &hops_of, py::arg("edge_index"), py::arg("ptr"), py::arg("max_hops"),
        py::arg("threads"), "int16 [sum of n_g squared]: edges of a shortest path from j to i.");
  m.def("shortest_path_edges", &paths_of, py::arg("edge_index"), py::arg("ptr"),
        py::arg("max_length"), py::arg("threads"),
        "int32 [sum of n_g squared, max_length]: those edges, -1 beyond the end.");
  m.def("return_probabilities", &returns_of, py::arg("edge_index"), py::arg("ptr"),
        py::arg("steps"), py::arg("threads"),
        "float32 [N, steps]: probability that a random walk is back after 1 .. steps edges.");
  m.def("gather_segments", &gather, py::arg("rows"), py::arg("begins"), py::arg("counts"),
        py::arg("out").noconvert(), "Copies runs of rows, one after the other, into out.");
}

}  // namespace gtkern::graph
