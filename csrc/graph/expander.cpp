#include "graph/expander.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/philox.h"

namespace gtkern::graph {
namespace {

struct Keyed {
  std::uint64_t key;
  std::int64_t item;
};

// Stable radix sort by key, 11 bits a pass.
void sort_by_key(std::vector<Keyed>& items) {
  constexpr int kBits = 11;
  constexpr std::size_t kBuckets = std::size_t{1} << kBits;
  std::vector<Keyed> other(items.size());
  for (int shift = 0; shift < 64; shift += kBits) {
    std::array<std::size_t, kBuckets> next{};
    for (const Keyed& item : items) ++next[item.key >> shift & (kBuckets - 1)];
    std::size_t total = 0;
    for (std::size_t& bucket : next) total += std::exchange(bucket, total);
    for (const Keyed& item : items) other[next[item.key >> shift & (kBuckets - 1)]++] = item;
    items.swap(other);
  }
}

// A uniform permutation of 0 .. count - 1: the items in the order of their random 64-bit keys.
// Item i of permutation c has the words of the counter (i low, i high + c, attempt, 0): only a
// single permutation is ever long enough to have an i high other than 0.
std::vector<std::int64_t> permutation(std::int64_t count, std::uint64_t seed, std::uint32_t attempt,
                                      std::uint32_t number) {
  std::vector<Keyed> items(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t bits = static_cast<std::uint64_t>(i);
    const PhiloxWords words =
        philox4x32_10({{static_cast<std::uint32_t>(bits),
                        number + static_cast<std::uint32_t>(bits >> 32), attempt, 0}},
                      seed);
    items[i] = {std::uint64_t{words.word[1]} << 32 | words.word[0], i};
  }
  sort_by_key(items);
  std::vector<std::int64_t> order(count);
  for (std::int64_t i = 0; i < count; ++i) order[i] = items[i].item;
  return order;
}

}  // namespace

EdgeList draw(Algorithm algorithm, std::int64_t num_nodes, std::int64_t degree, std::uint64_t seed,
              std::uint32_t attempt) {
  const std::int64_t half = num_nodes * degree;
  EdgeList edges{std::vector<std::int64_t>(2 * half), std::vector<std::int64_t>(2 * half)};
  const auto set = [&](std::int64_t e, std::int64_t source, std::int64_t destination) {
    edges.source[e] = edges.destination[e + half] = source;
    edges.destination[e] = edges.source[e + half] = destination;
  };
  if (algorithm == Algorithm::kRandomD2) {
    const std::vector<std::int64_t> order = permutation(half, seed, attempt, 0);
    for (std::int64_t e = 0; e < half; ++e) set(e, e % num_nodes, order[e] % num_nodes);
    return edges;
  }
  for (std::int64_t c = 0; c < degree; ++c) {
    const std::vector<std::int64_t> order =
        permutation(num_nodes, seed, attempt, static_cast<std::uint32_t>(c));
    for (std::int64_t i = 0; i < num_nodes; ++i) {
      if (algorithm == Algorithm::kHamiltonian)
        set(c * num_nodes + i, order[i], order[i == 0 ? num_nodes - 1 : i - 1]);
      else
        set(c * num_nodes + i, i, order[i]);
    }
  }
  return edges;
}

EdgeList without_duplicates(const EdgeList& edges, std::int64_t num_nodes) {
  std::vector<std::uint64_t> pairs;
  pairs.reserve(edges.source.size());
  for (std::size_t e = 0; e < edges.source.size(); ++e)
    if (edges.source[e] != edges.destination[e])
      pairs.push_back(static_cast<std::uint64_t>(edges.source[e] * num_nodes) +
                      static_cast<std::uint64_t>(edges.destination[e]));
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  EdgeList kept{std::vector<std::int64_t>(pairs.size()), std::vector<std::int64_t>(pairs.size())};
  for (std::size_t e = 0; e < pairs.size(); ++e) {
    kept.source[e] = static_cast<std::int64_t>(pairs[e]) / num_nodes;
    kept.destination[e] = static_cast<std::int64_t>(pairs[e]) % num_nodes;
  }
  return kept;
}

}  // namespace gtkern::graph
