// One split of one context, for a few query rows at once: scores, weights, weighted values.
#pragma once
#include <cmath>
#include <vector>

#include "tokens.h"

namespace {

constexpr int64_t kSplit = 256;  // keys: scores of a few rows stay in the first-level cache

struct Row {           // one query head of one token
  int64_t first, end;  // positions that it sees
};

// Scores of some rows' keys so far: their maximum, the sum of e^(score - max), and that sum over
// the values, in rows of the context's `width`.
struct Sums {
  float *max, *sum, *values;

  Sums from(int64_t row, int64_t width) const {
    return {max + row, sum + row, values + row * width};
  }
};

template <class T>
struct Context {  // one head of the pool, as one sequence sees it
  const T *pool_keys, *pool_values;
  int64_t key_step, value_step;  // elements from one block of the pool to the next
  int64_t key_size, value_size, width;
  float scaling, softcap;
  const int32_t* table;

  const T* keys(int64_t block) const { return pool_keys + table[block] * key_step; }
  const T* values(int64_t block) const { return pool_values + table[block] * value_step; }
};

inline __mmask16 lanes_of(const Row& seen, int64_t block) {
  const int64_t start = block * kBlock;
  return first_lanes(seen.end - start) & ~first_lanes(seen.first - start);
}

// What each of some rows sees of a split, and all of them together; a row that sees nothing of it
// sums to 0.
inline Row seen_in(int64_t split, const Row* rows, int64_t count, Row* seen, float* sums) {
  const int64_t start = split * kSplit, stop = start + kSplit;
  Row all = {stop, start};
  for (int64_t r = 0; r < count; r++) {
    seen[r] = {std::max(rows[r].first, start), std::min(rows[r].end, stop)};
    sums[r] = 0.f;
    if (seen[r].first >= seen[r].end) continue;
    all.first = std::min(all.first, seen[r].first);
    all.end = std::max(all.end, seen[r].end);
  }
  return all;
}

// scores[r][key] of N blocks; what is read next is fetched meanwhile.
template <int R, int N, class T>
void score_blocks(const Context<T>& context, int64_t block, int64_t end, const float* queries,
                  float* scores) {
  const int64_t size = context.key_size;
  const T *now[N], *next[N];
  __m512 sum[R][N];
  for (int n = 0; n < N; n++) {
    now[n] = context.keys(block + n);
    next[n] = block + n + N < end ? context.keys(block + n + N) : context.values(block + n);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r][n] = _mm512_setzero_ps();
  }
  for (int64_t d = 0; d < size; d++) {
    __m512 key[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      key[n] = load(now[n] + d * kBlock);
      _mm_prefetch(reinterpret_cast<const char*>(next[n] + d * kBlock), _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512 q = _mm512_set1_ps(queries[r * size + d]);
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) sum[r][n] = _mm512_fmadd_ps(q, key[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int n = 0; n < N; n++) _mm512_store_ps(scores + r * kSplit + n * kBlock, sum[r][n]);
  }
}

// scores[r][key] of the blocks `block` to `end` - 1, two blocks at a time.
template <int R, class T>
void score(const Context<T>& context, int64_t block, int64_t end, const float* queries,
           float* scores) {
  for (; block + 1 < end; block += 2, scores += 2 * kBlock) {
    score_blocks<R, 2>(context, block, end, queries, scores);
  }
  if (block < end) score_blocks<R, 1>(context, block, end, queries, scores);
}

// Scores of the blocks `block` to `end` - 1 become e^(score - max), and 0 where the row is blind.
inline void soften(const Row& seen, int64_t block, int64_t end, float softcap, float* scores,
                   float& row_max, float& row_sum) {
  const int64_t num_blocks = end - block;
  if (seen.first >= seen.end) {
    std::fill_n(scores, num_blocks * kBlock, 0.f);
    return;
  }
  const __m512 hidden = _mm512_set1_ps(-INFINITY), cap = _mm512_set1_ps(softcap);
  __m512 max = hidden, sum = _mm512_setzero_ps();
  for (int64_t b = 0; b < num_blocks; b++) {
    __m512 x = load(scores + b * kBlock);
    if (softcap > 0) x = _mm512_mul_ps(cap, tanh_of(_mm512_div_ps(x, cap)));
    x = _mm512_mask_mov_ps(hidden, lanes_of(seen, block + b), x);
    max = _mm512_max_ps(x, max);
    _mm512_store_ps(scores + b * kBlock, x);
  }
  row_max = _mm512_reduce_max_ps(max);
  for (int64_t b = 0; b < num_blocks; b++) {
    const __m512 x = _mm512_sub_ps(load(scores + b * kBlock), _mm512_set1_ps(row_max));
    const __m512 weight = _mm512_maskz_mov_ps(lanes_of(seen, block + b), exp_of(x));
    sum = _mm512_add_ps(sum, weight);
    _mm512_store_ps(scores + b * kBlock, weight);
  }
  row_sum = _mm512_reduce_add_ps(sum);
}

// The weighted sum of V vectors of the values of keys `first` to `end` - 1, from `column` on;
// weights[r][0] is that of the split's first key.
template <int R, int V, class T>
void weigh(const Context<T>& context, int64_t split, int64_t column, int64_t first, int64_t end,
           const float* weights, float* sums) {
  const int64_t size = context.value_size;
  __mmask16 lanes[V];
  __m512 sum[R][V];
  for (int v = 0; v < V; v++) {
    lanes[v] = first_lanes(size - column - v * kBlock);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r][v] = _mm512_setzero_ps();
  }
  for (int64_t block = first / kBlock; block * kBlock < end; block++) {
    const int64_t start = std::max(first, block * kBlock);
    const int64_t stop = std::min(end, (block + 1) * kBlock);
    const T* now = context.values(block) + column;
    const T* next = stop < end ? context.values(block + 1) + column : now;
    for (int64_t key = start; key < stop; key++) {
      const int64_t at = (key - block * kBlock) * size;
      __m512 value[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) {
        value[v] = load(now + at + v * kBlock, lanes[v]);
        _mm_prefetch(reinterpret_cast<const char*>(next + at + v * kBlock), _MM_HINT_T0);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const __m512 weight = _mm512_set1_ps(weights[r * kSplit + key - split * kSplit]);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][v] = _mm512_fmadd_ps(weight, value[v], sum[r][v]);
      }
    }
  }
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < V; v++) {
      store(sums + r * context.width + column + v * kBlock, 0xffff, sum[r][v]);
    }
  }
}

// The split's sums for R rows, whose scaled queries are [R, Dk]; a row that sees nothing sums to 0.
template <int R, class T>
void attend_split(const Context<T>& context, const Row* rows, const float* queries, int64_t split,
                  const Sums& sums) {
  alignas(64) float scores[R * kSplit];
  Row seen[R];
  const auto [first, end] = seen_in(split, rows, R, seen, sums.sum);
  if (first >= end) return;
  const int64_t block = first / kBlock, end_block = (end - 1) / kBlock + 1;
  float* const first_scores = scores + block * kBlock - split * kSplit;
  score<R>(context, block, end_block, queries, first_scores);
  for (int r = 0; r < R; r++) {
    float* const row = first_scores + r * kSplit;
    soften(seen[r], block, end_block, context.softcap, row, sums.max[r], sums.sum[r]);
  }
  constexpr int V = R <= 4 ? 4 : 2;
  for (int64_t column = 0; column < context.value_size; column += V * kBlock) {
    weigh<R, V>(context, split, column, first, end, scores, sums.values);
  }
}

// What a thread needs for attention by vectors, over a pool of any type.
template <class T>
class Vectors {
 public:
  using Number = T;                      // of the pool
  static constexpr int64_t kMaxRows = 8;   // that `attend` takes: so many fit in registers
  static constexpr int64_t kPadding = 64;  // floats: rows of results hold whole groups of vectors

  // Before a thread's first call, of so many rows at once at most, and after its last.
  static void begin(int64_t) {}
  static void end() {}

  // One head of one token as it lies in a block of the pool: keys are [Dk, 16], values [16, Dv].
  static void write_key(const float* row, int64_t size, int64_t offset, T* block) {
    T* const column = block + offset;
    for (int64_t d = 0; d < size; d += kBlock) {
      T converted[kBlock];
      store(converted, 0xffff, load(row + d));
      const int64_t end = std::min(kBlock, size - d);
      for (int64_t i = 0; i < end; i++) column[(d + i) * kBlock] = converted[i];
    }
  }
  static void write_value(const float* row, int64_t size, int64_t offset, T* block) {
    write(row, size, 1.f, block + offset * size);
  }

  // Makes room for the queries of so many rows, which `read_query` then fills one by one.
  void arrange(int64_t num_rows, int64_t size, int64_t type) {
    size_ = size;
    type_ = type;
    queries_.resize(num_rows * size);
  }
  void read_query(const Tokens& tokens, int64_t head, int64_t token, int64_t r, float scaling) {
    read_token(tokens, type_, head, token, size_, scaling, queries_.data() + r * size_);
  }

  // Before rows attend to keys `first` to `end` - 1, which are of one split.
  void begin_split(const Context<T>&, int64_t, int64_t) {}
  // Afterwards: which keys are next, so that they may be fetched meanwhile.
  void look_ahead(const Context<T>&, int64_t, int64_t) {}

  // One split of the context for `count` rows from row `r` on, into `sums` from its start.
  void attend(const Context<T>& context, const Row* rows, int64_t r, int64_t count, int64_t split,
              const Sums& sums) const {
    const float* const query = queries_.data() + r * size_;
    with_count<kMaxRows>(count, [&](auto number) {
      attend_split<number.value>(context, rows + r, query, split, sums);
    });
  }

 private:
  int64_t size_ = 0, type_ = 0;
  std::vector<float> queries_;  // [rows, Dk], scaled
};

}  // namespace
