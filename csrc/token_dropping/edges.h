// The edges and pairs of the kept tokens, on the CPU: counted, then written where they belong.
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace gtkern::token_dropping {

// Which edges of a list are kept: one bit each, and how many before each block.
template <class I>
class KeptEdges {
 public:
  KeptEdges(const I* source, const I* destination, const std::int32_t* position, std::int64_t edges)
      : source_(source),
        destination_(destination),
        position_(position),
        blocks_(edges, kBlock),
        words_((edges + kWord - 1) / kWord),
        start_(blocks_.count() + 1) {
    for_each_block(blocks_.count(), [&](std::int64_t block) {
      std::int64_t count = 0;
      for (std::int64_t e = blocks_.begin(block); e < blocks_.end(block); e += kWord) {
        const std::int64_t last = std::min(e + kWord, blocks_.end(block));
        std::uint64_t word = 0;
        for (std::int64_t i = e; i < last; ++i) {
          // dropped at either end: the sign bit of the positions' union
          const std::int32_t either = position_[source_[i]] | position_[destination_[i]];
          word |= static_cast<std::uint64_t>(either >= 0) << (i - e);
        }
        words_[e / kWord] = word;
        count += __builtin_popcountll(word);
      }
      start_[block + 1] = count;
    });
    for (std::size_t block = 1; block < start_.size(); ++block) start_[block] += start_[block - 1];
  }

  std::int64_t count() const { return start_.back(); }

  void write(I* source, I* destination, std::int64_t* edge) const {
    for_each_block(blocks_.count(), [&](std::int64_t block) {
      std::int64_t at = start_[block];
      for (std::int64_t e = blocks_.begin(block); e < blocks_.end(block); e += kWord) {
        for (std::uint64_t word = words_[e / kWord]; word; word &= word - 1) {
          const std::int64_t i = e + __builtin_ctzll(word);
          source[at] = static_cast<I>(position_[source_[i]]);
          destination[at] = static_cast<I>(position_[destination_[i]]);
          edge[at++] = i;
        }
      }
    });
  }

 private:
  static constexpr std::int64_t kWord = 64, kBlock = 1 << 14;
  const I *source_, *destination_;
  const std::int32_t* position_;
  RowRange blocks_;
  std::vector<std::uint64_t> words_;
  std::vector<std::int64_t> start_;
};

// The kept rows of a CSR, without the sources that are dropped.
class KeptRows {
 public:
  KeptRows(const std::int64_t* ptr, const std::int32_t* col, const std::int64_t* index,
           const std::int32_t* position, std::int64_t rows, std::int64_t edges)
      : ptr_(ptr),
        col_(col),
        index_(index),
        position_(position),
        // blocks of rows of about 16,384 edges
        blocks_(rows, std::max<std::int64_t>(1, (rows << 14) / std::max<std::int64_t>(edges, 1))),
        rows_(rows) {}

  // Writes the degrees' sums [rows + 1]; returns the number of edges.
  std::int64_t count(std::int64_t* kept_ptr) const {
    kept_ptr[0] = 0;
    for_each_block(blocks_.count(), [&](std::int64_t block) {
      for (std::int64_t m = blocks_.begin(block); m < blocks_.end(block); ++m) {
        std::int64_t degree = 0;
        for (std::int64_t e = ptr_[index_[m]]; e < ptr_[index_[m] + 1]; ++e) {
          degree += position_[col_[e]] >= 0;
        }
        kept_ptr[m + 1] = degree;
      }
    });
    for (std::int64_t m = 0; m < rows_; ++m) kept_ptr[m + 1] += kept_ptr[m];
    return kept_ptr[rows_];
  }

  // A null edge_id is the identity; null types: none.
  void write(const std::int64_t* kept_ptr, const std::int64_t* edge_id, const std::uint8_t* type,
             std::int32_t* kept_col, std::int64_t* edge, std::uint8_t* kept_type) const {
    for_each_block(blocks_.count(), [&](std::int64_t block) {
      for (std::int64_t m = blocks_.begin(block); m < blocks_.end(block); ++m) {
        std::int64_t at = kept_ptr[m];
        for (std::int64_t e = ptr_[index_[m]]; e < ptr_[index_[m] + 1]; ++e) {
          const std::int32_t source = position_[col_[e]];
          if (source < 0) continue;
          kept_col[at] = source;
          edge[at] = edge_id ? edge_id[e] : e;
          if (type) kept_type[at] = type[e];
          ++at;
        }
      }
    });
  }

 private:
  const std::int64_t* ptr_;
  const std::int32_t* col_;
  const std::int64_t* index_;
  const std::int32_t* position_;
  RowRange blocks_;
  std::int64_t rows_;
};

// The entries of the pairs of kept tokens.
template <class E>
void gather_pairs(const E* entry, const std::int64_t* ptr, const std::int64_t* pair_ptr,
                  const std::int64_t* index, const std::int64_t* kept_ptr,
                  const std::int64_t* kept_pair_ptr, std::int64_t graphs, E* out) {
  const RowBlocks blocks(kept_pair_ptr, graphs);
  for_each_block(blocks.count(), [&](std::int64_t block) {
    for (std::int64_t g = blocks.begin(block); g < blocks.end(block); ++g) {
      const std::int64_t first = ptr[g], n = ptr[g + 1] - first;
      const std::int64_t* kept = index + kept_ptr[g];
      const std::int64_t k = kept_ptr[g + 1] - kept_ptr[g];
      E* to = out + kept_pair_ptr[g];
      for (std::int64_t i = 0; i < k; ++i) {
        const E* row = entry + pair_ptr[g] + (kept[i] - first) * n - first;
        for (std::int64_t j = 0; j < k; ++j) *to++ = row[kept[j]];
      }
    }
  });
}

}  // namespace gtkern::token_dropping
