// The exponential race of one row. A limit that a little more than k of its keys should be below is
// guessed from the sum of its weights; the words of most edges show at once that their keys are
// above it, and only the others get a key. Of those the k smallest are found by counting, which is
// cheaper than sorting.
#pragma once

#include <algorithm>
#include <vector>

#include "neighbor_sampling/problem.h"
#include "neighbor_sampling/race.h"

namespace gtkern::neighbor_sampling {

constexpr std::int64_t kWindow = 2048;

// The words of a stretch of positions that moves forward with the rows, made as they are needed.
class Window {
 public:
  void start(const Layer& layer) {
    layer_ = &layer;
    begin_ = end_ = 0;
  }

  // The words of begin .. end, at most kWindow - kChunk of them; 15 more may be read.
  const std::uint32_t* words(std::int64_t begin, std::int64_t end) {
    if (begin < begin_ || begin > end_ || end > begin_ + kWindow) {
      begin_ = end_ = begin / kChunk * kChunk;
    }
    for (; end_ < end; end_ += kChunk) {
      U16 word[4];
      position_words(layer_->seed, static_cast<std::uint64_t>(end_), layer_->number, layer_->epoch,
                     word);
      std::uint32_t* chunk = word_ + (end_ - begin_);
      for (int part = 0; part < 4; ++part) store_lanes(chunk + part * kLanes, word[part]);
    }
    return word_ + (begin - begin_);
  }

 private:
  const Layer* layer_ = nullptr;
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
inline float first_guess(float sum, std::int64_t n, float m) {
  constexpr float kUnit = 65536.0f * 1.442695f;  // the mean of an exponential variate
  const float portion = std::min(m / static_cast<float>(n), 1.0f);
  // -log(1 - portion), nearly
  const float depth = portion * (6.0f - portion) / (6.0f - 4.0f * portion);
  return depth * static_cast<float>(n) / sum * kUnit;
}

// Races rows of one graph, one after the other.
class RowRace {
 public:
  explicit RowRace(const Edges& edges) : edges_(edges) {}

  void start(const Layer& layer) {
    layer_ = &layer;
    window_.start(layer);
    const std::int64_t room = 2 * layer.k + 2 * kWindow + kFew;
    kept_key_.resize(std::max<std::size_t>(room, kept_key_.size()));
    kept_.resize(kept_key_.size());
    place_.resize(kept_key_.size());
  }

  // Writes to `drawn` the positions, in order, of the `wanted` smallest keys of begin .. end, which
  // are more than `wanted` edges; fewer where there are fewer candidates. Leaves out the `num_out`
  // positions at `out`, which are in order. Returns how many it wrote.
  std::int64_t race(std::int64_t begin, std::int64_t end, std::int64_t wanted,
                    const std::int64_t* out, std::int64_t num_out, std::int64_t* drawn) {
    wanted_ = wanted;
    out_ = out;
    num_out_ = num_out;
    drawn_ = drawn;
    race(begin, end);
    return taken_;
  }

 private:
  // The weights of begin .. end, at most kWindow, 0 for what is left out; null: all 1.
  const float* weights(std::int64_t begin, std::int64_t end) {
    if (num_out_ == 0) {
      return layer_->weight ? weights_of(edges_, *layer_, begin, end, weight_) : nullptr;
    }
    if (layer_->weight) {
      const float* weight = weights_of(edges_, *layer_, begin, end, weight_);
      if (weight != weight_) std::copy_n(weight, end - begin, weight_);
    } else {
      std::fill_n(weight_, end - begin, 1.0f);
    }
    const std::int64_t* last = out_ + num_out_;
    for (const std::int64_t* p = std::lower_bound(out_, last, begin); p < last && *p < end; ++p) {
      weight_[*p - begin] = 0.0f;
    }
    return weight_;
  }

  void race(std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kStretch = kWindow - kChunk;
    const std::int64_t k = wanted_;
    std::int64_t stop = std::min(end, begin + kStretch);
    const float* weight = weights(begin, stop);
    const float sum = weight ? sum_of(weight, stop - begin) : static_cast<float>(stop - begin);
    // a limit that a little more than k keys are below; later stretches of a long row only lower it
    std::int32_t limit = kInfinity;
    if (!layer_->top && 3 * k < stop - begin && stop - begin > kFew) {
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
    const std::int64_t k = wanted_;
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
      if (layer_->top) {
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
    if (layer_->top) {
      for (std::int64_t i = 0; i < n; i += kLanes) {
        store_lanes(key + i, top_key(load_first<F16>(weight + i, n - i)));
      }
    }
    const std::uint32_t* word = layer_->top ? nullptr : window_.words(begin, end);
    if (!layer_->top && limit == kInfinity) {
      for (std::int64_t i = 0; i < n; i += kLanes) {
        const F16 lanes = weight ? load_first<F16>(weight + i, n - i) : F16{} + 1.0f;
        store_lanes(key + i, race_key(load_lanes<U16>(word + i), lanes));
      }
    }
    if (layer_->top || limit == kInfinity) {
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
    const std::int64_t k = wanted_;
    const auto guess = [&](float m) {
      if (layer_->top) return 1.0f;
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

  const Edges& edges_;
  const Layer* layer_ = nullptr;
  Window window_;
  // of the row at hand
  std::int64_t wanted_ = 0, num_out_ = 0, taken_ = 0;
  const std::int64_t* out_ = nullptr;
  std::int64_t* drawn_ = nullptr;
  // keys and positions that may be among the smallest
  std::int64_t count_ = 0;
  std::vector<std::int32_t> kept_key_, place_;
  std::vector<std::int64_t> kept_;
  alignas(64) float weight_[kWindow];
};

}  // namespace gtkern::neighbor_sampling
