// The torch ops on paged caches, for every device; the twin of ops.h. See schema.cpp for the
// signatures and lookaheadkv_kernels/paged.py for what each op means.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "torch/boxed.h"
#include "torch/paged_calls.h"

namespace lookaheadkv {

template <class Backend>
Tensor op_paged_column_scores(Tensor query, Tensor key_cache, Tensor block_table,
                              Tensor cu_seqlens_q, Tensor seq_lens, int64_t num_rows,
                              int64_t max_seq_len, OptionalTensor lse, std::optional<double> scale,
                              OptionalTensor k_scale) {
  const PagedValidator check("paged_column_scores");
  const ScoringCall call(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                         max_seq_len, lse, scale, k_scale);
  if (query.is_cpu()) call.check_values(check);
  const Backend backend(query);
  Tensor scores = empty_scores(call.problem.batch, call.problem.num_kv_heads, query);
  backend.paged_column_scores(call.problem, scores.mutable_data_ptr<float>());
  return scores;
}

template <class Backend>
std::tuple<Tensor, Tensor> op_paged_select(Tensor scores, Tensor cu_seqlens_q, Tensor seq_lens,
                                           int64_t num_rows, int64_t max_budget,
                                           OptionalTensor budgets, int64_t pool_kernel,
                                           int64_t num_sink, int64_t num_recent,
                                           bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_select");
  const TensorInfo owner = info("scores", scores);
  check.paged_scores(owner, info("cu_seqlens_q", cu_seqlens_q), info("seq_lens", seq_lens),
                     num_rows);
  const Tensor starts = torch::stable::contiguous(cu_seqlens_q);
  const Tensor lengths = torch::stable::contiguous(seq_lens);
  const PagedBatch batch = {scores.size(0), num_rows, scores.size(2),
                            starts.const_data_ptr<int32_t>(), lengths.const_data_ptr<int32_t>()};
  const SelectionCall call(check, batch, budgets, head_reduction, owner,
                           {nullptr, max_budget, pool_kernel, num_sink, num_recent,
                            keep_observation, head_reduction_from_name(head_reduction)});
  if (scores.is_cpu()) {
    check.batch_values(batch, -1);
    check.budget_values(batch, call.selection);
  }
  const Backend backend(scores);
  const Tensor rows = torch::stable::contiguous(scores);
  auto [indices, kept_lens] = empty_kept(batch, scores.size(1), call.selection, scores);
  backend.paged_select(batch, scores.size(1), rows.const_data_ptr<float>(), call.selection,
                       indices.mutable_data_ptr<int32_t>(), kept_lens.mutable_data_ptr<int32_t>());
  return {indices, kept_lens};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> op_paged_score_and_select(
    Tensor query, Tensor key_cache, Tensor block_table, Tensor cu_seqlens_q, Tensor seq_lens,
    int64_t num_rows, int64_t max_seq_len, int64_t max_budget, OptionalTensor budgets,
    OptionalTensor lse, std::optional<double> scale, OptionalTensor k_scale, int64_t pool_kernel,
    int64_t num_sink, int64_t num_recent, bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_score_and_select");
  const ScoringCall call(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                         max_seq_len, lse, scale, k_scale);
  const PagedProblem& p = call.problem;
  const SelectionCall kept(check, p.batch, budgets, head_reduction, info("query", query),
                           {nullptr, max_budget, pool_kernel, num_sink, num_recent,
                            keep_observation, head_reduction_from_name(head_reduction)});
  if (query.is_cpu()) {
    call.check_values(check);
    check.budget_values(p.batch, kept.selection);
  }
  const Backend backend(query);
  Tensor scores = empty_scores(p.batch, p.num_kv_heads, query);
  auto [indices, kept_lens] = empty_kept(p.batch, p.num_kv_heads, kept.selection, query);
  backend.paged_score_and_select(p, kept.selection, indices.template mutable_data_ptr<int32_t>(),
                                 kept_lens.template mutable_data_ptr<int32_t>(),
                                 scores.mutable_data_ptr<float>());
  return {indices, kept_lens, scores};
}

template <class Backend>
void op_paged_score_and_select_out(Tensor query, Tensor key_cache, Tensor block_table,
                                   Tensor cu_seqlens_q, Tensor seq_lens, int64_t num_rows,
                                   int64_t max_budget, Tensor indices, Tensor kept_lens,
                                   Tensor scores, OptionalTensor budgets, OptionalTensor lse,
                                   std::optional<double> scale, OptionalTensor k_scale,
                                   int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
                                   bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_score_and_select_out");
  const int64_t max_seq_len = scores.dim() == 3 ? scores.size(2) : 0;
  const ScoringCall call(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                         max_seq_len, lse, scale, k_scale);
  const PagedProblem& p = call.problem;
  const TensorInfo owner = info("query", query);
  const SelectionCall kept(check, p.batch, budgets, head_reduction, owner,
                           {nullptr, max_budget, pool_kernel, num_sink, num_recent,
                            keep_observation, head_reduction_from_name(head_reduction)});
  check.outputs(info("indices", indices), info("kept_lens", kept_lens), info("scores", scores),
                p.batch.num_requests, p.num_kv_heads, kept.selection, owner);
  if (query.is_cpu()) {
    call.check_values(check);
    check.budget_values(p.batch, kept.selection);
  }
  const Backend backend(query);
  backend.paged_score_and_select(p, kept.selection, indices.mutable_data_ptr<int32_t>(),
                                 kept_lens.mutable_data_ptr<int32_t>(),
                                 scores.mutable_data_ptr<float>());
}

template <class Backend>
void op_compact_kv_cache(std::vector<Tensor> caches, Tensor indices, Tensor kept_lens,
                         Tensor src_block_table, OptionalTensor dst_block_table,
                         OptionalTensor dst_start) {
  const PagedValidator check("compact_kv_cache");
  const CompactionCall call(check, caches, indices, kept_lens, src_block_table, dst_block_table,
                            dst_start);
  if (indices.is_cpu()) check.compaction_values(call.compaction);
  const Backend backend(indices);
  backend.compact_kv_cache(call.compaction, call.bytes.data());
}

// Registers the ops above for one backend.
template <class Backend, class Library>
void implement_paged_ops(Library& library) {
  library.impl("paged_column_scores", boxed<&op_paged_column_scores<Backend>>);
  library.impl("paged_select", boxed<&op_paged_select<Backend>>);
  library.impl("paged_score_and_select", boxed<&op_paged_score_and_select<Backend>>);
  library.impl("paged_score_and_select_out", boxed<&op_paged_score_and_select_out<Backend>>);
  library.impl("compact_kv_cache", boxed<&op_compact_kv_cache<Backend>>);
}

}  // namespace lookaheadkv
