// Intel's matrix tiles (AMX): products of 16 rows by 16 columns at a time, four bytes deep at once.
#pragma once
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 64;  // of a row of a tile
constexpr int64_t kAheadTiles = 2;  // pairs of tiles of weights that are fetched before their turn

// True once the kernel lets this process use the tiles; Linux asks for that since 5.16.
inline bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, its feature
  constexpr unsigned kBFloat16Tiles = 1u << 22, kTiles = 1u << 24, kIntegerTiles = 1u << 25;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d & kBFloat16Tiles) || !(d & kTiles) || !(d & kIntegerTiles)) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

inline bool has_tiles() {
  static const bool has = request_tiles();
  return has;
}

struct alignas(64) TileSettings {  // the processor's format, palette 1
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};

  TileSettings() {
    for (int tile = 0; tile < 8; tile++) {
      row_bytes[tile] = kTileBytes;
      num_rows[tile] = kTileRows;
    }
  }
};

#define WITH_TILES __attribute__((target("amx-tile,amx-int8,amx-bf16")))

// Of this thread, until `release_tiles`.
WITH_TILES inline void set_up_tiles() {
  static const TileSettings settings;
  _tile_loadconfig(&settings);
}

WITH_TILES inline void release_tiles() { _tile_release(); }

// Two tiles of weights, which loading a tile would wait for: it fetches nothing ahead by itself.
inline void fetch_tiles(const uint8_t* weights) {
  for (int64_t line = 0; line < 2 * kTileRows; line++) {
    _mm_prefetch(reinterpret_cast<const char*>(weights + line * kTileBytes), _MM_HINT_T0);
  }
}

// Tile numbers must be constants: hence macros. Signed rows times unsigned weights, or bfloat16.
#define ADD_TILE_PRODUCTS(sums, rows, weights) \
  if (is_integer) {                            \
    _tile_dpbsud(sums, rows, weights);         \
  } else {                                     \
    _tile_dpbf16ps(sums, rows, weights);       \
  }

// sums[row][column], 16 or 32 rows by 32 columns: rows in tiles [words / 16, 16, 64], the second
// 16 rows `second` bytes behind the first, times weights [num_words, 32] of four bytes each, where
// `num_words` is a multiple of 16.
template <bool is_integer, bool has_two>
WITH_TILES void multiply_tiles(const uint8_t* rows, int64_t second, const uint8_t* weights,
                               int64_t num_words, void* sums) {
  constexpr int64_t kWeightStride = 2 * kTileBytes, kSumStride = 2 * kTileBytes;
  _tile_zero(0);
  _tile_zero(1);
  if (has_two) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t word = 0; word < num_words; word += kTileRows) {
    const uint8_t* const now = weights + word * kWeightStride;
    const uint8_t* const tile = rows + word * kTileBytes;
    fetch_tiles(now + kAheadTiles * 2 * kTileRows * kTileBytes);
    _tile_loadd(4, tile, kTileBytes);
    _tile_loadd(6, now, kWeightStride);
    _tile_loadd(7, now + kTileBytes, kWeightStride);
    ADD_TILE_PRODUCTS(0, 4, 6)
    ADD_TILE_PRODUCTS(1, 4, 7)
    if (has_two) {
      _tile_loadd(5, tile + second, kTileBytes);
      ADD_TILE_PRODUCTS(2, 5, 6)
      ADD_TILE_PRODUCTS(3, 5, 7)
    }
  }
  uint8_t* const to = static_cast<uint8_t*>(sums);
  _tile_stored(0, to, kSumStride);
  _tile_stored(1, to + kTileBytes, kSumStride);
  if (has_two) {
    _tile_stored(2, to + kTileRows * kSumStride, kSumStride);
    _tile_stored(3, to + kTileRows * kSumStride + kTileBytes, kSumStride);
  }
}

}  // namespace
