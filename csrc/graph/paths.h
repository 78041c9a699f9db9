// Shortest paths between all nodes of each graph, in edges.
#pragma once

#include <cstdint>

#include "graph/packed.h"

namespace gtkern::graph {

// hops[pair (i, j)] = edges of a shortest path from j to i; max_hops + 1 where there is none or it
// is longer.
void hop_distances(const PackedGraphs& graphs, int max_hops, int threads, std::int16_t* hops);

// edges[pair (i, j)][0 .. max_length) = the edges of a shortest path from j to i, the one that
// enters i first; -1 beyond its end. From j on, the path goes to the lowest node that is nearer to
// i, by the lowest edge.
void shortest_path_edges(const PackedGraphs& graphs, int max_length, int threads,
                         std::int32_t* edges);

}  // namespace gtkern::graph
