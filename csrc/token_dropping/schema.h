#pragma once

// The schemas of token dropping's native ops. Shapes: score [N]; ptr, kept_ptr int64 [G + 1]; index
// int64 [M], ascending; position int32 [N], -1 for a dropped row; x, fill, grad_x [N, C]; y
// [M, C]; gate [M]; always_keep bool [N]. gtkern/ops/token_dropping/reference.py says what each
// computes. A gradient that is not needed has no elements.

namespace gtkern::token_dropping {

inline constexpr const char* kSelectSchema =
    "token_select(Tensor score, Tensor ptr, Tensor kept_ptr, int num_kept, Tensor? always_keep, "
    "bool noise, int seed) -> (Tensor index, Tensor position)";

// of the CPU alone: counts.py in one call. k int64 [1] or [G], not negative, or none: by ratio; the
// first row whose score is NaN, or -1
inline constexpr const char* kCountSchema =
    "token_count(Tensor score, Tensor ptr, Tensor? k, float ratio, Tensor? always_keep) -> "
    "(Tensor kept_ptr, int nan_row)";

inline constexpr const char* kGateBackwardSchema =
    "token_gate_bwd(Tensor grad_gate, Tensor score, Tensor ptr, Tensor position, "
    "Tensor? always_keep, float temperature, bool noise, int seed) -> Tensor grad_score";

inline constexpr const char* kGatherSchema =
    "token_gather(Tensor x, Tensor? gate, Tensor index) -> Tensor";

inline constexpr const char* kGatherBackwardSchema =
    "token_gather_bwd(Tensor grad_out, Tensor? x, Tensor? gate, Tensor index, Tensor position, "
    "bool needs_x, bool needs_gate) -> (Tensor grad_x, Tensor grad_gate)";

inline constexpr const char* kScatterSchema =
    "token_scatter(Tensor? y, Tensor? fill, Tensor position) -> Tensor";

// of the CPU alone; source, destination int32 or int64 [E]
inline constexpr const char* kDropEdgesSchema =
    "token_drop_edges(Tensor source, Tensor destination, Tensor position) -> "
    "(Tensor edges, Tensor edge)";

// of the CPU alone; an Adjacency of gtkern/graph.py: row_ptr int64 [N + 1], col int32 [E], edge_id
// int64 [E] or empty, edge_type uint8 [E] or empty
inline constexpr const char* kDropRowsSchema =
    "token_drop_rows(Tensor row_ptr, Tensor col, Tensor edge_id, Tensor edge_type, Tensor index, "
    "Tensor position) -> (Tensor row_ptr, Tensor col, Tensor edge, Tensor edge_type)";

// The two halves of both on a GPU, between which the host learns the number of edges kept. kept:
// int8 [E], after: its running sum; kept_ptr: 0 and the running sum of the degrees.
inline constexpr const char* kKeptEdgesSchema =
    "token_kept_edges(Tensor source, Tensor destination, Tensor position) -> Tensor kept";
inline constexpr const char* kWriteEdgesSchema =
    "token_write_edges(Tensor source, Tensor destination, Tensor position, Tensor kept, "
    "Tensor after, int count) -> (Tensor edges, Tensor edge)";
inline constexpr const char* kDegreesSchema =
    "token_degrees(Tensor row_ptr, Tensor col, Tensor index, Tensor position) -> Tensor";
inline constexpr const char* kWriteRowsSchema =
    "token_write_rows(Tensor row_ptr, Tensor col, Tensor edge_id, Tensor edge_type, Tensor index, "
    "Tensor position, Tensor kept_ptr, int count) -> (Tensor col, Tensor edge, Tensor edge_type)";

// entry uint8 or int16 [pairs]
inline constexpr const char* kGatherPairsSchema =
    "token_gather_pairs(Tensor entry, Tensor ptr, Tensor pair_ptr, Tensor index, Tensor kept_ptr, "
    "Tensor kept_pair_ptr, int num_pairs) -> Tensor";

}  // namespace gtkern::token_dropping
