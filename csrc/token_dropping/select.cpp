// Blocks of consecutive graphs are shared out. Every token has a rank key that no other token of
// its graph has: the rising bits of score + noise, then the place in the graph; the k-th smallest
// tells who is kept. A large graph is cut into pieces, and its k-th key found digit by digit by
// counting.

#include "token_dropping/select.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "token_dropping/keys.h"

namespace gtkern::token_dropping {
namespace {

// a graph with more rows is computed on by all threads
constexpr std::int64_t kLargeGraph = 1 << 15;
constexpr std::int64_t kPiece = 1 << 13;
// all pairs of so few keys are compared sooner than they are partly sorted
constexpr std::int64_t kFew = 96;

std::uint64_t rising_bits(double key) {
  const std::uint64_t bits = __builtin_bit_cast(std::uint64_t, key + 0.0);
  constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
  if ((bits & ~kSign) > 0x7ff0000000000000u) return 0;
  return bits ^ ((bits & kSign) ? ~std::uint64_t{0} : kSign);
}
using gtkern::token_dropping::rising_bits;

template <class A>
struct Rank;
template <>
struct Rank<float> {
  using Bits = std::uint32_t;
  using Key = std::uint64_t;
};
template <>
struct Rank<double> {
  using Bits = std::uint64_t;
  using Key = unsigned __int128;
};

// score + noise of rows begin .. end.
template <class T, class A>
void make_keys(const Scores<T, A>& in, std::int64_t begin, std::int64_t end, A* key) {
  if (!in.noise) {
    for (std::int64_t i = begin; i < end; ++i) key[i - begin] = static_cast<A>(in.score[i]);
    return;
  }
  for (std::int64_t quad = begin / 4; quad * 4 < end; ++quad) {
    const PhiloxWords words = noise_words(in.seed, quad);
    const std::int64_t first = std::max(quad * 4, begin), last = std::min(quad * 4 + 4, end);
    for (std::int64_t i = first; i < last; ++i) {
      key[i - begin] = with_noise(static_cast<A>(in.score[i]), gumbel(words.word[i - quad * 4]));
    }
  }
}

// Bits that fall as tokens get better: 0 for those always kept.
template <class T, class A>
void falling_bits(const Scores<T, A>& in, std::int64_t begin, std::int64_t end, const A* key,
                  typename Rank<A>::Bits* bits) {
  for (std::int64_t i = 0; i < end - begin; ++i) {
    bits[i] = static_cast<typename Rank<A>::Bits>(~rising_bits(key[i]));
  }
  if (!in.always_keep) return;
  for (std::int64_t i = begin; i < end; ++i) {
    if (in.always_keep[i]) bits[i - begin] = 0;
  }
}

void keep_all(std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t* index,
              std::int32_t* position) {
  for (std::int64_t i = begin; i < end; ++i) {
    index[first + i - begin] = i;
    position[i] = static_cast<std::int32_t>(first + i - begin);
  }
}

// What one thread computes graphs with.
template <class A>
struct Room {
  std::vector<A> key;
  std::vector<typename Rank<A>::Bits> bits;
  std::vector<typename Rank<A>::Key> rank, sorted;
  std::vector<std::uint32_t> better;

  void reserve(std::int64_t rows) {
    if (static_cast<std::int64_t>(key.size()) >= rows) return;
    key.resize(rows), bits.resize(rows), rank.resize(rows), sorted.resize(rows);
    better.resize(rows);
  }
};

template <class T, class A>
void select_graph(const Scores<T, A>& in, std::int64_t graph, const std::int64_t* kept_ptr,
                  Room<A>& room, std::int64_t* index, std::int32_t* position) {
  using Key = typename Rank<A>::Key;
  const std::int64_t begin = in.ptr[graph], end = in.ptr[graph + 1], n = end - begin;
  const std::int64_t first = kept_ptr[graph], k = kept_ptr[graph + 1] - first;
  if (k == n) return keep_all(begin, end, first, index, position);
  if (k == 0) return static_cast<void>(std::fill_n(position + begin, n, -1));
  room.reserve(n);
  make_keys(in, begin, end, room.key.data());
  falling_bits(in, begin, end, room.key.data(), room.bits.data());
  Key* rank = room.rank.data();
  for (std::int64_t i = 0; i < n; ++i) {
    rank[i] = static_cast<Key>(room.bits[i]) << 32 | static_cast<std::uint32_t>(i);
  }
  std::int64_t at = first;
  const auto write = [&](std::int64_t i, bool kept) {
    // every place is written, and again where it was not meant: no branch to guess
    if (at < first + k) index[at] = begin + i;
    position[begin + i] = kept ? static_cast<std::int32_t>(at) : -1;
    at += kept;
  };
  if (n <= kFew) {
    std::uint32_t* better = room.better.data();
    std::fill_n(better, n, 0);
    for (std::int64_t j = 0; j < n; ++j) {
      const Key other = rank[j];
      for (std::int64_t i = 0; i < n; ++i) better[i] += other < rank[i];
    }
    for (std::int64_t i = 0; i < n; ++i) write(i, better[i] < k);
    return;
  }
  Key* sorted = room.sorted.data();
  std::copy_n(rank, n, sorted);
  std::nth_element(sorted, sorted + k - 1, sorted + n);
  const Key last = sorted[k - 1];
  for (std::int64_t i = 0; i < n; ++i) write(i, rank[i] <= last);
}

// A graph that all threads choose from.
template <class T, class A>
void select_large(const Scores<T, A>& in, std::int64_t graph, const std::int64_t* kept_ptr,
                  std::int64_t* index, std::int32_t* position) {
  using Bits = typename Rank<A>::Bits;
  constexpr int kDigit = 8, kBins = 1 << kDigit;
  const std::int64_t begin = in.ptr[graph], n = in.ptr[graph + 1] - begin;
  const std::int64_t first = kept_ptr[graph], k = kept_ptr[graph + 1] - first;
  const RowRange pieces(n, kPiece);
  if (k == n || k == 0) {
    for_each_block(pieces.count(), [&](std::int64_t piece) {
      const std::int64_t from = pieces.begin(piece), to = pieces.end(piece);
      if (k == n) return keep_all(begin + from, begin + to, first + from, index, position);
      std::fill(position + begin + from, position + begin + to, -1);
    });
    return;
  }
  std::vector<Bits> bits(n);
  for_each_block_with(
      pieces.count(), [] { return std::vector<A>(kPiece); },
      [&](std::int64_t piece, std::vector<A>& key) {
        const std::int64_t from = pieces.begin(piece), to = pieces.end(piece);
        make_keys(in, begin + from, begin + to, key.data());
        falling_bits(in, begin + from, begin + to, key.data(), bits.data() + from);
      });
  // the digits of the k-th smallest bits, from the highest; `left` of those with them are kept
  Bits known = 0;
  std::int64_t left = k;
  std::vector<std::array<std::int64_t, kBins>> counts(pieces.count());
  for (int shift = sizeof(Bits) * 8 - kDigit; shift >= 0; shift -= kDigit) {
    const auto prefix = [&](Bits x) {
      return shift + kDigit == sizeof(Bits) * 8 ? Bits{0}
                                                : static_cast<Bits>(x >> (shift + kDigit));
    };
    for_each_block(pieces.count(), [&](std::int64_t piece) {
      auto& count = counts[piece];
      count.fill(0);
      for (std::int64_t i = pieces.begin(piece); i < pieces.end(piece); ++i) {
        if (prefix(bits[i]) == prefix(known)) ++count[bits[i] >> shift & (kBins - 1)];
      }
    });
    int digit = 0;
    for (;; ++digit) {
      std::int64_t here = 0;
      for (const auto& count : counts) here += count[digit];
      if (here >= left) break;
      left -= here;
    }
    known |= static_cast<Bits>(digit) << shift;
  }
  // rows before each piece that are kept, and how many more rows of equal bits may be
  std::vector<std::int64_t> smaller(pieces.count()), equal(pieces.count());
  for_each_block(pieces.count(), [&](std::int64_t piece) {
    std::int64_t less = 0, same = 0;
    for (std::int64_t i = pieces.begin(piece); i < pieces.end(piece); ++i) {
      less += bits[i] < known;
      same += bits[i] == known;
    }
    smaller[piece] = less, equal[piece] = same;
  });
  std::vector<std::int64_t> start(pieces.count()), ties(pieces.count());
  std::int64_t at = first;
  for (std::int64_t piece = 0; piece < pieces.count(); ++piece) {
    start[piece] = at;
    ties[piece] = std::min(left, equal[piece]);
    left -= ties[piece];
    at += smaller[piece] + ties[piece];
  }
  for_each_block(pieces.count(), [&](std::int64_t piece) {
    std::int64_t to = start[piece], tied = ties[piece];
    const std::int64_t last = to + smaller[piece] + tied;
    for (std::int64_t i = pieces.begin(piece); i < pieces.end(piece); ++i) {
      const bool same = bits[i] == known && tied > 0;
      const bool kept = bits[i] < known || same;
      tied -= same;
      if (to < last) index[to] = begin + i;
      position[begin + i] = kept ? static_cast<std::int32_t>(to) : -1;
      to += kept;
    }
  });
}

// Rows of a graph that one thread computes on: several graphs, or a piece of a large one.
struct Block {
  std::int64_t graph_begin, graph_end;
};

// Consecutive graphs in blocks of about equal work; large graphs are left out.
std::vector<Block> blocks_of(const std::int64_t* ptr, std::int64_t graphs) {
  constexpr std::int64_t kRows = 1024, kRowsOfGraph = 4;
  std::vector<Block> blocks;
  std::int64_t work = kRows;
  for (std::int64_t graph = 0; graph < graphs; ++graph) {
    const std::int64_t rows = ptr[graph + 1] - ptr[graph];
    if (rows > kLargeGraph) {
      work = kRows;
      continue;
    }
    if (work >= kRows) {
      blocks.push_back({graph, graph});
      work = 0;
    }
    blocks.back().graph_end = graph + 1;
    work += rows + kRowsOfGraph;
  }
  return blocks;
}

template <class F>
void for_each_large(const std::int64_t* ptr, std::int64_t graphs, const F& f) {
  for (std::int64_t graph = 0; graph < graphs; ++graph) {
    if (ptr[graph + 1] - ptr[graph] > kLargeGraph) f(graph);
  }
}

// The softmax of rows that lie in one piece, and what its gradient needs.
template <class A>
struct Part {
  A peak = -std::numeric_limits<A>::infinity();
  double total = 0, dot = 0;
};

template <class T, class A>
class GateBackward {
 public:
  GateBackward(const Scores<T, A>& in, const std::int32_t* position, double temperature,
               const T* grad_gate, T* grad_score)
      : in_(in),
        position_(position),
        factor_(static_cast<A>(1 / temperature)),
        grad_gate_(grad_gate),
        grad_score_(grad_score) {}

  // Keys of rows begin .. end over the temperature, -infinity for those not chosen from.
  A scaled_keys(std::int64_t begin, std::int64_t end, A* z) const {
    make_keys(in_, begin, end, z);
    A peak = -std::numeric_limits<A>::infinity();
    for (std::int64_t i = 0; i < end - begin; ++i) {
      z[i] *= factor_;
      if (in_.always_keep && in_.always_keep[begin + i]) {
        z[i] = -std::numeric_limits<A>::infinity();
      }
      peak = std::max(peak, z[i]);
    }
    return peak;
  }

  // exp(z - peak), its sum, and that of its products with the gate's gradients.
  void exponentials(std::int64_t begin, std::int64_t end, A peak, A* z, Part<A>& part) const {
    if (!std::isfinite(peak) && peak < 0) peak = 0;
    for (std::int64_t i = 0; i < end - begin; ++i) z[i] = std::exp(z[i] - peak);
    for (std::int64_t i = 0; i < end - begin; ++i) {
      part.total += z[i];
      part.dot += static_cast<double>(z[i]) * gradient(begin + i);
    }
  }

  void write(std::int64_t begin, std::int64_t end, const Part<A>& part, const A* z) const {
    const A mean = part.total > 0 ? static_cast<A>(part.dot / part.total) : A{0};
    const A scale = part.total > 0 ? factor_ / static_cast<A>(part.total) : A{0};
    for (std::int64_t i = begin; i < end; ++i) {
      grad_score_[i] = static_cast<T>(z[i - begin] * (gradient(i) - mean) * scale);
    }
  }

 private:
  A gradient(std::int64_t row) const {
    return position_[row] < 0 ? A{0} : static_cast<A>(grad_gate_[position_[row]]);
  }

  const Scores<T, A>& in_;
  const std::int32_t* position_;
  A factor_;
  const T* grad_gate_;
  T* grad_score_;
};

}  // namespace

template <class T, class A>
std::int64_t first_nan(const Scores<T, A>& in, std::int64_t rows) {
  const RowRange pieces(rows, kPiece);
  std::atomic<std::int64_t> first{rows};
  for_each_block(pieces.count(), [&](std::int64_t piece) {
    const std::int64_t begin = pieces.begin(piece), end = pieces.end(piece);
    bool any = false;
    for (std::int64_t i = begin; i < end; ++i) {
      const A score = static_cast<A>(in.score[i]);
      any |= score != score;
    }
    if (!any) return;
    std::int64_t row = begin, known = first.load();
    while (static_cast<A>(in.score[row]) == static_cast<A>(in.score[row])) ++row;
    while (row < known && !first.compare_exchange_weak(known, row)) {
    }
  });
  return first < rows ? first.load() : -1;
}

template <class T, class A>
void count_kept(const Scores<T, A>& in, const std::int64_t* k, std::int64_t ks, double ratio,
                std::int64_t* kept_ptr) {
  kept_ptr[0] = 0;
  for (std::int64_t graph = 0; graph < in.graphs; ++graph) {
    const std::int64_t begin = in.ptr[graph], end = in.ptr[graph + 1];
    std::int64_t count;
    if (ks == 0) {
      // as share_of in gtkern/_check.py, operation by operation
      const double share = static_cast<double>(end - begin) * ratio * (1.0 - 0x1p-51);
      count = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(share)));
    } else {
      count = k[ks == 1 ? 0 : graph];
    }
    if (in.always_keep) {
      count = std::max<std::int64_t>(
          count, std::count(in.always_keep + begin, in.always_keep + end, true));
    }
    kept_ptr[graph + 1] = kept_ptr[graph] + std::min(count, end - begin);
  }
}

template <class T, class A>
void select(const Scores<T, A>& in, const std::int64_t* kept_ptr, std::int64_t* index,
            std::int32_t* position) {
  const std::vector<Block> blocks = blocks_of(in.ptr, in.graphs);
  for_each_block_with(
      static_cast<std::int64_t>(blocks.size()), [] { return Room<A>(); },
      [&](std::int64_t block, Room<A>& room) {
        for (std::int64_t g = blocks[block].graph_begin; g < blocks[block].graph_end; ++g) {
          select_graph(in, g, kept_ptr, room, index, position);
        }
      });
  for_each_large(in.ptr, in.graphs,
                 [&](std::int64_t graph) { select_large(in, graph, kept_ptr, index, position); });
}

template <class T, class A>
void gate_backward(const Scores<T, A>& in, const std::int32_t* position, double temperature,
                   const T* grad_gate, T* grad_score) {
  const GateBackward<T, A> work(in, position, temperature, grad_gate, grad_score);
  const std::vector<Block> blocks = blocks_of(in.ptr, in.graphs);
  for_each_block_with(
      static_cast<std::int64_t>(blocks.size()), [] { return std::vector<A>(); },
      [&](std::int64_t block, std::vector<A>& z) {
        for (std::int64_t g = blocks[block].graph_begin; g < blocks[block].graph_end; ++g) {
          const std::int64_t begin = in.ptr[g], end = in.ptr[g + 1];
          if (static_cast<std::int64_t>(z.size()) < end - begin) z.resize(end - begin);
          Part<A> part;
          part.peak = work.scaled_keys(begin, end, z.data());
          work.exponentials(begin, end, part.peak, z.data(), part);
          work.write(begin, end, part, z.data());
        }
      });
  for_each_large(in.ptr, in.graphs, [&](std::int64_t graph) {
    const std::int64_t begin = in.ptr[graph], rows = in.ptr[graph + 1] - begin;
    const RowRange pieces(rows, kPiece);
    std::vector<A> z(rows);
    std::vector<Part<A>> parts(pieces.count());
    for_each_block(pieces.count(), [&](std::int64_t piece) {
      const std::int64_t from = pieces.begin(piece), to = pieces.end(piece);
      parts[piece].peak = work.scaled_keys(begin + from, begin + to, z.data() + from);
    });
    Part<A> all;
    for (const auto& part : parts) all.peak = std::max(all.peak, part.peak);
    for_each_block(pieces.count(), [&](std::int64_t piece) {
      const std::int64_t from = pieces.begin(piece), to = pieces.end(piece);
      work.exponentials(begin + from, begin + to, all.peak, z.data() + from, parts[piece]);
    });
    for (const auto& part : parts) all.total += part.total, all.dot += part.dot;
    for_each_block(pieces.count(), [&](std::int64_t piece) {
      const std::int64_t from = pieces.begin(piece), to = pieces.end(piece);
      work.write(begin + from, begin + to, all, z.data() + from);
    });
  });
}

#define GTKERN_INSTANTIATE(T, A)                                                                \
  template std::int64_t first_nan(const Scores<T, A>&, std::int64_t);                           \
  template void count_kept(const Scores<T, A>&, const std::int64_t*, std::int64_t, double,      \
                           std::int64_t*);                                                      \
  template void select(const Scores<T, A>&, const std::int64_t*, std::int64_t*, std::int32_t*); \
  template void gate_backward(const Scores<T, A>&, const std::int32_t*, double, const T*, T*);
GTKERN_INSTANTIATE(float, float)
GTKERN_INSTANTIATE(double, double)
GTKERN_INSTANTIATE(c10::BFloat16, float)
GTKERN_INSTANTIATE(c10::Half, float)
#undef GTKERN_INSTANTIATE

}  // namespace gtkern::token_dropping
