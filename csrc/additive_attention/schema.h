#pragma once

// The schemas of additive_attention's native ops, the same for every backend. Shapes, in order:
//   q [N_dst, H, D]; k, v [N_src, H, D], without a v the keys are the values; attention [H, D];
//   edge_attr [E, H, D]; one dtype of fp32, bf16, fp16 (CPU: fp64). The edges by destination
//   (gtkern/graph.py): row_ptr int64 [N_dst + 1], col int32 [E], edge_id int64 [E] or [0] (the
//   identity); col_ptr, row and edge_id_t are those by source. out [N_dst, H, D]; lse fp32 (fp64
//   with fp64 q) [N_dst, H]; scores [E, H] or [0], dtype of lse.
// The five gradients stand in the order of the inputs; bit b of `needs` asks for number b, and one
// that is not needed has no elements. Without a v, that of k holds both of its shares.

namespace gtkern::additive_attention {

inline constexpr const char* kForwardSchema =
    "additive_attention_fwd(Tensor q, Tensor k, Tensor? v, Tensor attention, Tensor? edge_attr, "
    "Tensor row_ptr, Tensor col, Tensor edge_id, "
    "float negative_slope, float dropout, int seed, bool return_scores) "
    "-> (Tensor out, Tensor lse, Tensor scores)";

inline constexpr const char* kBackwardSchema =
    "additive_attention_bwd(Tensor grad_out, Tensor? grad_scores, "
    "Tensor q, Tensor k, Tensor? v, Tensor attention, Tensor? edge_attr, Tensor out, Tensor lse, "
    "Tensor row_ptr, Tensor col, Tensor edge_id, Tensor col_ptr, Tensor row, Tensor edge_id_t, "
    "float negative_slope, float dropout, int seed, int needs) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_attention, "
    "Tensor grad_edge_attr)";

}  // namespace gtkern::additive_attention
