// Most outputs of a large layer cannot be the best of a row: a small copy of the weight tells.
//
// The copy is of 8 bits, with one scale S for the 32 outputs of a strip: a weight w is S times
// integers i, plus a rest. A row x is s times integers q, plus s times a rest r. So, in units of s,
// by Cauchy and Schwarz, an output differs from S i q by no more than
//
//     |w| |r| + |rest of w| |q|
//
// and by what summing in float32 loses, a small share of |w| (|q| + |r|). What a row's best reaches
// at least grows from strip to strip. A strip that cannot reach it is passed over; the others are
// then computed from the weight itself, as they would have been without a copy.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kinds.h"

// Mirrored, field by field, in screen.py. Norms are the largest of a strip's outputs; where a strip
// must not be passed over, they are infinite or NaN.
struct Screen {
  const uint8_t* weight;  // 8 bits, in strips
  const float *scales, *norms, *rests;  // [strips]: S, |w|, |rest of w|
};

namespace {

// 8 bits, whose sums stay the integers that they are.
template <class T>
struct Sifted : Bytes<T> {
  static __m512 finish(const Layer&, const Rows&, int64_t, int64_t, __m512i sums) {
    return _mm512_castsi512_ps(sums);
  }
};

constexpr float kSlack = 1.001f;  // for what bounds themselves lose in float32

// How far apart, relative to their size, numbers may lie that are equal once they are stored.
constexpr float spacing(float) { return 0.f; }
constexpr float spacing(BFloat16) { return 1.f / 128; }

class Margins {  // of rows that have been quantised: how far the integers may lie from the truth
 public:
  explicit Margins(int64_t num_rows) : size_(round_up(num_rows, kBlock)) {
    rests_.resize(size_);
    norms_.resize(size_);
    corrections_.resize(size_);
  }

  // Of a row that is not of numbers, or of very small or large ones, nothing is known.
  template <class T>
  void measure(const T* from, int64_t size, int64_t row, const Rows& bytes) {
    const float scale = bytes.scales[row];
    const __m512 inverse = _mm512_set1_ps(1 / scale);
    const auto* const integers = reinterpret_cast<const int8_t*>(bytes.numbers.row(row));
    __m512 rests = _mm512_setzero_ps(), norms = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kBlock) {
      const __m128i some = _mm_load_si128(reinterpret_cast<const __m128i*>(integers + i));
      const __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(some));
      const __m512 rest = _mm512_fmsub_ps(load(from + i, first_lanes(size - i)), inverse, q);
      rests = _mm512_fmadd_ps(rest, rest, rests);
      norms = _mm512_fmadd_ps(q, q, norms);
    }
    const float rest = std::sqrt(_mm512_reduce_add_ps(rests));
    const float norm = std::sqrt(_mm512_reduce_add_ps(norms));
    const float lost = std::ldexp(2.f * size + 64, -24);  // by `size` roundings, and by some more
    const bool is_plain = scale > 1e-10f && scale < 1e10f;
    rests_[row] = is_plain ? kSlack * rest + lost * (rest + norm) : INFINITY;
    norms_[row] = kSlack * norm;
    corrections_[row] = bytes.corrections[row];
  }

  int64_t size() const { return size_; }  // rows, rounded up to a vector
  int32_t correction(int64_t row) const { return corrections_[row]; }
  __m512i corrections(int64_t row) const { return _mm512_loadu_si512(&corrections_[row]); }
  float of(int64_t row, float weight_norm, float weight_rest) const {
    return rests_[row] * weight_norm + norms_[row] * weight_rest;
  }
  __m512 of_block(int64_t row, float weight_norm, float weight_rest) const {
    const __m512 first = _mm512_mul_ps(load(&rests_[row]), _mm512_set1_ps(weight_norm));
    return _mm512_fmadd_ps(load(&norms_[row]), _mm512_set1_ps(weight_rest), first);
  }

 private:
  int64_t size_;
  std::vector<float> rests_, norms_;
  std::vector<int32_t> corrections_;
};

struct Candidate {
  int64_t row, column;  // the first of its strip
  float most;           // that an output of the strip comes to
};

class Sieve {  // of one thread; outputs are in units of the row's scale
 public:
  Sieve(const Screen& screen, const Margins& margins, float spacing)
      : screen_(screen), margins_(margins), spacing_(spacing) {
    least_.assign(margins.size(), -INFINITY);
    sums_.resize(margins.size());
  }

  // Finds the sums of bytes by which rows count in this strip.
  void begin(int64_t column) {
    constexpr float kMost = 1 << 30;  // more than any sum
    const int64_t strip = column / kColumns;
    const __m512 inverse = _mm512_set1_ps(1 / screen_.scales[strip]);
    for (int64_t row = 0; row < margins_.size(); row += kBlock) {
      const __m512 margin = margins_.of_block(row, screen_.norms[strip], screen_.rests[strip]);
      __m512 sums = _mm512_mul_ps(_mm512_sub_ps(load(&least_[row]), margin), inverse);
      // Of a NaN `max` makes its second operand: where nothing is known, the row counts.
      sums = _mm512_min_ps(_mm512_max_ps(sums, _mm512_set1_ps(-kMost)), _mm512_set1_ps(kMost));
      const __m512i whole =
          _mm512_cvt_roundps_epi32(sums, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
      _mm512_storeu_si512(&sums_[row], _mm512_sub_epi32(whole, margins_.corrections(row)));
    }
  }
  void take(int64_t row, int64_t column, __m512i low, __m512i high) {
    const __m512i larger = _mm512_max_epi32(low, high);
    if (_mm512_cmpge_epi32_mask(larger, _mm512_set1_epi32(sums_[row]))) {
      keep(row, column, _mm512_reduce_max_epi32(larger));
    }
  }

  // Raises, for each row, what its best comes to at least.
  void raise(std::vector<float>& least) const {
    for (size_t row = 0; row < least.size(); row++) least[row] = std::max(least[row], least_[row]);
  }
  // Gives what may hold the best of a row, of every `step`th strip from `first` on, to `compute`,
  // and returns how much that is.
  template <class Compute>
  int64_t each(const std::vector<float>& least, int64_t first, int64_t step,
               const Compute& compute) const {
    int64_t count = 0;
    for (const Candidate& one : found_) {
      if (one.column / kColumns % step != first || one.most < least[one.row]) continue;
      compute(one.row, one.column);
      count++;
    }
    return count;
  }

 private:
  [[gnu::noinline]] void keep(int64_t row, int64_t column, int32_t sum) {
    const int64_t strip = column / kColumns;
    const float about = screen_.scales[strip] * (sum + margins_.correction(row));
    const float margin = margins_.of(row, screen_.norms[strip], screen_.rests[strip]);
    found_.push_back({row, column, about + margin});
    const float bound = about - margin;  // of a NaN, the comparison is false
    least_[row] = std::max(least_[row], bound - spacing_ * std::abs(bound));
  }

  const Screen& screen_;
  const Margins& margins_;
  const float spacing_;
  std::vector<float> least_;   // [rows], that the best output comes to at least
  std::vector<int32_t> sums_;  // [rows], of this strip
  std::vector<Candidate> found_;
};

struct Sifting {  // of a strip's outputs
  Sieve& sieve;

  void take(int64_t row, int64_t column, __m512 low, __m512 high) const {
    sieve.take(row, column, _mm512_castps_si512(low), _mm512_castps_si512(high));
  }
};

}  // namespace
