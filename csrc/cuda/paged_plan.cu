// What the lengths of a paged batch mean, computed on the device once for all kernels of an op: the
// twin of request_of() in core/paged.h, with everything clamped to the valid range.
#include <algorithm>

#include "cuda/keys.cuh"
#include "cuda/launch.cuh"
#include "cuda/paged_kernels.h"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

namespace {

constexpr int kThreads = 128;

struct PlanParams {
  const int32_t* cu_seqlens_q;  // [R + 1]
  const int32_t* seq_lens;      // [R]
  const int32_t* budgets;       // [R], or null: max_budget
  int32_t* fields;              // [kRequestFields, R]
  int32_t* kept_lens;           // [R], or null
  int32_t requests, num_rows, num_queries, most_keys;
  int32_t max_budget, pinned;
  bool keep_observation, score_all;
};

__device__ __forceinline__ int clamp(int x, int low, int high) {
  return x < low ? low : x > high ? high : x;
}

// One request per thread.
__global__ void __launch_bounds__(kThreads) plan_kernel(const PlanParams params) {
  start_kernel();
  const int64_t r = block_index() * kThreads + thread_index();
  if (r >= params.requests) return;
  const int end = clamp(params.cu_seqlens_q[r + 1], 0, params.num_queries);
  const int begin = clamp(params.cu_seqlens_q[r], 0, end);
  const int length = clamp(params.seq_lens[r], 0, params.most_keys);
  int rows = end - begin < params.num_rows ? end - begin : params.num_rows;
  rows = rows < length ? rows : length;
  const int prompt = length - rows;
  const int appended = params.keep_observation ? rows : 0;
  const int entries = prompt + appended;
  const int budget = params.budgets != nullptr ? clamp(params.budgets[r], 0, params.max_budget)
                                               : params.max_budget;
  const bool all = entries <= budget;
  // A budget that cannot hold what is pinned counts as 0.
  const bool chosen = !all && budget > 0 && rows > 0 && budget >= params.pinned + appended;
  const auto store = [&](int field, int value) {
    params.fields[field * static_cast<int64_t>(params.requests) + r] = value;
  };
  store(kFirstRow, end - rows);
  store(kRows, params.score_all || chosen ? rows : 0);
  store(kPrompt, prompt);
  store(kCount, all ? prompt : chosen ? budget - appended : 0);
  store(kAppended, all || chosen ? appended : 0);
  // A request that takes no part keeps everything, its own queries included.
  const int kept = all && budget > 0 ? entries : length;
  if (params.kept_lens != nullptr) params.kept_lens[r] = chosen ? budget : kept;
}

}  // namespace

BatchPlan plan_batch(const PagedBatch& batch, const PagedSelection& selection,
                     const PlanOptions& options, int32_t* kept_lens, Workspace& workspace,
                     const Device& device) {
  PlanParams params = {};
  params.fields = workspace.take<int32_t>(kRequestFields * batch.num_requests);
  params.requests = static_cast<int32_t>(batch.num_requests);
  if (workspace.counting()) return {};
  params.cu_seqlens_q = batch.cu_seqlens_q;
  params.seq_lens = batch.seq_lens;
  params.budgets = selection.budgets;
  params.kept_lens = kept_lens;
  constexpr int64_t kMost = 0x7fffffff;
  params.num_rows = static_cast<int32_t>(std::min(batch.num_rows, kMost));
  params.num_queries = static_cast<int32_t>(std::min(options.num_queries, kMost));
  params.most_keys = static_cast<int32_t>(options.most_keys);
  params.max_budget = static_cast<int32_t>(selection.max_budget);
  params.pinned = static_cast<int32_t>(selection.num_sink + selection.num_recent);
  params.keep_observation = selection.keep_observation;
  params.score_all = options.score_all;
  launch(plan_kernel, ceil_div(batch.num_requests, kThreads), kThreads, 0,
         static_cast<Stream>(device.stream), false, params);
  return {params.fields, batch.num_requests};
}

}  // namespace lookaheadkv::cuda
