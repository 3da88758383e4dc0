// Query rows as the kernels see them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.h"
#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

// Logits are multiplied by this and exponentiated to base 2.
inline float exp2_factor(const Problem& problem) {
  return static_cast<float>(problem.scale * 1.4426950408889634074);
}

// A row block: the queries [begin, end) of all G query heads of one KV head, folded into the rows
// of logits tiles. Row r is query begin + r % queries of head r / queries; rows are cut into groups
// of kRowGroup, the last one padded to kRowAlign by repeating its first row.
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

 private:
  int64_t last_group_rows() const { return rows() - (groups() - 1) * kRowGroup; }
};

// Floats of a packed row block; group g starts at packed_offset.
inline int64_t packed_size(const RowBlock& block, int64_t head_dim) {
  return block.padded_rows() * round_up(head_dim, kDimAlign);
}
inline int64_t packed_offset(int64_t g, int64_t head_dim) {
  return g * kRowGroup * round_up(head_dim, kDimAlign);
}

inline void pack_rows(const RowBlock& block, const TensorView& query, const TileOps& ops,
                      int64_t head_dim, float* packed) {
  const void* rows[kRowGroup];
  for (int64_t g = 0; g < block.groups(); ++g) {
    for (int64_t r = 0; r < block.group_rows(g); ++r) {
      const int64_t row = g * kRowGroup + (r < block.real_rows(g) ? r : 0);
      rows[r] = query.row(block.b, block.head(row), block.query(row));
    }
    ops.pack_query(rows, block.group_rows(g), static_cast<int>(head_dim),
                   packed + packed_offset(g, head_dim));
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
    const int64_t row = g * kRowGroup + (r < block.real_rows(g) ? r : 0);
    const int64_t visible = diagonal + block.query(row) - key + 1;  // keys of the tile row r sees
    for (int64_t j = 0; j < n; ++j) {
      float& logit = s[j * rows + r];
      logit = j < visible ? logit * factor : -__builtin_huge_valf();
    }
  }
  return 1.0f;
}

// Valid prompt keys of batch row b in [first, last).
inline KeyRange chunk_keys(const Problem& problem, int64_t b, int64_t first, int64_t last) {
  const KeyRange valid = valid_keys(problem.leftpad_k, problem.seqused_k, b, problem.num_prompt);
  return {std::max(valid.begin, first), std::min(valid.end, last)};
}

// Asks for the next tile of rows while the current one is computed on.
inline void prefetch_rows(const TensorView& view, int64_t b, int64_t h, int64_t begin, int64_t end,
                          int64_t head_dim) {
  const int64_t bytes = head_dim * element_size(view.dtype);
  for (int64_t s = begin; s < end; ++s) {
    const char* row = static_cast<const char*>(view.row(b, h, s));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
  }
}

}  // namespace lookaheadkv::cpu
