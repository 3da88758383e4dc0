// Where a sweep reads K: a dense tensor, or the pages of one request. A tile whose rows have no
// common stride (it crosses a page) or are not in the query's dtype is assembled in scratch memory
// that stays in the cache; nothing larger than a tile is ever copied.
#pragma once

#include <array>
#include <cstdint>

#include "core/paged.h"
#include "core/problem.h"

namespace lookaheadkv::cpu {

// Rows with one stride (in elements), in the query's dtype.
struct KeyRows {
  const void* data;
  int64_t stride;
};

class KeySource {
 public:
  KeySource(const TensorView& dense) : dense_(dense) {}  // implicit: most keys are dense
  // The pages of one request, which is batch row 0; `blocks` is its row of the block table.
  KeySource(const PagedView& pages, const int32_t* blocks);

  // Bytes of scratch memory that rows() needs for a tile.
  int64_t scratch_bytes(int64_t head_dim) const;

  // Rows key .. key + n - 1 of KV head h.
  KeyRows rows(int64_t b, int64_t h, int64_t key, int n, int64_t head_dim, void* scratch) const;

  // Prefetches rows [begin, end) while others are computed on.
  void prefetch(int64_t b, int64_t h, int64_t begin, int64_t end, int64_t head_dim) const;

  // Multiplies the logits s [n][rows] of keys key .. key + n - 1 by the scales of those keys: an
  // 8-bit key is exact in every query dtype, its product with a scale is not.
  void scale_logits(int64_t h, int64_t key, int n, int rows, float* s) const;

 private:
  template <class Visit>
  void for_each_run(int64_t key, int64_t n, const Visit& visit) const;
  void decode(const uint8_t* from, int64_t count, void* to) const;

  TensorView dense_;
  PagedView pages_;
  const int32_t* blocks_ = nullptr;    // null: dense
  std::array<uint32_t, 256> decoded_;  // the bits of each quantised value in the query's dtype
};

}  // namespace lookaheadkv::cpu
