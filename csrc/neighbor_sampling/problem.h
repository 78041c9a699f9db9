// What a call on CPU tensors samples from and where its results go.
#pragma once

#include <cstdint>

#include "neighbor_sampling/race.h"

namespace gtkern::neighbor_sampling {

struct Edges {
  std::int64_t rows, count;
  const std::int64_t* ptr;
  const std::int32_t* col;
  const std::int64_t* edge_id;
  const std::uint8_t* type;

  std::int64_t id(std::int64_t position) const { return edge_id ? edge_id[position] : position; }
};

struct Layer {
  const float* weight;          // null: all 1
  const std::uint32_t* prefix;  // the table; null: made row by row
  std::int64_t k;
  std::uint64_t seed;
  std::uint32_t number, epoch;
  bool top, pad;
  std::int32_t* index;
  std::int64_t* edge;
  std::uint8_t* type;  // null: no types

  // Whether the weights lie by position, not by edge id.
  bool sorted(const Edges& edges) const { return prefix || !edges.edge_id; }
};

// The weights of positions begin .. end: where they lie, or copied to `buffer`.
inline const float* weights_of(const Edges& edges, const Layer& layer, std::int64_t begin,
                               std::int64_t end, float* buffer) {
  if (layer.sorted(edges)) return layer.weight + begin;
  const std::int64_t* id = edges.edge_id + begin;
  const float* weight = layer.weight;
#pragma GCC unroll 8
  for (std::int64_t i = 0; i < end - begin; ++i) buffer[i] = weight[id[i]];
  return buffer;
}

inline bool is_candidate(float weight) {
  return weight >= kSmallestWeight && weight <= kLargestWeight;
}

}  // namespace gtkern::neighbor_sampling
