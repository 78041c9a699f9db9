// Forward: out = activation(x Wᵀ + bias), rows of x in chunks that stay in the L2 cache.

#include <vector>

#include "block_sparse_linear/rows.h"

namespace gtkern::block_sparse_linear {
namespace {

constexpr std::int64_t kChunk = 16 * kTileRows;

// Whether products can read x where it lies: in its own dtype, no element reaching past a block,
// and rows that do not all fall into the same few sets of the L1 cache.
template <class T>
bool read_in_place(const Forward<T>& call) {
  using E = Element<T>;
  constexpr std::int64_t kDepth = Arithmetic<E>::kDepth, kSets = 4096;
  return sizeof(E) == sizeof(T) * kDepth && call.grid.width % kDepth == 0 &&
         call.grid.in_features % kDepth == 0 && call.x_row % kDepth == 0 &&
         call.x_row * sizeof(T) % kSets != 0;
}

}  // namespace

template <class T>
void forward(const Forward<T>& call) {
  using E = Element<T>;
  using A = SumOf<T>;
  const Grid& grid = call.grid;
  const Weights<T> weights(grid, call.values, false);
  std::vector<A> bias(grid.block_rows() * grid.height + kTileColumns<E>);
  for (std::int64_t n = 0; call.bias && n < grid.out_features; ++n) {
    bias[n] = static_cast<A>(call.bias[n]);
  }
  const bool in_place = read_in_place(call);
  const RowRange chunks(call.rows, kChunk);
  const std::int64_t depth = weights.depth();
  const std::int64_t packed = in_place ? 0 : kChunk * depth * grid.block_cols();
  with_activation(call.activation, [&]<Activation kActivation>() {
    for_each_block_with(
        chunks.count(), [&] { return Array<E>(packed); },
        [&](std::int64_t chunk, const Array<E>& scratch) {
          const std::int64_t first = chunks.begin(chunk), rows = chunks.end(chunk) - first;
          const T* x = call.x + first * call.x_row;
          Blocked<E> blocked;
          if (in_place) {
            constexpr std::int64_t kDepth = Arithmetic<E>::kDepth;
            blocked = {reinterpret_cast<const E*>(x), call.x_row / kDepth, grid.width / kDepth};
          } else {
            pack_rows(x, call.x_row, rows, grid.in_features, grid.width, depth, scratch.data());
            blocked = {scratch.data(), depth, rows * depth};
          }
          RowProduct<T>(weights).template run<kActivation>(
              blocked, rows, bias.data(), grid.out_features, call.out + first * grid.out_features,
              call.kept ? call.kept + first * grid.out_features : nullptr);
        });
  });
}

template void forward(const Forward<float>&);
template void forward(const Forward<double>&);
template void forward(const Forward<c10::BFloat16>&);
template void forward(const Forward<c10::Half>&);

}  // namespace gtkern::block_sparse_linear
