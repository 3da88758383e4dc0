// Room 2 over a paged cache: each request is a call of the dense kernels, which read its keys page
// by page (key_source.h). Its bits are those of the same request in a dense tensor, whatever else
// is in the batch.
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

// The lse of one request's observation rows, [Hq, L_r].
void copy_lse(const PagedProblem& paged, const Request& request, float* out) {
  for (int64_t h = 0; h < paged.num_heads; ++h) {
    const float* from =
        paged.lse + request.first_row * paged.lse_stride_row + h * paged.lse_stride_h;
    for (int64_t i = 0; i < request.rows; ++i) *out++ = from[i * paged.lse_stride_row];
  }
}

}  // namespace

void paged_column_scores(const PagedProblem& paged, const PagedSelection* selection, float* scores,
                         const Executor& executor) {
  const PagedBatch& batch = paged.batch;
  const int64_t num_kv_heads = paged.num_kv_heads, pitch = batch.max_seq_len;
  executor.run(batch.num_requests * num_kv_heads, grain(pitch), [&](Tasks& tasks) {
    for (int64_t row = 0; tasks.take(row);) std::fill_n(scores + row * pitch, pitch, 0.0f);
  });
  Buffer<float> lse(paged.num_heads * batch.num_rows);
  for (int64_t r = 0; r < batch.num_requests; ++r) {
    const Request request = request_of(batch, r);
    if (request.rows == 0 || (selection && !request.evicts(*selection, r))) continue;
    Problem problem;
    problem.batch = 1;
    problem.num_heads = paged.num_heads;
    problem.num_kv_heads = num_kv_heads;
    problem.num_rows = request.rows;
    problem.num_prompt = request.prompt;
    problem.head_dim = paged.head_dim;
    problem.scale = paged.scale;
    problem.score_columns = pitch;
    TensorView query = paged.query;
    query.data = query.row(0, 0, request.first_row);
    const KeySource keys(paged.cache, paged.table.row(r));
    float* out = scores + r * num_kv_heads * pitch;
    if (paged.lse) {
      copy_lse(paged, request, lse.get());
      column_scores(problem, query, keys, lse.get(), out, executor);
    } else {
      attention_and_scores(problem, query, keys, {}, nullptr, lse.get(), out, executor);
    }
  }
}

}  // namespace lookaheadkv::cpu
