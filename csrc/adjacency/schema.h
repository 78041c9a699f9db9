// The schema of the op that groups edges; see gtkern/graph.py.
#pragma once

namespace gtkern {

inline constexpr const char* kGroupEdgesSchema =
    "group_edges(Tensor key, Tensor value, Tensor edge_type, int rows, int values)"
    " -> (Tensor ptr, Tensor index, Tensor order, Tensor edge_type)";

}  // namespace gtkern
