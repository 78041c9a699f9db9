// ragged_attention for CPU tensors: reads the arguments and calls the kernels.

#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/dispatch.h"
#include "common/memory.h"
#include "ragged_attention/kernels.h"
#include "ragged_attention/schema.h"

namespace gtkern::ragged_attention {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// q, k and v may be parts of one projection: only a row's heads must lie one after the other.
std::int64_t row_stride(const Tensor& rows) {
  STD_TORCH_CHECK(rows.numel() == 0 || (rows.stride(2) == 1 && rows.stride(1) == rows.size(2)),
                  "the heads of a row must lie one after the other");
  return rows.stride(0);
}

template <class T, class A>
Problem<T, A> problem_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ptr,
                         const Tensor& pair_ptr, std::int64_t max_nodes,
                         const std::vector<Tensor>& index, const OptionalTensor& table,
                         const std::vector<std::int64_t>& first_row, const OptionalTensor& prefix_k,
                         const OptionalTensor& prefix_v, const OptionalTensor& row_set,
                         double scale, double dropout, std::int64_t seed) {
  Problem<T, A> in;
  in.graphs = ptr.size(0) - 1;
  in.nodes = q.size(0);
  in.heads = q.size(1);
  in.width = q.size(2);
  in.value_width = v.size(2);
  in.q_row = row_stride(q);
  in.k_row = row_stride(k);
  in.v_row = row_stride(v);
  in.max_nodes = max_nodes;
  in.ptr = ptr.const_data_ptr<std::int64_t>();
  in.pair_ptr = pair_ptr.const_data_ptr<std::int64_t>();
  in.pairs = in.pair_ptr[in.graphs];
  in.q = static_cast<const T*>(q.const_data_ptr());
  in.k = static_cast<const T*>(k.const_data_ptr());
  in.v = static_cast<const T*>(v.const_data_ptr());
  in.row_set = pointer_or_null<std::int64_t>(row_set);
  if (prefix_k.has_value()) {
    in.slots = prefix_k->size(row_set.has_value() ? 1 : 0);
    in.sets = row_set.has_value() ? prefix_k->size(0) : 1;
  }
  in.prefix_k = pointer_or_null<T>(prefix_k);
  in.prefix_v = pointer_or_null<T>(prefix_v);
  in.table = pointer_or_null<A>(table);
  in.table_rows = table.has_value() ? table->size(0) : 0;
  for (std::size_t m = 0; m < index.size(); ++m) {
    Index one;
    if (index[m].scalar_type() == ScalarType::Byte) {
      one.bytes = index[m].const_data_ptr<std::uint8_t>();
    } else {
      one.shorts = index[m].const_data_ptr<std::int16_t>();
    }
    one.first_row = first_row[m];
    one.rows = (m + 1 < index.size() ? first_row[m + 1] : in.table_rows) - one.first_row;
    in.indices.push_back(one);
  }
  in.scale = scale;
  in.dropout = dropout;
  in.seed = static_cast<std::uint64_t>(seed);
  return in;
}

std::tuple<Tensor, Tensor> forward_op(const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Tensor& ptr, const Tensor& pair_ptr,
                                      std::int64_t max_nodes, const std::vector<Tensor>& index,
                                      const OptionalTensor& table,
                                      const std::vector<std::int64_t>& first_row,
                                      const OptionalTensor& prefix_k,
                                      const OptionalTensor& prefix_v, const OptionalTensor& row_set,
                                      double scale, double dropout, std::int64_t seed) {
  const ScalarType dtype = q.scalar_type();
  const ScalarType sums = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = new_output(q, {q.size(0), q.size(1), v.size(2)}, dtype);
  Tensor lse = new_output(q, {q.size(0), q.size(1)}, sums);
  dispatch(dtype, [&]<class T, class A>(T*, A*) {
    forward(problem_of<T, A>(q, k, v, ptr, pair_ptr, max_nodes, index, table, first_row, prefix_k,
                             prefix_v, row_set, scale, dropout, seed),
            Results<T, A>{static_cast<T*>(out.mutable_data_ptr()),
                          static_cast<A*>(lse.mutable_data_ptr())});
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_op(
    const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&,
    const Tensor& lse, const Tensor& ptr, const Tensor& pair_ptr, std::int64_t max_nodes,
    const std::vector<Tensor>& index, const OptionalTensor& table,
    const std::vector<std::int64_t>& first_row, const OptionalTensor& prefix_k,
    const OptionalTensor& prefix_v, const OptionalTensor& row_set, double scale, double dropout,
    std::int64_t seed, std::int64_t needs) {
  const OptionalTensor inputs[6] = {q, k, v, table, prefix_k, prefix_v};
  std::array<Tensor, 6> grads;
  for (int i = 0; i < 6; ++i) {
    const bool wanted = (needs >> i & 1) && inputs[i].has_value();
    const ScalarType dtype = inputs[i].has_value() ? inputs[i]->scalar_type() : q.scalar_type();
    grads[i] = wanted ? new_output_like(*inputs[i]) : new_output(q, {0}, dtype);
  }
  dispatch(q.scalar_type(), [&]<class T, class A>(T*, A*) {
    Backward<T, A> grad;
    grad.grad_out = static_cast<const T*>(grad_out.const_data_ptr());
    grad.lse = static_cast<const A*>(lse.const_data_ptr());
    grad.q = output_or_null<T>(grads[0]);
    grad.k = output_or_null<T>(grads[1]);
    grad.v = output_or_null<T>(grads[2]);
    grad.table = output_or_null<A>(grads[3]);
    grad.prefix_k = output_or_null<T>(grads[4]);
    grad.prefix_v = output_or_null<T>(grads[5]);
    backward(problem_of<T, A>(q, k, v, ptr, pair_ptr, max_nodes, index, table, first_row, prefix_k,
                              prefix_v, row_set, scale, dropout, seed),
             grad);
  });
  return {grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]};
}

}  // namespace
}  // namespace gtkern::ragged_attention

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::ragged_attention::kForwardSchema);
  m.def(gtkern::ragged_attention::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("ragged_attention_fwd", TORCH_BOX(&gtkern::ragged_attention::forward_op));
  m.impl("ragged_attention_bwd", TORCH_BOX(&gtkern::ragged_attention::backward_op));
}
