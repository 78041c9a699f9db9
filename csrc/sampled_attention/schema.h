#pragma once

// The schemas of sampled_attention's native ops. Shapes: q [N_dst, H, D]; k [N_src, H, D];
// v [N_src, H, Dv]; neighbors int32 [N_dst, K], -1 for padding; edge_type uint8 [N_dst, K] or [0].
// Terms and results as in sparse_attention/schema.h, with [N_dst, K] in the place of [E].
// by_source: the places grouped by neighbour as five tensors (gtkern/graph.py's Adjacency), for the
// gradients of k and v on a GPU; the CPU groups them itself and gets none.

namespace gtkern::sampled_attention {

inline constexpr const char* kForwardSchema =
    "sampled_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor neighbors, Tensor edge_type, "
    "Tensor? key_table, Tensor? bias_table, Tensor? key_edge, Tensor? bias_edge, "
    "Tensor? edge_query, Tensor? edge_attr, "
    "float scale, float clamp, float temperature, float dropout, float eps, int seed, "
    "bool return_scores) -> (Tensor out, Tensor edge_out, Tensor lse, Tensor scores)";

inline constexpr const char* kBackwardSchema =
    "sampled_attention_bwd(Tensor grad_out, Tensor? grad_edge_out, Tensor? grad_scores, "
    "Tensor q, Tensor k, Tensor v, Tensor out, Tensor edge_out, Tensor lse, Tensor neighbors, "
    "Tensor edge_type, Tensor[] by_source, Tensor? key_table, Tensor? bias_table, Tensor? "
    "key_edge, "
    "Tensor? bias_edge, Tensor? edge_query, Tensor? edge_attr, "
    "float scale, float clamp, float temperature, float dropout, float eps, int seed, int needs) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_key_table, "
    "Tensor grad_bias_table, Tensor grad_key_edge, Tensor grad_bias_edge, Tensor grad_edge_query, "
    "Tensor grad_edge_attr)";

}  // namespace gtkern::sampled_attention
