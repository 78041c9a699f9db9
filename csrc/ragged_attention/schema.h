#pragma once

// The schemas of ragged_attention's native ops. Shapes: q, k [N, H, D]; v [N, H, Dv]; ptr, pair_ptr
// int64 [G + 1] (gtkern/ragged.py); index: uint8 or int16 [num_pairs] each, 255 or -1 masks a pair;
// table [B, H] in the dtype of sums, the rows of index m beginning at first_row[m]; prefix_k
// [P, H, D] and prefix_v [P, H, Dv] in the dtype of q; with row_set int64 [N], the same for all
// rows of a graph, they are sets [S, P, H, *], and the rows of a set outside 0 .. S - 1 see none.
// Results: out as v; lse [N, H] in the dtype of sums, natural, -inf for a query without keys. Bit b
// of `needs` asks for gradient number b; one that is not asked for has no elements.

namespace gtkern::ragged_attention {

inline constexpr const char* kForwardSchema =
    "ragged_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor ptr, Tensor pair_ptr, "
    "int max_nodes, Tensor[] index, Tensor? table, int[] first_row, Tensor? prefix_k, "
    "Tensor? prefix_v, Tensor? row_set, float scale, float dropout, int seed) -> "
    "(Tensor out, Tensor lse)";

inline constexpr const char* kBackwardSchema =
    "ragged_attention_bwd(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor ptr, Tensor pair_ptr, int max_nodes, Tensor[] index, Tensor? table, int[] first_row, "
    "Tensor? prefix_k, Tensor? prefix_v, Tensor? row_set, float scale, float dropout, int seed, "
    "int needs) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_table, "
    "Tensor grad_prefix_k, Tensor grad_prefix_v)";

}  // namespace gtkern::ragged_attention
