// Successive draws from one row: words, the edges they hit, the first k different ones in order.
#pragma once

#include <algorithm>
#include <vector>

#include "neighbor_sampling/problem.h"
#include "neighbor_sampling/row_table.h"

namespace gtkern::neighbor_sampling {

constexpr std::uint32_t kDrawStream = 1u << 30, kFillStream = 1u << 31;
constexpr std::int64_t kMostDrawn = 64;  // a larger sample of a row is raced
constexpr std::int64_t kMostDraws = 2 * kMostDrawn;

// Draws made for k edges of a row.
constexpr std::int64_t num_draws(std::int64_t k) { return (2 * k + 15) / 16 * 16; }

// Whether k edges of a row of n are drawn one after the other.
constexpr bool is_drawn(std::int64_t n, std::int64_t k) {
  return k <= kMostDrawn && n >= 2 * k && n > k && n < (std::int64_t{1} << 31);
}

// What draws choose among: n edges, by the prefix sums of their weights or all alike.
struct RowTable {
  const std::uint32_t* prefix;  // null: all alike
  std::int64_t n;

  std::uint64_t total() const { return prefix ? prefix[n - 1] : static_cast<std::uint64_t>(n); }

  // The edge that a word hits; total() is not 0.
  std::int64_t hit(std::uint32_t word) const {
    const std::uint64_t target = (std::uint64_t{word} * total()) >> 32;
    if (!prefix) return static_cast<std::int64_t>(target);
    const std::uint32_t* base = prefix;
    for (std::int64_t left = n; left > 1;) {
      const std::int64_t half = left / 2;
      base += base[half - 1] <= target ? half : 0;
      left -= half;
    }
    return base - prefix + (*base <= target);
  }
};

#ifdef __AVX512F__

GTKERN_INLINE unsigned lanes_up_to(I16 x, U16 bound) {
  return _mm512_cmple_epu32_mask(bits_as<__m512i>(x), bits_as<__m512i>(bound));
}

// The edges that sixteen words hit.
GTKERN_INLINE I16 hits(const RowTable& table, U16 word) {
  const std::int64_t n = table.n;
  const U16 target = high_product(word, U16{} + static_cast<std::uint32_t>(table.total()));
  if (!table.prefix) return bits_as<I16>(target);
  alignas(64) std::uint32_t targets[kLanes];
  alignas(64) std::int32_t place[kLanes];
  store_lanes(targets, target);
  const std::uint32_t* prefix = table.prefix;
  if (n <= kLanes) {
    const __mmask16 there = first_lanes(n);
    const __m512i sums = _mm512_maskz_loadu_epi32(there, prefix);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(targets[j]));
      place[j] = std::popcount(static_cast<unsigned>(_mm512_mask_cmple_epu32_mask(there, sums, x)));
    }
    return load_lanes<I16>(place);
  }
  // Sums up to the last sixteen that may hold the first one above the target; sums before it are
  // no larger than the target and those after it are larger, so that counting finds it.
  if (n <= kLanes * kLanes) {
    alignas(64) std::uint32_t ends[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) ends[j] = prefix[std::min<std::int64_t>(16 * j + 15, n - 1)];
    const __m512i pivots = _mm512_load_si512(ends);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(targets[j]));
      const int block = std::popcount(static_cast<unsigned>(_mm512_cmple_epu32_mask(pivots, x)));
      place[j] = static_cast<std::int32_t>(std::min<std::int64_t>(16 * block, n - kLanes));
    }
  } else {
    std::fill_n(place, kLanes, 0);
    for (std::int64_t left = n; left > kLanes;) {
      const std::int32_t half = static_cast<std::int32_t>(left / 2);
      const std::uint32_t* end = prefix + half - 1;
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) place[j] += end[place[j]] <= targets[j] ? half : 0;
      left -= half;
    }
    for (int j = 0; j < kLanes; ++j) {
      place[j] = std::min(place[j], static_cast<std::int32_t>(n) - kLanes);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    const __m512i x = _mm512_set1_epi32(static_cast<int>(targets[j]));
    const __m512i sums = _mm512_loadu_si512(prefix + place[j]);
    place[j] += std::popcount(static_cast<unsigned>(_mm512_cmple_epu32_mask(sums, x)));
  }
  return load_lanes<I16>(place);
}

// Sorts sixteen lanes: a bitonic network.
template <int SIZE, int STRIDE>
GTKERN_INLINE I16 sort_step(I16 x) {
  const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m512i other = bits_as<__m512i>(__builtin_shuffle(x, lane ^ STRIDE));
  constexpr unsigned kUpper = [] {
    unsigned mask = 0;
    for (unsigned l = 0; l < kLanes; ++l) {
      mask |= unsigned{((l & STRIDE) == 0) != ((l & SIZE) == 0)} << l;
    }
    return mask;
  }();
  const __m512i low = _mm512_maskz_min_epi32(0xffff, bits_as<__m512i>(x), other);
  return bits_as<I16>(_mm512_mask_max_epi32(low, kUpper, bits_as<__m512i>(x), other));
}

GTKERN_INLINE I16 sorted(I16 x) {
  x = sort_step<2, 1>(x);
  x = sort_step<4, 1>(sort_step<4, 2>(x));
  x = sort_step<8, 1>(sort_step<8, 2>(sort_step<8, 4>(x)));
  return sort_step<16, 1>(sort_step<16, 2>(sort_step<16, 4>(sort_step<16, 8>(x))));
}

#endif

// Draws from rows of one layer, one after the other.
class RowDraws {
 public:
  void start(const Layer& layer) {
    layer_ = &layer;
    quad_ = -1;
  }

  // Draws k edges of a row that is_drawn, until there are k different ones or the draws are used
  // up. Writes begin + the edges' places in the table, in order, and returns their number.
  std::int64_t draw(std::int64_t row, std::int64_t begin, const RowTable& table,
                    std::int64_t* drawn) {
#ifdef __AVX512F__
    if (layer_->k <= kLanes) {
      const I16 place = hits(table, first_words(row));
      const __m512i repeats = _mm512_conflict_epi32(bits_as<__m512i>(place));
      const unsigned different = _mm512_testn_epi32_mask(repeats, repeats);
      const unsigned k = static_cast<unsigned>(layer_->k);
      if (static_cast<unsigned>(std::popcount(different)) >= k) {
        const unsigned first = _pdep_u32((1u << k) - 1u, different);
        const __m512i behind = _mm512_set1_epi32(0x7fffffff);
        const I16 chosen = sorted(bits_as<I16>(
            _mm512_mask_compress_epi32(behind, static_cast<__mmask16>(first),
                                       bits_as<__m512i>(place))));
        store_positions(chosen, begin, drawn);
        return layer_->k;
      }
    }
#endif
    return draw_many(row, begin, table, drawn);
  }

 private:
#ifdef __AVX512F__
  void store_positions(I16 place, std::int64_t begin, std::int64_t* drawn) const {
    const __m512i from = _mm512_set1_epi64(begin), all = bits_as<__m512i>(place);
    const unsigned mask = (1u << layer_->k) - 1u;
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(all));
    _mm512_mask_storeu_epi64(drawn, static_cast<__mmask8>(mask), _mm512_add_epi64(low, from));
    if (layer_->k <= 8) return;
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(all, 1));
    _mm512_mask_storeu_epi64(drawn + 8, static_cast<__mmask8>(mask >> 8),
                             _mm512_add_epi64(high, from));
  }
#endif

  // The first sixteen words of a row; those of four rows come out of one call.
  U16 first_words(std::int64_t row) {
    if (row / 4 != quad_) {
      quad_ = row / 4;
      philox_lanes(layer_->seed, (kCounters >> 2) + static_cast<std::uint32_t>(quad_ * 4),
                   kCounters & 3u, U16{} + (layer_->number | kDrawStream), U16{} + layer_->epoch,
                   words_);
    }
    return words_[row & 3];
  }

  std::int64_t draw_many(std::int64_t row, std::int64_t begin, const RowTable& table,
                         std::int64_t* drawn) {
    const std::int64_t most = num_draws(layer_->k);
    seen_.resize(std::max<std::size_t>(seen_.size(), (table.n + 63) / 64), 0);
    std::int64_t count = 0;
    std::uint64_t first = ~std::uint64_t{0}, last = 0;
    alignas(64) std::uint32_t word[kChunk];
    for (std::int64_t draw = 0; draw < most && count < layer_->k; ++draw) {
      if (draw % kChunk == 0) {
        U16 words[4];
        philox_lanes(layer_->seed, U16{} + static_cast<std::uint32_t>(row),
                     kCounters + static_cast<std::uint32_t>(draw / 4),
                     U16{} + (layer_->number | kDrawStream), U16{} + layer_->epoch, words);
        for (int part = 0; part < 4; ++part) store_lanes(word + part * kLanes, words[part]);
      }
      const std::uint64_t place = static_cast<std::uint64_t>(table.hit(word[draw % kChunk]));
      const std::uint64_t bit = std::uint64_t{1} << (place % 64);
      std::uint64_t& seen = seen_[place / 64];
      count += (seen & bit) == 0;
      seen |= bit;
      first = std::min(first, place / 64);
      last = std::max(last, place / 64);
    }
    std::int64_t written = 0;
    for (std::uint64_t at = first; at <= last; ++at) {
      for (std::uint64_t bits = std::exchange(seen_[at], 0); bits; bits &= bits - 1) {
        drawn[written++] = begin + static_cast<std::int64_t>(at) * 64 + std::countr_zero(bits);
      }
    }
    return count;
  }

  const Layer* layer_ = nullptr;
  std::int64_t quad_ = -1;
  U16 words_[4] = {};
  std::vector<std::uint64_t> seen_;  // a bit for each edge of the row; all 0 between rows
};

}  // namespace gtkern::neighbor_sampling
