// The whole prompt with its lookahead rows: all S rows attend as rows of their own over no prompt,
// then the last of them are the observation rows of the scores.
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/kernels.h"

namespace lookaheadkv::cpu {

void prefill_attention(const Problem& problem, const TensorView& query, const TensorView& key,
                       const TensorView& value, void* out, float* lse, float* scores,
                       const Executor& executor) {
  const int64_t heads = problem.batch * problem.num_heads;
  if (heads == 0) return;  // no tensor to point into
  Problem all = problem;
  all.num_rows = problem.num_keys();
  all.num_prompt = 0;
  attention(all, query, key, value, out, lse, executor);

  TensorView rows = query;
  rows.data = query.row(0, 0, problem.num_prompt);
  Buffer<float> rows_lse(heads * problem.num_rows);
  for (int64_t head = 0; head < heads; ++head) {
    std::copy_n(lse + head * all.num_rows + problem.num_prompt, problem.num_rows,
                rows_lse + head * problem.num_rows);
  }
  column_scores(problem, rows, key, rows_lse.get(), scores, executor);
}

}  // namespace lookaheadkv::cpu
