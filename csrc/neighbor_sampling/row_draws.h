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

// How many bits of each lane are set.
GTKERN_INLINE U16 lane_counts(U16 x) {
#ifdef __AVX512VPOPCNTDQ__
  return bits_as<U16>(_mm512_popcnt_epi32(bits_as<__m512i>(x)));
#else
  x -= (x >> 1) & 0x55555555u;
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  return (((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
#endif
}

// Places of sums of which the first that is larger than a lane's target is one of sixteen from
// there on: those before are no larger, those behind are larger, so that counting finds it.
GTKERN_INLINE __m512i sixteen_sums(const std::uint32_t* prefix, std::int64_t n, __m512i target) {
  constexpr std::int64_t kWalked = 1024;
  __m512i place = _mm512_setzero_si512();
  if (n <= kWalked) {
    // the last one of every sixteen sums, against all targets
    for (std::int64_t at = kLanes - 1; at < n; at += kLanes) {
      const __m512i sum = _mm512_set1_epi32(static_cast<int>(prefix[at]));
      place = _mm512_mask_add_epi32(place, _mm512_cmple_epu32_mask(sum, target), place,
                                    _mm512_set1_epi32(kLanes));
    }
  } else {
    for (std::int64_t left = n; left > kLanes;) {
      const std::int64_t half = left / 2;
      const __m512i sum = _mm512_mask_i32gather_epi32(place, 0xffff, place, prefix + half - 1, 4);
      place = _mm512_mask_add_epi32(place, _mm512_cmple_epu32_mask(sum, target), place,
                                    _mm512_set1_epi32(static_cast<int>(half)));
      left -= half;
    }
  }
  return _mm512_maskz_min_epi32(0xffff, place, _mm512_set1_epi32(static_cast<int>(n) - kLanes));
}

// The edges that sixteen words hit.
GTKERN_INLINE I16 hits(const RowTable& table, U16 word) {
  const std::int64_t n = table.n;
  const U16 target = high_product(word, U16{} + static_cast<std::uint32_t>(table.total()));
  if (!table.prefix) return bits_as<I16>(target);
  __m512i place = _mm512_setzero_si512();
  if (n < kLanes) {
    for (std::int64_t at = 0; at < n; ++at) {
      const __m512i sum = _mm512_set1_epi32(static_cast<int>(table.prefix[at]));
      place = _mm512_mask_add_epi32(place, _mm512_cmple_epu32_mask(sum, bits_as<__m512i>(target)),
                                    place, _mm512_set1_epi32(1));
    }
    return bits_as<I16>(place);
  }
  place = sixteen_sums(table.prefix, n, bits_as<__m512i>(target));
  alignas(64) std::uint32_t targets[kLanes];
  alignas(64) std::int32_t places[kLanes];
  alignas(32) std::uint16_t below[kLanes];
  store_lanes(targets, target);
  _mm512_store_si512(places, place);
  // through memory: taking lanes out of registers one by one is slower
  __asm__("" : "+m"(targets), "+m"(places));
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    const __m512i sums = _mm512_loadu_si512(table.prefix + places[j]);
    below[j] = _mm512_cmple_epu32_mask(sums, _mm512_set1_epi32(static_cast<int>(targets[j])));
  }
  __asm__("" : "+m"(below));
  const __m512i bits = _mm512_maskz_cvtepu16_epi32(
      0xffff, _mm256_load_si256(reinterpret_cast<const __m256i*>(below)));
  return bits_as<I16>(place) + bits_as<I16>(lane_counts(bits_as<U16>(bits)));
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

#else

GTKERN_INLINE I16 hits(const RowTable& table, U16 word) {
  I16 place;
  for (int lane = 0; lane < kLanes; ++lane) {
    place[lane] = static_cast<std::int32_t>(table.hit(word[lane]));
  }
  return place;
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
        const I16 chosen = sorted(bits_as<I16>(_mm512_mask_compress_epi32(
            behind, static_cast<__mmask16>(first), bits_as<__m512i>(place))));
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
    std::uint32_t first = ~0u, last = 0;
    U16 words[4];
    for (std::int64_t draw = 0; draw < most && count < layer_->k; draw += kLanes) {
      if (draw % kChunk == 0) {
        philox_lanes(layer_->seed, U16{} + static_cast<std::uint32_t>(row),
                     kCounters + static_cast<std::uint32_t>(draw / 4),
                     U16{} + (layer_->number | kDrawStream), U16{} + layer_->epoch, words);
      }
      alignas(64) std::uint32_t places[kLanes];
      store_lanes(places, hits(table, words[draw % kChunk / kLanes]));
      for (int lane = 0; lane < kLanes && count < layer_->k; ++lane) {
        const std::uint32_t at = places[lane] / 64;
        const std::uint64_t bit = std::uint64_t{1} << (places[lane] % 64);
        count += (seen_[at] & bit) == 0;
        seen_[at] |= bit;
        first = std::min(first, at);
        last = std::max(last, at);
      }
    }
    std::int64_t written = 0;
    for (std::uint32_t at = first; at <= last; ++at) {
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
