// Room 3 over requests of any length: each has its own budget, and the heads may share one choice.
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/row_selector.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

// The scores by which all heads of one request choose. The mean ranks as the sum does, which is
// taken in the order of the heads; NaN is never the maximum.
void reduce_heads(HeadReduction reduction, const float* scores, int64_t num_heads, int64_t pitch,
                  int64_t count, float* out) {
  std::copy_n(scores, count, out);
  for (int64_t h = 1; h < num_heads; ++h) {
    const float* head = scores + h * pitch;
    if (reduction == HeadReduction::kMean) {
      for (int64_t i = 0; i < count; ++i) out[i] += head[i];
    } else {
      for (int64_t i = 0; i < count; ++i) {
        if (head[i] > out[i] || out[i] != out[i]) out[i] = head[i];
      }
    }
  }
}

}  // namespace

void paged_select(const PagedBatch& batch, int64_t num_kv_heads, const float* scores,
                  const PagedSelection& selection, int32_t* indices, int32_t* kept_lens,
                  const Executor& executor) {
  const Isa& isa = active();
  const bool shared = selection.head_reduction != HeadReduction::kNone;
  const int64_t heads = shared ? 1 : num_kv_heads, pitch = batch.max_seq_len;
  executor.run(batch.num_requests * heads, grain(pitch), [&](Tasks& tasks) {
    RowSelector selector(selection.pool_kernel, pitch, isa);
    Buffer<float> reduced(shared ? pitch : 0);
    for (int64_t task = 0; tasks.take(task);) {
      const int64_t r = task / heads;
      const Request request = request_of(batch, r);
      const int64_t entries = request.entries(selection.keep_observation);
      const int64_t budget = selection.budget_of(r);
      int32_t* out = indices + task * selection.max_budget;
      int32_t* at = out;
      if (request.evicts(selection, r)) {
        const int64_t appended = selection.keep_observation ? request.rows : 0;
        const float* row = scores + (shared ? r * num_kv_heads : task) * pitch;
        if (shared) {
          reduce_heads(selection.head_reduction, row, num_kv_heads, pitch, request.prompt,
                       reduced.get());
          row = reduced.get();
        }
        at = selector.run(row, {0, request.prompt},
                          {budget - appended, selection.pool_kernel, selection.num_sink,
                           selection.num_recent, appended},
                          out);
        for (int64_t i = 0; i < appended; ++i) *at++ = static_cast<int32_t>(request.prompt + i);
      } else if (budget > 0 && entries <= budget) {
        for (int64_t i = 0; i < entries; ++i) *at++ = static_cast<int32_t>(i);
      }
      std::fill(at, out + selection.max_budget, -1);
      if (task % heads == 0) {
        kept_lens[r] = static_cast<int32_t>(request.kept_length(selection, r));
      }
    }
  });
}

}  // namespace lookaheadkv::cpu
