// The torch ops on paged caches on the CPU: check, allocate, call the kernels of csrc/cpu. See
// schema.cpp for the signatures and lookaheadkv_kernels/paged.py for what each op means.

#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/torch_executor.h"
#include "torch/boxed.h"
#include "torch/op_library.h"
#include "torch/paged_calls.h"

namespace lookaheadkv::cpu {

namespace {

const TorchExecutor kExecutor;

// The validated arguments that the scoring ops share. Holds the contiguous copies it points into.
struct PagedCall {
  Tensor cu_seqlens_q;
  Tensor seq_lens;
  Tensor block_table;
  PagedBatch batch;
  PackedRows rows;
  PagedView key;
  BlockTable table;
  int64_t num_kv_heads;
  int64_t total_queries;

  PagedCall(const PagedValidator& check, const Tensor& query, const Tensor& key_cache,
            const Tensor& table_in, const Tensor& cu_in, const Tensor& lens_in, int64_t num_rows,
            int64_t max_seq_len, const OptionalTensor& lse, std::optional<double> scale,
            const OptionalTensor& k_scale) {
    check.scoring(info("query", query), info("key_cache", key_cache), info("block_table", table_in),
                  info("cu_seqlens_q", cu_in), info("seq_lens", lens_in), num_rows, max_seq_len,
                  info("lse", lse), scale, info("k_scale", k_scale));
    cu_seqlens_q = torch::stable::contiguous(cu_in);
    seq_lens = torch::stable::contiguous(lens_in);
    block_table = torch::stable::contiguous(table_in);
    batch = {seq_lens.size(0), num_rows, max_seq_len, cu_seqlens_q.const_data_ptr<int32_t>(),
             seq_lens.const_data_ptr<int32_t>()};
    key = paged_view(key_cache, query, k_scale);
    table = table_of(block_table);
    num_kv_heads = key_cache.size(2);
    const auto strides = query.strides();
    rows.query = {query.const_data_ptr(), key.dtype, 0, strides[1], strides[0]};
    rows.num_heads = query.size(1);
    rows.head_dim = query.size(2);
    rows.scale = scale.value_or(1.0 / std::sqrt(static_cast<double>(rows.head_dim)));
    if (lse) {
      rows.lse = lse->const_data_ptr<float>();
      rows.lse_stride_row = lse->strides()[0];
      rows.lse_stride_h = lse->strides()[1];
    }
    total_queries = query.size(0);
  }

  void check_values(const PagedValidator& check) const {
    check.batch_values(batch, total_queries);
    check.block_values(batch, table, key.num_blocks, key.page_size);
  }

  void score(const PagedSelection* selection, Tensor& scores) const {
    paged_column_scores(batch, rows, key, num_kv_heads, table, selection,
                        scores.mutable_data_ptr<float>(), kExecutor);
  }
};

void select(const PagedBatch& batch, int64_t num_kv_heads, const Tensor& scores,
            const PagedSelection& selection, Tensor& indices, Tensor& kept_lens) {
  paged_select(batch, num_kv_heads, scores.const_data_ptr<float>(), selection,
               indices.mutable_data_ptr<int32_t>(), kept_lens.mutable_data_ptr<int32_t>(),
               kExecutor);
}

// ---- the ops

Tensor op_paged_column_scores(Tensor query, Tensor key_cache, Tensor block_table,
                              Tensor cu_seqlens_q, Tensor seq_lens, int64_t num_rows,
                              int64_t max_seq_len, OptionalTensor lse, std::optional<double> scale,
                              OptionalTensor k_scale) {
  const PagedValidator check("paged_column_scores");
  const PagedCall call(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                       max_seq_len, lse, scale, k_scale);
  call.check_values(check);
  Tensor scores = empty_scores(call.batch, call.num_kv_heads, query);
  call.score(nullptr, scores);
  return scores;
}

std::tuple<Tensor, Tensor> op_paged_select(Tensor scores, Tensor cu_seqlens_q, Tensor seq_lens,
                                           int64_t num_rows, int64_t max_budget,
                                           OptionalTensor budgets, int64_t pool_kernel,
                                           int64_t num_sink, int64_t num_recent,
                                           bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_select");
  check.paged_scores(info("scores", scores), info("cu_seqlens_q", cu_seqlens_q),
                     info("seq_lens", seq_lens), num_rows);
  const Tensor starts = torch::stable::contiguous(cu_seqlens_q);
  const Tensor lengths = torch::stable::contiguous(seq_lens);
  const Tensor rows = torch::stable::contiguous(scores);
  const PagedBatch batch = {scores.size(0), num_rows, scores.size(2),
                            starts.const_data_ptr<int32_t>(), lengths.const_data_ptr<int32_t>()};
  const SelectionCall call(check, batch, max_budget, budgets, pool_kernel, num_sink, num_recent,
                           keep_observation, head_reduction, "scores", "cpu");
  check.batch_values(batch, -1);
  check.budget_values(batch, call.selection);
  auto [indices, kept_lens] = empty_kept(batch, scores.size(1), call.selection, scores);
  select(batch, scores.size(1), rows, call.selection, indices, kept_lens);
  return {indices, kept_lens};
}

std::tuple<Tensor, Tensor, Tensor> op_paged_score_and_select(
    Tensor query, Tensor key_cache, Tensor block_table, Tensor cu_seqlens_q, Tensor seq_lens,
    int64_t num_rows, int64_t max_seq_len, int64_t max_budget, OptionalTensor budgets,
    OptionalTensor lse, std::optional<double> scale, OptionalTensor k_scale, int64_t pool_kernel,
    int64_t num_sink, int64_t num_recent, bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_score_and_select");
  const PagedCall call(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                       max_seq_len, lse, scale, k_scale);
  const SelectionCall kept(check, call.batch, max_budget, budgets, pool_kernel, num_sink,
                           num_recent, keep_observation, head_reduction, "query", "cpu");
  call.check_values(check);
  check.budget_values(call.batch, kept.selection);
  Tensor scores = empty_scores(call.batch, call.num_kv_heads, query);
  auto [indices, kept_lens] = empty_kept(call.batch, call.num_kv_heads, kept.selection, query);
  call.score(&kept.selection, scores);
  select(call.batch, call.num_kv_heads, scores, kept.selection, indices, kept_lens);
  return {indices, kept_lens, scores};
}

void op_paged_score_and_select_out(Tensor query, Tensor key_cache, Tensor block_table,
                                   Tensor cu_seqlens_q, Tensor seq_lens, int64_t num_rows,
                                   int64_t max_budget, Tensor indices, Tensor kept_lens,
                                   Tensor scores, OptionalTensor budgets, OptionalTensor lse,
                                   std::optional<double> scale, OptionalTensor k_scale,
                                   int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
                                   bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_score_and_select_out");
  const int64_t max_seq_len = scores.dim() == 3 ? scores.size(2) : 0;
  const PagedCall call(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                       max_seq_len, lse, scale, k_scale);
  const SelectionCall kept(check, call.batch, max_budget, budgets, pool_kernel, num_sink,
                           num_recent, keep_observation, head_reduction, "query", "cpu");
  check.outputs(info("indices", indices), info("kept_lens", kept_lens), info("scores", scores),
                call.batch.num_requests, call.num_kv_heads, max_budget, head_reduction, "cpu");
  call.check_values(check);
  check.budget_values(call.batch, kept.selection);
  call.score(&kept.selection, scores);
  select(call.batch, call.num_kv_heads, scores, kept.selection, indices, kept_lens);
}

void op_compact_kv_cache(std::vector<Tensor> caches, Tensor indices, Tensor kept_lens,
                         Tensor src_block_table, OptionalTensor dst_block_table,
                         OptionalTensor dst_start) {
  const PagedValidator check("compact_kv_cache");
  const CompactionCall call(check, caches, indices, kept_lens, src_block_table, dst_block_table,
                            dst_start);
  check.compaction_values(call.compaction);
  compact_kv_cache(call.compaction, call.bytes.data(), kExecutor);
}

}  // namespace

LOOKAHEADKV_LIBRARY_IMPL(CPU, m) {
  m.impl("paged_column_scores", boxed<&op_paged_column_scores>);
  m.impl("paged_select", boxed<&op_paged_select>);
  m.impl("paged_score_and_select", boxed<&op_paged_score_and_select>);
  m.impl("paged_score_and_select_out", boxed<&op_paged_score_and_select_out>);
  m.impl("compact_kv_cache", boxed<&op_compact_kv_cache>);
}

}  // namespace lookaheadkv::cpu
