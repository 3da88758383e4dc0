// All query rows, cut into row blocks and packed once per call for the sweeps over K.
#pragma once

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/row_block.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

class PackedQueries {
 public:
  // Blocks of `queries` consecutive queries. Packed for the gemm of `ops`; no other gemm can read
  // them.
  PackedQueries(const Problem& problem, const TensorView& query, int64_t queries,
                const TileOps& ops, const Executor& executor)
      : problem_(problem),
        queries_(queries),
        per_head_((problem.num_rows + queries - 1) / queries),
        rows_(RowBlock{0, 0, 0, queries, problem.group()}.padded_rows()),
        size_(rows_ * round_up(problem.head_dim, kDimAlign)),
        packed_(heads() * per_head_ * size_) {
    executor.run(heads() * per_head_, grain(size_), [&](Tasks& tasks) {
      for (int64_t i = 0; tasks.take(i);) pack(block(i), query, ops, packed_ + i * size_);
    });
  }

  int64_t heads() const { return problem_.batch * problem_.num_kv_heads; }
  int64_t per_head() const { return per_head_; }
  int64_t padded_rows() const { return rows_; }  // of the largest block

  // Block i of head i / per_head (b * Hkv + h). Within a head the last queries, which see the most
  // keys, come first: the most expensive tasks should not start last.
  RowBlock block(int64_t i) const {
    const int64_t head = i / per_head_;
    const int64_t begin = (per_head_ - 1 - i % per_head_) * queries_;
    return {head / problem_.num_kv_heads, head % problem_.num_kv_heads, begin,
            std::min(begin + queries_, problem_.num_rows), problem_.group()};
  }

  // Row group g of block i as gemm's right side.
  const float* packed(int64_t i, int64_t g) const {
    return packed_.get() + i * size_ + packed_offset(g, problem_.head_dim);
  }

 private:
  void pack(const RowBlock& block, const TensorView& query, const TileOps& ops,
            float* packed) const {
    const void* rows[kRowGroup];
    for (int64_t g = 0; g < block.groups(); ++g) {
      for (int64_t r = 0; r < block.group_rows(g); ++r) {
        const int64_t row = block.row_of_lane(g, r);
        rows[r] = query.row(block.b, block.head(row), block.query(row));
      }
      ops.pack_query(rows, block.group_rows(g), static_cast<int>(problem_.head_dim),
                     packed + packed_offset(g, problem_.head_dim));
    }
  }

  const Problem& problem_;
  const int64_t queries_;
  const int64_t per_head_;
  const int64_t rows_;
  const int64_t size_;
  Buffer<float> packed_;
};

}  // namespace lookaheadkv::cpu
