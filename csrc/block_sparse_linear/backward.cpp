// Backward: rows in chunks; of each chunk first the gradient before the activation, then what it
// gives to x and, summed over the rows of a slab, to the kept blocks and the bias.

#include <vector>

#include "block_sparse_linear/rows.h"

namespace gtkern::block_sparse_linear {
namespace {

// Rows of a chunk: even, for pairs of rows; as many as keep a block's part of x and of the
// gradient in the L1 cache.
constexpr std::int64_t kChunk = 8 * kTileRows;

// Runs of chunks, cut by the number of rows alone: their sums are added in order.
class Slabs {
 public:
  explicit Slabs(std::int64_t rows) : rows_(rows), chunks_((rows + kChunk - 1) / kChunk) {
    // each sum is written and read once more, which takes as long as a few of its rows
    constexpr std::int64_t kMost = 16, kLeastChunks = 4;
    while (count_ < kMost && chunks_ >= 2 * count_ * kLeastChunks) count_ *= 2;
    if (rows == 0) count_ = 0;
  }
  std::int64_t count() const { return count_; }
  std::int64_t begin(std::int64_t slab) const { return chunks_ * slab / count_ * kChunk; }
  std::int64_t end(std::int64_t slab) const { return std::min(rows_, begin(slab + 1)); }

 private:
  std::int64_t rows_, chunks_, count_ = 1;
};

template <class T>
class Worker {
 public:
  using E = Element<T>;
  using A = SumOf<T>;
  using M = Arithmetic<E>;
  using L = Lanes<A>;
  static constexpr std::int64_t kLanes = L::kCount;

  // sums: [slab][blocks][height][wide]; bias_sums: [slab][block_rows][height_padded]
  Worker(const Backward<T>& call, const Weights<T>* weights, const A* zeros, A* sums, A* bias_sums)
      : call_(call),
        grid_(call.grid),
        weights_(weights),
        zeros_(zeros),
        sums_(sums),
        bias_sums_(bias_sums),
        depth_((grid_.height + M::kDepth - 1) / M::kDepth),
        wide_(padded<A>(grid_.width)),
        tall_(padded<A>(grid_.height)),
        grad_(kChunk * depth_ * grid_.block_rows()),
        grad_turned_(M::kDepth == 2 && sums ? kChunk / 2 * grid_.height * grid_.block_rows() : 0),
        x_(sums ? kChunk / M::kDepth * wide_ * grid_.block_cols() : 0) {}

  template <Activation kActivation>
  void run(std::int64_t slab, std::int64_t begin, std::int64_t end) {
    if (bias_sums_) std::fill_n(bias_slab(slab), tall_ * grid_.block_rows(), A{0});
    for (std::int64_t first = begin; first < end; first += kChunk) {
      const std::int64_t rows = std::min(kChunk, end - first);
      load_gradients<kActivation>(first, rows, slab);
      if (call_.grad_x) {
        const Blocked<E> blocked{grad_.data(), depth_, rows * depth_};
        RowProduct<T>(*weights_).template run<Activation::kNone>(
            blocked, rows, zeros_, grid_.in_features, call_.grad_x + first * grid_.in_features,
            nullptr);
      }
      if (sums_) add_products(slab, first, rows, first > begin);
    }
  }

 private:
  A* bias_slab(std::int64_t slab) const { return bias_sums_ + slab * tall_ * grid_.block_rows(); }

  // The gradient before the activation, by block rows: grad_[block][row][n], and for pairs also
  // grad_turned_[block][row / 2][n]; its sums over rows into the slab's.
  template <Activation kActivation>
  void load_gradients(std::int64_t first, std::int64_t rows, std::int64_t slab) {
    // row by row: memory is read in its order
    for (std::int64_t row = 0; row < rows; ++row) {
      const T* grad_out = call_.grad_out + (first + row) * grid_.out_features;
      const T* kept = call_.kept + (first + row) * grid_.out_features;
      for (std::int64_t block = 0; block < grid_.block_rows(); ++block) {
        const std::int64_t column = block * grid_.height;
        A* bias = bias_sums_ ? bias_slab(slab) + block * tall_ : nullptr;
        E* to = grad_.data() + (block * rows + row) * depth_;
        load_gradient<kActivation>(grad_out + column, kept + column, grid_.rows_of(block), bias,
                                   to);
      }
    }
    if constexpr (M::kDepth == 2) {
      if (sums_) turn_gradients(rows);
    }
  }

  template <Activation kActivation>
  static GTKERN_INLINE void load_gradient(const T* grad_out, const T* kept, std::int64_t count,
                                          A* bias, E* to) {
    alignas(64) T line[128 + kLanes];
    for (std::int64_t n = 0; n < count; n += kLanes) {
      const std::int64_t lanes = std::min(kLanes, count - n);
      auto g = load_values(grad_out + n, lanes);
      if constexpr (kActivation != Activation::kNone) {
        g = gradient_before<kActivation, A>(g, load_values(kept + n, lanes));
      }
      if (bias) L::store(bias + n, L::add(L::load(bias + n), g));
      if constexpr (M::kDepth == 2) {
        store_values(line + n, g);
      } else {
        store_sums(to + n, g, lanes);
      }
    }
    if constexpr (M::kDepth == 2) {
      // past the last channel there may be one more number of a pair
      if (count % 2) line[count] = T(0.f);
      std::memcpy(static_cast<void*>(to), line, (count + 1) / 2 * sizeof(E));
    }
  }

  // grad_turned_ from grad_: pairs of rows, in place of pairs of channels.
  void turn_gradients(std::int64_t rows) {
    static constexpr T kZeros[128] = {};
    const std::int64_t deep = (rows + 1) / 2;
    for (std::int64_t block = 0; block < grid_.block_rows(); ++block) {
      const E* from = grad_.data() + block * rows * depth_;
      E* to = grad_turned_.data() + block * deep * grid_.height;
      for (std::int64_t row = 0; row < rows; row += 2, from += 2 * depth_, to += grid_.height) {
        const T* next = row + 1 < rows ? reinterpret_cast<const T*>(from + depth_) : kZeros;
        interleave(reinterpret_cast<const T*>(from), next, grid_.rows_of(block), to);
      }
    }
  }

  static GTKERN_INLINE void store_sums(A* to, typename L::V x, std::int64_t lanes) {
    if (lanes == kLanes) return L::store(to, x);
    alignas(64) A all[kLanes];
    L::store(all, x);
    std::memcpy(to, all, lanes * sizeof(A));
  }

  // to[n] = (a[n], b[n])
  static void interleave(const T* a, const T* b, std::int64_t count, E* to) {
    std::int64_t n = 0;
#ifdef __AVX512F__
    for (; n + 16 <= count; n += 16) {
      const auto widened = [n](const T* from) {
        return _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + n)));
      };
      _mm512_storeu_si512(to + n, _mm512_or_si512(widened(a), _mm512_slli_epi32(widened(b), 16)));
    }
#endif
    std::uint16_t low, high;
    for (; n < count; ++n) {
      std::memcpy(&low, a + n, 2);
      std::memcpy(&high, b + n, 2);
      const std::uint32_t bits = low | static_cast<std::uint32_t>(high) << 16;
      std::memcpy(static_cast<void*>(to + n), &bits, 4);
    }
  }

  // x by block columns: x_[block][row][k], in pairs of rows where elements are pairs; zeros up to
  // whole vectors.
  void load_x(std::int64_t first, std::int64_t rows) {
    static constexpr T kZeros[128] = {};
    const std::int64_t deep = (rows + M::kDepth - 1) / M::kDepth;
    for (std::int64_t at = 0; at < deep; ++at) {
      const std::int64_t row = at * M::kDepth;
      const T* x = call_.x + (first + row) * call_.x_row;
      for (std::int64_t block = 0; block < grid_.block_cols(); ++block, x += grid_.width) {
        const std::int64_t count = grid_.cols_of(block);
        E* to = x_.data() + (block * deep + at) * wide_;
        if constexpr (M::kDepth == 2) {
          interleave(x, row + 1 < rows ? x + call_.x_row : kZeros, count, to);
          std::fill(to + count, to + wide_, E{});
        } else {
          for (std::int64_t k = 0; k < wide_; k += kLanes) {
            const std::int64_t lanes = std::min(kLanes, count - k);
            L::store(to + k, lanes > 0 ? load_values(x + k, lanes) : L::zero());
          }
        }
      }
    }
  }

  void add_products(std::int64_t slab, std::int64_t first, std::int64_t rows, bool add) {
    load_x(first, rows);
    const std::int64_t deep = (rows + M::kDepth - 1) / M::kDepth, size = grid_.height * wide_;
    for (std::int64_t block = 0; block < grid_.blocks; ++block) {
      const std::int64_t row = grid_.row[block], col = grid_.col[block];
      const E* grad;
      if constexpr (M::kDepth == 2) {
        grad = grad_turned_.data() + row * ((rows + 1) / 2) * grid_.height;
      } else {
        grad = grad_.data() + row * rows * depth_;
      }
      outer_product(grad, M::kDepth == 2 ? grid_.height : depth_, x_.data() + col * deep * wide_,
                    wide_, deep, add, grid_.rows_of(row), padded<A>(grid_.cols_of(col)),
                    sums_ + (slab * grid_.blocks + block) * size, wide_);
    }
  }

  const Backward<T>& call_;
  const Grid& grid_;
  const Weights<T>* weights_;
  const A* zeros_;
  A *sums_, *bias_sums_;
  std::int64_t depth_, wide_, tall_;
  Array<E> grad_, grad_turned_, x_;
};

// grad_values: the sums of all slabs in their order; 0 past the matrix.
template <class T>
void write_values(const Backward<T>& call, const SumOf<T>* sums, std::int64_t slabs) {
  using A = SumOf<T>;
  const Grid& grid = call.grid;
  const std::int64_t wide = padded<A>(grid.width), size = grid.height * wide;
  for_each_block(grid.blocks, [&](std::int64_t block) {
    const std::int64_t height = grid.rows_of(grid.row[block]);
    const std::int64_t width = grid.cols_of(grid.col[block]);
    T* to = call.grad_values + block * grid.height * grid.width;
    for (std::int64_t r = 0; r < grid.height; ++r, to += grid.width) {
      std::fill_n(to, grid.width, T(0.f));
      for (std::int64_t k = 0; k < width && r < height; k += Lanes<A>::kCount) {
        auto sum = Lanes<A>::zero();
        for (std::int64_t slab = 0; slab < slabs; ++slab) {
          const A* from = sums + (slab * grid.blocks + block) * size + r * wide + k;
          sum = Lanes<A>::add(sum, Lanes<A>::load(from));
        }
        store_values(to + k, sum, std::min<std::int64_t>(Lanes<A>::kCount, width - k));
      }
    }
  });
}

template <class T>
void write_bias(const Backward<T>& call, const SumOf<T>* sums, std::int64_t slabs) {
  using A = SumOf<T>;
  const Grid& grid = call.grid;
  const std::int64_t tall = padded<A>(grid.height), size = tall * grid.block_rows();
  for (std::int64_t n = 0; n < grid.out_features; ++n) {
    A sum = 0;
    const std::int64_t at = n / grid.height * tall + n % grid.height;
    for (std::int64_t slab = 0; slab < slabs; ++slab) sum += sums[slab * size + at];
    call.grad_bias[n] = static_cast<T>(sum);
  }
}

}  // namespace

template <class T>
void backward(const Backward<T>& call) {
  using A = SumOf<T>;
  const Grid& grid = call.grid;
  const Slabs slabs(call.rows);
  std::unique_ptr<Weights<T>> weights;
  if (call.grad_x) weights = std::make_unique<Weights<T>>(grid, call.values, true);
  const std::vector<A> zeros(grid.block_cols() * grid.width + kTileColumns<Element<T>>);
  const std::int64_t size = grid.blocks * grid.height * padded<A>(grid.width);
  const Array<A> sums(call.grad_values ? slabs.count() * size : 0);
  const Array<A> bias_sums(
      call.grad_bias ? slabs.count() * padded<A>(grid.height) * grid.block_rows() : 0);
  with_activation(call.activation, [&]<Activation kActivation>() {
    for_each_block_with(
        slabs.count(),
        [&] { return Worker<T>(call, weights.get(), zeros.data(), sums.data(), bias_sums.data()); },
        [&](std::int64_t slab, Worker<T>& worker) {
          worker.template run<kActivation>(slab, slabs.begin(slab), slabs.end(slab));
        });
  });
  if (call.grad_values) write_values(call, sums.data(), slabs.count());
  if (call.grad_bias) write_bias(call, bias_sums.data(), slabs.count());
}

template void backward(const Backward<float>&);
template void backward(const Backward<double>&);
template void backward(const Backward<c10::BFloat16>&);
template void backward(const Backward<c10::Half>&);

}  // namespace gtkern::block_sparse_linear
