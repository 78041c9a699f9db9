// Cuts the rows of some graphs out of an array over all graphs.
#pragma once

#include <cstdint>
#include <cstring>

namespace gtkern::graph {

// Copies `counts[b]` rows from row `begins[b]` on, for every b, one after the other.
inline void gather_segments(const char* rows, std::int64_t row_bytes, const std::int64_t* begins,
                            const std::int64_t* counts, std::int64_t segments, char* out) {
  for (std::int64_t b = 0; b < segments; ++b) {
    const std::int64_t bytes = counts[b] * row_bytes;
    std::memcpy(out, rows + begins[b] * row_bytes, static_cast<std::size_t>(bytes));
    out += bytes;
  }
}

}  // namespace gtkern::graph
