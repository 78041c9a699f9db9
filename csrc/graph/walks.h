// Return probabilities of random walks.
#pragma once

#include "graph/packed.h"

namespace gtkern::graph {

// returns[i][t - 1] = probability that a walk from node i, which leaves each node by one of its
// edges at random, is back at i after t = 1 .. steps edges. 0 where the walk finds no edge.
void return_probabilities(const PackedGraphs& graphs, int steps, int threads, float* returns);

}  // namespace gtkern::graph
