// Linear layers of float32, bfloat16 or 8-bit weights, for AVX-512 VNNI: see linear.py.
//
// A weight is cut into strips of 32 outputs, [in / n, 32, n], where n numbers take four bytes, a
// word. A word of each of 16 outputs fills a vector; the matrix unit reads the same layout. What is
// multiplied differs by kind:
//
// - float32: one number a word, summed in the order of the inputs;
// - bfloat16: two, summed in float32, by the matrix unit or AVX-512's own products of such pairs;
// - 8 bits: four. Weights are integers from -127 to 127, with a scale for each output; a row of
//   activations is quantised here, with a scale of its own. Integers are summed exactly.
//
// So a row's result, bit for bit, does not depend on the rows beside it or the number of threads.
#include <omp.h>

#include <cstring>
#include <utility>
#include <vector>

#include "amx.h"
#include "kinds.h"
#include "layers.h"
#include "outputs.h"
#include "screening.h"

namespace {

enum Kind : int64_t { kFloatWeights = 0, kBFloat16Weights = 1, kByteWeights = 2 };

constexpr int64_t kMaxRows = 11;  // rows of a tile: their sums and addresses stay in registers
constexpr int64_t kTiledRows = 5;  // so many rows of bytes are worth tiles of the matrix unit
constexpr int64_t kDepth = 1024;   // words of a strip that stay in the second-level cache
constexpr int64_t kAhead = 8192;   // bytes of a weight that are fetched before they are needed
constexpr int64_t kLine = 64;      // bytes that caches hold together
constexpr int64_t kFewestSharers = 3;  // so many tiles fetch the weights of the next ones together
constexpr int64_t kSerial = 1 << 15;  // fewer words times outputs take less time than a second thread
constexpr int64_t kSerialRows = 8;    // fewer rows are prepared by one thread

// ── strips ──────────────────────────────────────────────────────────────────────────────────────

// What a row and the strip's 32 outputs have come to.
template <class Numbers, class End>
inline void finish(const Layer& layer, const Rows& input, int64_t row, int64_t column,
                   typename Numbers::Sums low, typename Numbers::Sums high, const End& end) {
  __m512 first = Numbers::finish(layer, input, row, column, low);
  __m512 second = Numbers::finish(layer, input, row, column + kBlock, high);
  if (layer.bias) {
    first = _mm512_add_ps(first, load(layer.bias + column));
    second = _mm512_add_ps(second, load(layer.bias + column + kBlock));
  }
  end.take(row, column, first, second);
}

template <class Numbers>
struct Part {  // of the words of a strip, when all at once would not stay in the cache
  int64_t begin, end;
  typename Numbers::Sums (*sums)[2];  // [rows] so far, of the parts before
};

// Memory for the sums of so many rows, of this thread until the next call.
template <class Numbers>
typename Numbers::Sums (*partial_sums(int64_t num_rows))[2] {
  static thread_local std::vector<typename Numbers::Sums> sums;
  sums.resize(2 * num_rows);
  return reinterpret_cast<typename Numbers::Sums(*)[2]>(sums.data());
}

struct FetchAhead {  // a few weights before they are needed
  void next(const uint8_t* now) {
    _mm_prefetch(reinterpret_cast<const char*>(now + kAhead), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(now + kAhead + kLine), _MM_HINT_T1);
  }
};

struct FetchShare {  // of the next part, while tiles read this one: so memory is never idle
  const uint8_t* at;
  int64_t step;

  FetchShare(const uint8_t* next_part, int64_t size, int64_t tile, int64_t num_tiles)
      : at(next_part + size * tile / num_tiles), step((2 * kLine - 1) / num_tiles + 1) {}
  void next(const uint8_t*) {
    _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
    at += step;
  }
};

// R rows from `row` on, times 32 outputs from `column` on. Inlined, the compiler keeps the sums in
// memory.
template <int R, class Numbers, class Fetch, class End>
[[gnu::noinline]] void multiply_tile(const Layer& layer, const Rows& input, int64_t row,
                                     int64_t column, const Part<Numbers>& part, Fetch fetch,
                                     const End& end) {
  const uint8_t* const weight = layer.weight + column * input.num_words * 4;
  const uint8_t* const rows = input.numbers.row(row);
  typename Numbers::Sums low[R], high[R];
#pragma GCC unroll 11
  for (int r = 0; r < R; r++) {
    low[r] = part.begin ? part.sums[row + r][0] : Numbers::zero();
    high[r] = part.begin ? part.sums[row + r][1] : Numbers::zero();
  }
  for (int64_t word = part.begin; word < part.end; word++) {
    const uint8_t* const now = weight + word * 4 * kColumns;
    const __m512i first = _mm512_loadu_si512(now), second = _mm512_loadu_si512(now + 64);
    fetch.next(now);
#pragma GCC unroll 11
    for (int r = 0; r < R; r++) {
      int32_t bits;
      std::memcpy(&bits, rows + r * input.numbers.stride + word * 4, sizeof bits);
      const __m512i broadcast = _mm512_set1_epi32(bits);
      Numbers::add(low[r], first, broadcast);
      Numbers::add(high[r], second, broadcast);
    }
  }
  if (part.end < input.num_words) {
#pragma GCC unroll 11
    for (int r = 0; r < R; r++) part.sums[row + r][0] = low[r], part.sums[row + r][1] = high[r];
    return;
  }
#pragma GCC unroll 11
  for (int r = 0; r < R; r++) {
    finish<Numbers>(layer, input, row + r, column, low[r], high[r], end);
  }
}

// All rows times a strip, in tiles of nearly equal height; if there are several, a part of the
// weights that stays in the cache is read for all before the next. Sums run in the same order.
template <class Numbers, class End>
void multiply_strip(const Layer& layer, const Rows& input, int64_t column, const End& end) {
  const int64_t num_tiles = (input.num_rows + kMaxRows - 1) / kMaxRows;
  const int64_t depth = num_tiles > 1 ? kDepth : input.num_words;
  Part<Numbers> part = {0, 0, partial_sums<Numbers>(depth < input.num_words ? input.num_rows : 0)};
  for (; part.begin < input.num_words; part.begin = part.end) {
    part.end = std::min(part.begin + depth, input.num_words);
    const uint8_t* const next = layer.weight + 4 * (column * input.num_words + kColumns * part.end);
    const int64_t size = 4 * kColumns * (part.end - part.begin);
    for (int64_t tile = 0; tile < num_tiles; tile++) {
      const int64_t row = input.num_rows * tile / num_tiles;
      const int64_t stop = input.num_rows * (tile + 1) / num_tiles;
      const auto multiply = [&](auto fetch) {
        with_count<kMaxRows>(stop - row, [&](auto count) {
          multiply_tile<count.value, Numbers>(layer, input, row, column, part, fetch, end);
        });
      };
      if (Numbers::kSharesFetching && num_tiles >= kFewestSharers) {
        multiply(FetchShare(next, size, tile, num_tiles));
      } else {
        multiply(FetchAhead());
      }
    }
  }
}

// The same by the matrix unit, of which this thread has set up the tiles.
template <class Numbers, class End>
void multiply_strip_in_tiles(const Layer& layer, const Rows& input, int64_t column,
                             const End& end) {
  alignas(64) typename Numbers::Sums sums[2 * kTileRows][2];
  const uint8_t* const weight = layer.weight + column * input.num_words * 4;
  for (int64_t start = 0; start < input.num_rows; start += 2 * kTileRows) {
    const int64_t count = std::min<int64_t>(input.num_rows - start, 2 * kTileRows);
    const auto multiply = count > kTileRows ? multiply_tiles<Numbers::kIsInteger, true>
                                            : multiply_tiles<Numbers::kIsInteger, false>;
    multiply(input.numbers.row(start), input.numbers.group, weight, input.num_words, sums);
    for (int64_t r = 0; r < count; r++) {
      finish<Numbers>(layer, input, start + r, column, sums[r][0], sums[r][1], end);
    }
  }
}

// ── calls ───────────────────────────────────────────────────────────────────────────────────────

struct Strip {  // 32 outputs of one layer
  const Layer* layer;
  int64_t column;
};

std::vector<Strip> strips_of(const Layer* layers, int64_t num_layers) {
  std::vector<Strip> all;
  for (int64_t i = 0; i < num_layers; i++) {
    for (int64_t c = 0; c < layers[i].out_features; c += kColumns) all.push_back({layers + i, c});
  }
  return all;
}

template <class Numbers, class T>
Rows& rows_of(const Input& input, bool in_tiles) {
  static thread_local Rows rows;  // keeps its memory from call to call
  constexpr int64_t kBytes = Numbers::kIsInteger ? 1 : Numbers::kHasTiles ? 2 : 4;  // of a number
  rows.num_rows = input.num_rows;
  rows.size = round_up(input.in_features * kBytes, Numbers::kPadding);
  rows.num_words = rows.size / 4;
  rows.numbers.arrange(rows.num_rows, rows.size, in_tiles);
  rows.scales.resize(rows.num_rows);
  rows.corrections.resize(rows.num_rows);
  return rows;
}

template <class Numbers, class T>
void multiply(const Strip& strip, const Rows& rows, bool in_tiles, Leaders* leaders) {
  const auto with = [&](const auto& end) {
    if constexpr (Numbers::kHasTiles) {
      if (in_tiles) return multiply_strip_in_tiles<Numbers>(*strip.layer, rows, strip.column, end);
    }
    multiply_strip<Numbers>(*strip.layer, rows, strip.column, end);
  };
  if (leaders) return with(BestOnly<T>{*strip.layer, leaders});
  with(Stored<T>{*strip.layer});
}

template <class Numbers, class T>
void run(const Layer* layers, int64_t num_layers, const Input& input, const Best* best) {
  const std::vector<Strip> strips = strips_of(layers, num_layers);
  const int64_t few = Numbers::kIsInteger ? kTiledRows : 0;
  const bool in_tiles = Numbers::kHasTiles && input.num_rows >= few && has_tiles();
  Rows& rows = rows_of<Numbers, T>(input, in_tiles);
  const int64_t num_strips = strips.size();
  const int64_t cost = rows.num_rows * rows.num_words * num_strips * kColumns;
  const int64_t num_threads = cost < kSerial ? 1 : input.num_threads;
  std::vector<Leaders> leaders(best ? num_threads * rows.num_rows : 0);
  const auto prepare = [&](int64_t row) {
    const T* from = static_cast<const T*>(input.rows) + row * input.in_features;
    Numbers::prepare(from, input.in_features, row, rows);
  };
  const bool is_few = rows.num_rows < kSerialRows;
  if (is_few) {
    for (int64_t row = 0; row < rows.num_rows; row++) prepare(row);
  }
#pragma omp parallel num_threads(num_threads)
  {
    if (!is_few) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows.num_rows; row++) prepare(row);
    }
    if (in_tiles) set_up_tiles();
    Leaders* const own = best ? leaders.data() + omp_get_thread_num() * rows.num_rows : nullptr;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < num_strips; i++) multiply<Numbers, T>(strips[i], rows, in_tiles, own);
    if (in_tiles) release_tiles();
  }
  if (best) choose(leaders, rows.num_rows, *best);
}

// The best outputs of a layer that has a screen; see `best_of_linear`.
template <class Numbers, class T>
int64_t run_screened(const Layer& layer, const Screen& screen, const Input& input,
                     const Best& best) {
  Rows& rows = rows_of<Numbers, T>(input, false);
  Rows& bytes = rows_of<Sifted<T>, T>(input, false);
  const Layer copy = {screen.weight, nullptr, nullptr, layer.out_features, nullptr};
  Margins margins(rows.num_rows);
  std::vector<Sieve> sieves(input.num_threads, Sieve(screen, margins, spacing(T())));
  std::vector<Leaders> leaders(input.num_threads * rows.num_rows);
  int64_t count = 0;
#pragma omp parallel num_threads(input.num_threads) reduction(+ : count)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows.num_rows; row++) {
      const T* from = static_cast<const T*>(input.rows) + row * input.in_features;
      Numbers::prepare(from, input.in_features, row, rows);
      Sifted<T>::prepare(from, input.in_features, row, bytes);
      margins.measure(from, input.in_features, row, bytes);
    }
    const int64_t thread = omp_get_thread_num(), num_threads = omp_get_num_threads();
#pragma omp for schedule(static)
    for (int64_t column = 0; column < layer.out_features; column += kColumns) {
      sieves[thread].begin(column);
      multiply_strip<Sifted<T>>(copy, bytes, column, Sifting{sieves[thread]});
    }
    std::vector<float> least(rows.num_rows, -INFINITY);
    for (const Sieve& sieve : sieves) sieve.raise(least);
    const Part<Numbers> all = {0, rows.num_words, nullptr};
    const BestOnly<T> end = {layer, leaders.data() + thread * rows.num_rows};
    for (const Sieve& sieve : sieves) {  // what one found, all compute: it may lie close together
      count += sieve.each(least, thread, num_threads, [&](int64_t row, int64_t column) {
        multiply_tile<1, Numbers>(layer, rows, row, column, all, FetchAhead(), end);
      });
    }
  }
  choose(leaders, rows.num_rows, best);
  return count;
}

}  // namespace

// Whether bfloat16 weights can be multiplied here, and whether the matrix unit does it.
extern "C" int64_t has_bfloat16_products() { return has_tiles() || kHasBFloat16; }
extern "C" int64_t has_matrix_unit() { return has_tiles(); }

namespace {
void run_kind(int64_t kind, const Layer* layers, int64_t num_layers, const Input* input,
              const Best* best) {
  if (kind == kBFloat16Weights) return run<BFloat16s, BFloat16>(layers, num_layers, *input, best);
  if (kind == kFloatWeights) return run<Floats<float>, float>(layers, num_layers, *input, best);
  switch (input->type) {
    case kFloat32: return run<Bytes<float>, float>(layers, num_layers, *input, best);
    case kBFloat16: return run<Bytes<BFloat16>, BFloat16>(layers, num_layers, *input, best);
    default: return run<Bytes<Float16>, Float16>(layers, num_layers, *input, best);
  }
}

}  // namespace

// Computes what the layers make of the same input.
extern "C" void linear(int64_t kind, const Layer* layers, int64_t num_layers, const Input* input) {
  run_kind(kind, layers, num_layers, input, nullptr);
}

// Computes the best output of each row of one layer, and no others. A screen may help with float32
// weights, and with bfloat16 where there is no matrix unit; then the number of strips that had to be
// computed, of all rows together, is returned.
extern "C" int64_t best_of_linear(int64_t kind, const Layer* layer, const Screen* screen,
                                  const Input* input, const Best* best) {
  if (!screen) return run_kind(kind, layer, 1, input, best), 0;
  const auto find = kind == kFloatWeights ? run_screened<Floats<float>, float>
                                          : run_screened<BFloat16s, BFloat16>;
  return find(*layer, *screen, *input, *best);
}
