// What the torch ops on paged caches do on every device before a kernel runs; the twin of calls.h.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "torch/paged_tensors.h"

namespace lookaheadkv {

// The validated selection. Holds the contiguous copy it points into.
struct SelectionCall {
  OptionalTensor budgets;
  PagedSelection selection;

  SelectionCall(const PagedValidator& check, const PagedBatch& batch, int64_t max_budget,
                const OptionalTensor& budgets_in, int64_t pool_kernel, int64_t num_sink,
                int64_t num_recent, bool keep_observation, const std::string& head_reduction,
                const std::string& owner, const std::string& device) {
    check.selection(batch.num_rows, max_budget, info("budgets", budgets_in), pool_kernel, num_sink,
                    num_recent, keep_observation, head_reduction, batch.num_requests, owner,
                    device);
    budgets = contiguous(budgets_in);
    selection = {lengths_ptr(budgets),
                 max_budget,
                 pool_kernel,
                 num_sink,
                 num_recent,
                 keep_observation,
                 head_reduction_from_name(head_reduction)};
  }
};

// The validated compaction. Holds the contiguous copies it points into.
struct CompactionCall {
  Tensor indices;
  Tensor kept_lens;
  Tensor src;
  Tensor dst;
  OptionalTensor dst_start;
  Compaction compaction;
  std::vector<CacheBytes> bytes;

  CompactionCall(const PagedValidator& check, const std::vector<Tensor>& caches,
                 const Tensor& indices_in, const Tensor& lens_in, const Tensor& src_in,
                 const OptionalTensor& dst_in, const OptionalTensor& start_in) {
    check.compaction(infos("caches", caches), info("indices", indices_in),
                     info("kept_lens", lens_in), info("src_block_table", src_in),
                     info("dst_block_table", dst_in), info("dst_start", start_in));
    indices = torch::stable::contiguous(indices_in);
    kept_lens = torch::stable::contiguous(lens_in);
    src = torch::stable::contiguous(src_in);
    dst = dst_in ? torch::stable::contiguous(*dst_in) : src;
    dst_start = contiguous(start_in);
    compaction = compaction_of(caches, indices, kept_lens, src, dst, dst_start);
    for (const Tensor& cache : caches) bytes.push_back(cache_bytes(cache));
  }
};

inline Tensor empty_scores(const PagedBatch& batch, int64_t num_kv_heads, const Tensor& like) {
  return empty_like_device(like, {batch.num_requests, num_kv_heads, batch.max_seq_len},
                           ScalarType::Float);
}

inline std::tuple<Tensor, Tensor> empty_kept(const PagedBatch& batch, int64_t num_kv_heads,
                                             const PagedSelection& selection, const Tensor& like) {
  const int64_t heads = selection.head_reduction == HeadReduction::kNone ? num_kv_heads : 1;
  return {
      empty_like_device(like, {batch.num_requests, heads, selection.max_budget}, ScalarType::Int),
      empty_like_device(like, {batch.num_requests}, ScalarType::Int)};
}

}  // namespace lookaheadkv
