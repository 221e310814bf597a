// Attention over a paged pool of keys and values, for AVX-512: see attention.py for the Python side.
//
// Every head of the pool keeps blocks of 16 keys, and blocks of 16 values, in one of two layouts:
//
// - for vectors, of any type: keys as [blocks, Dk, 16], so that one vector holds 16 keys and no sum
//   runs across lanes, and values as [blocks, 16, Dv]; arithmetic is float32 throughout;
// - for pairs, of bfloat16: keys as [blocks, Dk / 2, 16, 2] and values as [blocks, Dv / 16, 8, 16, 2],
//   which are lines of the matrix unit's tiles, and vectors of AVX-512's products of pairs; both sum
//   in float32.
//
// A context is cut at fixed positions, every kSplit keys (Flash-Decoding, Dao et al., 2023), and the
// parts are merged in order. Every sum runs in an order that positions alone decide, for prompts as
// for single tokens. So a token's result, bit for bit, depends on its own context only: not on the
// batch, the number of threads or the chunk of a prompt that it came with.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "micro_kernels.h"
#include "tile_kernels.h"

// `Tokens` and the three structures below are mirrored, field by field, in attention.py.

struct Pool {  // one layer's keys and values
  void* keys;    // [blocks, Hkv], each a block of Dk x 16 numbers
  void* values;  // [blocks, Hkv], each a block of 16 x Dv numbers
  int64_t type, num_kv_heads, key_size, value_size;
  int64_t unit;  // what computes, and so which layout
};

enum Unit : int64_t { kVectors = 0, kPairProducts = 1, kMatrixUnit = 2 };

struct Spans {  // the sequences of a step
  int64_t num_spans;
  const int64_t* starts;   // first token of the step
  const int64_t* lengths;  // tokens of the step
  const int64_t* contexts;  // tokens of the sequence, up to the last one of the step
  const int64_t* tables;   // where the sequence's block table begins in `blocks`
  const int32_t* blocks;
  int64_t num_threads;
};

struct Call {  // one layer's share of a step; 0 or null switches a rule off
  Tokens query, key, value;
  void* output;  // [T, H, Dv], contiguous
  int64_t type, num_heads;
  double scaling, softcap;
  int64_t window, chunk;
  const float* sinks;  // [H]
};

namespace {

constexpr int64_t kPromptRows = 96;   // rows of a prompt that share a pass over the context
constexpr int64_t kSerialCost = 512;  // less than this takes less time than a second thread

void write_token(const Call& call, int64_t at, const float* from, int64_t size, float factor) {
  if (call.type == kFloat32) {
    write(from, size, factor, static_cast<float*>(call.output) + at);
  } else if (call.type == kBFloat16) {
    write(from, size, factor, static_cast<BFloat16*>(call.output) + at);
  } else {
    write(from, size, factor, static_cast<Float16*>(call.output) + at);
  }
}

// ── one layer of one step ───────────────────────────────────────────────────────────────────────

struct Item {  // a piece of work for one thread
  int64_t span, head;
  int64_t token, num_tokens;  // within the span
  int64_t split, num_splits;  // one split of a single token's context, or all
  int64_t part;               // where the split's results lie, if there are several
  int64_t cost_before = 0;    // pairs of a token and a key in all items before
};

template <class Kernel>  // Vectors, or Tiles of a unit
class LayerStep {
 public:
  using Number = typename Kernel::Number;

  LayerStep(const Pool& pool, const Spans& spans, const Call& call)
      : pool_(pool), spans_(spans), call_(call), group_(call.num_heads / pool.num_kv_heads),
        width_(round_up(pool.value_size, Kernel::kPadding)) {
    for (int64_t span = 0; span < spans.num_spans; span++) {
      spans.lengths[span] == 1 ? plan_token(span) : plan_prompt(span);
    }
    parts_.resize(num_parts_ * group_ * (width_ + 2));
  }

  // Returns how many tokens' keys and values were written.
  int64_t run() {
    int64_t num_heads = 0;
    const int64_t num_threads = cost_ < kSerialCost ? 1 : spans_.num_threads;
#pragma omp parallel num_threads(num_threads) reduction(+ : num_heads)
    {
      Kernel::begin(prompts_.empty() ? group_ : kPromptRows);
      if (!prompts_.empty()) {  // every `for` ends in a barrier
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < prompts_.size(); i++) num_heads += write_prompt(prompts_[i]);
      }
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      const Item* const end = items_.data() + first_item(me + 1, team);
      for (const Item* item = items_.data() + first_item(me, team); item < end; item++) {
        num_heads += attend(*item, item + 1 < end ? item + 1 : nullptr);
      }
      if (!merges_.empty()) {
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < merges_.size(); i++) merge_splits(merges_[i]);
      }
      Kernel::end();
    }
    return num_heads / pool_.num_kv_heads;
  }

 private:
  // Threads take neighbouring items of equal cost, the same in every step: a core's cache knows them.
  int64_t first_item(int64_t thread, int64_t team) const {
    const auto is_before = [](const Item& item, int64_t cost) { return item.cost_before < cost; };
    const int64_t share = cost_ * thread / team;
    return std::lower_bound(items_.begin(), items_.end(), share, is_before) - items_.begin();
  }

  void add(Item item, int64_t cost) {
    item.cost_before = cost_;
    items_.push_back(item);
    cost_ += cost;
  }

  int64_t first_visible(int64_t position) const {
    int64_t first = 0;
    if (call_.window) first = std::max(first, position - call_.window + 1);
    if (call_.chunk) first = std::max(first, position / call_.chunk * call_.chunk);
    return first;
  }

  void plan_token(int64_t span) {
    const int64_t context = spans_.contexts[span], first = first_visible(context - 1);
    const int64_t first_split = first / kSplit, end_split = (context - 1) / kSplit + 1;
    const int64_t num_splits = end_split - first_split;
    for (int64_t head = 0; head < pool_.num_kv_heads; head++) {
      if (num_splits > 1) merges_.push_back({span, head, 0, 1, 0, num_splits, num_parts_});
      for (int64_t split = first_split; split < end_split; split++) {
        const int64_t end = std::min((split + 1) * kSplit, context);
        add({span, head, 0, 1, split, num_splits, num_parts_}, end - std::max(split * kSplit, first));
        num_parts_ += num_splits > 1;
      }
    }
  }

  void plan_prompt(int64_t span) {
    const int64_t length = spans_.lengths[span], context = spans_.contexts[span];
    const int64_t tile = std::max<int64_t>(1, kPromptRows / group_);
    for (int64_t head = 0; head < pool_.num_kv_heads; head++) {
      for (int64_t start = context - length; start < context;) {
        const int64_t end = std::min((start / kBlock + 1) * kBlock, context);
        prompts_.push_back({span, head, start - (context - length), end - start, 0, 0, 0});
        start = end;
      }
    }
    for (int64_t head = 0; head < pool_.num_kv_heads; head++) {
      for (int64_t start = 0; start < length; start += tile) {
        const int64_t num_tokens = std::min(tile, length - start);
        const int64_t end = context - length + start + num_tokens;
        add({span, head, start, num_tokens, 0, 0, 0}, num_tokens * (end - first_visible(end - 1)));
      }
    }
  }

  int32_t block_of(int64_t span, int64_t position) const {
    return spans_.blocks[spans_.tables[span] + position / kBlock];
  }
  Number* keys(int32_t block, int64_t head) const {
    const int64_t size = kBlock * pool_.key_size;
    return static_cast<Number*>(pool_.keys) + (block * pool_.num_kv_heads + head) * size;
  }
  Number* values(int32_t block, int64_t head) const {
    const int64_t size = kBlock * pool_.value_size;
    return static_cast<Number*>(pool_.values) + (block * pool_.num_kv_heads + head) * size;
  }

  // Writes one head of tokens that lie in one block; returns how many.
  int64_t write_prompt(const Item& item) const {
    const int64_t num_old = spans_.contexts[item.span] - spans_.lengths[item.span];
    for (int64_t t = item.token; t < item.token + item.num_tokens; t++) {
      write_cache(item.span, item.head, num_old + t, spans_.starts[item.span] + t);
    }
    return item.num_tokens;
  }

  void write_cache(int64_t span, int64_t head, int64_t position, int64_t token) const {
    static thread_local std::vector<float> row;
    row.resize(round_up(std::max(pool_.key_size, pool_.value_size), kBlock));
    const int64_t offset = position % kBlock;
    const int32_t block = block_of(span, position);
    read_token(call_.key, call_.type, head, token, pool_.key_size, 1.f, row.data());
    Kernel::write_key(row.data(), pool_.key_size, offset, keys(block, head));
    read_token(call_.value, call_.type, head, token, pool_.value_size, 1.f, row.data());
    Kernel::write_value(row.data(), pool_.value_size, offset, values(block, head));
  }

  // Returns how many heads of tokens it wrote: a single token is written with its last split.
  int64_t attend(const Item& item, const Item* next) {
    const int64_t length = spans_.lengths[item.span], context = spans_.contexts[item.span];
    if (length > 1) {
      attend_tile(item);
      return 0;
    }
    const bool is_last = item.split == (context - 1) / kSplit;
    if (is_last) write_cache(item.span, item.head, context - 1, spans_.starts[item.span]);
    if (item.num_splits > 1) {
      attend_token(item, next, part(item.part));
    } else {  // sums that need no merging: it would multiply by 1 and add to 0
      const Sums total = sums_in(room(group_), group_);
      attend_token(item, next, total);
      finish(item, total);
    }
    return is_last;
  }

  // One split of a single token's context.
  void attend_token(const Item& item, const Item* next, const Sums& to) const {
    const std::vector<Row>& rows = read_rows(item);
    const Context<Number> context = context_of(item);
    if (next && spans_.lengths[next->span] == 1) look_ahead(*next);
    begin_split(context, rows, item.split);
    for (int64_t r = 0; r < group_; r += Kernel::kMaxRows) {
      const int64_t count = std::min(Kernel::kMaxRows, group_ - r);
      kernel().attend(context, rows.data(), r, count, item.split, to.from(r, width_));
    }
  }

  // Every split of the context, one after the other, for a tile of rows.
  void attend_tile(const Item& item) const {
    const int64_t num_rows = item.num_tokens * group_;
    const Sums total = nothing(room(num_rows + Kernel::kMaxRows), num_rows);
    const Sums fresh = sums_in(total.values + num_rows * width_, Kernel::kMaxRows);
    const std::vector<Row>& rows = read_rows(item);
    const Context<Number> context = context_of(item);
    const int64_t first = rows[0].first / kSplit, last = (rows.back().end - 1) / kSplit;
    for (int64_t split = first; split <= last; split++) {
      begin_split(context, rows, split);
      for (int64_t r = 0; r < num_rows; r += Kernel::kMaxRows) {
        const int64_t count = std::min(Kernel::kMaxRows, num_rows - r);
        const Sums to = first == last ? total.from(r, width_) : fresh;
        kernel().attend(context, rows.data(), r, count, split, to);
        for (int64_t i = 0; i < count && first < last; i++) merge(total, r + i, fresh, i);
      }
    }
    finish(item, total);
  }

  void look_ahead(const Item& item) const {
    const int64_t context = spans_.contexts[item.span];
    kernel().look_ahead(context_of(item), std::max(first_visible(context - 1), item.split * kSplit),
                        std::min(context, (item.split + 1) * kSplit));
  }

  // Of rows in order, so that the first and the last one bound what all see.
  void begin_split(const Context<Number>& context, const std::vector<Row>& rows,
                   int64_t split) const {
    const int64_t start = split * kSplit;
    kernel().begin_split(context, std::max(rows[0].first, start),
                         std::min(rows.back().end, start + kSplit));
  }

  void merge_splits(const Item& item) const {
    const Sums total = nothing(room(group_), group_);
    for (int64_t split = 0; split < item.num_splits; split++) {
      for (int64_t r = 0; r < group_; r++) merge(total, r, part(item.part + split), r);
    }
    finish(item, total);
  }

  float* room(int64_t num_rows) const {
    static thread_local std::vector<float> room;
    room.resize(std::max<size_t>(room.size(), num_rows * (width_ + 2)));
    return room.data();
  }
  Sums nothing(float* room, int64_t num_rows) const {
    std::fill_n(room, num_rows, -INFINITY);
    std::fill_n(room + num_rows, num_rows * (width_ + 1), 0.f);
    return sums_in(room, num_rows);
  }
  Sums sums_in(float* room, int64_t num_rows) const {
    return {room, room + num_rows, room + 2 * num_rows};
  }
  Sums part(int64_t index) const {
    return sums_in(const_cast<float*>(parts_.data()) + index * group_ * (width_ + 2), group_);
  }

  void merge(const Sums& total, int64_t r, const Sums& fresh, int64_t i) const {
    if (fresh.sum[i] == 0.f) return;  // the row sees nothing of this split
    const float max = std::max(total.max[r], fresh.max[i]);
    const float old_factor = std::exp(total.max[r] - max), factor = std::exp(fresh.max[i] - max);
    total.sum[r] = total.sum[r] * old_factor + fresh.sum[i] * factor;
    total.max[r] = max;
    float* to = total.values + r * width_;
    const float* from = fresh.values + i * width_;
    for (int64_t d = 0; d < width_; d += kBlock) {
      const __m512 old = _mm512_mul_ps(load(to + d), _mm512_set1_ps(old_factor));
      store(to + d, 0xffff, _mm512_fmadd_ps(load(from + d), _mm512_set1_ps(factor), old));
    }
  }

  // Divides by the sum, in which a sink counts as one more key without a value.
  void finish(const Item& item, const Sums& total) const {
    for (int64_t r = 0; r < item.num_tokens * group_; r++) {
      const int64_t token = spans_.starts[item.span] + item.token + r / group_;
      const int64_t head = item.head * group_ + r % group_;
      float factor = 1.f, sum = total.sum[r];
      if (call_.sinks) {
        const float sink = call_.sinks[head], max = std::max(total.max[r], sink);
        factor = std::exp(total.max[r] - max);
        sum = sum * factor + std::exp(sink - max);
      }
      const int64_t at = (token * call_.num_heads + head) * pool_.value_size;
      write_token(call_, at, total.values + r * width_, pool_.value_size, factor / sum);
    }
  }

  static std::vector<Row>& rows() {
    static thread_local std::vector<Row> rows;
    return rows;
  }
  static Kernel& kernel() {
    static thread_local Kernel kernel;
    return kernel;
  }

  const std::vector<Row>& read_rows(const Item& item) const {
    const int64_t num_old = spans_.contexts[item.span] - spans_.lengths[item.span];
    rows().resize(item.num_tokens * group_);
    kernel().arrange(rows().size(), pool_.key_size, call_.type);
    for (size_t r = 0; r < rows().size(); r++) {
      const int64_t token = item.token + r / group_, position = num_old + token;
      rows()[r] = {first_visible(position), position + 1};
      kernel().read_query(call_.query, item.head * group_ + r % group_,
                          spans_.starts[item.span] + token, r, static_cast<float>(call_.scaling));
    }
    return rows();
  }

  Context<Number> context_of(const Item& item) const {
    const int64_t key_step = pool_.num_kv_heads * kBlock * pool_.key_size;
    const int64_t value_step = pool_.num_kv_heads * kBlock * pool_.value_size;
    return {keys(0, item.head), values(0, item.head), key_step, value_step, pool_.key_size,
            pool_.value_size, width_, static_cast<float>(call_.scaling),
            static_cast<float>(call_.softcap), spans_.blocks + spans_.tables[item.span]};
  }

  const Pool& pool_;
  const Spans& spans_;
  const Call& call_;
  const int64_t group_;  // query heads that share a head of the pool
  const int64_t width_;  // floats from one row of results to the next
  int64_t cost_ = 0, num_parts_ = 0;
  std::vector<Item> prompts_, items_, merges_;
  std::vector<float> parts_;
};

}  // namespace

// The best unit that this machine has for heads of this precision and these sizes. Pairs come in whole
// tiles.
extern "C" int64_t best_unit(int64_t type, int64_t key_size, int64_t value_size) {
  const bool is_whole = key_size % kLine == 0 && value_size % kBlock == 0;
  if (type != kBFloat16 || !is_whole || !kHasBFloat16) return kVectors;
  return has_tiles() ? kMatrixUnit : kPairProducts;
}

// Writes the step's keys and values to the pool, attends, and returns how many tokens it wrote.
extern "C" int64_t paged_attention(const Pool* pool, const Spans* spans, const Call* call) {
  if (pool->unit == kMatrixUnit) return LayerStep<Tiles<MatrixUnit>>(*pool, *spans, *call).run();
  if (pool->unit == kPairProducts) {
    return LayerStep<Tiles<PairProducts>>(*pool, *spans, *call).run();
  }
  if (pool->type == kFloat32) return LayerStep<Vectors<float>>(*pool, *spans, *call).run();
  if (pool->type == kBFloat16) return LayerStep<Vectors<BFloat16>>(*pool, *spans, *call).run();
  return LayerStep<Vectors<Float16>>(*pool, *spans, *call).run();
}
