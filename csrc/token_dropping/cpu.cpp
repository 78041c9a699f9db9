// Token dropping for CPU tensors: reads the arguments and calls the kernels.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/check.h"
#include "common/dispatch.h"
#include "common/memory.h"
#include "token_dropping/edges.h"
#include "token_dropping/rows.h"
#include "token_dropping/schema.h"
#include "token_dropping/select.h"

namespace gtkern::token_dropping {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T, class A>
Scores<T, A> scores_of(const Tensor& score, const Tensor& ptr, const OptionalTensor& always_keep,
                       bool noise, std::int64_t seed) {
  Scores<T, A> in;
  in.score = pointer_or_null<T>(score);
  in.graphs = ptr.size(0) - 1;
  in.ptr = ptr.const_data_ptr<std::int64_t>();
  in.always_keep = pointer_or_null<bool>(always_keep);
  in.noise = noise;
  in.seed = static_cast<std::uint64_t>(seed);
  return in;
}

std::tuple<Tensor, std::int64_t> count_op(const Tensor& score, const Tensor& ptr,
                                          const OptionalTensor& k, double ratio,
                                          const OptionalTensor& always_keep) {
  Tensor kept_ptr = new_output(ptr, {ptr.size(0)}, ScalarType::Long);
  std::int64_t nan_row = -1;
  dispatch(score.scalar_type(), [&]<class T, class A>(T*, A*) {
    const auto scores = scores_of<T, A>(score, ptr, always_keep, false, 0);
    nan_row = first_nan(scores, score.size(0));
    count_kept(scores, pointer_or_null<std::int64_t>(k), k ? k->size(0) : 0, ratio,
               kept_ptr.mutable_data_ptr<std::int64_t>());
  });
  return {kept_ptr, nan_row};
}

std::tuple<Tensor, Tensor> select_op(const Tensor& score, const Tensor& ptr, const Tensor& kept_ptr,
                                     std::int64_t num_kept, const OptionalTensor& always_keep,
                                     bool noise, std::int64_t seed) {
  Tensor index = new_output(score, {num_kept}, ScalarType::Long);
  Tensor position = new_output(score, {score.size(0)}, ScalarType::Int);
  dispatch(score.scalar_type(), [&]<class T, class A>(T*, A*) {
    select(scores_of<T, A>(score, ptr, always_keep, noise, seed),
           kept_ptr.const_data_ptr<std::int64_t>(), output_or_null<std::int64_t>(index),
           output_or_null<std::int32_t>(position));
  });
  return {index, position};
}

Tensor gate_backward_op(const Tensor& grad_gate, const Tensor& score, const Tensor& ptr,
                        const Tensor& position, const OptionalTensor& always_keep,
                        double temperature, bool noise, std::int64_t seed) {
  Tensor grad_score = new_output_like(score);
  dispatch(score.scalar_type(), [&]<class T, class A>(T*, A*) {
    gate_backward(scores_of<T, A>(score, ptr, always_keep, noise, seed),
                  pointer_or_null<std::int32_t>(position), temperature,
                  pointer_or_null<T>(grad_gate), output_or_null<T>(grad_score));
  });
  return grad_score;
}

std::int64_t row_bytes(const Tensor& rows) { return rows.size(1) * rows.element_size(); }

const char* bytes_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? pointer_or_null<char>(*tensor) : nullptr;
}

Tensor gather_op(const Tensor& x, const OptionalTensor& gate, const Tensor& index) {
  Tensor out = new_output(x, {index.size(0), x.size(1)}, x.scalar_type());
  if (out.numel() == 0) return out;
  const std::int64_t* kept = index.const_data_ptr<std::int64_t>();
  if (!gate) {
    gather_rows(bytes_of(x), kept, index.size(0), row_bytes(x), output_or_null<char>(out));
    return out;
  }
  dispatch(x.scalar_type(), [&]<class T, class A>(T*, A*) {
    gather_gated<T, A>(pointer_or_null<T>(x), pointer_or_null<T>(gate), kept, index.size(0),
                       x.size(1), output_or_null<T>(out));
  });
  return out;
}

Tensor scatter_op(const OptionalTensor& y, const OptionalTensor& fill, const Tensor& position) {
  const Tensor& like = y ? *y : *fill;
  Tensor out = new_output(like, {position.size(0), like.size(1)}, like.scalar_type());
  if (out.numel() > 0) {
    scatter_rows(bytes_of(y), bytes_of(fill), position.const_data_ptr<std::int32_t>(),
                 position.size(0), row_bytes(like), output_or_null<char>(out));
  }
  return out;
}

std::tuple<Tensor, Tensor> gather_backward_op(const Tensor& grad_out, const OptionalTensor& x,
                                              const OptionalTensor& gate, const Tensor& index,
                                              const Tensor& position, bool needs_x,
                                              bool needs_gate) {
  const std::int64_t rows = position.size(0), width = grad_out.size(1);
  Tensor grad_gate = new_output(grad_out, {needs_gate ? index.size(0) : 0}, grad_out.scalar_type());
  if (!gate) return {scatter_op(grad_out, OptionalTensor(), position), grad_gate};
  Tensor grad_x = new_output(grad_out, {needs_x ? rows : 0, width}, grad_out.scalar_type());
  dispatch(grad_out.scalar_type(), [&]<class T, class A>(T*, A*) {
    gather_gated_backward<T, A>(pointer_or_null<T>(grad_out), pointer_or_null<T>(x),
                                pointer_or_null<T>(gate), pointer_or_null<std::int32_t>(position),
                                rows, width, output_or_null<T>(grad_x),
                                output_or_null<T>(grad_gate));
  });
  return {grad_x, grad_gate};
}

template <class I>
std::tuple<Tensor, Tensor> drop_edges_of(const Tensor& source, const Tensor& destination,
                                         const Tensor& position) {
  const KeptEdges<I> kept(pointer_or_null<I>(source), pointer_or_null<I>(destination),
                          pointer_or_null<std::int32_t>(position), source.size(0));
  Tensor edges = new_output(source, {2, kept.count()}, source.scalar_type());
  Tensor edge = new_output(source, {kept.count()}, ScalarType::Long);
  I* first = output_or_null<I>(edges);
  kept.write(first, first + kept.count(), output_or_null<std::int64_t>(edge));
  return {edges, edge};
}

std::tuple<Tensor, Tensor> drop_edges_op(const Tensor& source, const Tensor& destination,
                                         const Tensor& position) {
  return source.scalar_type() == ScalarType::Int
             ? drop_edges_of<std::int32_t>(source, destination, position)
             : drop_edges_of<std::int64_t>(source, destination, position);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> drop_rows_op(const Tensor& row_ptr, const Tensor& col,
                                                        const Tensor& edge_id,
                                                        const Tensor& edge_type,
                                                        const Tensor& index,
                                                        const Tensor& position) {
  const std::int64_t rows = index.size(0);
  const KeptRows kept(row_ptr.const_data_ptr<std::int64_t>(), pointer_or_null<std::int32_t>(col),
                      pointer_or_null<std::int64_t>(index), pointer_or_null<std::int32_t>(position),
                      rows, col.size(0));
  Tensor ptr = new_output(row_ptr, {rows + 1}, ScalarType::Long);
  const std::int64_t edges = kept.count(ptr.mutable_data_ptr<std::int64_t>());
  const bool typed = edge_type.numel() > 0;
  Tensor kept_col = new_output(row_ptr, {edges}, ScalarType::Int);
  Tensor edge = new_output(row_ptr, {edges}, ScalarType::Long);
  Tensor type = new_output(row_ptr, {typed ? edges : 0}, ScalarType::Byte);
  kept.write(ptr.const_data_ptr<std::int64_t>(), pointer_or_null<std::int64_t>(edge_id),
             pointer_or_null<std::uint8_t>(edge_type), output_or_null<std::int32_t>(kept_col),
             output_or_null<std::int64_t>(edge), output_or_null<std::uint8_t>(type));
  return {ptr, kept_col, edge, type};
}

Tensor gather_pairs_op(const Tensor& entry, const Tensor& ptr, const Tensor& pair_ptr,
                       const Tensor& index, const Tensor& kept_ptr, const Tensor& kept_pair_ptr,
                       std::int64_t num_pairs) {
  Tensor out = new_output(entry, {num_pairs}, entry.scalar_type());
  const auto run = [&]<class E>(E*) {
    gather_pairs(pointer_or_null<E>(entry), ptr.const_data_ptr<std::int64_t>(),
                 pair_ptr.const_data_ptr<std::int64_t>(), pointer_or_null<std::int64_t>(index),
                 kept_ptr.const_data_ptr<std::int64_t>(),
                 kept_pair_ptr.const_data_ptr<std::int64_t>(), ptr.size(0) - 1,
                 output_or_null<E>(out));
  };
  entry.scalar_type() == ScalarType::Byte ? run(static_cast<std::uint8_t*>(nullptr))
                                          : run(static_cast<std::int16_t*>(nullptr));
  return out;
}

}  // namespace
}  // namespace gtkern::token_dropping

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) {
  m.def(gtkern::token_dropping::kCountSchema);
  m.def(gtkern::token_dropping::kSelectSchema);
  m.def(gtkern::token_dropping::kGateBackwardSchema);
  m.def(gtkern::token_dropping::kGatherSchema);
  m.def(gtkern::token_dropping::kGatherBackwardSchema);
  m.def(gtkern::token_dropping::kScatterSchema);
  m.def(gtkern::token_dropping::kDropEdgesSchema);
  m.def(gtkern::token_dropping::kDropRowsSchema);
  m.def(gtkern::token_dropping::kGatherPairsSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("token_count", TORCH_BOX(&gtkern::token_dropping::count_op));
  m.impl("token_select", TORCH_BOX(&gtkern::token_dropping::select_op));
  m.impl("token_gate_bwd", TORCH_BOX(&gtkern::token_dropping::gate_backward_op));
  m.impl("token_gather", TORCH_BOX(&gtkern::token_dropping::gather_op));
  m.impl("token_gather_bwd", TORCH_BOX(&gtkern::token_dropping::gather_backward_op));
  m.impl("token_scatter", TORCH_BOX(&gtkern::token_dropping::scatter_op));
  m.impl("token_drop_edges", TORCH_BOX(&gtkern::token_dropping::drop_edges_op));
  m.impl("token_drop_rows", TORCH_BOX(&gtkern::token_dropping::drop_rows_op));
  m.impl("token_gather_pairs", TORCH_BOX(&gtkern::token_dropping::gather_pairs_op));
}
