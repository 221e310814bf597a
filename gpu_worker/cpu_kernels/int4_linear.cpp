// Linear layers of 4-bit weights over 8-bit activations: y = s_x * sum over groups of 64 inputs of
// s_g * (sum q * x - z_g * sum x), + bias. Sums within a group are whole numbers, exact; groups are
// added in their order. So a row's result is the same to the bit whatever rows are beside it,
// however many threads compute, and by vectors as by matrix tiles.
//
// Weights lie in blocks of 32 outputs, each block its groups one after the other. A group is 16
// times 64 bytes, for four inputs each: the low halves of the bytes are the four numbers of output
// 0, of output 1, … to 15, the high halves those of outputs 16 to 31. Then come 32 scales and 32
// zeros in float16.
#include <cstring>
#include <vector>

#include "amx.h"
#include "layers.h"
#include "rows.h"

namespace {

constexpr int64_t kGroup = 64;     // inputs that share a scale and a zero
constexpr int64_t kOutputs = 32;   // of a block
constexpr int64_t kQuads = kGroup / 4;
constexpr int64_t kNumberBytes = kQuads * 64;
constexpr int64_t kGroupBytes = kNumberBytes + 2 * kOutputs * 2;
constexpr int64_t kMaxRows = 12;   // of a tile of vectors, whose sums fill the registers
constexpr int64_t kTiledRows = 9;  // so many are worth tiles of the matrix unit
constexpr int64_t kItemRows = 96;  // of one thread's turn at a block
constexpr int64_t kAhead = 2304;   // bytes of a weight that are fetched before they are needed
constexpr int64_t kSerial = 1 << 17;  // fewer products take less time than a second thread
constexpr int64_t kSerialRows = 8;    // fewer rows are quantised by one thread

struct Quantized {  // the input's rows
  int64_t num_rows, num_groups;  // the last group may be filled up with zeros
  ByteRows integers;
  std::vector<float> scales;  // [rows]
  std::vector<float> sums;    // [rows, groups]
};

// A multiply-add of 64 pairs of bytes into 16 sums; the compiler's own form of it spills registers.
inline void add_products(__m512i& sums, __m512i weights, __m512i activations) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(activations));
}

inline float sum_of(__m512i group) {
  __m512i sums = _mm512_setzero_si512();
  add_products(sums, _mm512_set1_epi8(1), group);
  return static_cast<float>(_mm512_reduce_add_epi32(sums));
}

template <class T>
void quantize_row_of(const Input& input, int64_t row, Quantized& to) {
  const T* from = static_cast<const T*>(input.rows) + row * input.in_features;
  uint8_t* group = to.integers.row(row);
  float* sum = to.sums.data() + row * to.num_groups;
  to.scales[row] = quantize_row(from, input.in_features, [&](__m512i integers) {
    _mm512_store_si512(group, integers);
    *sum++ = sum_of(integers);
    group += to.integers.step;
  });
}

// Bytes to numbers: the low halves, and the high ones, which stay where they are and count 16 times.
inline __m512i low_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i high_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(-16)); }

struct Meta {  // scales and zeros of half a block, for sums of numbers as they are above
  __m512 scale, zero;

  Meta(const uint8_t* group, int64_t half) {
    const auto* at = reinterpret_cast<const __m256i*>(group + kNumberBytes) + half;
    scale = _mm512_cvtph_ps(_mm256_loadu_si256(at));
    zero = _mm512_cvtph_ps(_mm256_loadu_si256(at + 2));
    if (half) {
      scale = _mm512_mul_ps(scale, _mm512_set1_ps(1.f / 16));
      zero = _mm512_mul_ps(zero, _mm512_set1_ps(16.f));
    }
  }
  void add(__m512i products, float sum, float* total) const {
    const __m512 off = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sum), _mm512_cvtepi32_ps(products));
    store(total, 0xffff, _mm512_fmadd_ps(scale, off, load(total)));
  }
};

using Totals = float (*)[kOutputs];  // of each row, without its scale and the bias

// Adds what R rows make of a block's groups.
template <int R>
void multiply_rows(const Quantized& input, int64_t row, const uint8_t* group, Totals totals) {
  const uint8_t* x = input.integers.row(row);
  const float* sums = input.sums.data() + row * input.num_groups;
  for (int64_t g = 0; g < input.num_groups; g++, group += kGroupBytes, x += kGroup) {
    __m512i low[R], high[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) low[r] = high[r] = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int64_t quad = 0; quad < kQuads; quad++) {
      const uint8_t* const at = group + quad * 64;
      const __m512i bytes = _mm512_loadu_si512(at);
      _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
      const __m512i first = low_halves(bytes), second = high_halves(bytes);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        int32_t four;
        std::memcpy(&four, x + r * input.integers.stride + quad * 4, 4);
        add_products(low[r], first, _mm512_set1_epi32(four));
        add_products(high[r], second, _mm512_set1_epi32(four));
      }
    }
    const Meta of_low(group, 0), of_high(group, 1);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      of_low.add(low[r], sums[r * input.num_groups + g], totals[r]);
      of_high.add(high[r], sums[r * input.num_groups + g], totals[r] + kBlock);
    }
  }
}

// The same for up to 32 rows by the matrix unit, of which this thread has set up the tiles.
void multiply_in_tiles(const Quantized& input, int64_t row, int64_t count, const uint8_t* group,
                       Totals totals) {
  alignas(64) uint8_t numbers[2 * kNumberBytes];
  alignas(64) int32_t products[2 * kTileRows * kOutputs];
  const auto multiply = count > kTileRows ? multiply_tiles<true, true> : multiply_tiles<true, false>;
  const uint8_t* x = input.integers.row(row);
  for (int64_t g = 0; g < input.num_groups; g++, group += kGroupBytes, x += input.integers.step) {
    for (int64_t quad = 0; quad < kQuads; quad++) {
      const __m512i bytes = _mm512_loadu_si512(group + quad * 64);
      _mm512_store_si512(numbers + quad * 128, low_halves(bytes));
      _mm512_store_si512(numbers + quad * 128 + 64, high_halves(bytes));
    }
    multiply(x, input.integers.group, numbers, kQuads, products);
    const Meta of_low(group, 0), of_high(group, 1);
    for (int64_t r = 0; r < count; r++) {
      const float sum = input.sums[(row + r) * input.num_groups + g];
      const int32_t* const own = products + r * kOutputs;
      of_low.add(_mm512_load_si512(own), sum, totals[r]);
      of_high.add(_mm512_load_si512(own + kBlock), sum, totals[r] + kBlock);
    }
  }
}

using Multiply = void (*)(const Quantized&, int64_t, const uint8_t*, Totals);
constexpr Multiply kMultiply[kMaxRows] = {
    multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,  multiply_rows<4>,
    multiply_rows<5>, multiply_rows<6>, multiply_rows<7>,  multiply_rows<8>,
    multiply_rows<9>, multiply_rows<10>, multiply_rows<11>, multiply_rows<12>};

struct Block {  // 32 outputs of one layer
  const Layer* layer;
  int64_t first;
};

template <class T>
void store_row(const Block& block, float scale, const float* totals, T* to) {
  for (int64_t at = block.first; at < block.first + kOutputs; at += kBlock, totals += kBlock) {
    const __m512 bias = load(block.layer->bias + at);
    const __m512 y = _mm512_fmadd_ps(load(totals), _mm512_set1_ps(scale), bias);
    store(to + at, first_lanes(block.layer->out_features - at), y);
  }
}

// One block of outputs for rows `first` to `end` - 1, in tiles of about the same height.
template <class T>
void multiply_block(const Block& block, const Quantized& input, int64_t first, int64_t end,
                    bool in_tiles) {
  alignas(64) float totals[2 * kTileRows][kOutputs];
  const int64_t most = in_tiles ? 2 * kTileRows : kMaxRows;
  const int64_t num_tiles = (end - first + most - 1) / most;
  const uint8_t* const groups =
      block.layer->weight + block.first / kOutputs * input.num_groups * kGroupBytes;
  const int64_t height = in_tiles ? most : (end - first + num_tiles - 1) / num_tiles;
  for (int64_t row = first; row < end; row += height) {
    const int64_t count = std::min(height, end - row);
    std::memset(totals, 0, count * sizeof totals[0]);
    if (in_tiles) {
      multiply_in_tiles(input, row, count, groups, totals);
    } else {
      kMultiply[count - 1](input, row, groups, totals);
    }
    for (int64_t r = 0; r < count; r++) {
      T* const to = static_cast<T*>(block.layer->output) + (row + r) * block.layer->out_features;
      store_row(block, input.scales[row + r], totals[r], to);
    }
  }
}

std::vector<Block> blocks_of(const Layer* layers, int64_t num_layers) {
  std::vector<Block> all;
  for (int64_t i = 0; i < num_layers; i++) {
    for (int64_t n = 0; n < layers[i].out_features; n += kOutputs) all.push_back({layers + i, n});
  }
  return all;
}

template <class T>
void run(const Layer* layers, int64_t num_layers, const Input& input) {
  static thread_local Quantized quantized;  // keeps its memory from call to call
  Quantized& rows = quantized;              // of this thread, for all
  rows.num_rows = input.num_rows;
  rows.num_groups = (input.in_features + kGroup - 1) / kGroup;
  const bool in_tiles = rows.num_rows >= kTiledRows && has_tiles();
  rows.integers.arrange(rows.num_rows, input.in_features, in_tiles);
  rows.scales.resize(rows.num_rows);
  rows.sums.resize(rows.num_rows * rows.num_groups);
  const std::vector<Block> blocks = blocks_of(layers, num_layers);
  const int64_t num_parts = (rows.num_rows + kItemRows - 1) / kItemRows;
  const int64_t num_items = blocks.size() * num_parts;
  const int64_t cost = rows.num_rows * rows.num_groups * kGroup * blocks.size() * kOutputs;
  const int64_t num_threads = cost < kSerial ? 1 : input.num_threads;
  const bool is_few = rows.num_rows < kSerialRows;
  if (is_few) {
    for (int64_t row = 0; row < rows.num_rows; row++) quantize_row_of<T>(input, row, rows);
  }
#pragma omp parallel num_threads(num_threads)
  {
    if (!is_few) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows.num_rows; row++) quantize_row_of<T>(input, row, rows);
    }
    if (in_tiles) set_up_tiles();
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < num_items; i++) {
      const int64_t first = i % num_parts * kItemRows;
      const int64_t end = std::min(first + kItemRows, rows.num_rows);
      multiply_block<T>(blocks[i / num_parts], rows, first, end, in_tiles);
    }
    if (in_tiles) release_tiles();
  }
}

}  // namespace

// Computes what the layers make of the same input.
extern "C" void int4_linear(const Layer* layers, int64_t num_layers, const Input* input) {
  if (input->type == kFloat32) return run<float>(layers, num_layers, *input);
  if (input->type == kBFloat16) return run<BFloat16>(layers, num_layers, *input);
  return run<Float16>(layers, num_layers, *input);
}
