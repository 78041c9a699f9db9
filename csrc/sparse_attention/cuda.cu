// sparse_attention for CUDA tensors: reads the arguments and calls the shared attention kernels.

#include <torch/csrc/stable/library.h>

#include "common/attention/gpu.h"
#include "common/launch.h"
#include "sparse_attention/schema.h"

namespace gtkern::sparse_attention {
namespace {

using attention::gpu::edges_of;
using torch::stable::Tensor;

attention::FourTensors forward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& row_ptr, const Tensor& col, const Tensor& edge_id,
                               const Tensor& edge_type, const Tensor& heavy,
                               const OptionalTensor& key_table, const OptionalTensor& bias_table,
                               const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                               const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                               double scale, double clamp, double temperature, double dropout,
                               double eps, std::int64_t seed, bool return_scores) {
  std::vector<std::int64_t> scores_sizes;
  if (return_scores) scores_sizes = {col.numel(), q.size(1)};
  return attention::gpu::forward(
      q, k, v, edges_of(row_ptr, col, edge_id, edge_type, heavy),
      {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, scores_sizes);
}

attention::NineTensors backward(const Tensor& grad_out, const OptionalTensor& grad_edge_out,
                                const OptionalTensor& grad_scores, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor& edge_out,
                                const Tensor& lse, const Tensor& row_ptr, const Tensor& col,
                                const Tensor& edge_id, const Tensor& edge_type, const Tensor& heavy,
                                const Tensor& col_ptr, const Tensor& row, const Tensor& edge_id_t,
                                const Tensor& edge_type_t, const Tensor& heavy_t,
                                const OptionalTensor& key_table, const OptionalTensor& bias_table,
                                const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                                const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                                double scale, double clamp, double temperature, double dropout,
                                double eps, std::int64_t seed, std::int64_t needs, bool) {
  return attention::gpu::backward(
      grad_out, grad_edge_out, grad_scores, q, k, v, out, edge_out, lse,
      edges_of(row_ptr, col, edge_id, edge_type, heavy),
      edges_of(col_ptr, row, edge_id_t, edge_type_t, heavy_t),
      {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, needs);
}

}  // namespace
}  // namespace gtkern::sparse_attention

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::sparse_attention::kForwardSchema);
  m.def(gtkern::sparse_attention::kBackwardSchema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("sparse_attention_fwd", TORCH_BOX(&gtkern::sparse_attention::forward));
  m.impl("sparse_attention_bwd", TORCH_BOX(&gtkern::sparse_attention::backward));
}
