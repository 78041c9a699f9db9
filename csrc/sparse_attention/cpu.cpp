// sparse_attention for CPU tensors: reads the arguments and calls the shared attention kernels.

#include <torch/csrc/stable/library.h>

#include "common/attention/binding.h"
#include "sparse_attention/schema.h"

namespace gtkern::sparse_attention {
namespace {

using torch::stable::Tensor;

attention::Edges edges_of(const Tensor& ptr, const Tensor& index, const Tensor& edge_id,
                          const Tensor& edge_type) {
  return {ptr.numel() - 1, ptr.const_data_ptr<std::int64_t>(), index.const_data_ptr<std::int32_t>(),
          pointer_or_null<std::int64_t>(edge_id), pointer_or_null<std::uint8_t>(edge_type)};
}

attention::FourTensors forward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& row_ptr, const Tensor& col, const Tensor& edge_id,
                               const Tensor& edge_type, const Tensor&,
                               const OptionalTensor& key_table, const OptionalTensor& bias_table,
                               const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                               const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                               double scale, double clamp, double temperature, double dropout,
                               double eps, std::int64_t seed, bool return_scores) {
  std::vector<std::int64_t> scores_sizes;
  if (return_scores) scores_sizes = {col.numel(), q.size(1)};
  return attention::call_forward(
      q, k, v, {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, scores_sizes,
      false, [&](auto in, const auto& to) {
        in.csr = edges_of(row_ptr, col, edge_id, edge_type);
        attention::forward(in, to);
      });
}

attention::NineTensors backward(const Tensor& grad_out, const OptionalTensor& grad_edge_out,
                                const OptionalTensor& grad_scores, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor& edge_out,
                                const Tensor& lse, const Tensor& row_ptr, const Tensor& col,
                                const Tensor& edge_id, const Tensor& edge_type, const Tensor&,
                                const Tensor& col_ptr, const Tensor& row, const Tensor& edge_id_t,
                                const Tensor& edge_type_t, const Tensor&,
                                const OptionalTensor& key_table, const OptionalTensor& bias_table,
                                const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                                const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                                double scale, double clamp, double temperature, double dropout,
                                double eps, std::int64_t seed, std::int64_t needs, bool partial) {
  return attention::call_backward(
      grad_out, grad_edge_out, grad_scores, q, k, v, out, lse,
      {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, needs, false,
      [&](auto in, auto grad) {
        in.csr = edges_of(row_ptr, col, edge_id, edge_type);
        grad.csc = edges_of(col_ptr, row, edge_id_t, edge_type_t);
        grad.partial = partial;
        using T = std::remove_cvref_t<decltype(*grad.out)>;
        if (partial) grad.edge_out = pointer_or_null<T>(edge_out);
        attention::backward(in, grad);
      });
}

}  // namespace
}  // namespace gtkern::sparse_attention

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::sparse_attention::kForwardSchema);
  m.def(gtkern::sparse_attention::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("sparse_attention_fwd", TORCH_BOX(&gtkern::sparse_attention::forward));
  m.impl("sparse_attention_bwd", TORCH_BOX(&gtkern::sparse_attention::backward));
}
