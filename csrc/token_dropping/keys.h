#pragma once

// What tokens are ranked by, on host and device; gtkern/ops/token_dropping/reference.py says it.

#include <cstdint>

#include "common/exponential.h"

namespace gtkern::token_dropping {

constexpr uint32_t kNoiseStream = 1;

// The words of the noise of rows 4 * quad .. 4 * quad + 3.
GTKERN_HOST_DEVICE PhiloxWords noise_words(uint64_t seed, int64_t quad) {
  const uint64_t bits = static_cast<uint64_t>(quad);
  return philox4x32_10(
      {{static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32), 0u, kNoiseStream}}, seed);
}

// score + noise, rounded once: the product with a power of two is exact, fused or not.
GTKERN_HOST_DEVICE float with_noise(float score, int32_t noise) {
  return score + static_cast<float>(noise) * 0x1p-26f;
}
GTKERN_HOST_DEVICE double with_noise(double score, int32_t noise) {
  return score + static_cast<double>(noise) * 0x1p-26;
}

// Bits that rise with the key: -0 counts as 0, NaN is the lowest; below the highest of 32 bits.
GTKERN_HOST_DEVICE uint32_t rising_bits(float key) {
  const uint32_t bits = bits_of(key + 0.0f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

}  // namespace gtkern::token_dropping
