// Room 3: max-pool and exact Top-K.
//
// Scores become unsigned rank keys; the kept ones are those above a threshold, found digit by digit
// from histograms of integers, and the first of those equal to it. A row of up to kLongestBlockRow
// positions is one block's (select_row.cuh); longer rows: select_long.cuh.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/select_long.cuh"
#include "cuda/select_row.cuh"

namespace lookaheadkv::cuda {

namespace {

template <int kHalf>
__global__ void __launch_bounds__(kRowThreads) select_row_kernel(const SelectParams params) {
  start_kernel();
  select_row<kHalf>(params, block_index());
}

}  // namespace

void select_rows(SelectParams params, int64_t rows, Workspace& workspace, bool follows,
                 const Device& device) {
  const int64_t length = params.num_prompt;
  const bool long_row = length > kLongestBlockRow;
  const bool wide = 2 * params.half + 1 > kWidestFusedPool;
  const int64_t chunks = ceil_div(length, kLongChunk);
  uint32_t* const keys = long_row || wide ? workspace.take<uint32_t>(rows * length) : nullptr;
  uint32_t* const other = wide ? workspace.take<uint32_t>(rows * length) : nullptr;
  params.histograms = long_row ? workspace.take<int32_t>(kDigits * rows * chunks * kBins) : nullptr;
  params.chunks = static_cast<int32_t>(chunks);
  if (workspace.counting()) return;

  const auto stream = static_cast<Stream>(device.stream);
  if (wide) {
    params.keys = pool_by_doubling(params, keys, other, rows, stream, follows);
    params.scores = nullptr;
    params.half = 0;
    follows = true;
  }
  if (long_row) {
    params.out_keys = keys;
    select_long(params, rows, stream, follows);
    return;
  }
  launch(params.half == kUsualHalf ? select_row_kernel<kUsualHalf> : select_row_kernel<0>, rows,
         kRowThreads, select_row_shared(params.half), stream, follows, params);
}

void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, Workspace& workspace, bool follows, const Device& device) {
  select_rows(select_params(problem, scores, options, indices),
              problem.batch * problem.num_kv_heads, workspace, follows, device);
}

}  // namespace lookaheadkv::cuda
