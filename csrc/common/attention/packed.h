// The fast CPU attention kernels, by how many heads share a vector.
//
// A row of keys (queries, values, ...) is cut into groups of HG heads. A group fills NZ vectors of
// 16 lanes with its heads interleaved: element d of head h at d * HG + h, zeros after the last. So
// one multiply-add chain per edge leaves the HG scores in the lanes, and the chains of 16 / HG
// edges fold into one vector of scores. Wide heads (a multiple of 16, fp32) are used where they
// lie, with HG = 1; others are repacked once per call, keys beside values, so that an edge touches
// one run of memory.
#pragma once

#include <cstdint>

#include "common/attention/problem.h"

namespace gtkern::attention {

// Rows of two streams that edges gather together: (k, v) by source or (q, grad_out) by destination.
struct Rows {
  const float* first = nullptr;
  const float* second = nullptr;
  std::int64_t stride = 0;        // floats from row to row
  std::int64_t group_stride = 0;  // floats from group to group
};

// A problem in packed form: what the kernels of one (HG, NZ) need.
struct Packed {
  int groups = 1, heads = 1, types = 1;
  const Edges* edges = nullptr;
  Rows self;    // the rows' own pair
  Rows gather;  // the pair at the other end of each edge
  // In units of log2, for the base 2 exponential:
  // score = clamp(to_score * product + bias_to_score * bias)
  float to_score = 1, bias_to_score = 1, clamp = 0;
  bool bounded = false;      // no score is so large or small that exp needs the row's maximum first
  float first_factor = 1;    // multiplies the sums ds * first
  float bias_factor = 1;     // multiplies ds where it is the gradient of a bias
  std::int64_t fetched = 0;  // the first so many edges have their rows fetched ahead
  const float* key_table = nullptr;   // [types, groups, NZ * 16], packed
  const float* bias_table = nullptr;  // [types, heads]
  const float* bias_edge = nullptr;   // [E, heads]
  const float* grad_scores = nullptr;
  float eps = 0;
  // dropout
  bool dropout = false;
  std::uint32_t threshold = 0;
  float kept = 1;
  std::uint64_t seed = 0;
  // per destination and group: HG times log2-sum-exp2, then HG times delta
  float* statistics = nullptr;
};

constexpr int kMostMixedTypes = 8;

enum class Variant {
  kPlain,
  kFetching,  // the gathered rows outgrow the caches and are fetched ahead of their use
  kMixed,     // for rows so short that stretches of one type would be a few edges each
};

// Kernels on rows begin .. end of `edges`. Sums come out packed, [rows, groups, NZ * 16], the
// table sums are added to [types, groups, NZ * 16] and [types, heads].
struct Kernels {
  int vectors;  // NZ
  // the same for another situation; kMixed: of up to kMostMixedTypes types
  const Kernels* (*variant)(Variant);
  void (*forward)(const Packed&, std::int64_t begin, std::int64_t end, float* out);
  // p = exp(score - lse): written to scores [E, heads], or sum p * grad_scores added to delta
  void (*scores)(const Packed&, std::int64_t begin, std::int64_t end, float* scores);
  // sum ds * first; tables and bias_edge where not null
  void (*by_destination)(const Packed&, std::int64_t begin, std::int64_t end, float* first,
                         float* key_table, float* bias_table, float* bias_edge);
  // sum ds * first, sum p * second
  void (*by_source)(const Packed&, std::int64_t begin, std::int64_t end, float* first,
                    float* second);
};

// The kernels for HG heads in a group and at least `vectors` vectors; null: none so wide.
const Kernels* kernels_1(int vectors);
const Kernels* kernels_2(int vectors);
const Kernels* kernels_4(int vectors);
const Kernels* kernels_8(int vectors);

}  // namespace gtkern::attention
