// A row block: the queries [begin, end) of all G query heads of one KV head, folded into the rows
// of logits tiles. Row r is query begin + r % queries of head r / queries; rows are cut into groups
// of kRowGroup, the last one padded to kRowAlign by repeating its first row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.h"
#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

struct RowBlock {
  int64_t b;
  int64_t h;  // KV head
  int64_t begin;
  int64_t end;
  int64_t group;  // G

  int64_t queries() const { return end - begin; }
  int64_t rows() const { return group * queries(); }
  int64_t groups() const { return (rows() + kRowGroup - 1) / kRowGroup; }
  int64_t padded_rows() const {
    return (groups() - 1) * kRowGroup + round_up(last_group_rows(), kRowAlign);
  }
  // Rows of group g, with and without padding.
  int64_t real_rows(int64_t g) const { return g + 1 < groups() ? kRowGroup : last_group_rows(); }
  int group_rows(int64_t g) const { return static_cast<int>(round_up(real_rows(g), kRowAlign)); }

  int64_t head(int64_t r) const { return h * group + r / queries(); }
  int64_t query(int64_t r) const { return begin + r % queries(); }

  // Where row r stands in a contiguous [B, Hq, L] tensor.
  int64_t flat(const Problem& problem, int64_t r) const {
    return (b * problem.num_heads + head(r)) * problem.num_rows + query(r);
  }
  // The row that fills lane r of group g: padding repeats the group's first.
  int64_t row_of_lane(int64_t g, int64_t r) const {
    return g * kRowGroup + (r < real_rows(g) ? r : 0);
  }

 private:
  int64_t last_group_rows() const { return rows() - (groups() - 1) * kRowGroup; }
};

// Where group g starts in buffers of one float per (padded head dim, padded row).
inline int64_t packed_offset(int64_t g, int64_t head_dim) {
  return g * kRowGroup * round_up(head_dim, kDimAlign);
}

// Logits are multiplied by this and exponentiated to base 2.
inline float exp2_factor(const Problem& problem) {
  return static_cast<float>(problem.scale * kLog2e);
}

// The log-sum-exp of a block's rows to base 2, from lse [B, Hq, L] (natural); padded rows get +inf,
// so that their probability is 0.
inline void fill_lse2(const Problem& problem, const RowBlock& block, const float* lse, float* out) {
  for (int64_t r = 0; r < block.padded_rows(); ++r) {
    out[r] = r < block.rows() ? static_cast<float>(kLog2e) * lse[block.flat(problem, r)]
                              : __builtin_huge_valf();
  }
}

// Masks the tile s [n][rows] of keys key .. key + n - 1 where it crosses the causal diagonal; query
// i sees keys up to diagonal + i. A masked tile is scaled on the way (-inf times a negative or zero
// factor would not stay -inf). Returns the factor that is left to apply.
inline float mask_causal(const RowBlock& block, int64_t g, int64_t diagonal, int64_t key, int n,
                         float factor, float* s) {
  if (key + n - 1 <= diagonal + block.begin) return factor;
  const int rows = block.group_rows(g);
  for (int r = 0; r < rows; ++r) {
    // Keys of the tile that row r sees.
    const int64_t visible = diagonal + block.query(block.row_of_lane(g, r)) - key + 1;
    for (int64_t j = 0; j < n; ++j) {
      float& logit = s[j * rows + r];
      logit = j < visible ? logit * factor : -__builtin_huge_valf();
    }
  }
  return 1.0f;
}

}  // namespace lookaheadkv::cpu
