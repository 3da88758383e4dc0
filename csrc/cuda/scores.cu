// Room 2: column scores, the mean probability each prompt key receives.
#include "cuda/device_pages.h"
#include "cuda/device_problem.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/scores_fma.cuh"
#include "cuda/scores_mma.cuh"

namespace lookaheadkv::cuda {

namespace {

constexpr int64_t kMinTiles = 2;

struct Plan {
  void (*kernel)(ScoresParams);
  int threads, shared, keys;
  int resident;  // blocks a multiprocessor holds, about
};

template <class Source>
Plan plan_of(DType dtype, int64_t head_dim) {
  if (dtype == DType::kFloat32) {
    return {column_scores_fma_kernel<Source>, kFmaThreads, column_scores_fma_shared(head_dim),
            kFmaRows, 3};
  }
  Plan plan = {};
  with_matrix_type(dtype, head_dim, [&](auto type, auto dim) {
    using Tile = ScoresTile<dim()>;
    plan = {column_scores_mma_kernel<decltype(type), dim(), Source>, Tile::kThreads,
            Tile::kSharedBytes, Tile::kKeys, 2};
  });
  return plan;
}

}  // namespace

void column_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                   const RowLse& lse, float* scores, bool follows, const Device& device,
                   const Cleared& cleared) {
  const int64_t units = problem.batch * problem.num_kv_heads;
  if (problem.num_prompt == 0) return;
  const Plan plan = plan_of<InTensor>(query.dtype, problem.head_dim);
  const Splits splits = split_keys(units, ceil_div(problem.num_prompt, plan.keys),
                                   int64_t{plan.resident} * device.num_sms, kMinTiles);
  ScoresParams params = {};
  params.problem = device_problem(problem, query, key, key);
  params.num_splits = splits.count;
  params.tiles_per_split = splits.tiles;
  params.weight = 1.0f / static_cast<float>(params.problem.folded);
  params.lse = lse.given;
  params.lse_head = lse.head_stride;
  params.lse_row = 1;
  params.lse_parts = lse.parts;
  params.num_parts = lse.num_parts;
  params.out = scores;
  params.cleared = cleared.words;
  params.num_cleared = cleared.words != nullptr ? cleared.count : 0;
  launch(plan.kernel, units * splits.count, plan.threads, plan.shared,
         static_cast<Stream>(device.stream), follows, params);
}

void paged_column_scores(const PagedCall& call, const float* lse, float* scores,
                         Workspace& workspace, const Device& device) {
  if (call.batch.max_seq_len == 0) return;
  const RowLse parts = lse == nullptr ? paged_attention(call, workspace, device) : RowLse{};
  if (workspace.counting()) return;
  const DeviceProblem problem = device_problem(call);
  const Plan plan = plan_of<InPages>(call.query.dtype, problem.head_dim);
  ScoresParams params = {};
  params.problem = problem;
  params.pages = device_pages(call);
  params.num_splits = split_keys(call.units(), ceil_div(call.batch.max_seq_len, plan.keys),
                                 int64_t{plan.resident} * device.num_sms, kMinTiles)
                          .count;
  params.lse = lse;
  params.lse_head = call.lse_head;
  params.lse_row = call.lse_row;
  params.lse_parts = parts.parts;
  params.num_parts = parts.num_parts;
  params.out = scores;
  launch(plan.kernel, call.units() * params.num_splits, plan.threads, plan.shared,
         static_cast<Stream>(device.stream), true, params);
}

}  // namespace lookaheadkv::cuda
