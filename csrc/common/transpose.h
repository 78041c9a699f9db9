// Turning a square of values that fills a register file.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace gtkern {

#ifdef __AVX512F__
// to[d][j] = from[j][d] for 16 x 16 floats.
inline void transpose_block(const float* from, std::int64_t ldf, float* to, std::int64_t ldt) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * ldf);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const auto pair = [](__m512 x) { return _mm512_castps_pd(x); };
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(b[i]), pair(b[i + 2])));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(b[i]), pair(b[i + 2])));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(b[i + 1]), pair(b[i + 3])));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(b[i + 1]), pair(b[i + 3])));
  }
  // a[4 g + e] holds column 4 l + e of rows 4 g .. 4 g + 3 in quarter l
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) {
    const __m512 even01 = _mm512_shuffle_f32x4(a[e], a[4 + e], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(a[e], a[4 + e], 0xDD);
    const __m512 even23 = _mm512_shuffle_f32x4(a[8 + e], a[12 + e], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(a[8 + e], a[12 + e], 0xDD);
    _mm512_storeu_ps(to + e * ldt, _mm512_shuffle_f32x4(even01, even23, 0x88));
    _mm512_storeu_ps(to + (4 + e) * ldt, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
    _mm512_storeu_ps(to + (8 + e) * ldt, _mm512_shuffle_f32x4(even01, even23, 0xDD));
    _mm512_storeu_ps(to + (12 + e) * ldt, _mm512_shuffle_f32x4(odd01, odd23, 0xDD));
  }
}
#endif

}  // namespace gtkern
