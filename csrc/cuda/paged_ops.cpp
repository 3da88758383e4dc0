// The torch ops on paged caches on CUDA: check, allocate, call the kernels of csrc/cuda. The twin
// of cpu/paged_ops.cpp; nothing here waits for the device, so no value that only it knows is
// checked.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/on_device.h"
#include "cuda/paged_kernels.h"
#include "torch/boxed.h"
#include "torch/op_library.h"
#include "torch/paged_calls.h"

namespace lookaheadkv::cuda {

namespace {

// The validated arguments that the scoring ops share. Holds the contiguous copies it points into.
struct ScoringCall {
  Tensor cu_seqlens_q;
  Tensor seq_lens;
  Tensor block_table;
  const float* lse = nullptr;
  PagedCall call;
  PlanOptions options;

  ScoringCall(const PagedValidator& check, const Tensor& query, const Tensor& key_cache,
              const Tensor& table_in, const Tensor& cu_in, const Tensor& lens_in, int64_t num_rows,
              int64_t max_seq_len, const OptionalTensor& lse_in, std::optional<double> scale,
              const OptionalTensor& k_scale) {
    check.scoring(info("query", query), info("key_cache", key_cache), info("block_table", table_in),
                  info("cu_seqlens_q", cu_in), info("seq_lens", lens_in), num_rows, max_seq_len,
                  info("lse", lse_in), scale, info("k_scale", k_scale));
    cu_seqlens_q = torch::stable::contiguous(cu_in);
    seq_lens = torch::stable::contiguous(lens_in);
    block_table = torch::stable::contiguous(table_in);
    call.batch = {seq_lens.size(0), num_rows, max_seq_len, cu_seqlens_q.const_data_ptr<int32_t>(),
                  seq_lens.const_data_ptr<int32_t>()};
    call.cache = paged_view(key_cache, query, k_scale);
    // No position reaches past int32: a larger page is one page.
    call.cache.page_size = std::min<int64_t>(call.cache.page_size, 0x7fffffff);
    call.table = table_of(block_table);
    const auto strides = query.strides();
    call.query = {query.const_data_ptr(), call.cache.dtype, 0, strides[1], strides[0]};
    call.num_heads = query.size(1);
    call.num_kv_heads = key_cache.size(2);
    call.head_dim = query.size(2);
    call.scale = scale.value_or(1.0 / std::sqrt(static_cast<double>(call.head_dim)));
    if (lse_in) {
      lse = lse_in->const_data_ptr<float>();
      call.lse_row = lse_in->strides()[0];
      call.lse_head = lse_in->strides()[1];
    }
    options.num_queries = query.size(0);
    // A request reaches as far as its row of the table.
    const bool empty = call.cache.num_blocks == 0 || call.table.max_blocks == 0;
    const int64_t pages = empty ? 0 : (max_seq_len - 1) / call.cache.page_size + 1;
    options.most_keys =
        pages <= call.table.max_blocks && !empty
            ? max_seq_len
            : std::min(max_seq_len, call.table.max_blocks * (empty ? 0 : call.cache.page_size));
  }
};

void score_and_select(ScoringCall& scoring, const PagedSelection& selection, Tensor& indices,
                      Tensor& kept_lens, Tensor& scores) {
  const OnDevice on(scores);
  PagedCall& call = scoring.call;
  with_workspace(scores, [&](Workspace& workspace) {
    call.plan = plan_batch(call.batch, selection, scoring.options,
                           kept_lens.mutable_data_ptr<int32_t>(), workspace, on.device());
    paged_column_scores(call, scoring.lse, scores.mutable_data_ptr<float>(), workspace,
                        on.device());
    paged_select(call.batch, call.num_kv_heads, scores.const_data_ptr<float>(), selection,
                 call.plan, indices.mutable_data_ptr<int32_t>(), workspace, on.device());
  });
}

// ---- the ops

Tensor op_paged_column_scores(Tensor query, Tensor key_cache, Tensor block_table,
                              Tensor cu_seqlens_q, Tensor seq_lens, int64_t num_rows,
                              int64_t max_seq_len, OptionalTensor lse, std::optional<double> scale,
                              OptionalTensor k_scale) {
  const PagedValidator check("paged_column_scores");
  ScoringCall scoring(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                      max_seq_len, lse, scale, k_scale);
  scoring.options.score_all = true;
  const OnDevice on(query);
  PagedCall& call = scoring.call;
  Tensor scores = empty_scores(call.batch, call.num_kv_heads, query);
  with_workspace(query, [&](Workspace& workspace) {
    call.plan = plan_batch(call.batch, {}, scoring.options, nullptr, workspace, on.device());
    paged_column_scores(call, scoring.lse, scores.mutable_data_ptr<float>(), workspace,
                        on.device());
  });
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
  const PagedBatch shapes = {scores.size(0), num_rows, scores.size(2), nullptr, nullptr};
  const SelectionCall kept(check, shapes, max_budget, budgets, pool_kernel, num_sink, num_recent,
                           keep_observation, head_reduction, "scores", device_name(scores));
  const OnDevice on(scores);
  const Tensor starts = torch::stable::contiguous(cu_seqlens_q);
  const Tensor lengths = torch::stable::contiguous(seq_lens);
  const Tensor rows = torch::stable::contiguous(scores);
  PagedBatch batch = shapes;
  batch.cu_seqlens_q = starts.const_data_ptr<int32_t>();
  batch.seq_lens = lengths.const_data_ptr<int32_t>();
  auto [indices, kept_lens] = empty_kept(batch, scores.size(1), kept.selection, scores);
  const PlanOptions options = {0x7fffffff, batch.max_seq_len, false};
  int32_t* const out = indices.mutable_data_ptr<int32_t>();
  int32_t* const out_lens = kept_lens.mutable_data_ptr<int32_t>();
  with_workspace(scores, [&](Workspace& workspace) {
    const BatchPlan plan =
        plan_batch(batch, kept.selection, options, out_lens, workspace, on.device());
    paged_select(batch, rows.size(1), rows.const_data_ptr<float>(), kept.selection, plan, out,
                 workspace, on.device());
  });
  return {indices, kept_lens};
}

std::tuple<Tensor, Tensor, Tensor> op_paged_score_and_select(
    Tensor query, Tensor key_cache, Tensor block_table, Tensor cu_seqlens_q, Tensor seq_lens,
    int64_t num_rows, int64_t max_seq_len, int64_t max_budget, OptionalTensor budgets,
    OptionalTensor lse, std::optional<double> scale, OptionalTensor k_scale, int64_t pool_kernel,
    int64_t num_sink, int64_t num_recent, bool keep_observation, std::string head_reduction) {
  const PagedValidator check("paged_score_and_select");
  ScoringCall scoring(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                      max_seq_len, lse, scale, k_scale);
  const PagedBatch& batch = scoring.call.batch;
  const SelectionCall kept(check, batch, max_budget, budgets, pool_kernel, num_sink, num_recent,
                           keep_observation, head_reduction, "query", device_name(query));
  const int64_t num_kv_heads = scoring.call.num_kv_heads;
  const OnDevice on(query);
  Tensor scores = empty_scores(batch, num_kv_heads, query);
  auto [indices, kept_lens] = empty_kept(batch, num_kv_heads, kept.selection, query);
  score_and_select(scoring, kept.selection, indices, kept_lens, scores);
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
  ScoringCall scoring(check, query, key_cache, block_table, cu_seqlens_q, seq_lens, num_rows,
                      max_seq_len, lse, scale, k_scale);
  const PagedBatch& batch = scoring.call.batch;
  const SelectionCall kept(check, batch, max_budget, budgets, pool_kernel, num_sink, num_recent,
                           keep_observation, head_reduction, "query", device_name(query));
  check.outputs(info("indices", indices), info("kept_lens", kept_lens), info("scores", scores),
                batch.num_requests, scoring.call.num_kv_heads, max_budget, head_reduction,
                device_name(query));
  score_and_select(scoring, kept.selection, indices, kept_lens, scores);
}

void op_compact_kv_cache(std::vector<Tensor> caches, Tensor indices, Tensor kept_lens,
                         Tensor src_block_table, OptionalTensor dst_block_table,
                         OptionalTensor dst_start) {
  const CompactionCall call(PagedValidator("compact_kv_cache"), caches, indices, kept_lens,
                            src_block_table, dst_block_table, dst_start);
  const OnDevice on(indices);
  compact_kv_cache(call.compaction, call.bytes.data(), on.device());
}

}  // namespace

LOOKAHEADKV_LIBRARY_IMPL(CUDA, m) {
  m.impl("paged_column_scores", boxed<&op_paged_column_scores>);
  m.impl("paged_select", boxed<&op_paged_select>);
  m.impl("paged_score_and_select", boxed<&op_paged_score_and_select>);
  m.impl("paged_score_and_select_out", boxed<&op_paged_score_and_select_out>);
  m.impl("compact_kv_cache", boxed<&op_compact_kv_cache>);
}

}  // namespace lookaheadkv::cuda
