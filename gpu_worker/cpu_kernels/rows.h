// Rows of activations as 8-bit integers, each with a scale of its own: a row's result cannot depend
// on the rows beside it.
#pragma once
#include <cmath>
#include <vector>

#include "amx.h"
#include "vectors.h"

namespace {

constexpr int64_t kPiece = 64;  // bytes of a row that lie together: a line of the cache

// Rows of bytes: one after the other, or for the matrix unit as tiles of 16 rows and 64 bytes, which
// it reads fastest where their lines are adjacent.
class ByteRows {
 public:
  int64_t stride = 0;  // bytes to the next row, within 16
  int64_t step = 0;    // bytes to the next piece of a row
  int64_t group = 0;   // bytes to the next 16 rows

  // Makes room for rows of `size` bytes, rounded up to pieces; what they hold may be anything.
  void arrange(int64_t num_rows, int64_t size, bool in_tiles) {
    const int64_t padded = round_up(size, kPiece);
    stride = in_tiles ? kPiece : padded + kPiece;  // lest rows of a power of two share cache sets
    step = in_tiles ? kTileRows * kPiece : kPiece;
    group = kTileRows * (in_tiles ? padded : stride);
    const int64_t num_groups = round_up(num_rows, 2 * kTileRows) / kTileRows;
    const size_t num_pieces = num_groups * group / kPiece;
    if (pieces_.size() < num_pieces) pieces_.resize(num_pieces);  // new ones are filled with zeros
  }
  const uint8_t* row(int64_t r) const {
    return pieces_.data()->bytes + r / kTileRows * group + r % kTileRows * stride;
  }
  uint8_t* row(int64_t r) {
    return pieces_.data()->bytes + r / kTileRows * group + r % kTileRows * stride;
  }

 private:
  struct alignas(kPiece) Piece {
    uint8_t bytes[kPiece];
  };
  std::vector<Piece> pieces_;
};

// The largest magnitude, by the bits behind the sign: they grow with it, and those of a NaN are
// beyond all others.
inline float largest_of(const float* row, int64_t size) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < size; i += kBlock) {
    const __m512i bits = _mm512_castps_si512(load(row + i, first_lanes(size - i)));
    max = _mm512_max_epu32(max, _mm512_and_si512(bits, magnitude));
  }
  const int32_t bits = _mm512_reduce_max_epu32(max);
  return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(bits)));
}

template <class T>
float largest_of(const T* row, int64_t size) {  // of 16 bits
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < size; i += 2 * kBlock) {
    const int64_t rest = size - i;
    const __mmask32 lanes = rest < 2 * kBlock ? (1u << rest) - 1 : ~0u;
    const __m512i bits = _mm512_maskz_loadu_epi16(lanes, row + i);
    max = _mm512_max_epu16(max, _mm512_and_si512(bits, magnitude));
  }
  const __m512i low = _mm512_and_si512(max, _mm512_set1_epi32(0xffff));
  const __m512i both = _mm512_max_epu32(low, _mm512_srli_epi32(max, 16));
  const int16_t bits = _mm512_reduce_max_epu32(both);
  return _mm512_cvtss_f32(widen(_mm256_set1_epi16(bits), T()));
}

// 64 numbers times a factor as integers, rounded to nearest even; zeros behind the row's `rest`.
template <class T>
__m512i quantize_piece(const T* from, int64_t rest, __m512 factor) {
  __m512i quarter[4];
  for (int64_t q = 0; q < 4; q++) {
    const __m512 x = rest >= kPiece ? load(from + q * kBlock)
                                    : load(from + q * kBlock, first_lanes(rest - q * kBlock));
    quarter[q] = _mm512_cvtps_epi32(_mm512_mul_ps(x, factor));
  }
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(quarter[0], quarter[1]),
                                           _mm512_packs_epi32(quarter[2], quarter[3]));
  // Packing went on in each 128 bits apart, so these hold four bytes of every quarter.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, bytes);
}

// Gives a row of `size` numbers to `take` as integers from -127 to 127, 64 after 64, the last ones
// filled up with zeros, and returns what 1 stands for.
// A row with a NaN or an infinity stands for no number at all: what is returned is not finite, and
// what is given means nothing; it may be -128. A row so small that its factor would be infinite
// becomes zeros.
template <class T, class Take>
float quantize_row(const T* row, int64_t size, const Take& take) {
  const float largest = largest_of(row, size);
  const float ratio = 127.f / largest;
  const __m512 factor = _mm512_set1_ps(std::isfinite(ratio) ? ratio : 0.f);
  for (int64_t i = 0; i < size; i += kPiece) take(quantize_piece(row + i, size - i, factor));
  return largest / 127.f;
}

}  // namespace
