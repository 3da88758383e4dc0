// All query rows of every KV head, packed once per call for the sweeps over K, with their
// log-sum-exp to base 2.
#pragma once

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/row_block.h"

namespace lookaheadkv::cpu {

class PackedQueries {
 public:
  // lse [B, Hq, L], natural log.
  PackedQueries(const Problem& problem, const TensorView& query, const float* lse,
                const TileOps& ops, const Executor& executor)
      : problem_(problem),
        rows_(block(0).padded_rows()),
        packed_size_(rows_ * round_up(problem.head_dim, kDimAlign)),
        packed_(heads() * packed_size_),
        lse2_(heads() * rows_) {
    executor.run(heads(), [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head) {
        const RowBlock rows = block(head);
        pack_rows(rows, query, ops, problem.head_dim, packed_ + head * packed_size_);
        fill_lse2(rows, lse, lse2_ + head * rows_);
      }
    });
  }

  // The row block of KV head `head` (b * Hkv + h): all its rows.
  RowBlock block(int64_t head) const {
    return {head / problem_.num_kv_heads, head % problem_.num_kv_heads, 0, problem_.num_rows,
            problem_.group()};
  }
  const float* packed(int64_t head, int64_t g) const {
    return packed_.get() + head * packed_size_ + packed_offset(g, problem_.head_dim);
  }
  const float* lse2(int64_t head, int64_t g) const {
    return lse2_.get() + head * rows_ + g * kRowGroup;
  }

 private:
  int64_t heads() const { return problem_.batch * problem_.num_kv_heads; }

  // Padded rows get +inf: their probabilities are 0.
  void fill_lse2(const RowBlock& rows, const float* lse, float* out) const {
    constexpr float kLog2e = 1.44269504088896341f;
    for (int64_t r = 0; r < rows_; ++r) {
      out[r] = r < rows.rows()
                   ? kLog2e * lse[(rows.b * problem_.num_heads + rows.head(r)) * problem_.num_rows +
                                  rows.query(r)]
                   : __builtin_huge_valf();
    }
  }

  const Problem& problem_;
  const int64_t rows_;
  const int64_t packed_size_;
  Buffer<float> packed_;
  Buffer<float> lse2_;
};

}  // namespace lookaheadkv::cpu
