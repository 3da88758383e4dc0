// The sweep over K (and V) that attention and the scores share: online softmax of row blocks over
// key chunks, partial results combined in a fixed order.
#pragma once

#include <cstdint>

#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/packed_queries.h"
#include "cpu/row_block.h"
#include "cpu/tile_cache.h"

namespace lookaheadkv::cpu {

// Queries of the row blocks a sweep should be given.
int64_t sweep_queries(const Problem& problem, bool with_output);

class AttentionSweep {
 public:
  // `chunk` prompt keys per task. Without `out` only lse is computed. What is passed must outlive
  // the sweep.
  AttentionSweep(const Problem& problem, const TensorView& query, const KeySource& key,
                 const TensorView& value, const PackedQueries& queries, int64_t chunk, void* out,
                 float* lse, const Isa& isa, const Executor& executor);

  // Rows of the KV heads [begin, end) (b * Hkv + h). Tiles the cache holds are left in it.
  void run(int64_t begin, int64_t end, const TileCache* cache) const;

 private:
  struct Partial;
  class Worker;

  Partial partial(float* base) const;
  void combine(const RowBlock& block, float* partials) const;

  const Problem& problem_;
  const KeySource& key_;
  const TensorView value_;
  const PackedQueries& queries_;
  const int64_t chunk_;
  const int64_t chunks_;
  void* const out_;
  float* const lse_;
  const DType dtype_;
  const Isa& isa_;
  const TileOps& ops_;
  const Executor& executor_;
  const int64_t partial_size_;  // floats of one partial result
};

}  // namespace lookaheadkv::cpu
