#pragma once

// The schemas of sparse_attention's native ops, the same for every backend. Shapes, in order:
//   q [N_dst, H, D]; k [N_src, H, D]; v [N_src, H, Dv]; one dtype of fp32, bf16, fp16 (CPU: fp64).
//   An adjacency is five tensors (gtkern/graph.py): ptr int64 [rows + 1], index int32 [E],
//   edge_id int64 [E] or [0] (the identity), edge_type uint8 [E] or [0] (all 0), heavy int64 [M,
//   3]. key_table [T, H, D], bias_table [T, H], key_edge [E, H, D], bias_edge [E, H] in fp32 (fp64
//   with fp64 q); edge_query [N_dst, H, De] and edge_attr [E, De] in the dtype of q. out [N_dst, H,
//   Dv]; edge_out [N_dst, H, De] or [0]; lse fp32 [N_dst, H]; scores fp32 [E, H] or [0].
// The nine gradients stand in the order q, k, v, then the six terms; bit b of `needs` asks for
// number b, and one that is not needed has no elements. `partial`: rows attend to more than their
// edges, and out, edge_out and lse are those of whole rows; it does not go with grad_scores.

namespace gtkern::sparse_attention {

inline constexpr const char* kForwardSchema =
    "sparse_attention_fwd(Tensor q, Tensor k, Tensor v, "
    "Tensor row_ptr, Tensor col, Tensor edge_id, Tensor edge_type, Tensor heavy, "
    "Tensor? key_table, Tensor? bias_table, Tensor? key_edge, Tensor? bias_edge, "
    "Tensor? edge_query, Tensor? edge_attr, "
    "float scale, float clamp, float temperature, float dropout, float eps, int seed, "
    "bool return_scores) -> (Tensor out, Tensor edge_out, Tensor lse, Tensor scores)";

inline constexpr const char* kBackwardSchema =
    "sparse_attention_bwd(Tensor grad_out, Tensor? grad_edge_out, Tensor? grad_scores, "
    "Tensor q, Tensor k, Tensor v, Tensor out, Tensor edge_out, Tensor lse, "
    "Tensor row_ptr, Tensor col, Tensor edge_id, Tensor edge_type, Tensor heavy, "
    "Tensor col_ptr, Tensor row, Tensor edge_id_t, Tensor edge_type_t, Tensor heavy_t, "
    "Tensor? key_table, Tensor? bias_table, Tensor? key_edge, Tensor? bias_edge, "
    "Tensor? edge_query, Tensor? edge_attr, "
    "float scale, float clamp, float temperature, float dropout, float eps, int seed, int needs, "
    "bool partial=False) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_key_table, "
    "Tensor grad_bias_table, Tensor grad_key_edge, Tensor grad_bias_edge, Tensor grad_edge_query, "
    "Tensor grad_edge_attr)";

}  // namespace gtkern::sparse_attention
