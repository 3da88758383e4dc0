// What the torch ops on paged caches do on every device before a kernel runs; the twin of calls.h.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "torch/paged_tensors.h"

namespace lookaheadkv {

// The validated arguments that the scoring ops share. Holds the contiguous copies it points into.
struct ScoringCall {
  Tensor cu_seqlens_q;
  Tensor seq_lens;
  Tensor block_table;
  PagedProblem problem;

  ScoringCall(const PagedValidator& check, const Tensor& query, const Tensor& key_cache,
              const Tensor& table_in, const Tensor& cu_in, const Tensor& lens_in, int64_t num_rows,
              int64_t max_seq_len, const OptionalTensor& lse, std::optional<double> scale,
              const OptionalTensor& k_scale) {
    check.scoring(info("query", query), info("key_cache", key_cache), info("block_table", table_in),
                  info("cu_seqlens_q", cu_in), info("seq_lens", lens_in), num_rows, max_seq_len,
                  info("lse", lse), scale, info("k_scale", k_scale));
    cu_seqlens_q = torch::stable::contiguous(cu_in);
    seq_lens = torch::stable::contiguous(lens_in);
    block_table = torch::stable::contiguous(table_in);
    PagedProblem& p = problem;
    p.batch = {seq_lens.size(0), num_rows, max_seq_len, cu_seqlens_q.const_data_ptr<int32_t>(),
               seq_lens.const_data_ptr<int32_t>()};
    p.cache = paged_view(key_cache, query, k_scale);
    p.table = table_of(block_table);
    const auto strides = query.strides();
    p.query = {query.const_data_ptr(), p.cache.dtype, 0, strides[1], strides[0]};
    p.num_queries = query.size(0);
    p.num_heads = query.size(1);
    p.num_kv_heads = key_cache.size(2);
    p.head_dim = query.size(2);
    p.scale = scale.value_or(1.0 / std::sqrt(static_cast<double>(p.head_dim)));
    if (lse) {
      p.lse = lse->const_data_ptr<float>();
      p.lse_stride_row = lse->strides()[0];
      p.lse_stride_h = lse->strides()[1];
    }
  }

  // Only for data that this process can read.
  void check_values(const PagedValidator& check) const {
    const PagedProblem& p = problem;
    check.batch_values(p.batch, p.num_queries);
    check.block_values(p.batch, p.table, p.cache.num_blocks, p.cache.page_size);
  }
};

// The validated selection. Holds the contiguous copy it points into.
struct SelectionCall {
  OptionalTensor budgets;
  PagedSelection selection;

  // `owner`: the tensor on whose device the call runs.
  SelectionCall(const PagedValidator& check, const PagedBatch& batch,
                const OptionalTensor& budgets_in, const std::string& head_reduction,
                const TensorInfo& owner, const PagedSelection& asked)
      : selection(asked) {
    check.selection(asked, head_reduction, info("budgets", budgets_in), batch, owner);
    budgets = contiguous(budgets_in);
    selection.budgets = lengths_ptr(budgets);
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
  return {empty_like_device(
              like, {batch.num_requests, selection.index_heads(num_kv_heads), selection.max_budget},
              ScalarType::Int),
          empty_like_device(like, {batch.num_requests}, ScalarType::Int)};
}

}  // namespace lookaheadkv
