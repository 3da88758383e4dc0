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

// The kernel for one dtype and head dimension, and the keys of one of its tiles.
struct ScoresKernel {
  void (*run)(ScoresParams);
  int threads, shared, keys;
  int resident;  // blocks that share a multiprocessor, about
};

template <class Source>
ScoresKernel kernel_for(DType dtype, int64_t head_dim) {
  if (dtype == DType::kFloat32) {
    return {column_scores_fma_kernel<Source>, kFmaThreads, column_scores_fma_shared(head_dim),
            kFmaRows, 3};
  }
  ScoresKernel kernel = {};
  with_matrix_type(dtype, head_dim, [&](auto type, auto dim) {
    using Tile = ScoresTile<dim()>;
    kernel = {column_scores_mma_kernel<decltype(type), dim(), Source>, Tile::kThreads,
              Tile::kSharedBytes + (Source::kWeighted ? Tile::kStages * Tile::kWeightBytes : 0),
              Tile::kKeys, 2};
  });
  return kernel;
}

}  // namespace

void column_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                   const RowLse& lse, float* scores, bool follows, const Device& device,
                   const Cleared& cleared) {
  const int64_t units = problem.batch * problem.num_kv_heads;
  if (problem.num_prompt == 0) return;
  const ScoresKernel kernel = kernel_for<InTensor>(query.dtype, problem.head_dim);
  const Splits splits = split_keys(units, ceil_div(problem.num_prompt, kernel.keys),
                                   int64_t{kernel.resident} * device.num_sms, kMinTiles);
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
  launch(kernel.run, units * splits.count, kernel.threads, kernel.shared,
         static_cast<Stream>(device.stream), follows, params);
}

void paged_column_scores(const PagedProblem& problem, const BatchPlan& plan, float* scores,
                         Workspace& workspace, const Device& device) {
  if (problem.batch.max_seq_len == 0) return;
  const RowLse parts =
      problem.lse == nullptr ? paged_attention(problem, plan, workspace, device) : RowLse{};
  if (workspace.counting()) return;
  const ScoresKernel kernel =
      problem.cache.scale.per_entry()
          ? kernel_for<InWeightedPages>(problem.query.dtype, problem.head_dim)
          : kernel_for<InPages>(problem.query.dtype, problem.head_dim);
  const int64_t units = problem.batch.num_requests * problem.num_kv_heads;
  ScoresParams params = {};
  params.problem = device_problem(problem);
  params.pages = device_pages(problem, plan);
  params.num_splits = split_keys(units, ceil_div(problem.batch.max_seq_len, kernel.keys),
                                 int64_t{kernel.resident} * device.num_sms, kMinTiles)
                          .count;
  params.lse = problem.lse;
  params.lse_head = problem.lse_stride_h;
  params.lse_row = problem.lse_stride_row;
  params.lse_parts = parts.parts;
  params.num_parts = parts.num_parts;
  params.out = scores;
  launch(kernel.run, units * params.num_splits, kernel.threads, kernel.shared,
         static_cast<Stream>(device.stream), true, params);
}

}  // namespace lookaheadkv::cuda
