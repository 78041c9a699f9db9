// sample_neighbors for CPU tensors. Blocks of rows of about equal work are shared out. A limit that
// a little more than k of a row's keys should be below is guessed from the sum of its weights; the
// words of most edges show at once that their keys are above it, and only the others get a key. Of
// those the k smallest are found by counting, which is cheaper than sorting.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/check.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "neighbor_sampling/race.h"
#include "neighbor_sampling/schema.h"

namespace gtkern::neighbor_sampling {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kWindow = 2048;
constexpr std::uint32_t kFillStream = 1u << 31;

struct Edges {
  std::int64_t rows, count;
  const std::int64_t* ptr;
  const std::int32_t* col;
  const std::int64_t* edge_id;
  const std::uint8_t* type;

  std::int64_t id(std::int64_t position) const { return edge_id ? edge_id[position] : position; }
};

struct Layer {
  const float* weight;  // null: all 1
  bool sorted;          // by position, not by edge id
  std::int64_t k;
  std::uint64_t seed;
  std::uint32_t number, epoch;
  bool top, pad;
  std::int32_t* index;
  std::int64_t* edge;
  std::uint8_t* type;  // null: no types
};

// The words of a stretch of positions that moves forward with the rows.
class Window {
 public:
  explicit Window(const Layer& layer) : layer_(layer) {}

  // The words of begin .. end, at most kWindow - kChunk of them; 15 more may be read.
  const std::uint32_t* words(std::int64_t begin, std::int64_t end) {
    if (begin < begin_ || end > end_) refill(begin);
    return word_ + (begin - begin_);
  }

 private:
  void refill(std::int64_t begin) {
    begin_ = begin / kChunk * kChunk;
    end_ = begin_ + kWindow;
    for (std::int64_t at = 0; at < kWindow; at += kChunk) {
      U16 word[4];
      position_words(layer_.seed, static_cast<std::uint64_t>(begin_ + at), layer_.number,
                     layer_.epoch, word);
      for (int part = 0; part < 4; ++part) store_lanes(word_ + at + part * kLanes, word[part]);
    }
  }

  const Layer& layer_;
  std::int64_t begin_ = 0, end_ = 0;
  alignas(64) std::uint32_t word_[kWindow + kLanes] = {};
};

// Finds the k smallest of n keys, more than k of which are below infinity; ties go to the earlier
// one. `place` gets their places in order (room for 32 more). `guess(m)` is a limit with about m
// keys below it.
template <class Guess>
void k_smallest(const std::int32_t* key, std::int64_t n, std::int64_t k, const Guess& guess,
                std::int32_t* place) {
  if (n <= kFew && few_smallest(few_keys(key, n), n, k, place)) return;
  // a number of keys that is easy to hit: from k to what few_smallest takes
  const float aim = k < kFew - 8 ? static_cast<float>(k + std::min<std::int64_t>(k, kFew - k) / 2)
                                 : static_cast<float>(k);
  // at all times fewer than k keys are below `low`, and more than k below `high`
  std::int32_t low = 0, high = kInfinity;
  std::int64_t count_low = 0, count_high = n;
  for (int step = 0; high - low > 1; ++step) {
    const float x = bits_as<float>(low), y = bits_as<float>(high);
    float next;
    if (step == 0) {
      next = guess(aim + 0.5f);
    } else if (high == kInfinity) {
      next = x * std::min((aim + 0.5f) / (static_cast<float>(count_low) + 0.5f) * 1.2f, 16.0f);
    } else {
      next = x + (y - x) * (aim + 0.5f - static_cast<float>(count_low)) /
                     static_cast<float>(count_high - count_low);
    }
    // halving where a distribution fools the guesses
    const std::int32_t limit = step % 4 == 3
                                   ? low + (high - low) / 2
                                   : std::clamp(bits_as<std::int32_t>(next), low + 1, high - 1);
    const std::int64_t count = count_below(key, n, limit);
    if (count < k) {
      low = limit;
      count_low = count;
      continue;
    }
    if (count == k) {
      places_below(key, n, limit, place);
      return;
    }
    high = limit;
    count_high = count;
    if (count <= kFew) {
      std::int32_t near[kFew + kLanes], near_key[kFew], chosen[2 * kFew];
      places_below(key, n, limit, near);
      for (std::int64_t i = 0; i < count; ++i) near_key[i] = key[near[i]];
      if (few_smallest(few_keys(near_key, count), count, k, chosen)) {
        for (std::int64_t i = 0; i < k; ++i) place[i] = near[chosen[i]];
        return;
      }
    }
  }
  // more keys equal `low` than there are places left
  std::int64_t ties = k - count_low;
  for (std::int64_t i = 0; k > 0; ++i) {
    if (key[i] > low || (key[i] == low && ties-- <= 0)) continue;
    *place++ = static_cast<std::int32_t>(i);
    --k;
  }
}

// A limit below which about m of n keys lie, for weights that are not too uneven.
float first_guess(float sum, std::int64_t n, float m) {
  constexpr float kUnit = 65536.0f * 1.442695f;  // the mean of an exponential variate
  const float portion = std::min(m / static_cast<float>(n), 1.0f);
  // -log(1 - portion), nearly
  const float depth = portion * (6.0f - portion) / (6.0f - 4.0f * portion);
  return depth * static_cast<float>(n) / sum * kUnit;
}

class Sampler {
 public:
  Sampler(const Edges& edges, const Layer& layer) : edges_(edges), layer_(layer), window_(layer) {
    const std::int64_t room = 2 * layer.k + 2 * kWindow + kFew;
    kept_key_.resize(room);
    kept_.resize(room);
    place_.resize(room);
  }

  // Rows begin .. end. First the positions drawn, where the edges will stand; then, with all of
  // them known, what they stand for: reads far apart that are fetched ahead.
  void rows(std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) draw(row);
    read(begin * layer_.k, end * layer_.k);
  }

 private:
  void draw(std::int64_t row) {
    const std::int64_t begin = edges_.ptr[row], end = edges_.ptr[row + 1];
    drawn_ = layer_.edge + row * layer_.k;
    taken_ = 0;
    if (end - begin <= layer_.k) {
      for (std::int64_t p = begin; p < end; ++p) {
        if (is_candidate(p)) drawn_[taken_++] = p;
      }
    } else {
      race(begin, end);
    }
    std::int64_t filled = taken_;
    if (taken_ > 0 && taken_ < layer_.k && !layer_.pad) {
      draw_again(row);
      filled = layer_.k;
    }
    std::fill(drawn_ + filled, drawn_ + layer_.k, -1);
  }

  void read(std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kAhead = 24;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t later = layer_.edge[std::min(i + kAhead, end - 1)];
      if (i + kAhead < end && later >= 0) {
        __builtin_prefetch(edges_.col + later);
        if (edges_.edge_id) __builtin_prefetch(edges_.edge_id + later);
        if (layer_.type) __builtin_prefetch(edges_.type + later);
      }
      const std::int64_t position = layer_.edge[i];
      const bool real = position >= 0;
      layer_.index[i] = real ? edges_.col[position] : -1;
      if (real) layer_.edge[i] = edges_.id(position);
      if (layer_.type) layer_.type[i] = real ? edges_.type[position] : 0;
    }
  }

  float weight_of(std::int64_t position) const {
    return layer_.weight[layer_.sorted ? position : edges_.id(position)];
  }

  bool is_candidate(std::int64_t position) const {
    if (!layer_.weight) return true;
    const float weight = weight_of(position);
    return weight >= kSmallestWeight && weight <= kLargestWeight;
  }

  // The weights of begin .. end, at most kWindow; null: all 1.
  const float* weights(std::int64_t begin, std::int64_t end) {
    if (!layer_.weight) return nullptr;
    if (layer_.sorted || !edges_.edge_id) return layer_.weight + begin;
    const std::int64_t* id = edges_.edge_id + begin;
    const float* weight = layer_.weight;
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < end - begin; ++i) weight_[i] = weight[id[i]];
    return weight_;
  }

  // Draws the edges of the k smallest keys of a row that has more than k edges.
  void race(std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kStretch = kWindow - kChunk;
    const std::int64_t k = layer_.k;
    std::int64_t stop = std::min(end, begin + kStretch);
    const float* weight = weights(begin, stop);
    const float sum = weight ? sum_of(weight, stop - begin) : static_cast<float>(stop - begin);
    // a limit that a little more than k keys are below; later stretches of a long row only lower it
    std::int32_t limit = kInfinity;
    if (!layer_.top && 3 * k < stop - begin && stop - begin > kFew) {
      const float aim =
          static_cast<float>(k + std::min(k, std::max<std::int64_t>(kFew - k, k / 4 + 4)) / 2 + 1);
      limit = std::min(bits_as<std::int32_t>(first_guess(sum, stop - begin, aim)), kInfinity);
    }
    if (stop == end && race_of_few(begin, end, limit, weight)) return;
    count_ = 0;
    keep_below(begin, stop, limit, weight);
    if (count_ < k && limit != kInfinity) {
      // heavier at the top than the sum tells
      count_ = 0;
      limit = bits_as<std::int32_t>(bits_as<float>(limit) * 4.0f);
      keep_below(begin, stop, limit, weight);
    }
    if (count_ < k && limit != kInfinity) {
      count_ = 0;
      limit = kInfinity;
      keep_below(begin, stop, limit, weight);
    }
    while (stop < end) {
      if (count_ > 2 * k + kLanes) limit = thin_out(limit, sum);
      const std::int64_t next = std::min(end, stop + kStretch);
      keep_below(stop, next, limit, weights(stop, next));
      stop = next;
    }
    if (count_ > k) thin_out(limit, sum);
    taken_ = count_;
    std::copy_n(kept_.data(), taken_, drawn_);
  }

  // The race where at most 32 keys need to be known, as in most rows. False where it is not so, or
  // fewer than k keys are below the limit.
  bool race_of_few(std::int64_t begin, std::int64_t end, std::int32_t limit, const float* weight) {
    const std::int64_t k = layer_.k;
    std::int64_t n = end - begin;
    if (k > kFew || (n > kFew && limit == kInfinity)) return false;
    std::int32_t chosen[2 * kFew];
    Few few;
    if (n <= kFew) {
      const auto ones = [](std::int64_t count) {
        const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        return lane < static_cast<std::int32_t>(count) ? F16{} + 1.0f : F16{};
      };
      const F16 a = weight ? load_first<F16>(weight, n) : ones(n);
      const F16 b = weight ? load_first<F16>(weight + kLanes, n - kLanes) : ones(n - kLanes);
      if (layer_.top) {
        few = {top_key(a), top_key(b)};
      } else {
        const std::uint32_t* word = window_.words(begin, end);
        few = {race_key(load_lanes<U16>(word), a), race_key(load_lanes<U16>(word + kLanes), b)};
      }
    } else {
      const std::uint32_t* word = window_.words(begin, end);
      n = places_maybe_below(word, weight, n, bits_as<float>(limit), place_.data());
      if (n > kFew) return false;
      const auto keys = [&](std::int64_t from) {
        const I16 at = load_first<I16>(place_.data() + from, n - from);
        alignas(64) std::uint32_t words[kLanes];
        alignas(64) float weights[kLanes];
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) {
          words[j] = word[at[j]];
          weights[j] = weight ? weight[at[j]] : 1.0f;
        }
        const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        return lane < static_cast<std::int32_t>(n - from)
                   ? race_key(load_lanes<U16>(words), load_lanes<F16>(weights))
                   : I16{} + kInfinity;
      };
      few.a = keys(0);
      few.b = n > kLanes ? keys(kLanes) : I16{} + kInfinity;
    }
    if (count_below(few, limit) < k) return false;
    if (!few_smallest(few, n, k, chosen)) return false;
    const bool direct = end - begin <= kFew;
    for (std::int64_t i = 0; i < k; ++i) {
      drawn_[i] = begin + (direct ? chosen[i] : place_[chosen[i]]);
    }
    taken_ = k;
    return true;
  }

  // Keeps, behind what is kept, the positions of begin .. end whose keys are below the limit.
  void keep_below(std::int64_t begin, std::int64_t end, std::int32_t limit, const float* weight) {
    const std::int64_t n = end - begin;
    std::int32_t* key = kept_key_.data() + count_;
    std::int64_t* kept = kept_.data() + count_;
    if (layer_.top) {
      for (std::int64_t i = 0; i < n; i += kLanes) {
        store_lanes(key + i, top_key(load_first<F16>(weight + i, n - i)));
      }
    }
    const std::uint32_t* word = layer_.top ? nullptr : window_.words(begin, end);
    if (!layer_.top && limit == kInfinity) {
      for (std::int64_t i = 0; i < n; i += kLanes) {
        const F16 lanes = weight ? load_first<F16>(weight + i, n - i) : F16{} + 1.0f;
        store_lanes(key + i, race_key(load_lanes<U16>(word + i), lanes));
      }
    }
    if (layer_.top || limit == kInfinity) {
      const std::int64_t found = places_below(key, n, limit, place_.data());
      for (std::int64_t i = 0; i < found; ++i) {
        key[i] = key[place_[i]];
        kept[i] = begin + place_[i];
      }
      count_ += found;
      return;
    }
    const std::int64_t maybe =
        places_maybe_below(word, weight, n, bits_as<float>(limit), place_.data());
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < maybe; i += kLanes) {
      const std::int64_t size = std::min<std::int64_t>(kLanes, maybe - i);
      const std::int32_t* place = place_.data() + i;
      U16 words = {};
      F16 weights = F16{} + 1.0f;
      for (std::int64_t j = 0; j < size; ++j) {
        words[j] = word[place[j]];
        if (weight) weights[j] = weight[place[j]];
      }
      std::int32_t keys[kLanes];
      store_lanes(keys, race_key(words, weights));
      for (std::int64_t j = 0; j < size; ++j) {
        key[found] = keys[j];
        kept[found] = begin + place[j];
        found += keys[j] < limit;
      }
    }
    count_ += found;
  }

  // Leaves the k smallest of what is kept, more than k. Returns a limit for keys that come later:
  // they must be below the largest of these.
  std::int32_t thin_out(std::int32_t limit, float sum) {
    const std::int64_t k = layer_.k;
    const auto guess = [&](float m) {
      if (layer_.top) return 1.0f;
      if (limit == kInfinity) return first_guess(sum, count_, m);
      return bits_as<float>(limit) * m / static_cast<float>(count_);
    };
    k_smallest(kept_key_.data(), count_, k, guess, place_.data());
    std::int32_t largest = 0;
    for (std::int64_t i = 0; i < k; ++i) {
      kept_key_[i] = kept_key_[place_[i]];
      kept_[i] = kept_[place_[i]];
      largest = std::max(largest, kept_key_[i]);
    }
    count_ = k;
    return largest;
  }

  // Fills the places behind what was taken by draws in proportion to the weights.
  void draw_again(std::int64_t row) {
    prefix_.resize(taken_);
    float largest = 1.0f;
    if (layer_.weight) {
      largest = 0.0f;
      for (std::int64_t i = 0; i < taken_; ++i) largest = std::max(largest, weight_of(drawn_[i]));
    }
    std::uint64_t total = 0;
    for (std::int64_t i = 0; i < taken_; ++i) {
      const float share = layer_.weight ? weight_of(drawn_[i]) / largest : 1.0f;
      total += std::max<std::uint64_t>(1, static_cast<std::uint64_t>(share * 0x1p24f));
      prefix_[i] = total;
    }
    PhiloxWords words{};
    for (std::int64_t draw = 0; draw < layer_.k - taken_; ++draw) {
      if (draw % 4 == 0) {
        words =
            philox4x32_10({{static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(draw / 4),
                            layer_.number | kFillStream, layer_.epoch}},
                          layer_.seed);
      }
      const std::uint64_t word = words.word[draw % 4] >> 1;
      // floor(word * total / 2**31), without the overflow of the product
      const std::uint64_t target = word * (total >> 31) + ((word * (total & 0x7fffffffu)) >> 31);
      const auto hit = std::upper_bound(prefix_.begin(), prefix_.end(), target);
      drawn_[taken_ + draw] = drawn_[hit - prefix_.begin()];
    }
  }

  const Edges& edges_;
  const Layer& layer_;
  Window window_;
  std::int64_t* drawn_ = nullptr;  // the row's positions, in the order of its places
  std::int64_t taken_ = 0;
  // keys and positions that may be among the k smallest
  std::int64_t count_ = 0;
  std::vector<std::int32_t> kept_key_, place_;
  std::vector<std::int64_t> kept_;
  std::vector<std::uint64_t> prefix_;
  alignas(64) float weight_[kWindow];
};

std::tuple<Tensor, Tensor, Tensor> sample(const Tensor& row_ptr, const Tensor& col,
                                          const Tensor& edge_id, const Tensor& edge_type,
                                          const OptionalTensor& weight, bool sorted,
                                          const std::vector<std::int64_t>& k, std::int64_t seed,
                                          std::int64_t epoch, bool top, bool pad) {
  const Edges edges{row_ptr.numel() - 1,
                    col.numel(),
                    row_ptr.const_data_ptr<std::int64_t>(),
                    col.const_data_ptr<std::int32_t>(),
                    pointer_or_null<std::int64_t>(edge_id),
                    pointer_or_null<std::uint8_t>(edge_type)};
  std::int64_t places = 0;
  for (const std::int64_t count : k) places += edges.rows * count;
  Tensor index = new_output(row_ptr, {places}, ScalarType::Int);
  Tensor edge = new_output(row_ptr, {places}, ScalarType::Long);
  Tensor type = new_output(row_ptr, {edges.type ? places : 0}, ScalarType::Byte);

  std::vector<Layer> layers;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < k.size(); ++i) {
    const float* values = weight ? static_cast<const float*>(weight->const_data_ptr()) : nullptr;
    if (weight && weight->size(0) > 1) values += static_cast<std::int64_t>(i) * edges.count;
    layers.push_back({values, sorted, k[i], static_cast<std::uint64_t>(seed),
                      static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(epoch), top, pad,
                      index.mutable_data_ptr<std::int32_t>() + begin,
                      edge.mutable_data_ptr<std::int64_t>() + begin,
                      edges.type ? type.mutable_data_ptr<std::uint8_t>() + begin : nullptr});
    begin += edges.rows * k[i];
  }
  const RowBlocks blocks(edges.ptr, edges.rows);
  for_each_block(blocks.count() * static_cast<std::int64_t>(layers.size()), [&](std::int64_t n) {
    Sampler sampler(edges, layers[n / blocks.count()]);
    const std::int64_t block = n % blocks.count();
    sampler.rows(blocks.begin(block), blocks.end(block));
  });
  return {index, edge, type};
}

}  // namespace
}  // namespace gtkern::neighbor_sampling

STABLE_TORCH_LIBRARY_FRAGMENT(gtkern_C, m) { m.def(gtkern::neighbor_sampling::kSampleSchema); }

STABLE_TORCH_LIBRARY_IMPL(gtkern_C, CPU, m) {
  m.impl("sample_neighbors", TORCH_BOX(&gtkern::neighbor_sampling::sample));
}
