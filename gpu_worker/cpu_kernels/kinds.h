// Kinds of weights of linear.cpp: how a row becomes what they multiply, how products are summed, and
// what sums come to.
#pragma once
#include <cstring>
#include <vector>

#include "amx.h"
#include "layers.h"
#include "rows.h"

namespace {

constexpr int64_t kColumns = 32;  // outputs of a strip: two vectors

struct Rows {  // the input, as a kind of weight multiplies it
  int64_t num_rows, size, num_words;  // bytes of a row, zeros behind its end, and words
  ByteRows numbers;
  std::vector<float> scales;         // [rows], of bytes
  std::vector<int32_t> corrections;  // [rows], of bytes: -128 times the sum
};

template <class T>
struct Floats {  // T is what is fed and given back
  using Sums = __m512;
  static constexpr int64_t kPadding = 4;  // bytes that a row is rounded up to
  static constexpr bool kHasTiles = false, kIsInteger = false;
  static constexpr bool kSharesFetching = false;  // no register is left for it

  static void prepare(const T* from, int64_t size, int64_t row, Rows& to) {
    float* const numbers = reinterpret_cast<float*>(to.numbers.row(row));
    read(from, size, 1.f, numbers);
  }
  static Sums zero() { return _mm512_setzero_ps(); }
  static void add(Sums& sums, __m512i weights, __m512i word) {
    sums = _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(word), sums);
  }
  static __m512 finish(const Layer&, const Rows&, int64_t, int64_t, Sums sums) { return sums; }
};

struct BFloat16s {
  using Sums = __m512;
  static constexpr int64_t kPadding = kTileBytes;
  static constexpr bool kHasTiles = true, kIsInteger = false, kSharesFetching = true;

  static void prepare(const BFloat16* from, int64_t size, int64_t row, Rows& to) {
    uint8_t* piece = to.numbers.row(row);
    int64_t rest = 2 * size;
    for (; rest >= kPiece; rest -= kPiece, from += kPiece / 2, piece += to.numbers.step) {
      std::memcpy(piece, from, kPiece);
    }
    if (rest == 0) return;
    std::memset(piece, 0, kPiece);
    std::memcpy(piece, from, rest);
  }
  static Sums zero() { return _mm512_setzero_ps(); }
  static void add(Sums& sums, __m512i weights, __m512i word) {
    add_pairs(sums, weights, word);
  }
  static __m512 finish(const Layer&, const Rows&, int64_t, int64_t, Sums sums) { return sums; }
};

template <class T>
struct Bytes {
  using Sums = __m512i;
  static constexpr int64_t kPadding = kTileBytes;
  static constexpr bool kHasTiles = true, kIsInteger = true, kSharesFetching = true;

  static void prepare(const T* from, int64_t size, int64_t row, Rows& to) {
    uint8_t* piece = to.numbers.row(row);
    __m512i sum = _mm512_setzero_si512();
    to.scales[row] = quantize_row(from, size, [&](__m512i integers) {
      _mm512_store_si512(piece, integers);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), integers);
      piece += to.numbers.step;
    });
    to.corrections[row] = -128 * _mm512_reduce_add_epi32(sum);
  }
  static Sums zero() { return _mm512_setzero_si512(); }
  static void add(Sums& sums, __m512i weights, __m512i word) {  // the intrinsic spills registers
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(word));
  }
  static __m512 finish(const Layer& layer, const Rows& input, int64_t row, int64_t column,
                       Sums sums) {
    sums = _mm512_add_epi32(sums, _mm512_set1_epi32(input.corrections[row]));
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(input.scales[row]));
    return _mm512_mul_ps(scaled, load(layer.scales + column));
  }
};

}  // namespace
