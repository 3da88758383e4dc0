// The keys a sweep visits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.h"

namespace lookaheadkv::cpu {

// Valid prompt keys of batch row b in [first, last).
inline KeyRange valid_keys_between(const Problem& problem, int64_t b, int64_t first, int64_t last) {
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
