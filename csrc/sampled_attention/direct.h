// CPU attention straight over the table of neighbours, where rows lie.
//
// The kernels of common/attention serve rows of hundreds of edges: they first bring heads into an
// order that makes an edge cheap. Over a handful of neighbours that preparation outweighs the
// edges. Here nothing is packed: a row's scores fit one small buffer, so each head's vectors are
// read in place with masked loads. Backward walks the neighbours once by destination, where it
// leaves the two weights of every place and head (2 N_dst K H floats), and once by source, where
// nothing is left to compute but two weighted sums of rows.
#pragma once

#include <cstdint>

#include "common/attention/problem.h"

namespace gtkern::sampled_attention {

// neighbors [N_dst, K] and, unless null, their types.
struct Places {
  std::int64_t width = 0;
  const std::int32_t* neighbor = nullptr;
  const std::uint8_t* type = nullptr;
};

// Short rows, up to 16 heads, without key_edge and edge_attr; needs AVX-512. False: not theirs.
// Neither reads the edges in `in` and `grad`.
template <class T>
bool forward_direct(const Places& places, const attention::Inputs<T, float>& in,
                    const attention::Results<T, float>& to);
template <class T>
bool backward_direct(const Places& places, const attention::Inputs<T, float>& in,
                     const attention::Backward<T, float>& grad);

}  // namespace gtkern::sampled_attention
