// sample_neighbors for CPU tensors. Blocks of rows of about equal work are shared out; a row's keys
// are made in a window that stays in the first-level cache, and its k smallest are found by moving
// a limit until exactly k keys are below it: counting is cheaper than sorting.

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
  const float* weight;  // by edge id; null: all 1
  std::int64_t k;
  std::uint64_t seed;
  std::uint32_t number, epoch;
  bool top, pad;
  std::int32_t* index;
  std::int64_t* edge;
  std::uint8_t* type;  // null: no types
};

// The keys of a stretch of positions that moves forward with the rows.
class Window {
 public:
  Window(const Edges& edges, const Layer& layer) : edges_(edges), layer_(layer) {}

  // The keys of begin .. end, at most kWindow - kChunk of them.
  const std::int32_t* keys(std::int64_t begin, std::int64_t end) {
    if (begin < begin_ || end > end_) refill(begin);
    return key_ + (begin - begin_);
  }
  // The weights of positions whose keys were just asked for.
  const float* weights(std::int64_t begin) const { return weight_ + (begin - begin_); }

 private:
  void refill(std::int64_t begin) {
    begin_ = begin / kChunk * kChunk;
    end_ = std::min(begin_ + kWindow, (edges_.count + kChunk - 1) / kChunk * kChunk);
    load_weights();
    if (layer_.top) {
      for (std::int64_t at = 0; at < end_ - begin_; at += kLanes) {
        store_lanes(key_ + at, top_key(load_lanes<F16>(weight_ + at)));
      }
    } else if (layer_.weight) {
      make_keys([](U16 word, F16 weight) { return race_key(word, weight); });
    } else {
      make_keys([](U16 word, F16) { return bits_as<I16>(exponential(word)); });
    }
  }

  template <class Key>
  GTKERN_INLINE void make_keys(const Key& key) {
    const std::int64_t size = end_ - begin_;
    for (std::int64_t at = 0; at < size; at += kChunk) {
      U16 word[4];
      position_words(layer_.seed, static_cast<std::uint64_t>(begin_ + at), layer_.number,
                     layer_.epoch, word);
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const std::int64_t place = at + part * kLanes;
        store_lanes(key_ + place, key(word[part], load_lanes<F16>(weight_ + place)));
      }
    }
  }

  void load_weights() {
    const std::int64_t there = std::min(end_, edges_.count) - begin_;
    if (!layer_.weight) {
      if (weight_[0] != 1.0f) std::fill(weight_, weight_ + kWindow, 1.0f);
      return;
    }
    if (!edges_.edge_id) {
      std::copy_n(layer_.weight + begin_, there, weight_);
    } else {
      const std::int64_t* id = edges_.edge_id + begin_;
      const float* weight = layer_.weight;
#pragma GCC unroll 8
      for (std::int64_t i = 0; i < there; ++i) weight_[i] = weight[id[i]];
    }
    std::fill(weight_ + there, weight_ + (end_ - begin_), 0.0f);
  }

  const Edges& edges_;
  const Layer& layer_;
  std::int64_t begin_ = 0, end_ = 0;
  alignas(64) std::int32_t key_[kWindow];
  alignas(64) float weight_[kWindow] = {};
};

// The most keys among which the smallest are found by comparing all with all.
constexpr std::int64_t kFew = 2 * kLanes;

// Finds the k smallest of n keys, more than k of which are below infinity; ties go to the earlier
// one. `place` gets their places in order (room for 16 more). `guess(m)` is a limit with about m
// keys below it.
template <class Guess>
void k_smallest(const std::int32_t* key, std::int64_t n, std::int64_t k, const Guess& guess,
                std::int32_t* place) {
  if (n <= kFew && few_smallest(key, n, k, place)) return;
  // a number of keys that is easy to hit: from k to what few_smallest takes
  const float aim =
      k < kFew - 8 ? static_cast<float>(k + std::min(k, kFew - k) / 2) : static_cast<float>(k);
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
      std::int32_t near[kFew + kLanes], near_key[kFew + kLanes], chosen[kFew + kLanes];
      places_below(key, n, limit, near);
      for (std::int64_t i = 0; i < count; ++i) near_key[i] = key[near[i]];
      if (few_smallest(near_key, count, k, chosen)) {
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
  Sampler(const Edges& edges, const Layer& layer)
      : edges_(edges), layer_(layer), window_(edges, layer) {
    place_.resize(kWindow + kLanes);
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
    } else if (end - begin <= kWindow - kChunk) {
      const std::int32_t* key = window_.keys(begin, end);
      take(key, end - begin, window_.weights(begin), [&](std::int32_t i) { return begin + i; });
    } else {
      long_row(begin, end);
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

  bool is_candidate(std::int64_t position) const {
    if (!layer_.weight) return true;
    const float weight = layer_.weight[edges_.id(position)];
    return weight >= kSmallestWeight && weight <= kLargestWeight;
  }

  // Draws the k smallest of n keys; `position` tells where a key stands.
  template <class Position>
  void take(const std::int32_t* key, std::int64_t n, const float* weight,
            const Position& position) {
    const std::int64_t candidates = layer_.weight ? count_below(key, n, kInfinity) : n;
    if (static_cast<std::int64_t>(place_.size()) < n + kLanes) place_.resize(n + kLanes);
    if (candidates <= layer_.k) {
      taken_ = places_below(key, n, kInfinity, place_.data());
    } else {
      taken_ = layer_.k;
      smallest(key, n, weight);
    }
    for (std::int64_t i = 0; i < taken_; ++i) drawn_[i] = position(place_[i]);
  }

  void smallest(const std::int32_t* key, std::int64_t n, const float* weight) {
    const auto guess = [&](float m) {
      return layer_.top ? 1.0f : first_guess(sum_of(weight, n), n, m);
    };
    k_smallest(key, n, layer_.k, guess, place_.data());
  }

  // A row longer than the window: keeps what may still be among the k smallest, and thins it out
  // when it has grown.
  void long_row(std::int64_t begin, std::int64_t end) {
    kept_key_.clear();
    kept_weight_.clear();
    kept_.clear();
    const std::int64_t most = 2 * layer_.k + kWindow;
    std::int32_t limit = kInfinity;
    for (std::int64_t p = begin; p < end;) {
      const std::int64_t stop = std::min(end, p / kChunk * kChunk + kWindow);
      const std::int32_t* key = window_.keys(p, stop);
      const float* weight = window_.weights(p);
      const std::int64_t found = places_below(key, stop - p, limit, place_.data());
      for (std::int64_t i = 0; i < found; ++i) {
        kept_key_.push_back(key[place_[i]]);
        kept_weight_.push_back(weight[place_[i]]);
        kept_.push_back(p + place_[i]);
      }
      p = stop;
      if (static_cast<std::int64_t>(kept_.size()) > most) limit = thin_out();
    }
    take(kept_key_.data(), static_cast<std::int64_t>(kept_.size()), kept_weight_.data(),
         [&](std::int32_t i) { return kept_[i]; });
  }

  // Keeps the k smallest; a later key must be below the largest of them.
  std::int32_t thin_out() {
    const std::int64_t n = static_cast<std::int64_t>(kept_.size());
    if (static_cast<std::int64_t>(place_.size()) < n + kLanes) place_.resize(n + kLanes);
    smallest(kept_key_.data(), n, kept_weight_.data());
    std::int32_t largest = 0;
    for (std::int64_t i = 0; i < layer_.k; ++i) {
      kept_key_[i] = kept_key_[place_[i]];
      kept_weight_[i] = kept_weight_[place_[i]];
      kept_[i] = kept_[place_[i]];
      largest = std::max(largest, kept_key_[i]);
    }
    kept_key_.resize(layer_.k);
    kept_weight_.resize(layer_.k);
    kept_.resize(layer_.k);
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

  float weight_of(std::int64_t position) const { return layer_.weight[edges_.id(position)]; }

  const Edges& edges_;
  const Layer& layer_;
  Window window_;
  std::int64_t taken_ = 0;
  std::int64_t* drawn_ = nullptr;  // the row's positions, in the order of its places
  std::vector<std::int32_t> place_;
  std::vector<std::int32_t> kept_key_;
  std::vector<float> kept_weight_;
  std::vector<std::int64_t> kept_;
  std::vector<std::uint64_t> prefix_;
};

std::tuple<Tensor, Tensor, Tensor> sample(const Tensor& row_ptr, const Tensor& col,
                                          const Tensor& edge_id, const Tensor& edge_type,
                                          const OptionalTensor& weight,
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
    layers.push_back({values, k[i], static_cast<std::uint64_t>(seed), static_cast<std::uint32_t>(i),
                      static_cast<std::uint32_t>(epoch), top, pad,
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
