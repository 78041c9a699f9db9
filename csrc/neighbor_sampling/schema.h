#pragma once

// The schemas of neighbor_sampling's native ops, the same for every backend.
//   row_ptr int64 [N + 1], col int32 [E], edge_id int64 [E] or [0] (the identity), edge_type uint8
//   [E] or [0] (no types): gtkern/graph.py. weight: fp32 [1 or L, E]; absent: all 1. prefix: uint32
//   [1 or L, E], the table of the weights, which are then by position; absent: they are by edge_id,
//   and what is needed of the table is made on the way. k: places of each layer. top: the largest
//   weights in place of a draw. pad: -1 in place of draws with replacement.
// Results, layer by layer: index int32, edge int64 and type uint8, each [sum over layers of N k];
// type has no elements where the graph has none. gtkern/ops/neighbor_sampling/README.md says which
// edges are drawn, to the bit.

namespace gtkern::neighbor_sampling {

inline constexpr const char* kSampleSchema =
    "sample_neighbors(Tensor row_ptr, Tensor col, Tensor edge_id, Tensor edge_type, "
    "Tensor? weight, Tensor? prefix, int[] k, int seed, int epoch, bool top, bool pad) "
    "-> (Tensor index, Tensor edge, Tensor type)";

// The table of weights fp32 [L, E] by edge_id: the weights by position, and their prefix sums.
inline constexpr const char* kTableSchema =
    "sampling_table(Tensor row_ptr, Tensor edge_id, Tensor weight) "
    "-> (Tensor weight, Tensor prefix)";

// One layer of layer_batches. targets int64 [B], distinct; index int32, edge int64 and type uint8
// [N, k] (type [0, k]: no types). Results: the sources int64 [S], the targets first, then their
// neighbours as they are first seen; and the targets' rows, index as places in the sources.
inline constexpr const char* kBatchSchema =
    "layer_batch(Tensor targets, Tensor index, Tensor edge, Tensor type) "
    "-> (Tensor nodes, Tensor index, Tensor edge, Tensor type)";

}  // namespace gtkern::neighbor_sampling
