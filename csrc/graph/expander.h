// Random regular expander graphs.
#pragma once

#include <cstdint>
#include <vector>

namespace gtkern::graph {

enum class Algorithm { kHamiltonian, kRandomD, kRandomD2 };

// Both directions of every edge: edge e + E/2 is edge e reversed, for e < E/2.
struct EdgeList {
  std::vector<std::int64_t> source, destination;
};

// The union of `degree` random permutations and their inverses, or of random cycles: every node has
// 2 * degree neighbours, counted with multiplicity. `attempt` tells draws of one seed apart.
EdgeList draw(Algorithm algorithm, std::int64_t num_nodes, std::int64_t degree, std::uint64_t seed,
              std::uint32_t attempt);

// Without self loops and repetitions, sorted by (source, destination).
EdgeList without_duplicates(const EdgeList& edges, std::int64_t num_nodes);

}  // namespace gtkern::graph
