#pragma once

// Counter-based random numbers, bit for bit those of gtkern/random.py, on host and device.
// Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).

#include <cstdint>

#if defined(__CUDACC__)
// forced: a call that is left costs a kernel its stack and the registers around it
#define GTKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GTKERN_HOST_DEVICE inline
#endif

namespace gtkern {

struct PhiloxWords {
  uint32_t word[4];
};

// Philox4x32-10 of one counter; the key's first word is the low half of the seed.
GTKERN_HOST_DEVICE PhiloxWords philox4x32_10(PhiloxWords counter, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = counter.word[0], c1 = counter.word[1];
  uint32_t c2 = counter.word[2], c3 = counter.word[3];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The words of heads 4 * quad .. 4 * quad + 3 of an item (an edge's number).
GTKERN_HOST_DEVICE PhiloxWords item_words(uint64_t seed, int64_t item, uint32_t quad) {
  const uint64_t bits = static_cast<uint64_t>(item);
  return philox4x32_10({{static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32), quad, 0u}},
                       seed);
}

// The word that decides whether head `head` of item `item` is kept.
GTKERN_HOST_DEVICE uint32_t item_word(uint64_t seed, int64_t item, int head) {
  const PhiloxWords words = item_words(seed, item, static_cast<uint32_t>(head) >> 2);
  const uint32_t low = (head & 1) ? words.word[1] : words.word[0];
  const uint32_t high = (head & 1) ? words.word[3] : words.word[2];
  return (head & 2) ? high : low;
}

// Words below this are dropped; probability in [0, 1).
GTKERN_HOST_DEVICE uint32_t dropout_threshold(double probability) {
  return static_cast<uint32_t>(probability * 4294967296.0);
}

}  // namespace gtkern
