// Room 3 over a paged batch: select.cu with one budget per request, optionally with one selection
// shared by all heads.
#include <algorithm>

#include "cuda/device_pages.h"
#include "cuda/launch.cuh"
#include "cuda/select_row.cuh"

namespace lookaheadkv::cuda {

namespace {

constexpr int kReduceThreads = 256;

// scores [R, Hkv, length] -> out [R, 1, length]: the heads' sum, in their order, or the largest of
// them, where a NaN is passed over if there is a number.
__global__ void __launch_bounds__(kReduceThreads)
    reduce_heads_kernel(const float* const scores, float* const out, const DeviceBatchPlan plan,
                        const int heads, const int length, const bool largest) {
  start_kernel();
  const int64_t at = block_index() * kReduceThreads + thread_index();
  const int64_t r = at / length;
  const int j = static_cast<int>(at % length);
  if (r >= plan.requests || j >= plan.get(kPrompt, r)) return;
  const float* const head = scores + r * heads * length + j;
  float best = head[0];
  for (int h = 1; h < heads; ++h) {
    const float score = head[static_cast<int64_t>(h) * length];
    best = largest ? fmaxf(best, score) : best + score;
  }
  out[at] = best;
}

}  // namespace

void paged_select(const PagedBatch& batch, int64_t num_kv_heads, const float* scores,
                  const PagedSelection& selection, const BatchPlan& plan, int32_t* indices,
                  Workspace& workspace, const Device& device) {
  const bool reduced = selection.head_reduction != HeadReduction::kNone;
  Problem problem;
  problem.batch = batch.num_requests;
  problem.num_kv_heads = problem.num_heads = reduced ? 1 : num_kv_heads;
  problem.num_prompt = batch.max_seq_len;
  if (reduced) {
    float* const out = workspace.take<float>(batch.num_requests * batch.max_seq_len);
    if (!workspace.counting() && batch.max_seq_len > 0) {
      launch(reduce_heads_kernel, ceil_div(batch.num_requests * batch.max_seq_len, kReduceThreads),
             kReduceThreads, 0, static_cast<Stream>(device.stream), true, scores, out,
             device_plan(plan), static_cast<int>(num_kv_heads), static_cast<int>(batch.max_seq_len),
             selection.head_reduction == HeadReduction::kMax);
    }
    scores = out;
  }
  SelectParams params = select_params(
      problem, scores,
      {selection.max_budget, selection.pool_kernel, selection.num_sink, selection.num_recent, 0},
      indices);
  params.slots = static_cast<int32_t>(selection.max_budget);
  if (!workspace.counting()) {
    params.seqused_k = plan.fields + kPrompt * batch.num_requests;
    params.counts = plan.fields + kCount * batch.num_requests;
    params.appended = plan.fields + kAppended * batch.num_requests;
  }
  select_rows(params, problem.batch * problem.num_kv_heads, workspace, true, device);
}

}  // namespace lookaheadkv::cuda
