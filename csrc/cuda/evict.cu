// All four rooms of score_and_evict, in at most three launches where a block can select a row:
// log-sum-exp (unless it is given), scores, and select and gather in one.
//
// The blocks of that last kernel take tickets. The first ones select one piece of a row each; the
// last block of a row to finish chooses among their candidates and publishes the row's indices. The
// later ones each copy a part of a row's entries once its indices are published. A block waits only
// for smaller tickets, whose blocks have started already, whatever the order in which blocks start.
#include "cuda/gather.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/select_row.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

namespace {

constexpr int64_t kMostTickets = 1 << 30;
constexpr int kThreadChunks = 4;  // of K and of V each: independent loads

struct EvictParams {
  SelectParams select;
  GatherParams gather;
  // [1 + 2 * rows], zero at first: the next ticket; pieces of a row that are done; 1 where a row is
  // selected
  int32_t* progress;
  int32_t blocks_per_row;
};

// One block's part of the entries of one row.
template <class E>
__device__ __forceinline__ void gather_part(const GatherParams& params, int row, int part) {
  const int chunks = static_cast<int>(params.num_kept) * params.row_chunks;
  const int b = row / params.kv_heads, h = row % params.kv_heads;
  const int begin = part * kRowThreads * kThreadChunks + thread_index();
  if (params.key.vector && params.value.vector) {
    return gather_chunks<E, kThreadChunks>(params, b, h, row * params.num_kept, begin, kRowThreads,
                                           chunks);
  }
#pragma unroll 1
  for (int i = 0; i < kThreadChunks; ++i) {
    const int at = begin + i * kRowThreads;
    if (at >= chunks) continue;
    gather_chunk<E>(params, b, h, row * params.num_kept + at / params.row_chunks,
                    at % params.row_chunks);
  }
}

template <class E, int kHalf>
__global__ void __launch_bounds__(kRowThreads) select_gather_kernel(const EvictParams params) {
  start_kernel();
  // All threads read it before select_piece uses the memory; it is written again after that.
  int* const word = reinterpret_cast<int*>(shared_memory());
  const auto from_first_thread = [&](const auto& value) {
    if (thread_index() == 0) *word = value();
    sync_threads();
    const int read = *word;
    sync_threads();
    return read;
  };
  const int ticket = from_first_thread([&] { return atomic_add_device(params.progress, 1); });
  const int rows = static_cast<int>(params.gather.rows), pieces = params.select.pieces;
  int32_t* const done = params.progress + 1;
  int32_t* const selected = done + rows;
  if (ticket < rows * pieces) {
    const int row = ticket / pieces;
    select_piece<kHalf>(params.select, row, ticket % pieces);
    sync_threads();
    if (pieces > 1) {
      if (from_first_thread([&] { return arrive(done + row); }) < pieces - 1) return;
      merge_pieces(params.select, row);
      sync_threads();
    }
    if (thread_index() == 0) publish(selected + row);
    return;
  }
  const int part = ticket - rows * pieces, row = part / params.blocks_per_row;
  if (thread_index() == 0) wait_until_published(selected + row);
  sync_threads();
  gather_part<E>(params.gather, row, part % params.blocks_per_row);
}

template <class E>
void launch_select_gather(const EvictParams& params, int64_t blocks, Stream stream) {
  const auto kernel = params.select.half == kUsualHalf ? select_gather_kernel<E, kUsualHalf>
                                                       : select_gather_kernel<E, 0>;
  launch(kernel, blocks, kRowThreads, select_row_shared(params.select.half), stream, true, params);
}

}  // namespace

void score_and_evict(const Problem& problem, const TensorView& query, const TensorView& key,
                     const TensorView& value, const float* lse, const SelectOptions& options,
                     const Eviction& out, Workspace& workspace, const Device& device) {
  const int64_t rows = problem.batch * problem.num_kv_heads;
  SelectParams selection = select_params(problem, out.scores, options, out.indices);
  const GatherParams gather =
      gather_params(problem.batch, problem.num_kv_heads, problem.num_keys(), problem.head_dim, key,
                    value, out.indices, selection.slots, out.key, out.value);
  const int64_t row_chunks = gather.num_kept * gather.row_chunks;
  const int64_t blocks_per_row = ceil_div(row_chunks, kRowThreads * kThreadChunks);
  // Without prompt keys there is no scores kernel to clear the progress words. Tickets and the
  // chunks of a row are 32-bit numbers.
  const bool at_once = problem.num_prompt > 0 && pools_on_the_way(selection) &&
                       row_chunks < kMostTickets && cut_rows(selection, rows, workspace, device) &&
                       rows * (selection.pieces + blocks_per_row) < kMostTickets;
  const int64_t words = 1 + 2 * rows;
  const Cleared progress = {at_once ? workspace.take<int32_t>(words) : nullptr, words};
  const RowLse row_lse =
      lse != nullptr ? RowLse{lse, problem.num_rows, nullptr, 0}
                     : attention(problem, query, key, key, nullptr, nullptr, workspace, device);
  if (!workspace.counting()) {
    column_scores(problem, query, key, row_lse, out.scores, lse == nullptr, device, progress);
  }
  if (!at_once) {
    select(problem, out.scores, options, out.indices, workspace,
           lse == nullptr || problem.num_prompt > 0, device);
    if (workspace.counting()) return;
    gather_kv(problem.batch, problem.num_kv_heads, problem.num_keys(), problem.head_dim, key, value,
              out.indices, selection.slots, out.key, out.value, true, device);
    return;
  }
  if (workspace.counting()) return;
  const EvictParams params = {selection, gather, progress.words,
                              static_cast<int32_t>(blocks_per_row)};
  const int64_t blocks = rows * (selection.pieces + blocks_per_row);
  const auto stream = static_cast<Stream>(device.stream);
  element_size(key.dtype) == 4 ? launch_select_gather<uint32_t>(params, blocks, stream)
                               : launch_select_gather<uint16_t>(params, blocks, stream);
}

}  // namespace lookaheadkv::cuda
