// Room 2. Column sums of probabilities, streamed: a tile of them is summed over its rows as soon as
// it exists. All rows of a KV head are folded into one sweep, so K is read once.
//
// If the log-sum-exp is given, a tile is exp(scale * q k^T - lse). If not, the sweep that computes
// it leaves its tiles, relative to the row maxima at that point, in a bounded cache, and the column
// sum only has to weight them by exp(maximum - lse).
#include <algorithm>

#include "cpu/attention_sweep.h"
#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/key_range.h"
#include "cpu/packed_queries.h"
#include "cpu/row_block.h"
#include "cpu/splits.h"
#include "cpu/tile_cache.h"

namespace lookaheadkv::cpu {

namespace {

class ScoreSweep {
 public:
  // `queries` holds one block per KV head.
  ScoreSweep(const Problem& problem, const TensorView& query, const KeySource& key,
             const PackedQueries& queries, int64_t chunk, const float* lse, float* scores,
             const Isa& isa, const Executor& executor)
      : problem_(problem),
        key_(key),
        queries_(queries),
        chunk_(chunk),
        chunks_(num_chunks(problem.num_prompt, chunk)),
        lse_(lse),
        scores_(scores),
        isa_(isa),
        ops_(isa.tile_ops(query.dtype)),
        executor_(executor) {}

  // The KV heads [begin, end); tiles the cache holds are taken from it.
  void run(int64_t begin, int64_t end, const TileCache* cache) const {
    executor_.run((end - begin) * chunks_, 1, [&](Tasks& tasks) {
      Worker worker(*this, cache);
      for (int64_t i = 0; tasks.take(i);) worker.run(begin + i / chunks_, i % chunks_);
    });
  }

 private:
  // The scratch of one thread.
  class Worker {
   public:
    Worker(const ScoreSweep& sweep, const TileCache* cache)
        : sweep_(sweep),
          cache_(cache),
          dim_(static_cast<int>(sweep.problem_.head_dim)),
          factor_(exp2_factor(sweep.problem_)),
          weight_(1.0f / static_cast<float>(sweep.problem_.group() * sweep.problem_.num_rows)),
          logits_(kKeyTile * kRowGroup),
          page_scratch_(sweep.key_.scratch_bytes(dim_)),
          scratch_(kKeyTile * round_up(dim_, kDimAlign)),
          columns_(kKeyTile * kMaxLanes),
          lse2_(sweep.queries_.padded_rows()),
          row_weights_(kRowGroup) {}

    // Chunk c of one head.
    void run(int64_t head, int64_t c) {
      const Problem& p = sweep_.problem_;
      const RowBlock block = sweep_.queries_.block(head);
      const int64_t first = c * sweep_.chunk_;
      const int64_t last = std::min(first + sweep_.chunk_, p.num_prompt);
      const KeyRange range = valid_keys_between(p, block.b, first, last);
      float* out = sweep_.scores_ + head * p.score_pitch();
      std::fill(out + first, out + last, 0.0f);
      fill_lse2(p, block, sweep_.lse_, lse2_.get());
      const bool cached = cache_ && cache_->holds(c);
      int64_t tile = 0;
      for (int64_t at = range.begin; at < range.end; at += kKeyTile, ++tile) {
        const int n = static_cast<int>(std::min<int64_t>(kKeyTile, range.end - at));
        std::fill(columns_.get(), columns_ + kKeyTile * kMaxLanes, 0.0f);
        if (cached) {
          from_cache(head, c, tile, block, n);
        } else {
          sweep_.key_.prefetch(block.b, block.h, at + n,
                               std::min<int64_t>(at + n + kKeyTile, range.end), dim_);
          compute(head, block, at, n);
        }
        sweep_.isa_.vector.reduce_columns(columns_.get(), n, weight_, out + at);
      }
    }

   private:
    void compute(int64_t head, const RowBlock& block, int64_t at, int n) {
      const KeyRows keys = sweep_.key_.rows(block.b, block.h, at, n, dim_, page_scratch_.get());
      const Operand k = sweep_.ops_.prepare_key(keys.data, keys.stride, n, dim_, scratch_.get());
      for (int64_t g = 0; g < block.groups(); ++g) {
        const int rows = block.group_rows(g);
        sweep_.ops_.gemm(k, sweep_.queries_.packed(head, g), logits_.get(), n, rows, dim_, false);
        sweep_.key_.scale_logits(block.h, at, n, rows, logits_.get());
        sweep_.isa_.vector.accumulate_columns(logits_.get(), n, rows, factor_,
                                              lse2_ + g * kRowGroup, columns_.get());
      }
    }

    void from_cache(int64_t head, int64_t c, int64_t tile, const RowBlock& block, int n) {
      const VectorOps& vector = sweep_.isa_.vector;
      const auto add = cache_->compressed() ? vector.accumulate_compressed_columns
                                            : vector.accumulate_weighted_columns;
      const float* maxima = cache_->maxima(head, c, tile);
      for (int64_t g = 0; g < block.groups(); ++g) {
        const int rows = block.group_rows(g);
        vector.row_weights(maxima + g * kRowGroup, lse2_ + g * kRowGroup, rows, row_weights_.get());
        add(cache_->probs(head, c, tile, g), n, rows, row_weights_.get(), columns_.get());
      }
    }

    const ScoreSweep& sweep_;
    const TileCache* cache_;
    const int dim_;
    const float factor_;
    const float weight_;
    Buffer<float> logits_;
    Buffer<char> page_scratch_;
    Buffer<float> scratch_;
    Buffer<float> columns_;
    Buffer<float> lse2_;
    Buffer<float> row_weights_;
  };

  const Problem& problem_;
  const KeySource& key_;
  const PackedQueries& queries_;
  const int64_t chunk_;
  const int64_t chunks_;
  const float* const lse_;
  float* const scores_;
  const Isa& isa_;
  const TileOps& ops_;
  const Executor& executor_;
};

}  // namespace

void column_scores(const Problem& problem, const TensorView& query, const KeySource& key,
                   const float* lse, float* scores, const Executor& executor) {
  const Isa& isa = active();
  const PackedQueries queries(problem, query, problem.num_rows, isa.tile_ops(query.dtype),
                              executor);
  const int64_t chunk = keys_per_chunk(problem.num_prompt, queries.heads(), kWantedTasks);
  ScoreSweep(problem, query, key, queries, chunk, lse, scores, isa, executor)
      .run(0, queries.heads(), nullptr);
}

void attention_and_scores(const Problem& problem, const TensorView& query, const KeySource& key,
                          const TensorView& value, void* out, float* lse, float* scores,
                          const Executor& executor, int64_t tile_cache_bytes) {
  const bool with_output = out != nullptr;
  if (sweep_queries(problem, with_output) < problem.num_rows) {
    // More rows than one attention block: the column sum needs all rows of a key in one tile, so it
    // cannot use attention's tiles.
    attention(problem, query, key, value, out, lse, executor);
    column_scores(problem, query, key, lse, scores, executor);
    return;
  }
  const Isa& isa = active();
  const PackedQueries queries(problem, query, problem.num_rows, isa.tile_ops(query.dtype),
                              executor);
  const int64_t heads = queries.heads();
  const int64_t bytes = query.dtype == DType::kFloat32 ? 4 : 2;
  const TileRounds rounds =
      tile_rounds(heads, problem.num_prompt, queries.padded_rows(), bytes,
                  with_output ? kWantedOutputTasks : kWantedTasks, tile_cache_bytes);
  const TileCache cache(rounds, queries.padded_rows(), bytes);
  const AttentionSweep sweep(problem, query, key, value, queries, rounds.chunk, out, lse, isa,
                             executor);
  const ScoreSweep sum(problem, query, key, queries, rounds.chunk, lse, scores, isa, executor);
  for (int64_t head = 0; head < heads; head += rounds.heads_per_round) {
    const int64_t end = std::min(head + rounds.heads_per_round, heads);
    sweep.run(head, end, &cache);
    sum.run(head, end, &cache);
  }
}

}  // namespace lookaheadkv::cpu
