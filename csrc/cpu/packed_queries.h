// All query rows, cut into row blocks and packed once per call for the sweeps over K.
#pragma once

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/row_block.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

class PackedQueries {
 public:
  // Blocks of `queries` consecutive queries; the default is one block per KV head.
  PackedQueries(const Problem& problem, const TensorView& query, const TileOps& ops,
                const Executor& executor, int64_t queries = 0)
      : problem_(problem),
        queries_(queries > 0 ? queries : problem.num_rows),
        per_head_((problem.num_rows + queries_ - 1) / queries_),
        rows_(RowBlock{0, 0, 0, queries_, problem.group()}.padded_rows()),
        size_(rows_ * round_up(problem.head_dim, kDimAlign)),
        packed_(heads() * per_head_ * size_) {
    executor.run(heads() * per_head_, grain(size_), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        pack_rows(block(i), query, ops, problem.head_dim, packed_ + i * size_);
      }
    });
  }

  int64_t heads() const { return problem_.batch * problem_.num_kv_heads; }
  int64_t per_head() const { return per_head_; }
  int64_t padded_rows() const { return rows_; }  // of the largest block

  // Block i of head i / per_head (b * Hkv + h). Within a head the order is folded: see splits.h.
  RowBlock block(int64_t i) const {
    const int64_t head = i / per_head_;
    const int64_t begin = folded(i % per_head_, per_head_) * queries_;
    return {head / problem_.num_kv_heads, head % problem_.num_kv_heads, begin,
            std::min(begin + queries_, problem_.num_rows), problem_.group()};
  }

  // Row group g of block i as gemm's right side.
  const float* packed(int64_t i, int64_t g) const {
    return packed_.get() + i * size_ + packed_offset(g, problem_.head_dim);
  }

 private:
  const Problem& problem_;
  const int64_t queries_;
  const int64_t per_head_;
  const int64_t rows_;
  const int64_t size_;
  Buffer<float> packed_;
};

// The log-sum-exp of one row block to base 2, from lse [B, Hq, L] (natural); padded rows get +inf,
// so that their probability is 0.
inline void fill_lse2(const Problem& problem, const RowBlock& block, const float* lse, float* out) {
  constexpr float kLog2e = 1.44269504088896341f;
  for (int64_t r = 0; r < block.padded_rows(); ++r) {
    out[r] = r < block.rows()
                 ? kLog2e * lse[(block.b * problem.num_heads + block.head(r)) * problem.num_rows +
                                block.query(r)]
                 : __builtin_huge_valf();
  }
}

}  // namespace lookaheadkv::cpu
