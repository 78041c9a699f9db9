// What the CPU kernels of additive_attention compute on.
//
// Rows are packed: HG heads of a group interleave inside vectors, element d of head h at d * HG +
// h, with zeros behind the last. A vector of scores then holds those of kLanes / HG edges, edge by
// edge.
#pragma once

#include <cstdint>

namespace gtkern::additive_attention {

// The edges by one end; a null id is the identity.
struct Edges {
  std::int64_t rows = 0;
  const std::int64_t* ptr = nullptr;
  const std::int32_t* index = nullptr;
  const std::int64_t* id = nullptr;

  std::int64_t number(std::int64_t position) const { return id ? id[position] : position; }
  std::int64_t count() const { return rows > 0 ? ptr[rows] : 0; }
};

// Two packed arrays that edges gather together: (k, v) by source, or (q, grad_out) by destination.
// Where keys are the values, both are one.
template <class A>
struct Rows {
  const A* first = nullptr;
  const A* second = nullptr;
  std::int64_t stride = 0;  // from row to row
};

// The caller's [E, heads, width] arrays of any dtype: a group of a row, to its packed form and
// back.
template <class A>
struct EdgeRows {
  const void* from = nullptr;  // null: there is no edge_attr
  void* to = nullptr;          // null: its gradient is not wanted
  int heads = 0, width = 0, heads_of_group = 1;
  std::int64_t size = 0;  // of a packed group
  void (*read)(const EdgeRows&, std::int64_t edge, int group, A* row) = nullptr;
  void (*write)(const EdgeRows&, std::int64_t edge, int group, const A* row) = nullptr;
};

// A problem in packed form.
template <class A>
struct Packed {
  int groups = 1, heads = 1;
  int vectors = 1;  // of a group's row
  Edges edges;
  Rows<A> self;    // the rows' own pair
  Rows<A> gather;  // the pair at the other end of each edge
  EdgeRows<A> attr;
  const A* attention = nullptr;  // [groups, row]
  A slope = 0;
  std::int64_t fetched = 0;  // the first so many edges have their rows fetched ahead
  // [N_dst, groups, 2, HG]: log2-sum-exp2, +inf for a row of weight 0, then delta
  A* statistics = nullptr;
  const A* grad_scores = nullptr;  // [E, heads], or null
  // dropout
  bool dropout = false;
  std::uint32_t threshold = 0;
  A kept = 1;
  std::uint64_t seed = 0;
};

// Kernels on rows begin .. end of `edges`. Sums come out packed, [rows, groups, row].
template <class A>
struct Kernels {
  int vectors;  // of a group's row; 0: any number
  // sum keep p second; lse [N_dst, heads], and scores [E, heads] where not null
  void (*forward)(const Packed<A>&, std::int64_t begin, std::int64_t end, A* out, A* lse,
                  A* scores);
  // adds sum p grad_scores to delta
  void (*score_delta)(const Packed<A>&, std::int64_t begin, std::int64_t end);
  // the gradient of q, that of edge_attr where it is wanted, and into `attention` the rows' share
  // of its gradient
  void (*by_destination)(const Packed<A>&, std::int64_t begin, std::int64_t end, A* to,
                         A* attention);
  // the gradients of k and v; a null second adds that of v to the first
  void (*by_source)(const Packed<A>&, std::int64_t begin, std::int64_t end, A* first, A* second);
};

// The kernels for groups of HG heads and rows of at least `vectors` vectors.
template <class A>
const Kernels<A>& kernels_for(int heads_of_group, int vectors, bool edge_attr);

}  // namespace gtkern::additive_attention
