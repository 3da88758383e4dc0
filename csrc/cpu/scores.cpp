// Room 2. One sweep over K: the tile of probabilities exp(scale * q k^T - lse) is summed over its rows
// as soon as it exists and then forgotten. All rows of a KV head are folded into one sweep, so K is
// read once.
#include <algorithm>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/packed_queries.h"
#include "cpu/row_block.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

void column_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                   const float* lse, float* scores, const Executor& executor) {
  const Isa& isa = active();
  const TileOps& ops = isa.tile_ops(query.dtype);
  const int d = static_cast<int>(problem.head_dim);
  const float factor = exp2_factor(problem);
  const float weight = 1.0f / static_cast<float>(problem.group() * problem.num_rows);
  const int64_t heads = problem.batch * problem.num_kv_heads;
  const int64_t chunk = keys_per_chunk(problem.num_prompt, heads, kWantedTasks);
  const int64_t chunks = num_chunks(problem.num_prompt, chunk);
  const PackedQueries queries(problem, query, lse, ops, executor);

  executor.run(heads * chunks, [&](int64_t begin, int64_t end) {
    Buffer<float> logits(kKeyTile * kRowGroup);
    Buffer<float> scratch(kKeyTile * round_up(d, kDimAlign));
    Buffer<float> columns(kKeyTile * kMaxLanes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / chunks;
      const RowBlock block = queries.block(head);
      const KeyRange valid =
          valid_keys(problem.leftpad_k, problem.seqused_k, block.b, problem.num_prompt);
      const int64_t first = task % chunks * chunk;
      const int64_t last = std::min(first + chunk, problem.num_prompt);
      float* out = scores + head * problem.num_prompt;
      std::fill(out + first, out + last, 0.0f);
      const int64_t stop = std::min(last, valid.end);
      for (int64_t at = std::max(first, valid.begin); at < stop; at += kKeyTile) {
        const int n = static_cast<int>(std::min<int64_t>(kKeyTile, stop - at));
        prefetch_rows(key, block.b, block.h, at + n, std::min<int64_t>(at + n + kKeyTile, stop), d);
        const Operand k =
            ops.prepare_key(key.row(block.b, block.h, at), key.stride_s, n, d, scratch.get());
        std::fill(columns.get(), columns + kKeyTile * kMaxLanes, 0.0f);
        for (int64_t g = 0; g < block.groups(); ++g) {
          const int rows = block.group_rows(g);
          ops.gemm(k, queries.packed(head, g), logits.get(), n, rows, d, false);
          isa.vector.accumulate_columns(logits.get(), n, rows, factor, queries.lse2(head, g),
                                        columns.get());
        }
        isa.vector.reduce_columns(columns.get(), n, weight, out + at);
      }
    }
  });
}

}  // namespace lookaheadkv::cpu
