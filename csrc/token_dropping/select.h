// Choosing the tokens of every graph, on the CPU.
#pragma once

#include <cstdint>

namespace gtkern::token_dropping {

// What is chosen from. T is the dtype of the scores, A that of keys.
template <class T, class A>
struct Scores {
  const T* score = nullptr;
  std::int64_t graphs = 0;
  const std::int64_t* ptr = nullptr;
  const bool* always_keep = nullptr;  // null: no token
  bool noise = false;
  std::uint64_t seed = 0;
};

// The first row whose score is NaN, or -1.
template <class T, class A>
std::int64_t first_nan(const Scores<T, A>& in, std::int64_t rows);

// Writes the number of rows kept of the graphs before each one, and of all; see counts.py. `ks` is
// 0 (by ratio), 1 (k[0] for all) or the number of graphs.
template <class T, class A>
void count_kept(const Scores<T, A>& in, const std::int64_t* k, std::int64_t ks, double ratio,
                std::int64_t* kept_ptr);

// Writes the rows kept, kept_ptr[g + 1] - kept_ptr[g] of graph g, and the place of every row among
// them.
template <class T, class A>
void select(const Scores<T, A>& in, const std::int64_t* kept_ptr, std::int64_t* index,
            std::int32_t* position);

// The gradient of the scores from that of the gate.
template <class T, class A>
void gate_backward(const Scores<T, A>& in, const std::int32_t* position, double temperature,
                   const T* grad_gate, T* grad_score);

}  // namespace gtkern::token_dropping
