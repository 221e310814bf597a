// What becomes of the outputs of a linear layer: all are stored, or the best of each row is kept.
#pragma once
#include <cmath>
#include <vector>

#include "layers.h"
#include "vectors.h"

// Mirrored, field by field, in linear.py.
struct Best {  // of each row, the largest output and the first place of it; NaN if there is a NaN
  float* values;
  int64_t* places;
};

namespace {

template <class T>
struct Stored {
  const Layer& layer;

  void take(int64_t row, int64_t column, __m512 first, __m512 second) const {
    T* const to = static_cast<T*>(layer.output) + row * layer.out_features + column;
    const int64_t rest = layer.out_features - column;
    if (rest >= 2 * kBlock) return store_both(to, first, second);
    store(to, first_lanes(rest), first);
    store(to + kBlock, first_lanes(rest - kBlock), second);
  }
};

// 32 numbers as they would have been stored.
inline void round_both(__m512&, __m512&, float) {}
template <class T>
void round_both(__m512& first, __m512& second, T) {
  alignas(64) T stored[2 * kBlock];
  store_both(stored, first, second);
  first = load(stored);
  second = load(stored + kBlock);
}

struct alignas(64) Leaders {  // the best of each lane so far
  float values[kBlock];
  int32_t places[kBlock] = {};
  int32_t has_nan = 0;

  Leaders() { std::fill_n(values, kBlock, -INFINITY); }
};

template <class T>
struct BestOnly {
  const Layer& layer;
  Leaders* leaders;  // of this thread, one a row

  void take(int64_t row, int64_t column, __m512 first, __m512 second) const {
    Leaders& leader = leaders[row];
    round_both(first, second, T());
    const int64_t rest = layer.out_features - column;
    const __mmask16 low = first_lanes(rest), high = first_lanes(rest - kBlock);
    leader.has_nan |= _mm512_mask_cmp_ps_mask(low, first, first, _CMP_UNORD_Q) |
                      _mm512_mask_cmp_ps_mask(high, second, second, _CMP_UNORD_Q);
    // The larger of each lane's two, of equals the first, has to beat the lane's leader.
    const __mmask16 later = _mm512_mask_cmp_ps_mask(high, second, first, _CMP_GT_OQ);
    const __m512 larger = _mm512_mask_mov_ps(first, later, second);
    const __m512 best = _mm512_load_ps(leader.values);
    const __mmask16 better = _mm512_mask_cmp_ps_mask(low, larger, best, _CMP_GT_OQ);
    const __m512i places = _mm512_add_epi32(
        _mm512_set1_epi32(static_cast<int32_t>(column)),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_mask_store_ps(leader.values, better, larger);
    _mm512_mask_store_epi32(
        leader.places, better,
        _mm512_mask_add_epi32(places, later, places, _mm512_set1_epi32(kBlock)));
  }
};

// The first place of the largest number of a row, among what the threads found.
void choose(const std::vector<Leaders>& leaders, int64_t num_rows, const Best& best) {
  for (int64_t row = 0; row < num_rows; row++) {
    float value = -INFINITY;
    int64_t place = 0;
    bool has_nan = false;
    for (size_t i = row; i < leaders.size(); i += num_rows) {
      has_nan |= leaders[i].has_nan != 0;
      for (int64_t lane = 0; lane < kBlock; lane++) {
        const float found = leaders[i].values[lane];
        const int64_t at = leaders[i].places[lane];
        if (found > value || (found == value && at < place)) value = found, place = at;
      }
    }
    best.values[row] = has_nan ? NAN : value;
    best.places[row] = place;
  }
}

}  // namespace
