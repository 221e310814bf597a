// One split of one context by the matrix unit, for 16 query rows at once, over a pool of bfloat16
// keys and values that lie as the unit reads them.
//
// Queries that are bfloat16 are multiplied as they came, and their scores scaled afterwards, in
// float32; others are cut into two or three bfloat16 parts, and weights into two, which are
// multiplied one after the other, so that little of float32's precision is lost.
//
// Few tiles are live at a time: where a core's other thread is busy, too, loads wait for products as
// soon as most of the eight tiles hold something, and take three times as long.
#pragma once
#include <cmath>
#include <vector>

#include "amx.h"
#include "micro_kernels.h"

namespace {

constexpr int64_t kLine = kTileBytes / 2;          // bfloat16 numbers of a line of a tile
constexpr int64_t kBlocks = kSplit / kBlock;       // of a split
constexpr int64_t kHalf = kTileRows / 2 * kLine;   // numbers of half a tile: 16 keys' of 16 columns
constexpr int64_t kScoreStride = kSplit + kBlock;  // lest all rows share a few sets of the cache
constexpr int64_t kScoreBytes = kScoreStride * sizeof(float);

struct alignas(kTileBytes) Tile {
  BFloat16 numbers[kTileRows][kLine];
};
struct alignas(kTileBytes) TileSums {
  float numbers[kTileRows][kBlock];
};

inline void fetch(const void* from, int64_t num_lines) {
  for (int64_t line = 0; line < num_lines; line++) {
    _mm_prefetch(static_cast<const char*>(from) + line * kTileBytes, _MM_HINT_T0);
  }
}

// What a thread attends to next, fetched into the second-level cache while it multiplies: memory
// would rest meanwhile.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Context<BFloat16>& context, int64_t first, int64_t end)
      : context_(context), half_(first / kBlock * 2), end_(round_up(end, kBlock) / kBlock * 2) {}

  // The keys or the values of one block.
  void fetch_some() {
    if (half_ >= end_) return;
    const bool is_keys = half_ % 2 == 0;
    const BFloat16* const from = is_keys ? context_.keys(half_ / 2) : context_.values(half_ / 2);
    const int64_t size = kBlock * (is_keys ? context_.key_size : context_.value_size);
    for (int64_t i = 0; i < size; i += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
    }
    half_++;
  }

 private:
  Context<BFloat16> context_ = {};
  int64_t half_ = 0, end_ = 0;
};

// Query rows in tiles [rows / 16, parts, Dk / 32].
class TiledQueries {
 public:
  void arrange(int64_t num_rows, int64_t size, int64_t type) {
    num_parts_ = type == kBFloat16 ? 1 : type == kFloat16 ? 2 : 3;
    depth_ = size / kLine;
    type_ = type;
    tiles_.resize(round_up(num_rows, kTileRows) / kTileRows * num_tiles());
    row_.resize(size);
  }
  void read(const Tokens& tokens, int64_t head, int64_t token, int64_t r) {
    Tile* const to = tiles_.data() + r / kTileRows * num_tiles();
    if (type_ == kBFloat16) {
      const BFloat16* const from = tokens.row<BFloat16>(head, token);
      for (int64_t d = 0; d < depth_; d++) {
        const __m512i line = _mm512_loadu_si512(from + d * kLine);
        _mm512_store_si512(to[d].numbers[r % kTileRows], line);
      }
      return;
    }
    read_token(tokens, type_, head, token, depth_ * kLine, 1.f, row_.data());
    for (int64_t d = 0; d < depth_; d++) cut(row_.data() + d * kLine, to + d, r % kTileRows);
  }
  const Tile* of(int64_t r) const { return tiles_.data() + r / kTileRows * num_tiles(); }
  int64_t depth() const { return depth_; }
  int64_t num_tiles() const { return num_parts_ * depth_; }  // of 16 rows

 private:
  void cut(const float* from, Tile* to, int64_t line) const {
    const __m512i upper = _mm512_set1_epi32(0xffff0000);
    __m512 rest[2] = {load(from), load(from + kBlock)};
    for (int64_t part = 0; part < num_parts_; part++, to += depth_) {
      store_both(to->numbers[line], rest[0], rest[1]);
      for (__m512& x : rest) {
        const __m512i rounded = _mm512_and_si512(round_to_bfloat16(x), upper);
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(rounded));
      }
    }
  }

  int64_t num_parts_ = 0, depth_ = 0, type_ = 0;
  std::vector<Tile> tiles_;
  std::vector<float> row_;
};

// scores[row][key] of N blocks, not scaled yet; what is read next is fetched meanwhile.
template <int N>
WITH_TILES void score_tiles(const Context<BFloat16>& context, int64_t block, int64_t end,
                            const TiledQueries& queries, const Tile* rows, float* scores) {
  const int64_t depth = queries.depth();
  const Tile* keys[N];
  for (int64_t n = 0; n < N; n++) {
    keys[n] = reinterpret_cast<const Tile*>(context.keys(block + n));
    if (block + n + N < end) fetch(context.keys(block + n + N), depth * kTileRows);
  }
  _tile_zero(0);
  if (N > 1) _tile_zero(1);
  for (int64_t t = 0, d = 0; t < queries.num_tiles(); t++, d = d + 1 < depth ? d + 1 : 0) {
    _tile_loadd(2, rows + t, kTileBytes);
    _tile_loadd(3, keys[0] + d, kTileBytes);
    _tile_dpbf16ps(0, 2, 3);
    if (N > 1) {
      _tile_loadd(3, keys[1] + d, kTileBytes);
      _tile_dpbf16ps(1, 2, 3);
    }
  }
  _tile_stored(0, scores, kScoreBytes);
  if (N > 1) _tile_stored(1, scores + kBlock, kScoreBytes);
}

// Scores of the blocks `block` to `end` - 1, two blocks at a time.
inline void score_in_tiles(const Context<BFloat16>& context, int64_t block, int64_t end,
                           const TiledQueries& queries, const Tile* rows, Ahead& ahead,
                           float* scores) {
  for (; block + 1 < end; block += 2, scores += 2 * kBlock) {
    ahead.fetch_some();
    score_tiles<2>(context, block, end, queries, rows, scores);
  }
  if (block < end) score_tiles<1>(context, block, end, queries, rows, scores);
}

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

// sums[columns / 16] of V columns of tiles: weights, as `soften_blocks` leaves them, times values.
template <int V>
WITH_TILES void weigh_tiles(const float* weights, const BFloat16* const* values,
                            int64_t num_blocks, int64_t column, Ahead& ahead, TileSums* sums) {
  _tile_zero(0);
  if (V > 1) _tile_zero(1);
  for (int64_t block = 0; block < num_blocks; block++, weights += kBlock) {
    const BFloat16* const now = values[block] + column * kHalf;
    ahead.fetch_some();
    if (block + 1 < num_blocks) fetch(values[block + 1] + column * kHalf, V * kTileRows / 2);
    _tile_loadd(4, weights, kScoreBytes);
    _tile_loadd(6, now, kTileBytes);
    _tile_loadd(5, weights + kBlock / 2, kScoreBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(0, 5, 6);
    if (V > 1) {
      _tile_loadd(6, now + kHalf, kTileBytes);
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
    }
  }
  _tile_stored(0, sums + column, kTileBytes);
  if (V > 1) _tile_stored(1, sums + column + 1, kTileBytes);
}

WITH_TILES inline void weigh_in_tiles(const float* weights, const BFloat16* const* values,
                                      int64_t num_blocks, int64_t num_columns, Ahead& ahead,
                                      TileSums* sums) {
  _tile_zero(2);  // of the scores: the fewer tiles live, the less they wait for each other
  _tile_zero(3);
  int64_t column = 0;
  for (; column + 1 < num_columns; column += 2) {
    weigh_tiles<2>(weights, values, num_blocks, column, ahead, sums);
  }
  if (column < num_columns) weigh_tiles<1>(weights, values, num_blocks, column, ahead, sums);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
}

struct Settings : TileSettings {  // 4 and 5 are weights, 6 is values: of one block
  // So few query rows as a step has are loaded; a row's sums are the same beside any number of others.
  explicit Settings(int64_t rows) {
    row_bytes[4] = row_bytes[5] = kTileBytes / 2;
    num_rows[6] = kTileRows / 2;
    for (int tile : {0, 1, 2, 4, 5}) num_rows[tile] = rows;
  }
};

// What a thread needs for attention by tiles; see `Vectors` for what each function does.
class Tiles {
 public:
  using Number = BFloat16;
  static constexpr int64_t kMaxRows = kTileRows, kPadding = kBlock;

  WITH_TILES static void begin(int64_t num_rows) {
    const Settings settings(std::min(num_rows, kMaxRows));
    asm volatile("" : : "r"(&settings) : "memory");  // the intrinsic names its first bytes alone
    _tile_loadconfig(&settings);
  }
  static void end() { release_tiles(); }

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
    score_in_tiles(context, block, end_block, queries_, queries_.of(r), ahead_, scores_);
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
    weigh_in_tiles(scores_, values_ + block % kBlocks, num_blocks, num_columns, ahead_,
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
