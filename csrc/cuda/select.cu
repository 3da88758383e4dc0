// Room 3: max-pool and exact Top-K.
//
// Scores become unsigned rank keys; the kept ones are those above a threshold, found digit by digit
// from histograms of integers, and the first of those equal to it. One block selects a row, or the
// row is cut into pieces whose best keys one block can hold (select_row.cuh). Rows for which that
// is not possible: select_long.cuh.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/select_long.cuh"
#include "cuda/select_row.cuh"

namespace lookaheadkv::cuda {

namespace {

template <int kHalf>
__global__ void __launch_bounds__(kRowThreads) select_piece_kernel(const SelectParams params) {
  start_kernel();
  select_piece<kHalf>(params, block_index() / params.pieces,
                      static_cast<int>(block_index() % params.pieces));
}

__global__ void __launch_bounds__(kRowThreads) merge_pieces_kernel(const SelectParams params) {
  start_kernel();
  merge_pieces(params, block_index());
}

}  // namespace

void select_rows(SelectParams params, int64_t rows, Workspace& workspace, bool follows,
                 const Device& device) {
  const int64_t length = params.num_prompt;
  const bool wide = !pools_on_the_way(params);
  const bool in_pieces = cut_rows(params, rows, workspace, device);
  const int64_t chunks = ceil_div(length, kLongChunk);
  uint32_t* const keys = !in_pieces || wide ? workspace.take<uint32_t>(rows * length) : nullptr;
  uint32_t* const other = wide ? workspace.take<uint32_t>(rows * length) : nullptr;
  params.histograms =
      in_pieces ? nullptr : workspace.take<int32_t>(kDigits * rows * chunks * kBins);
  params.chunks = static_cast<int32_t>(chunks);
  if (workspace.counting()) return;

  const auto stream = static_cast<Stream>(device.stream);
  if (wide) {
    params.keys = pool_by_doubling(params, keys, other, rows, stream, follows);
    params.scores = nullptr;
    params.half = 0;
    follows = true;
  }
  if (!in_pieces) {
    params.out_keys = keys;
    select_long(params, rows, stream, follows);
    return;
  }
  launch(params.half == kUsualHalf ? select_piece_kernel<kUsualHalf> : select_piece_kernel<0>,
         rows * params.pieces, kRowThreads, select_row_shared(params.half), stream, follows,
         params);
  if (params.pieces > 1) {
    launch(merge_pieces_kernel, rows, kRowThreads, select_row_shared(0), stream, true, params);
  }
}

void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, Workspace& workspace, bool follows, const Device& device) {
  select_rows(select_params(problem, scores, options, indices),
              problem.batch * problem.num_kv_heads, workspace, follows, device);
}

}  // namespace lookaheadkv::cuda
