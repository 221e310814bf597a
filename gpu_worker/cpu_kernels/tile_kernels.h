// One split of one context for 16 query rows at once, over a pool of bfloat16 keys and values that lie
// as the matrix unit reads them: it multiplies, or AVX-512 by pairs of bfloat16 numbers.
//
// Queries that are bfloat16 are multiplied as they came, and their scores scaled afterwards, in
// float32; others are cut into two or three bfloat16 parts, and weights into two, which are
// multiplied one after the other, so that little of float32's precision is lost.
#pragma once
#include "matrix_unit.h"
#include "pair_products.h"

namespace {

// Scales, caps and hides the scores of the blocks `block` to `end` - 1 of a row; their maximum.
inline float mask_scores(const Context<BFloat16>& context, const Row& seen, int64_t block,
                         int64_t end, float* scores) {
  const __m512 hidden = _mm512_set1_ps(-INFINITY), cap = _mm512_set1_ps(context.softcap);
  const __m512 scaling = _mm512_set1_ps(context.scaling);
  __m512 max = hidden;
  for (; block < end; block++, scores += kBlock) {
    __m512 x = _mm512_mul_ps(load(scores), scaling);
    if (context.softcap > 0) x = _mm512_mul_ps(cap, tanh_of(_mm512_div_ps(x, cap)));
    x = _mm512_mask_mov_ps(hidden, lanes_of(seen, block), x);
    max = _mm512_max_ps(x, max);
    _mm512_store_ps(scores, x);
  }
  return _mm512_reduce_max_ps(max);
}

// e^x for x <= 0, where it matters: relative error 2e-7 near 0, and x times 1e-7 far from it; exactly
// 1 at 0, and 0 for minus infinity.
inline __m512 weight_of(__m512 x) {
  x = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  // Below, numbers would be denormal, which take hundreds of cycles. NaN stays NaN.
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
  const __m512 n = _mm512_roundscale_ps(x, 0);
  x = _mm512_sub_ps(x, n);
  __m512 sum = _mm512_set1_ps(1.3264727e-3f);  // 2^x by a polynomial of the least relative error
  for (float c : {9.6715130e-3f, 5.5507336e-2f, 2.4022242e-1f, 6.9314700e-1f, 1.f}) {
    sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(c));
  }
  return _mm512_maskz_scalef_ps(counts, sum, n);
}

// Scores become e^(score - max), in two bfloat16 parts, 16 of the one behind 16 of the other;
// returns the sum. A hidden score is minus infinity, of which this makes 0.
__attribute__((target("avx512bf16"))) inline float soften_blocks(int64_t num_blocks, float row_max,
                                                                 float* scores) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(0xffff0000);
  const __m512 max = _mm512_set1_ps(row_max);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t block = 0; block < num_blocks; block++, scores += kBlock) {
    const __m512 weight = weight_of(_mm512_sub_ps(load(scores), max));
    const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(weight), half);
    const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(rounded, upper));
    sum = _mm512_add_ps(sum, weight);
    const __m512 rest = _mm512_sub_ps(weight, high);
    _mm512_store_si512(scores, (__m512i)_mm512_cvtne2ps_pbh(rest, high));
  }
  return _mm512_reduce_add_ps(sum);
}

// What a thread needs for attention by a unit; see `Vectors` for what each function does.
template <class Unit>  // MatrixUnit or PairProducts
class Tiles {
 public:
  using Number = BFloat16;
  static constexpr int64_t kMaxRows = kTileRows, kPadding = kBlock;

  static void begin(int64_t num_rows) { Unit::begin(std::min(num_rows, kMaxRows)); }
  static void end() { Unit::end(); }

  // Keys are [Dk / 2, 16, 2]: a column of a tile holds one key.
  static void write_key(const float* row, int64_t size, int64_t offset, BFloat16* block) {
    for (int64_t d = 0; d < size; d += kLine) {
      uint32_t pairs[kBlock];
      store_both(reinterpret_cast<BFloat16*>(pairs), load(row + d), load(row + d + kBlock));
      uint32_t* const column = reinterpret_cast<uint32_t*>(block) + d / 2 * kBlock + offset;
      for (int64_t i = 0; i < kBlock; i++) column[i * kBlock] = pairs[i];
    }
  }
  // Values are [Dv / 16, 8, 16, 2]: a line of a tile holds two keys.
  static void write_value(const float* row, int64_t size, int64_t offset, BFloat16* block) {
    const bool is_second = offset % 2;
    BFloat16* line = block + offset / 2 * kLine;
    for (int64_t d = 0; d < size; d += kBlock, line += kHalf) {
      const __m512i upper = round_to_bfloat16(load(row + d));
      const __m512i placed = is_second ? upper : _mm512_srli_epi32(upper, 16);
      _mm512_mask_storeu_epi16(line, is_second ? 0xaaaaaaaa : 0x55555555, placed);
    }
  }

  void arrange(int64_t num_rows, int64_t size, int64_t type) {
    queries_.arrange(num_rows, size, type);
    ahead_ = Ahead();  // what it points to may be no more
  }
  void read_query(const Tokens& tokens, int64_t head, int64_t token, int64_t r, float) {
    queries_.read(tokens, head, token, r);
  }

  // Finds the values of the split's blocks. Of a block that ends later the first keys are copied
  // with zeros behind them: there an earlier owner may have left what is no number.
  void begin_split(const Context<BFloat16>& context, int64_t first, int64_t end) {
    for (int64_t block = first / kBlock; block * kBlock < end; block++) {
      values_[block % kBlocks] = context.values(block);
    }
    const int64_t block = end / kBlock, num_keys = end % kBlock;
    if (num_keys == 0) return;
    tail_.resize(context.value_size / kBlock);
    BFloat16* to = tail_.data()->numbers[0];
    const BFloat16* from = context.values(block);
    for (int64_t i = 0; i < kBlock * context.value_size; i += kLine) {
      const int64_t rest = num_keys - i % kHalf / kBlock;
      const __mmask32 lanes = rest > 1 ? ~0u : rest == 1 ? 0x55555555 : 0;
      _mm512_store_si512(to + i, _mm512_maskz_loadu_epi16(lanes, from + i));
    }
    values_[block % kBlocks] = to;
  }

  void look_ahead(const Context<BFloat16>& next, int64_t first, int64_t end) {
    ahead_ = Ahead(next, first, end);
  }

  void attend(const Context<BFloat16>& context, const Row* rows, int64_t r, int64_t count,
              int64_t split, const Sums& sums) {
    Row seen[kTileRows];
    const Row all = seen_in(split, rows + r, count, seen, sums.sum);
    if (all.first >= all.end) return;
    const int64_t block = all.first / kBlock, end_block = (all.end - 1) / kBlock + 1;
    const int64_t num_blocks = end_block - block, num_columns = context.value_size / kBlock;
    const Tile* const queries = queries_.of(r);
    Unit::score(context, block, end_block, queries_, queries, count, ahead_, scores_);
    for (int64_t i = 0; i < count; i++) {
      float* const row = scores_ + i * kScoreStride;
      if (seen[i].first >= seen[i].end) {
        std::fill_n(row, num_blocks * kBlock, 0.f);
        continue;
      }
      sums.max[i] = mask_scores(context, seen[i], block, end_block, row);
      sums.sum[i] = soften_blocks(num_blocks, sums.max[i], row);
    }
    sums_.resize(num_columns);
    Unit::weigh(scores_, values_ + block % kBlocks, num_blocks, num_columns, count, ahead_,
                sums_.data());
    for (int64_t i = 0; i < count; i++) copy_sums(i, sums.values + i * context.width);
  }

 private:
  void copy_sums(int64_t row, float* to) const {
    for (const TileSums& columns : sums_) {
      store(to, 0xffff, load(columns.numbers[row]));
      to += kBlock;
    }
  }

  TiledQueries queries_;
  Ahead ahead_;
  const BFloat16* values_[kBlocks];  // of every block of a split
  std::vector<Tile> tail_;
  std::vector<TileSums> sums_;  // [Dv / 16]
  alignas(kTileBytes) float scores_[kTileRows * kScoreStride];
};

}  // namespace
