// Query rows, scores and sums as tiles of the matrix unit: of 16 lines of 64 bytes.
#pragma once
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

  // A line of the keys or values of its blocks, one after the other; nothing behind the last.
  void fetch_line() {
    if (line_ == piece_end_ && !begin_piece()) return;
    _mm_prefetch(line_, _MM_HINT_T1);
    line_ += kTileBytes;
  }
  // The rest of the keys or values of one block.
  void fetch_piece() {
    do fetch_line();
    while (line_ != piece_end_);
  }

 private:
  bool begin_piece() {
    if (half_ >= end_) return false;
    const bool is_keys = half_ % 2 == 0;
    line_ = reinterpret_cast<const char*>(is_keys ? context_.keys(half_ / 2)
                                                  : context_.values(half_ / 2));
    const int64_t size = is_keys ? context_.key_size : context_.value_size;
    piece_end_ = line_ + kBlock * size * sizeof(BFloat16);
    half_++;
    return true;
  }

  Context<BFloat16> context_ = {};
  int64_t half_ = 0, end_ = 0;  // pieces: keys, values, keys …
  const char *line_ = nullptr, *piece_end_ = nullptr;
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

}  // namespace
