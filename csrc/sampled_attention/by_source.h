// The places of a table of neighbours, sorted by the source they name.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "sampled_attention/direct.h"

namespace gtkern::sampled_attention {

// The places of one source after those of another, each in the order of the places.
struct Place {
  std::int32_t row, number;
};

class BySource {
 public:
  BySource(const Places& places, std::int64_t rows, std::int64_t sources) : ptr(sources + 1) {
    const std::int64_t width = places.width, count = rows * width;
    std::vector<std::int64_t> next(sources);
    for (std::int64_t i = 0; i < count; ++i) {
      if (places.neighbor[i] >= 0) ++next[places.neighbor[i]];
    }
    std::int64_t total = 0;
    for (std::int64_t j = 0; j < sources; ++j) {
      ptr[j] = total;
      total += std::exchange(next[j], total);
    }
    ptr[sources] = total;
    place = std::make_unique_for_overwrite<Place[]>(total);
    const std::int32_t* neighbor = places.neighbor;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t s = 0; s < width; ++s, ++neighbor) {
        if (*neighbor < 0) continue;
        place[next[*neighbor]++] = {static_cast<std::int32_t>(row), static_cast<std::int32_t>(s)};
      }
    }
  }

  std::vector<std::int64_t> ptr;
  std::unique_ptr<Place[]> place;
};

}  // namespace gtkern::sampled_attention
