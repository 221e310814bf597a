// Scores and weighted values by the matrix unit.
//
// Few tiles are live at a time: where a core's other thread is busy, too, loads wait for products
// as soon as most of the eight tiles hold something, and take three times as long.
#pragma once
#include "tiles.h"

namespace {

struct Settings : TileSettings {  // 4 and 5 are weights, 6 is values: of one block
  // So few query rows as a step has are loaded; a row's sums are the same beside any number of
  // others.
  explicit Settings(int64_t rows) {
    row_bytes[4] = row_bytes[5] = kTileBytes / 2;
    num_rows[6] = kTileRows / 2;
    for (int tile : {0, 1, 2, 4, 5}) num_rows[tile] = rows;
  }
};

// See `PairProducts` for what each function does.
class MatrixUnit {
 public:
  WITH_TILES static void begin(int64_t num_rows) {
    const Settings settings(num_rows);
    asm volatile("" : : "r"(&settings) : "memory");  // the intrinsic names its first bytes alone
    _tile_loadconfig(&settings);
  }
  static void end() { release_tiles(); }

  static void score(const Context<BFloat16>& context, int64_t block, int64_t end,
                    const TiledQueries& queries, const Tile* rows, int64_t, Ahead& ahead,
                    float* scores) {
    for (; block + 1 < end; block += 2, scores += 2 * kBlock) {
      ahead.fetch_piece();
      score_tiles<2>(context, block, end, queries, rows, scores);
    }
    if (block < end) score_tiles<1>(context, block, end, queries, rows, scores);
  }

  WITH_TILES static void weigh(const float* weights, const BFloat16* const* values,
                               int64_t num_blocks, int64_t num_columns, int64_t, Ahead& ahead,
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

 private:
  // scores[row][key] of N blocks, not scaled yet; what is read next is fetched meanwhile.
  template <int N>
  WITH_TILES static void score_tiles(const Context<BFloat16>& context, int64_t block, int64_t end,
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

  // sums[columns / 16] of V columns of tiles: weights, as `soften_blocks` leaves them, times
  // values.
  template <int V>
  WITH_TILES static void weigh_tiles(const float* weights, const BFloat16* const* values,
                                     int64_t num_blocks, int64_t column, Ahead& ahead,
                                     TileSums* sums) {
    _tile_zero(0);
    if (V > 1) _tile_zero(1);
    for (int64_t block = 0; block < num_blocks; block++, weights += kBlock) {
      const BFloat16* const now = values[block] + column * kHalf;
      ahead.fetch_piece();
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
};

}  // namespace
