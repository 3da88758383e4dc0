// Room 1. FlashAttention forward for a few rows over many keys: the keys are split into chunks,
// each chunk gives partial (maximum, sum, output) per row, and a small combine adds them up in
// order. Many rows over as many keys (prefill) is the same with one chunk per row block.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/attention_sweep.h"
#include "cpu/isa/convert.h"
#include "cpu/key_range.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

constexpr float kMinusInf = -__builtin_huge_valf();

}  // namespace

// With an output the accumulator of a block should stay in L2, and in a prefill (no prompt keys in
// front) a smaller block wastes less above the diagonal. Without, all rows share one read of K.
int64_t sweep_queries(const Problem& problem, bool with_output) {
  constexpr int64_t kSplitRows = 256, kPrefillRows = 128;
  if (!with_output) return problem.num_rows;
  return queries_per_block(problem.group(), problem.num_rows,
                           problem.num_prompt > 0 ? kSplitRows : kPrefillRows);
}

// One partial result: m [padded rows], l [padded rows], acc: per group [round_up(D)][group rows].
struct AttentionSweep::Partial {
  float* m;
  float* l;
  float* acc;
};

AttentionSweep::AttentionSweep(const Problem& problem, const TensorView& query,
                               const KeySource& key, const TensorView& value,
                               const PackedQueries& queries, int64_t chunk, void* out, float* lse,
                               const Isa& isa, const Executor& executor)
    : problem_(problem),
      key_(key),
      value_(value),
      queries_(queries),
      chunk_(chunk),
      chunks_(num_chunks(problem.num_prompt, chunk)),
      out_(out),
      lse_(lse),
      dtype_(query.dtype),
      isa_(isa),
      ops_(isa.tile_ops(query.dtype)),
      executor_(executor),
      partial_size_(queries.padded_rows() *
                    (2 + (out != nullptr ? round_up(problem.head_dim, kDimAlign) : 0))) {}

AttentionSweep::Partial AttentionSweep::partial(float* base) const {
  return {base, base + queries_.padded_rows(), base + 2 * queries_.padded_rows()};
}

// The scratch of one thread.
class AttentionSweep::Worker {
 public:
  Worker(const AttentionSweep& sweep, const TileCache* cache)
      : sweep_(sweep),
        cache_(cache),
        with_output_(sweep.out_ != nullptr),
        factor_(exp2_factor(sweep.problem_)),
        padded_dim_(round_up(sweep.problem_.head_dim, kDimAlign)),
        logits_(kKeyTile * kRowGroup),
        page_scratch_(sweep.key_.scratch_bytes(sweep.problem_.head_dim)),
        key_scratch_(kKeyTile * padded_dim_),
        value_scratch_(kKeyTile * padded_dim_),
        prob_scratch_(kKeyTile * kRowGroup) {}

  // Chunk c of row block i.
  void run(int64_t i, int64_t c, const Partial& out) {
    const Problem& p = sweep_.problem_;
    const RowBlock block = sweep_.queries_.block(i);
    std::fill(out.m, out.m + block.padded_rows(), kMinusInf);
    std::fill(out.l, out.l + block.padded_rows(), 0.0f);
    if (with_output_) std::fill(out.acc, out.acc + block.padded_rows() * padded_dim_, 0.0f);
    const KeyRange chunk =
        valid_keys_between(p, block.b, c * sweep_.chunk_, (c + 1) * sweep_.chunk_);
    keys(i, block, chunk, cache_ && cache_->holds(c) ? c : -1, out);
    if (c + 1 == sweep_.chunks_) keys(i, block, {p.num_prompt, p.num_prompt + block.end}, -1, out);
  }

 private:
  // Keys of a range, tile by tile; tiles go to the cache as those of `cached_chunk` unless it is
  // -1.
  void keys(int64_t i, const RowBlock& block, KeyRange range, int64_t cached_chunk,
            const Partial& out) {
    int64_t tile = 0;
    for (int64_t key = range.begin; key < range.end; key += kKeyTile, ++tile) {
      const int64_t next = std::min<int64_t>(key + kKeyTile, range.end);
      sweep_.key_.prefetch(block.b, block.h, next, std::min<int64_t>(next + kKeyTile, range.end),
                           sweep_.problem_.head_dim);
      const int n = static_cast<int>(next - key);
      const int d = static_cast<int>(sweep_.problem_.head_dim);
      const KeyRows rows = sweep_.key_.rows(block.b, block.h, key, n, d, page_scratch_.get());
      const Operand k = sweep_.ops_.prepare_key(rows.data, rows.stride, n, d, key_scratch_.get());
      const Operand v = with_output_ ? sweep_.ops_.prepare_value(
                                           sweep_.value_.row(block.b, block.h, key),
                                           sweep_.value_.stride_s, n, d, value_scratch_.get())
                                     : Operand{};
      for (int64_t g = 0; g < block.groups(); ++g) {
        row_group(i, block, g, key, n, k, v, cached_chunk, tile, out);
      }
    }
  }

  void row_group(int64_t i, const RowBlock& block, int64_t g, int64_t key, int n, const Operand& k,
                 const Operand& v, int64_t cached_chunk, int64_t tile, const Partial& out) {
    const TileOps& ops = sweep_.ops_;
    const VectorOps& vector = sweep_.isa_.vector;
    const bool cached = cached_chunk >= 0;
    const int d = static_cast<int>(sweep_.problem_.head_dim);
    const int rows = block.group_rows(g);
    void* kept = cached ? cache_->probs(i, cached_chunk, tile, g) : nullptr;
    float* s = cached && !cache_->compressed() ? static_cast<float*>(kept) : logits_.get();
    float* m = out.m + g * kRowGroup;
    float* l = out.l + g * kRowGroup;

    ops.gemm(k, sweep_.queries_.packed(i, g), s, n, rows, d, false);
    sweep_.key_.scale_logits(block.h, key, n, rows, s);
    const float factor = mask_causal(block, g, sweep_.problem_.num_prompt, key, n, factor_, s);
    if (with_output_) {
      float* acc = out.acc + packed_offset(g, d);
      vector.accumulate_softmax(s, n, rows, factor, m, l, acc, d);
      ops.gemm(v, ops.prepare_probs(s, n, rows, prob_scratch_.get()), acc, d, rows, n, true);
    } else if (cached) {
      vector.accumulate_softmax(s, n, rows, factor, m, l, nullptr, 0);
    } else {
      vector.accumulate_lse(s, n, rows, factor, m, l);
    }
    if (cached) {
      std::memcpy(cache_->maxima(i, cached_chunk, tile) + g * kRowGroup, m,
                  static_cast<size_t>(rows) * sizeof(float));
      if (cache_->compressed()) {
        vector.compress(s, static_cast<int64_t>(n) * rows, static_cast<uint16_t*>(kept));
      }
    }
  }

  const AttentionSweep& sweep_;
  const TileCache* cache_;
  const bool with_output_;
  const float factor_;
  const int64_t padded_dim_;
  Buffer<float> logits_;
  Buffer<char> page_scratch_;
  Buffer<float> key_scratch_;
  Buffer<float> value_scratch_;
  Buffer<float> prob_scratch_;
};

// Adds up the chunks of one row block in order and writes output and log-sum-exp.
void AttentionSweep::combine(const RowBlock& block, float* partials) const {
  const int64_t d = problem_.head_dim;
  Buffer<float> weights(chunks_);
  for (int64_t r = 0; r < block.rows(); ++r) {
    const int64_t row = block.flat(problem_, r);
    float m = kMinusInf;
    for (int64_t c = 0; c < chunks_; ++c) {
      m = std::max(m, partial(partials + c * partial_size_).m[r]);
    }
    const float base = m == kMinusInf ? 0.0f : m;
    float l = 0.0f;
    for (int64_t c = 0; c < chunks_; ++c) {
      const Partial part = partial(partials + c * partial_size_);
      weights[c] = std::exp2(part.m[r] - base);
      l += weights[c] * part.l[r];
    }
    lse_[row] = (m + std::log2(l)) / static_cast<float>(kLog2e);
    if (out_ == nullptr) continue;
    const int64_t g = r / kRowGroup;
    const int64_t pitch = block.group_rows(g);
    const int64_t first = packed_offset(g, d) + r % kRowGroup;
    for (int64_t k = 0; k < d; ++k) {
      float sum = 0.0f;
      for (int64_t c = 0; c < chunks_; ++c) {
        sum += weights[c] * partial(partials + c * partial_size_).acc[first + k * pitch];
      }
      store_float(out_, row * d + k, dtype_, sum / l);
    }
  }
}

void AttentionSweep::run(int64_t begin, int64_t end, const TileCache* cache) const {
  const int64_t first = begin * queries_.per_head();
  const int64_t blocks = (end - begin) * queries_.per_head();
  if (chunks_ == 1) {
    executor_.run(blocks, 1, [&](Tasks& tasks) {
      Worker worker(*this, cache);
      Buffer<float> buffer(partial_size_);
      for (int64_t i = 0; tasks.take(i);) {
        worker.run(first + i, 0, partial(buffer.get()));
        combine(queries_.block(first + i), buffer.get());
      }
    });
    return;
  }
  Buffer<float> partials(blocks * chunks_ * partial_size_);
  executor_.run(blocks * chunks_, 1, [&](Tasks& tasks) {
    Worker worker(*this, cache);
    for (int64_t i = 0; tasks.take(i);) {
      worker.run(first + i / chunks_, i % chunks_, partial(partials + i * partial_size_));
    }
  });
  executor_.run(blocks, grain(chunks_ * partial_size_), [&](Tasks& tasks) {
    for (int64_t i = 0; tasks.take(i);) {
      combine(queries_.block(first + i), partials + i * chunks_ * partial_size_);
    }
  });
}

void attention(const Problem& problem, const TensorView& query, const KeySource& key,
               const TensorView& value, void* out, float* lse, const Executor& executor) {
  const Isa& isa = active();
  const bool with_output = out != nullptr;
  const PackedQueries queries(problem, query, sweep_queries(problem, with_output),
                              isa.tile_ops(query.dtype), executor);
  const int64_t chunk = keys_per_chunk(problem.num_prompt, queries.heads() * queries.per_head(),
                                       with_output ? kWantedOutputTasks : kWantedTasks);
  AttentionSweep(problem, query, key, value, queries, chunk, out, lse, isa, executor)
      .run(0, queries.heads(), nullptr);
}

}  // namespace lookaheadkv::cpu
