// sparse_attention for CPU tensors: reads the arguments and calls the shared attention kernels.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <tuple>

#include "common/attention/problem.h"
#include "common/check.h"
#include "common/memory.h"
#include "sparse_attention/schema.h"

namespace gtkern::sparse_attention {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

attention::Edges edges_of(const Tensor& ptr, const Tensor& index, const Tensor& edge_id,
                          const Tensor& edge_type) {
  return {ptr.numel() - 1, ptr.const_data_ptr<std::int64_t>(), index.const_data_ptr<std::int32_t>(),
          pointer_or_null<std::int64_t>(edge_id), pointer_or_null<std::uint8_t>(edge_type)};
}

// Calls f with a (T, A) pair of null pointers that name the dtypes.
template <class F>
void dispatch(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<c10::BFloat16*>(nullptr), static_cast<float*>(nullptr));
    case ScalarType::Half: return f(static_cast<c10::Half*>(nullptr), static_cast<float*>(nullptr));
    default: STD_TORCH_CHECK(false, "q must be float32, float64, bfloat16 or float16");
  }
}

struct Terms {
  const OptionalTensor &key_table, &bias_table, &key_edge, &bias_edge, &edge_query, &edge_attr;
};

template <class T, class A>
attention::Inputs<T, A> inputs_of(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const attention::Edges& csr, const Terms& terms,
                                  const attention::Numbers& numbers) {
  attention::Inputs<T, A> in;
  in.num_dst = q.size(0);
  in.num_src = k.size(0);
  in.num_edges = csr.rows > 0 ? csr.ptr[csr.rows] : 0;
  in.heads = static_cast<int>(q.size(1));
  in.width = static_cast<int>(q.size(2));
  in.value_width = static_cast<int>(v.size(2));
  in.attr_width = terms.edge_attr ? static_cast<int>(terms.edge_attr->size(1)) : 0;
  in.types = terms.key_table    ? static_cast<int>(terms.key_table->size(0))
             : terms.bias_table ? static_cast<int>(terms.bias_table->size(0))
                                : 1;
  in.q = static_cast<const T*>(q.const_data_ptr());
  in.k = static_cast<const T*>(k.const_data_ptr());
  in.v = static_cast<const T*>(v.const_data_ptr());
  in.key_table = pointer_or_null<A>(terms.key_table);
  in.bias_table = pointer_or_null<A>(terms.bias_table);
  in.key_edge = pointer_or_null<A>(terms.key_edge);
  in.bias_edge = pointer_or_null<A>(terms.bias_edge);
  in.edge_query = pointer_or_null<T>(terms.edge_query);
  in.edge_attr = pointer_or_null<T>(terms.edge_attr);
  in.csr = csr;
  in.numbers = numbers;
  return in;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& row_ptr, const Tensor& col,
    const Tensor& edge_id, const Tensor& edge_type, const Tensor&, const OptionalTensor& key_table,
    const OptionalTensor& bias_table, const OptionalTensor& key_edge,
    const OptionalTensor& bias_edge, const OptionalTensor& edge_query,
    const OptionalTensor& edge_attr, double scale, double clamp, double temperature, double dropout,
    double eps, std::int64_t seed, bool return_scores) {
  const attention::Numbers numbers{scale,   clamp, temperature,
                                   dropout, eps,   static_cast<std::uint64_t>(seed)};
  const Terms terms{key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr};
  const ScalarType dtype = q.scalar_type();
  const ScalarType sums = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = new_output(q, {q.size(0), q.size(1), v.size(2)}, dtype);
  Tensor edge_out = edge_attr ? new_output(q, {q.size(0), q.size(1), edge_attr->size(1)}, dtype)
                              : new_output(q, {0}, dtype);
  Tensor lse = new_output(q, {q.size(0), q.size(1)}, sums);
  Tensor scores =
      return_scores ? new_output(q, {col.numel(), q.size(1)}, sums) : new_output(q, {0}, sums);
  const attention::Edges csr = edges_of(row_ptr, col, edge_id, edge_type);
  dispatch(dtype, [&]<class T, class A>(T*, A*) {
    attention::Results<T, A> to;
    to.out = static_cast<T*>(out.mutable_data_ptr());
    to.edge_out = output_or_null<T>(edge_out);
    to.lse = static_cast<A*>(lse.mutable_data_ptr());
    to.scores = output_or_null<A>(scores);
    attention::forward(inputs_of<T, A>(q, k, v, csr, terms, numbers), to);
  });
  return {out, edge_out, lse, scores};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const OptionalTensor& grad_edge_out, const OptionalTensor& grad_scores,
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor&,
    const Tensor& lse, const Tensor& row_ptr, const Tensor& col, const Tensor& edge_id,
    const Tensor& edge_type, const Tensor&, const Tensor& col_ptr, const Tensor& row,
    const Tensor& edge_id_t, const Tensor& edge_type_t, const Tensor&,
    const OptionalTensor& key_table, const OptionalTensor& bias_table,
    const OptionalTensor& key_edge, const OptionalTensor& bias_edge,
    const OptionalTensor& edge_query, const OptionalTensor& edge_attr, double scale, double clamp,
    double temperature, double dropout, double eps, std::int64_t seed, std::int64_t needs) {
  const attention::Numbers numbers{scale,   clamp, temperature,
                                   dropout, eps,   static_cast<std::uint64_t>(seed)};
  const Terms terms{key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr};
  const ScalarType dtype = q.scalar_type();
  std::array<Tensor, 9> grads;
  const OptionalTensor inputs[9] = {q,        k,         v,          key_table, bias_table,
                                    key_edge, bias_edge, edge_query, edge_attr};
  for (int i = 0; i < 9; ++i) {
    const bool wanted = (needs >> i & 1) && inputs[i].has_value();
    grads[i] = wanted ? new_output_like(*inputs[i]) : new_output(q, {0}, dtype);
  }
  dispatch(dtype, [&]<class T, class A>(T*, A*) {
    attention::Backward<T, A> grad;
    grad.grad_out = static_cast<const T*>(grad_out.const_data_ptr());
    grad.grad_edge_out = pointer_or_null<T>(grad_edge_out);
    grad.grad_scores = pointer_or_null<A>(grad_scores);
    grad.out = static_cast<const T*>(out.const_data_ptr());
    grad.lse = static_cast<const A*>(lse.const_data_ptr());
    grad.csc = edges_of(col_ptr, row, edge_id_t, edge_type_t);
    grad.q = output_or_null<T>(grads[0]);
    grad.k = output_or_null<T>(grads[1]);
    grad.v = output_or_null<T>(grads[2]);
    grad.key_table = output_or_null<A>(grads[3]);
    grad.bias_table = output_or_null<A>(grads[4]);
    grad.key_edge = output_or_null<A>(grads[5]);
    grad.bias_edge = output_or_null<A>(grads[6]);
    grad.edge_query = output_or_null<T>(grads[7]);
    grad.edge_attr = output_or_null<T>(grads[8]);
    const attention::Edges csr = edges_of(row_ptr, col, edge_id, edge_type);
    attention::backward(inputs_of<T, A>(q, k, v, csr, terms, numbers), grad);
  });
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6], grads[7], grads[8]};
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
