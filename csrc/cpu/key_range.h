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

}  // namespace lookaheadkv::cpu
