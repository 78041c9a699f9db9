// What the CPU attention kernels compute on: plain pointers to contiguous arrays.
//
// Every row of `csr` is one destination i and holds the edges e = j -> i into it:
//   score = clamp((scale * (q_i . (m_e * k_j) + edge_query_i . edge_attr_e) + bias_e) /
//   temperature) p     = exp(score - lse_i),  lse_i = log(eps + sum exp(score)) out_i = sum keep_e
//   p_e v_j,  edge_out_i = sum keep_e p_e edge_attr_e
// and with dP_e = keep_e (grad_out_i . v_j + grad_edge_out_i . edge_attr_e) + grad_scores_e:
//   delta_i = sum p_e dP_e,  ds_e = p_e (dP_e - delta_i) / temperature where the clamp is open.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/attention/call.h"

namespace gtkern::attention {

// One grouping of the edges; null edge_id is the identity, null type is type 0 everywhere.
struct Edges {
  std::int64_t rows = 0;
  const std::int64_t* ptr = nullptr;
  const std::int32_t* index = nullptr;
  const std::int64_t* edge_id = nullptr;
  const std::uint8_t* type = nullptr;

  std::int64_t count() const { return rows > 0 ? ptr[rows] : 0; }
  std::int64_t id(std::int64_t position) const { return edge_id ? edge_id[position] : position; }
  int kind(std::int64_t position) const { return type ? type[position] : 0; }
};

// Edges of the longest stretch: what each leaves is added up apart, so that a hub's thousands of
// like terms are not all rounded the same way, and keys that are read twice are still near.
constexpr std::int64_t kLongestStretch = 1024;

// Calls segment(row, from, stop, kind) for stretches of one edge type that cover rows begin .. end,
// in order; with by_type off all are of type 0.
template <class Segment>
inline void for_each_segment(const Edges& edges, bool by_type, std::int64_t begin, std::int64_t end,
                             const Segment& segment) {
  for (std::int64_t row = begin; row < end; ++row) {
    std::int64_t from = edges.ptr[row];
    const std::int64_t row_end = edges.ptr[row + 1];
    while (from < row_end) {
      const std::int64_t most = std::min(from + kLongestStretch, row_end);
      std::int64_t stop = most;
      int kind = 0;
      if (by_type && edges.type) {
        kind = edges.type[from];
        for (stop = from + 1; stop < most && edges.type[stop] == kind;) ++stop;
      }
      segment(row, from, stop, kind);
      from = stop;
    }
  }
}

// T is the dtype of q, k, v; A that of sums, tables and lse (float, or double with double).
template <class T, class A>
struct Inputs {
  std::int64_t num_dst = 0, num_src = 0;
  int heads = 0, width = 0, value_width = 0, attr_width = 0, types = 1;
  const T *q = nullptr, *k = nullptr, *v = nullptr;
  const A *key_table = nullptr, *bias_table = nullptr;  // [types, H, D], [types, H]
  const A *key_edge = nullptr, *bias_edge = nullptr;    // [E, H, D], [E, H]
  const T *edge_query = nullptr, *edge_attr = nullptr;  // [N_dst, H, De], [E, De]
  Edges csr;
  Numbers numbers;
};

template <class T, class A>
struct Results {
  T *out = nullptr, *edge_out = nullptr;
  A *lse = nullptr, *scores = nullptr;  // scores: null when not asked for
};

// Gradients coming in, what forward left, and where to write; a null output is not wanted.
template <class T, class A>
struct Backward {
  const T *grad_out = nullptr, *grad_edge_out = nullptr;
  const A* grad_scores = nullptr;
  const T *out = nullptr, *edge_out = nullptr;
  const A* lse = nullptr;
  // rows attend to more than their edges: out, edge_out and lse are of all, and delta is grad_out .
  // out + grad_edge_out . edge_out (there is no grad_scores then). edge_out is null in other calls.
  bool partial = false;
  Edges csc;
  T *q = nullptr, *k = nullptr, *v = nullptr;
  A *key_table = nullptr, *bias_table = nullptr, *key_edge = nullptr, *bias_edge = nullptr;
  T *edge_query = nullptr, *edge_attr = nullptr;
};

// Every option, any dtype, at the speed of plain loops.
template <class T, class A>
void forward_general(const Inputs<T, A>& in, const Results<T, A>& to);
template <class T, class A>
void backward_general(const Inputs<T, A>& in, const Backward<T, A>& grad);

// The fast kernels: fp32 sums, neither key_edge nor edge_attr. False: the shape is not theirs.
template <class T>
bool forward_packed(const Inputs<T, float>& in, const Results<T, float>& to);
template <class T>
bool backward_packed(const Inputs<T, float>& in, const Backward<T, float>& grad);

// One head of width up to 4, fp32, without options by edge; needs AVX-512. False: not theirs.
bool forward_narrow(const Inputs<float, float>& in, const Results<float, float>& to);
bool backward_narrow(const Inputs<float, float>& in, const Backward<float, float>& grad);

// By the first kernels that take the problem.
template <class T, class A>
void forward(const Inputs<T, A>& in, const Results<T, A>& to);
template <class T, class A>
void backward(const Inputs<T, A>& in, const Backward<T, A>& grad);

}  // namespace gtkern::attention
