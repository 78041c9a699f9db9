// What a call of softmax attention brings to a room's native door, on a CPU or a GPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <tuple>

#include "common/check.h"

namespace gtkern::attention {

// The optional inputs of a score; everything by edge is in the caller's order of the edges.
struct Terms {
  const OptionalTensor &key_table, &bias_table, &key_edge, &bias_edge, &edge_query, &edge_attr;

  int attr_width() const {
    return edge_attr ? static_cast<int>(edge_attr->size(edge_attr->dim() - 1)) : 0;
  }
};

struct Numbers {
  double scale = 1, clamp = 0, temperature = 1, dropout = 0, eps = 0;
  std::uint64_t seed = 0;
};

// (out, edge_out, lse, scores)
using FourTensors = std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
                               torch::stable::Tensor>;

// The gradients of q, k, v and the six terms.
using NineTensors = std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
                               torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
                               torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>;

}  // namespace gtkern::attention
