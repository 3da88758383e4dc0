// Room 3. Pool and exact Top-K of all rows of scores.
#include <algorithm>

#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/row_selector.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, const Executor& executor) {
  const Isa& isa = active();
  const int64_t kept = std::min(options.budget, problem.num_prompt) + options.append_rows;
  executor.run(problem.batch * problem.num_kv_heads, grain(problem.num_prompt), [&](Tasks& tasks) {
    RowSelector selector(options.pool_kernel, problem.num_prompt, isa);
    for (int64_t row = 0; tasks.take(row);) {
      const KeyRange valid = valid_keys(problem.leftpad_k, problem.seqused_k,
                                        row / problem.num_kv_heads, problem.num_prompt);
      int32_t* out = indices + row * kept;
      int32_t* at = selector.run(scores + row * problem.num_prompt, valid, options, out);
      for (int64_t i = 0; i < options.append_rows; ++i) {
        *at++ = static_cast<int32_t>(problem.num_prompt + i);
      }
      std::fill(at, out + kept, -1);
    }
  });
}

}  // namespace lookaheadkv::cpu
