#include "graph/walks.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "graph/threads.h"

namespace gtkern::graph {
namespace {

constexpr int kLanes = 16;
// Walks that a piece follows at once: its memory is two times this many floats for each node of a
// graph, however large the graph.
constexpr std::int64_t kMaxTargets = 64;

struct Piece {
  std::int32_t graph;
  std::int32_t first_target;
};

std::vector<Piece> pieces_of(const PackedGraphs& graphs) {
  std::vector<Piece> pieces;
  for (std::int64_t g = 0; g < graphs.num_graphs; ++g)
    for (std::int64_t target = 0; target < graphs.ptr[g + 1] - graphs.ptr[g]; target += kMaxTargets)
      pieces.push_back({static_cast<std::int32_t>(g), static_cast<std::int32_t>(target)});
  return pieces;
}

// row[lane] = mean over the neighbours of their rows: one step of the walk.
void step_row(const std::int32_t* neighbor, std::int64_t degree, const float* from,
              std::int64_t width, float* row) {
  const float scale = degree > 0 ? 1.0f / static_cast<float>(degree) : 0.0f;
  for (std::int64_t lane = 0; lane < width; lane += kLanes) {
    float sum[kLanes] = {};
    for (std::int64_t n = 0; n < degree; ++n) {
      const float* other = from + neighbor[n] * width + lane;
      for (int k = 0; k < kLanes; ++k) sum[k] += other[k];
    }
    for (int k = 0; k < kLanes; ++k) row[lane + k] = scale * sum[k];
  }
}

struct Walks {
  std::vector<float> now, next;
};

}  // namespace

void return_probabilities(const PackedGraphs& graphs, int steps, int threads, float* returns) {
  const Incidence out = incidence(graphs, Direction::kOutgoing);
  const std::vector<Piece> pieces = pieces_of(graphs);
  share_out(
      static_cast<std::int64_t>(pieces.size()), threads, [] { return Walks(); },
      [&](std::int64_t number, Walks& walks) {
        const Piece& piece = pieces[number];
        const std::int64_t first = graphs.ptr[piece.graph];
        const std::int64_t nodes = graphs.ptr[piece.graph + 1] - first;
        const std::int64_t targets = std::min(kMaxTargets, nodes - piece.first_target);
        const std::int64_t width = (targets + kLanes - 1) / kLanes * kLanes;
        // now[i][k]: probability that a walk from i is at target k after t steps
        walks.now.assign(nodes * width, 0.0f);
        walks.next.resize(nodes * width);
        for (std::int64_t k = 0; k < targets; ++k)
          walks.now[(piece.first_target + k) * width + k] = 1.0f;
        for (int t = 0; t < steps; ++t) {
          for (std::int64_t i = 0; i < nodes; ++i) {
            const std::int64_t begin = out.begin[first + i];
            step_row(out.node.data() + begin, out.begin[first + i + 1] - begin, walks.now.data(),
                     width, walks.next.data() + i * width);
          }
          std::swap(walks.now, walks.next);
          for (std::int64_t k = 0; k < targets; ++k) {
            const std::int64_t i = piece.first_target + k;
            returns[(first + i) * steps + t] = walks.now[i * width + k];
          }
        }
      });
}

}  // namespace gtkern::graph
