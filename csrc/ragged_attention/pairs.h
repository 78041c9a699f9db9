// What belongs to single pairs: biases looked up in tables, their gradients, dropout masks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/philox.h"
#include "common/philox_lanes.h"
#include "ragged_attention/problem.h"

namespace gtkern::ragged_attention {

// The rows of all tables, in units of log2, with the four heads of a quad side by side: a row's
// place is (quad * rows + row) * kQuad. A row of -inf stands where a masking index points, and a
// row of zeros for slots of the prefix.
template <class A>
class QuadTable {
 public:
  template <class T>
  explicit QuadTable(const Problem<T, A>& in) {
    constexpr std::int64_t kByteRows = 256, kShortRows = 32769;
    for (const Index& index : in.indices) {
      // index -1 masks in shorts, 255 in bytes; bytes never select a row past 254
      const std::int64_t used = std::min(index.rows, (index.bytes ? kByteRows : kShortRows) - 1);
      const std::int64_t base = rows_ + (index.shorts ? 1 : 0);
      parts_.push_back({index.bytes, index.shorts, base, index.first_row, used});
      rows_ += index.bytes ? kByteRows : used + 1;
    }
    zero_row_ = rows_++;
    if (parts_.empty()) return;
    values_.assign(in.quads() * rows_ * kQuad, -std::numeric_limits<A>::infinity());
    for (std::int64_t head = 0; head < in.quads() * kQuad; ++head) {
      A* column = values_.data() + head / kQuad * rows_ * kQuad + head % kQuad;
      column[zero_row_ * kQuad] = 0;
      if (head >= in.heads) continue;
      for (const Part& part : parts_) {
        for (std::int64_t b = 0; b < part.used; ++b) {
          const A value = in.table[(part.first_row + b) * in.heads + head];
          column[(part.base + b) * kQuad] = value * static_cast<A>(kLog2E);
        }
      }
    }
  }

  bool empty() const { return parts_.empty(); }
  // values of a quad
  std::int64_t quad_size() const { return rows_ * kQuad; }

  // scores[c][i][j] of `count` heads of a quad for `rows` queries, whose first pair is number
  // `pair`: the biases; zero for the prefix. Scores of a head are `head_stride` apart.
  void look_up(std::int64_t quad, int count, std::int64_t pair, std::int64_t rows,
               const Shape<A>& shape, A* scores, std::int64_t head_stride) const {
    const A* values = values_.data() + quad * quad_size();
    for (std::int64_t i = 0; i < rows; ++i, pair += shape.nodes, scores += shape.ld) {
      for (std::int64_t j = 0; j < shape.wide; j += kLanes) {
        alignas(64) A quads[kLanes * kQuad];
        std::int32_t place[kLanes];
        for (std::size_t m = 0; m < parts_.size(); ++m) {
          places(parts_[m], pair + j, shape.nodes - j, place);
          if (m == 0) {
            for (int l = 0; l < kLanes; ++l) copy_quad(quads + l * kQuad, values + place[l]);
          } else {
            for (int l = 0; l < kLanes; ++l) add_quad(quads + l * kQuad, values + place[l]);
          }
        }
        split(quads, count, scores + j, head_stride);
      }
    }
  }

  // Adds the scores' gradients of the pairs to their rows in `sums` (a quad's). Heads past `count`
  // add zeros.
  void scatter(int count, std::int64_t pair, std::int64_t rows, const Shape<A>& shape,
               const A* gradients, std::int64_t head_stride, A* sums) const {
    for (std::int64_t i = 0; i < rows; ++i, pair += shape.nodes, gradients += shape.ld) {
      for (std::int64_t j = 0; j < shape.nodes; j += kLanes) {
        alignas(64) A quads[kLanes * kQuad];
        std::int32_t place[kLanes];
        join(gradients + j, head_stride, count, quads);
        const int live = static_cast<int>(std::min<std::int64_t>(kLanes, shape.nodes - j));
        for (const Part& part : parts_) {
          places(part, pair + j, live, place);
          for (int l = 0; l < live; ++l) add_quad(sums + place[l], quads + l * kQuad);
        }
      }
    }
  }

  // to[row][head] = the sum over chunks of the partial sums [chunk][quad][rows][kQuad], in order.
  void merge(const A* partial, std::int64_t chunks, std::int64_t quads, std::int64_t heads,
             std::int64_t table_rows, A* to) const {
    std::fill(to, to + table_rows * heads, A{0});
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const A* mine = partial + chunk * quads * quad_size();
      for (const Part& part : parts_) {
        for (std::int64_t b = 0; b < part.used; ++b) {
          for (std::int64_t head = 0; head < heads; ++head) {
            to[(part.first_row + b) * heads + head] +=
                mine[head / kQuad * quad_size() + (part.base + b) * kQuad + head % kQuad];
          }
        }
      }
    }
  }

 private:
  static constexpr int kLanes = Lanes<A>::kCount;

  struct Part {
    const std::uint8_t* bytes;
    const std::int16_t* shorts;
    std::int64_t base, first_row, used;
  };

  // The places of the rows of kLanes pairs, of which the first `live` are pairs of nodes.
  GTKERN_INLINE void places(const Part& part, std::int64_t pair, std::int64_t live,
                            std::int32_t* place) const {
    const std::int32_t base = static_cast<std::int32_t>(part.base * kQuad);
    if (live >= kLanes) {
      if (part.bytes) {
        for (int l = 0; l < kLanes; ++l) place[l] = base + part.bytes[pair + l] * kQuad;
      } else {
        for (int l = 0; l < kLanes; ++l) place[l] = base + part.shorts[pair + l] * kQuad;
      }
      return;
    }
    for (int l = 0; l < kLanes; ++l) {
      const bool real = l < live;
      const int entry = !real ? 0 : part.bytes ? part.bytes[pair + l] : part.shorts[pair + l];
      place[l] = real ? base + entry * kQuad : static_cast<std::int32_t>(zero_row_ * kQuad);
    }
  }

  static GTKERN_INLINE void copy_quad(A* to, const A* from) {
    std::memcpy(to, from, kQuad * sizeof(A));
  }
  static GTKERN_INLINE void add_quad(A* to, const A* from) {
    typename Lanes<A>::Quad a, b;
    std::memcpy(&a, to, sizeof a);
    std::memcpy(&b, from, sizeof b);
    a += b;
    std::memcpy(to, &a, sizeof a);
  }

  // [kLanes][kQuad] into a vector for each head, and back.
  static GTKERN_INLINE void split(const A* quads, int count, A* to, std::int64_t stride) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<A, float>) {
      __m512 by_head[kQuad];
      exchange(quads, by_head);
      for (int c = 0; c < count; ++c) _mm512_storeu_ps(to + c * stride, by_head[c]);
      return;
    }
#endif
    for (int c = 0; c < count; ++c) {
      for (int l = 0; l < kLanes; ++l) to[c * stride + l] = quads[l * kQuad + c];
    }
  }
  static GTKERN_INLINE void join(const A* from, std::int64_t stride, int count, A* quads) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<A, float>) {
      __m512 x[kQuad];
      for (int c = 0; c < kQuad; ++c) {
        x[c] = c < count ? _mm512_loadu_ps(from + c * stride) : _mm512_setzero_ps();
      }
      const __m512 low01 = _mm512_unpacklo_ps(x[0], x[1]), high01 = _mm512_unpackhi_ps(x[0], x[1]);
      const __m512 low23 = _mm512_unpacklo_ps(x[2], x[3]), high23 = _mm512_unpackhi_ps(x[2], x[3]);
      // four[e] holds keys e, 4 + e, 8 + e, 12 + e
      const __m512 four[4] = {pairs_low(low01, low23), pairs_high(low01, low23),
                              pairs_low(high01, high23), pairs_high(high01, high23)};
#pragma GCC unroll 4
      for (int e = 0; e < 4; ++e) {
        _mm_store_ps(quads + 4 * e, _mm512_castps512_ps128(four[e]));
        _mm_store_ps(quads + 4 * (4 + e), _mm512_extractf32x4_ps(four[e], 1));
        _mm_store_ps(quads + 4 * (8 + e), _mm512_extractf32x4_ps(four[e], 2));
        _mm_store_ps(quads + 4 * (12 + e), _mm512_extractf32x4_ps(four[e], 3));
      }
      return;
    }
#endif
    for (int l = 0; l < kLanes; ++l) {
      for (int c = 0; c < kQuad; ++c) quads[l * kQuad + c] = c < count ? from[c * stride + l] : 0;
    }
  }

#ifdef __AVX512F__
  static GTKERN_INLINE __m512 pairs_low(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static GTKERN_INLINE __m512 pairs_high(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static GTKERN_INLINE void exchange(const float* quads, __m512* by_head) {
    __m512 four[4];
#pragma GCC unroll 4
    for (int e = 0; e < 4; ++e) {
      __m512 x = _mm512_castps128_ps512(_mm_load_ps(quads + 4 * e));
      x = _mm512_insertf32x4(x, _mm_load_ps(quads + 4 * (4 + e)), 1);
      x = _mm512_insertf32x4(x, _mm_load_ps(quads + 4 * (8 + e)), 2);
      four[e] = _mm512_insertf32x4(x, _mm_load_ps(quads + 4 * (12 + e)), 3);
    }
    const __m512 low01 = _mm512_unpacklo_ps(four[0], four[1]);
    const __m512 high01 = _mm512_unpackhi_ps(four[0], four[1]);
    const __m512 low23 = _mm512_unpacklo_ps(four[2], four[3]);
    const __m512 high23 = _mm512_unpackhi_ps(four[2], four[3]);
    by_head[0] = pairs_low(low01, low23);
    by_head[1] = pairs_high(low01, low23);
    by_head[2] = pairs_low(high01, high23);
    by_head[3] = pairs_high(high01, high23);
  }
#endif

  std::vector<Part> parts_;
  std::vector<A> values_;
  std::int64_t rows_ = 0, zero_row_ = 0;
};

// Bit l is set where lane l is at least `bound`.
GTKERN_INLINE std::uint32_t at_least(simd::U16 x, std::uint32_t bound) {
#ifdef __AVX512F__
  return _mm512_cmpge_epu32_mask(simd::bits_as<__m512i>(x),
                                 _mm512_set1_epi32(static_cast<int>(bound)));
#else
  std::uint32_t bits = 0;
  for (int l = 0; l < simd::kLanes; ++l) bits |= static_cast<std::uint32_t>(x[l] >= bound) << l;
  return bits;
#endif
}

// Which pairs the dropout keeps, as bits of vectors of keys: bits[(c * rows + i) * vectors + x] for
// head 4 * quad + c, local query first + i, keys kLanes * x and after.
template <class T, class A>
void draw_keep_bits(const Problem<T, A>& in, std::int64_t graph, std::int64_t quad,
                    std::int64_t first, std::int64_t rows, const Shape<A>& shape,
                    std::uint16_t* bits) {
  constexpr int kLanes = Lanes<A>::kCount;
  const std::int64_t vectors = shape.ld / kLanes;
  const std::uint32_t threshold = dropout_threshold(in.dropout);
  for (std::int64_t i = 0; i < rows; ++i) {
    const std::int64_t query = in.ptr[graph] + first + i;
    const std::int64_t pair = in.pair_ptr[graph] + (first + i) * shape.nodes;
    const std::int64_t slot = in.pairs + query * in.slots - shape.nodes;
    for (std::int64_t j = 0; j < shape.wide; j += simd::kLanes) {
      alignas(64) std::uint32_t lows[simd::kLanes], highs[simd::kLanes];
      for (int l = 0; l < simd::kLanes; ++l) {
        const auto item = static_cast<std::uint64_t>((j + l < shape.nodes ? pair : slot) + j + l);
        lows[l] = static_cast<std::uint32_t>(item);
        highs[l] = static_cast<std::uint32_t>(item >> 32);
      }
      simd::U16 low, high, slice = simd::U16{} + static_cast<std::uint32_t>(quad), rest{};
      std::memcpy(&low, lows, sizeof low);
      std::memcpy(&high, highs, sizeof high);
      simd::philox_rounds(in.seed, low, high, slice, rest);
      const simd::U16 words[kQuad] = {low, high, slice, rest};
      for (int c = 0; c < kQuad; ++c) {
        const std::uint32_t kept = at_least(words[c], threshold);
        std::uint16_t* to = bits + (c * rows + i) * vectors + j / kLanes;
        for (int part = 0; part < simd::kLanes / kLanes && j + part * kLanes < shape.wide; ++part) {
          to[part] = static_cast<std::uint16_t>(kept >> part * kLanes & ((1u << kLanes) - 1));
        }
      }
    }
  }
}

}  // namespace gtkern::ragged_attention
