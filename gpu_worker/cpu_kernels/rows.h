// Rows of activations as 8-bit integers, each with a scale of its own: a row's result cannot depend
// on the rows beside it.
#pragma once
#include <cmath>

#include "vectors.h"

namespace {

// Writes a row of `size` numbers as integers from -127 to 127, then zeros up to `padded` ones, a
// multiple of 16 that holds `size`, and returns what an integer stands for. Rounds to nearest even.
// A row with a NaN or an infinity stands for no number at all: what is returned is none either.
template <class T>
float quantize_row(const T* row, int64_t size, int64_t padded, int8_t* to) {
  __m512 max = _mm512_setzero_ps();
  __mmask16 is_nan = 0;
  for (int64_t i = 0; i < size; i += kBlock) {
    const __m512 x = load(row + i, first_lanes(size - i));
    is_nan |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    max = _mm512_max_ps(_mm512_abs_ps(x), max);
  }
  const float largest = is_nan ? NAN : _mm512_reduce_max_ps(max);
  const __m512 factor = _mm512_set1_ps(largest > 0 ? 127.f / largest : 0.f);
  for (int64_t i = 0; i < padded; i += kBlock) {
    const __m512 x = _mm512_mul_ps(load(row + i, first_lanes(size - i)), factor);
    const __m128i integers = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), integers);
  }
  return largest / 127.f;
}

}  // namespace
