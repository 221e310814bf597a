// Scores and weighted values by AVX-512's products of pairs of bfloat16 numbers, for 1 to 16 rows.
//
// Of what comes next a line is fetched with each that is read: the second-level cache holds it by
// then, and no burst of fetches makes the products wait.
#pragma once
#include <cstring>

#include "tiles.h"

namespace {

class PairProducts {
 public:
  // Before a thread's first call, of so many rows at once at most, and after its last.
  static void begin(int64_t) {}
  static void end() {}

  // scores[row][key] of the blocks `block` to `end` - 1, not scaled yet; of the first `count` rows.
  static void score(const Context<BFloat16>& context, int64_t block, int64_t end,
                    const TiledQueries& queries, const Tile* rows, int64_t count, Ahead& ahead,
                    float* scores) {
    const auto each = [&](auto number) {
      constexpr int N = number.value;
      for (; block + N <= end; block += N, scores += N * kBlock) {
        score_rows<N>(context, block, queries, rows, count, ahead, scores);
      }
    };
    // Of few rows, more blocks at once: else each product would wait for the one before.
    if (count <= kSums / 4) each(std::integral_constant<int, 4>());
    each(std::integral_constant<int, 2>());
    each(std::integral_constant<int, 1>());
  }

  // sums[column / 16][row]: weights, as `soften_blocks` leaves them, times values.
  static void weigh(const float* weights, const BFloat16* const* values, int64_t num_blocks,
                    int64_t num_columns, int64_t count, Ahead& ahead, TileSums* sums) {
    for (int64_t row = 0; row < count; row += kRows) {
      with_count<kRows>(std::min(kRows, count - row), [&](auto number) {
        constexpr int R = number.value;
        const float* const from = weights + row * kScoreStride;
        int64_t column = 0;
        const auto each = [&](auto columns) {
          constexpr int V = columns.value;
          for (; column + V <= num_columns; column += V) {
            weigh_columns<R, V>(from, values, num_blocks, column, row, ahead, sums);
          }
        };
        if constexpr (4 * R <= kSums) each(std::integral_constant<int, 4>());
        each(std::integral_constant<int, 2>());
        each(std::integral_constant<int, 1>());
      });
    }
  }

 private:
  static constexpr int64_t kSums = 16;  // that stay in registers
  static constexpr int64_t kRows = kSums / 2;  // at once
  static constexpr int64_t kPairs = kLine / 2;

  static __m512i broadcast(const void* pair) {
    int32_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    return _mm512_set1_epi32(bits);
  }

  template <int N>
  static void score_rows(const Context<BFloat16>& context, int64_t block,
                         const TiledQueries& queries, const Tile* rows, int64_t count, Ahead& ahead,
                         float* scores) {
    constexpr int64_t kMost = std::min(kRows, kSums / N);
    for (int64_t row = 0; row < count; row += kMost) {
      with_count<kMost>(std::min(kMost, count - row), [&](auto number) {
        float* const to = scores + row * kScoreStride;
        score_blocks<number.value, N>(context, block, queries, rows, row, ahead, to);
      });
    }
  }

  // Of R rows and N blocks. Inlined, the compiler keeps the sums in memory.
  template <int R, int N>
  [[gnu::noinline]] static void score_blocks(const Context<BFloat16>& context, int64_t block,
                                             const TiledQueries& queries, const Tile* rows,
                                             int64_t row, Ahead& ahead, float* scores) {
    const BFloat16* keys[N];
    __m512 sums[R][N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {
      keys[n] = context.keys(block + n);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r][n] = _mm512_setzero_ps();
    }
    const int64_t depth = queries.depth();
    for (int64_t t = 0, d = 0; t < queries.num_tiles(); t++, d = d + 1 < depth ? d + 1 : 0) {
      const BFloat16* const line = rows[t].numbers[row];
      for (int64_t pair = 0; pair < kPairs; pair++) {
        const int64_t at = (d * kPairs + pair) * kLine;
        __m512i key[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
          key[n] = _mm512_loadu_si512(keys[n] + at);
          ahead.fetch_line();
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const __m512i query = broadcast(line + r * kLine + 2 * pair);
#pragma GCC unroll 4
          for (int n = 0; n < N; n++) add_pairs(sums[r][n], query, key[n]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) store(scores + r * kScoreStride + n * kBlock, 0xffff, sums[r][n]);
    }
  }

  // Of R rows and V columns of tiles; not inlined either.
  template <int R, int V>
  [[gnu::noinline]] static void weigh_columns(const float* weights, const BFloat16* const* values,
                                              int64_t num_blocks, int64_t column, int64_t row,
                                              Ahead& ahead, TileSums* sums) {
    __m512 sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[r][v] = _mm512_setzero_ps();
    }
    for (int64_t block = 0; block < num_blocks; block++, weights += kBlock) {
      const BFloat16* const now = values[block] + column * kHalf;
      for (int64_t pair = 0; pair < kBlock / 2; pair++) {
        __m512i value[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
          value[v] = _mm512_loadu_si512(now + v * kHalf + pair * kLine);
          ahead.fetch_line();
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const float* const high = weights + r * kScoreStride + pair;
          const __m512i first = broadcast(high), second = broadcast(high + kBlock / 2);
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) {
            add_pairs(sum[r][v], first, value[v]);
            add_pairs(sum[r][v], second, value[v]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) _mm512_store_ps(sums[column + v].numbers[row + r], sum[r][v]);
    }
  }
};

}  // namespace
