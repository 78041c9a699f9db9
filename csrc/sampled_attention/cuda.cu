// sampled_attention for CUDA tensors: reads the arguments and calls the shared attention kernels,
// with rows of K places for the destinations.

#include <torch/csrc/stable/library.h>

#include "common/attention/gpu.h"
#include "common/launch.h"
#include "sampled_attention/schema.h"

namespace gtkern::sampled_attention {
namespace {

using torch::stable::Tensor;

attention::FourTensors forward(const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& neighbors, const Tensor& edge_type,
                               const OptionalTensor& key_table, const OptionalTensor& bias_table,
                               const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                               const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                               double scale, double clamp, double temperature, double dropout,
                               double eps, std::int64_t seed, bool return_scores) {
  std::vector<std::int64_t> scores_sizes;
  if (return_scores) scores_sizes = {neighbors.size(0), neighbors.size(1), q.size(1)};
  return attention::gpu::forward(
      q, k, v, attention::gpu::edges_of_places(neighbors, edge_type),
      {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, scores_sizes);
}

attention::NineTensors backward(const Tensor& grad_out, const OptionalTensor& grad_edge_out,
                                const OptionalTensor& grad_scores, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor& edge_out,
                                const Tensor& lse, const Tensor& neighbors, const Tensor& edge_type,
                                const std::vector<Tensor>& by_source,
                                const OptionalTensor& key_table, const OptionalTensor& bias_table,
                                const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
                                const OptionalTensor& edge_query, const OptionalTensor& edge_attr,
                                double scale, double clamp, double temperature, double dropout,
                                double eps, std::int64_t seed, std::int64_t needs) {
  constexpr std::int64_t kGradientsOfKAndV = 0b110;
  attention::gpu::Edges columns{};
  if (needs & kGradientsOfKAndV) {
    STD_TORCH_CHECK(by_source.size() == 5,
                    "by_source must hold the 5 tensors of an adjacency, got ", by_source.size());
    columns = attention::gpu::edges_of(by_source[0], by_source[1], by_source[2], by_source[3],
                                       by_source[4]);
  }
  return attention::gpu::backward(
      grad_out, grad_edge_out, grad_scores, q, k, v, out, edge_out, lse,
      attention::gpu::edges_of_places(neighbors, edge_type), columns,
      {key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr},
      {scale, clamp, temperature, dropout, eps, static_cast<std::uint64_t>(seed)}, needs);
}

}  // namespace
}  // namespace gtkern::sampled_attention

#if defined(GTKERN_EMULATE)
STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_emulated, m) {
  m.def(gtkern::sampled_attention::kForwardSchema);
  m.def(gtkern::sampled_attention::kBackwardSchema);
}
#endif

STABLE_TORCH_LIBRARY_IMPL(GTKERN_NAMESPACE, GTKERN_DISPATCH_KEY, m) {
  m.impl("sampled_attention_fwd", TORCH_BOX(&gtkern::sampled_attention::forward));
  m.impl("sampled_attention_bwd", TORCH_BOX(&gtkern::sampled_attention::backward));
}
