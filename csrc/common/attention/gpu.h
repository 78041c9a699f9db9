// Softmax attention on a GPU: what the doors of its rooms (their cuda.cu) call.
#pragma once

#include <cstdint>
#include <vector>

#include "common/attention/call.h"

namespace gtkern::attention::gpu {

// One grouping of the edges, by destination or by source. Either `ptr` tells where a row begins
// and ends (gtkern/graph.py's Adjacency), or it is null and every row has `degree` places. An index
// below 0 is a place without an edge.
struct Edges {
  std::int64_t rows;
  std::int64_t places;  // entries of `index`
  std::int64_t degree;
  const std::int64_t* ptr;
  const std::int32_t* index;
  const std::int64_t* id;    // null: the identity
  const std::uint8_t* type;  // null: all 0
  // items (row, begin, end) that cover the rows above kHeavyRowEdges, where there is a `ptr`; a
  // row of -1 is an item that is not used
  const std::int64_t* heavy;
  std::int64_t num_heavy;
};

inline Edges edges_of(const torch::stable::Tensor& ptr, const torch::stable::Tensor& index,
                      const torch::stable::Tensor& edge_id, const torch::stable::Tensor& edge_type,
                      const torch::stable::Tensor& heavy) {
  return {ptr.numel() - 1,
          index.numel(),
          0,
          ptr.const_data_ptr<std::int64_t>(),
          pointer_or_null<std::int32_t>(index),
          pointer_or_null<std::int64_t>(edge_id),
          pointer_or_null<std::uint8_t>(edge_type),
          pointer_or_null<std::int64_t>(heavy),
          heavy.numel() / 3};
}

// neighbors [rows, degree]; an edge's number is its place.
inline Edges edges_of_places(const torch::stable::Tensor& neighbors,
                             const torch::stable::Tensor& edge_type) {
  return {neighbors.size(0),
          neighbors.numel(),
          neighbors.size(1),
          nullptr,
          pointer_or_null<std::int32_t>(neighbors),
          nullptr,
          pointer_or_null<std::uint8_t>(edge_type),
          nullptr,
          0};
}

// scores has `scores_sizes`, or no elements when those are empty.
FourTensors forward(const torch::stable::Tensor& q, const torch::stable::Tensor& k,
                    const torch::stable::Tensor& v, const Edges& csr,
                    const attention::Terms& tensors, const Numbers& numbers,
                    const std::vector<std::int64_t>& scores_sizes);

// Bit b of `needs` asks for gradient number b. `csc` is read only where those of k or v are asked
// for.
NineTensors backward(const torch::stable::Tensor& grad_out, const OptionalTensor& grad_edge_out,
                     const OptionalTensor& grad_scores, const torch::stable::Tensor& q,
                     const torch::stable::Tensor& k, const torch::stable::Tensor& v,
                     const torch::stable::Tensor& out, const torch::stable::Tensor& edge_out,
                     const torch::stable::Tensor& lse, const Edges& csr, const Edges& csc,
                     const attention::Terms& tensors, const Numbers& numbers, std::int64_t needs);

}  // namespace gtkern::attention::gpu
