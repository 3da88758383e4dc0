// Room 2: column scores, the mean probability each prompt key receives.
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

Plan plan_of(DType dtype, int64_t head_dim) {
  if (dtype == DType::kFloat32) {
    return {column_scores_fma_kernel, kFmaThreads, column_scores_fma_shared(head_dim), kFmaRows, 3};
  }
  Plan plan = {};
  with_matrix_type(dtype, head_dim, [&](auto type, auto dim) {
    using Tile = ScoresTile<dim()>;
    plan = {column_scores_mma_kernel<decltype(type), dim()>, Tile::kThreads, Tile::kSharedBytes,
            Tile::kKeys, 2};
  });
  return plan;
}

}  // namespace

void column_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                   const RowLse& lse, float* scores, bool follows, const Device& device,
                   const Cleared& cleared) {
  const int64_t units = problem.batch * problem.num_kv_heads;
  if (problem.num_prompt == 0) return;
  const Plan plan = plan_of(query.dtype, problem.head_dim);
  const Splits splits = split_keys(units, ceil_div(problem.num_prompt, plan.keys),
                                   int64_t{plan.resident} * device.num_sms, kMinTiles);
  ScoresParams params = {};
  params.problem = device_problem(problem, query, key, key);
  params.num_splits = splits.count;
  params.tiles_per_split = splits.tiles;
  params.weight = 1.0f / static_cast<float>(params.problem.folded);
  params.lse = lse.given;
  params.lse_stride = lse.head_stride;
  params.lse_parts = lse.parts;
  params.num_parts = lse.num_parts;
  params.out = scores;
  params.cleared = cleared.words;
  params.num_cleared = cleared.words != nullptr ? cleared.count : 0;
  launch(plan.kernel, units * splits.count, plan.threads, plan.shared,
         static_cast<Stream>(device.stream), follows, params);
}

}  // namespace lookaheadkv::cuda
