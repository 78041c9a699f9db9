// From tensors to the attention kernels: what the rooms of softmax attention share at the op's
// door.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <tuple>
#include <vector>

#include "common/attention/problem.h"
#include "common/check.h"
#include "common/dispatch.h"
#include "common/memory.h"

namespace gtkern::attention {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T, class A>
Inputs<T, A> inputs_of(const Tensor& q, const Tensor& k, const Tensor& v, const Terms& terms,
                       const Numbers& numbers) {
  Inputs<T, A> in;
  in.num_dst = q.size(0);
  in.num_src = k.size(0);
  in.heads = static_cast<int>(q.size(1));
  in.width = static_cast<int>(q.size(2));
  in.value_width = static_cast<int>(v.size(2));
  in.attr_width = terms.attr_width();
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
  in.numbers = numbers;
  return in;
}

// (out, edge_out, lse, scores); scores has `scores_sizes`, or no elements when those are empty.
// `sparse_places`: some places of per-edge results belong to no edge and must read 0.
// `run` computes: run(in, to) with in.csr still empty.
template <class Run>
FourTensors call_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Terms& terms,
                         const Numbers& numbers, const std::vector<std::int64_t>& scores_sizes,
                         bool sparse_places, const Run& run) {
  const ScalarType dtype = q.scalar_type();
  const ScalarType sums = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = new_output(q, {q.size(0), q.size(1), v.size(2)}, dtype);
  Tensor edge_out =
      terms.edge_query ? new_output_like(*terms.edge_query) : new_output(q, {0}, dtype);
  Tensor lse = new_output(q, {q.size(0), q.size(1)}, sums);
  Tensor scores = new_output(q, {0}, sums);
  if (!scores_sizes.empty()) {
    scores = new_output(q, scores_sizes, sums);
    if (sparse_places) torch::stable::zero_(scores);
  }
  dispatch(dtype, [&]<class T, class A>(T*, A*) {
    Results<T, A> to;
    to.out = static_cast<T*>(out.mutable_data_ptr());
    to.edge_out = output_or_null<T>(edge_out);
    to.lse = static_cast<A*>(lse.mutable_data_ptr());
    to.scores = output_or_null<A>(scores);
    run(inputs_of<T, A>(q, k, v, terms, numbers), to);
  });
  return {out, edge_out, lse, scores};
}

// The gradients of q, k, v and the six terms; bit b of `needs` asks for number b. run(in, grad)
// with in.csr and grad.csc still empty.
template <class Run>
NineTensors call_backward(const Tensor& grad_out, const OptionalTensor& grad_edge_out,
                          const OptionalTensor& grad_scores, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& out, const Tensor& lse, const Terms& terms,
                          const Numbers& numbers, std::int64_t needs, bool sparse_places,
                          const Run& run) {
  const ScalarType dtype = q.scalar_type();
  const OptionalTensor inputs[9] = {q,
                                    k,
                                    v,
                                    terms.key_table,
                                    terms.bias_table,
                                    terms.key_edge,
                                    terms.bias_edge,
                                    terms.edge_query,
                                    terms.edge_attr};
  std::array<Tensor, 9> grads;
  for (int i = 0; i < 9; ++i) {
    const bool wanted = (needs >> i & 1) && inputs[i].has_value();
    grads[i] = wanted ? new_output_like(*inputs[i]) : new_output(q, {0}, dtype);
    const bool by_edge = i == 5 || i == 6 || i == 8;
    if (wanted && by_edge && sparse_places) torch::stable::zero_(grads[i]);
  }
  dispatch(dtype, [&]<class T, class A>(T*, A*) {
    Backward<T, A> grad;
    grad.grad_out = static_cast<const T*>(grad_out.const_data_ptr());
    grad.grad_edge_out = pointer_or_null<T>(grad_edge_out);
    grad.grad_scores = pointer_or_null<A>(grad_scores);
    grad.out = static_cast<const T*>(out.const_data_ptr());
    grad.lse = static_cast<const A*>(lse.const_data_ptr());
    grad.q = output_or_null<T>(grads[0]);
    grad.k = output_or_null<T>(grads[1]);
    grad.v = output_or_null<T>(grads[2]);
    grad.key_table = output_or_null<A>(grads[3]);
    grad.bias_table = output_or_null<A>(grads[4]);
    grad.key_edge = output_or_null<A>(grads[5]);
    grad.bias_edge = output_or_null<A>(grads[6]);
    grad.edge_query = output_or_null<T>(grads[7]);
    grad.edge_attr = output_or_null<T>(grads[8]);
    run(inputs_of<T, A>(q, k, v, terms, numbers), grad);
  });
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6], grads[7], grads[8]};
}

}  // namespace gtkern::attention
