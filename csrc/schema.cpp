// Every op of the library and its schema, in one place. csrc/torch/ops.h and paged_ops.h implement
// them for the backends (csrc/cpu/backend.cpp, csrc/cuda/backend.cpp); fake kernels and autograd
// formulas live in lookaheadkv_kernels/. tests/ops/test_schema.py pins this page: a change here is
// an API change.
#include "torch/op_library.h"

LOOKAHEADKV_LIBRARY(m) {
  // Attention of the L observation rows -> (out [B,Hq,L,D], lse [B,Hq,L], scores [B,Hkv,N]).
  m.def(
      "lookahead_attention(Tensor query, Tensor key, Tensor value, *, float? scale=None, "
      "Tensor? leftpad_k=None, Tensor? seqused_k=None) -> (Tensor, Tensor, Tensor)");
  // Mean probability each prompt key receives -> scores [B,Hkv,N].
  m.def(
      "column_scores(Tensor query, Tensor key, Tensor? lse=None, *, float? scale=None, "
      "Tensor? leftpad_k=None, Tensor? seqused_k=None) -> Tensor");
  // -> (grad_query, grad_key).
  m.def(
      "column_scores_backward(Tensor grad_scores, Tensor query, Tensor key, Tensor? lse=None, *, "
      "float? scale=None, Tensor? leftpad_k=None, Tensor? seqused_k=None) -> (Tensor, Tensor)");
  // Causal attention of all S rows, scores of the last L -> (out, lse [B,Hq,S], scores [B,Hkv,N]).
  m.def(
      "prefill_attention(Tensor query, Tensor key, Tensor value, int num_lookahead, *, "
      "float? scale=None) -> (Tensor, Tensor, Tensor)");
  // Pool + Top-K -> int32 positions [B,Hkv,min(budget,N)], ascending, -1 in empty slots.
  m.def(
      "select(Tensor scores, int budget, *, int pool_kernel=7, int num_sink=0, int num_recent=0, "
      "Tensor? leftpad_k=None, Tensor? seqused_k=None) -> Tensor");
  // -> (key [B,Hkv,K,D], value [B,Hkv,K,D]).
  m.def("gather_kv(Tensor key, Tensor value, Tensor indices) -> (Tensor, Tensor)");
  // All four rooms -> (key, value, indices, scores).
  m.def(
      "score_and_evict(Tensor query, Tensor key, Tensor value, int budget, *, Tensor? lse=None, "
      "float? scale=None, int pool_kernel=7, int num_sink=0, int num_recent=0, "
      "bool keep_observation=False, Tensor? leftpad_k=None, Tensor? seqused_k=None) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // --- paged caches: request r of a batch of R, its pages in row r of the block table

  // The last num_rows queries of each request -> scores [R,Hkv,max_seq_len].
  m.def(
      "paged_column_scores(Tensor query, Tensor key_cache, Tensor block_table, "
      "Tensor cu_seqlens_q, Tensor seq_lens, int num_rows, int max_seq_len, *, Tensor? lse=None, "
      "float? scale=None, Tensor? k_scale=None) -> Tensor");
  // -> (indices [R,Hkv or 1,max_budget] int32, kept_lens [R] int32).
  m.def(
      "paged_select(Tensor scores, Tensor cu_seqlens_q, Tensor seq_lens, int num_rows, "
      "int max_budget, *, Tensor? budgets=None, int pool_kernel=7, int num_sink=0, "
      "int num_recent=0, bool keep_observation=False, str head_reduction=\"none\") "
      "-> (Tensor, Tensor)");
  // Both -> (indices, kept_lens, scores); requests that keep everything are not scored.
  m.def(
      "paged_score_and_select(Tensor query, Tensor key_cache, Tensor block_table, "
      "Tensor cu_seqlens_q, Tensor seq_lens, int num_rows, int max_seq_len, int max_budget, *, "
      "Tensor? budgets=None, Tensor? lse=None, float? scale=None, Tensor? k_scale=None, "
      "int pool_kernel=7, int num_sink=0, int num_recent=0, bool keep_observation=False, "
      "str head_reduction=\"none\") -> (Tensor, Tensor, Tensor)");
  // The same, written to caller-provided tensors.
  m.def(
      "paged_score_and_select_out(Tensor query, Tensor key_cache, Tensor block_table, "
      "Tensor cu_seqlens_q, Tensor seq_lens, int num_rows, int max_budget, *, "
      "Tensor(a!) indices, Tensor(b!) kept_lens, Tensor(c!) scores, Tensor? budgets=None, "
      "Tensor? lse=None, float? scale=None, Tensor? k_scale=None, int pool_kernel=7, "
      "int num_sink=0, int num_recent=0, bool keep_observation=False, "
      "str head_reduction=\"none\") -> ()");
  // Moves the kept entries of every layer together; caches: each [num_blocks,page_size,Hkv,*].
  m.def(
      "compact_kv_cache(Tensor(a!)[] caches, Tensor indices, Tensor kept_lens, "
      "Tensor src_block_table, Tensor? dst_block_table=None, *, Tensor? dst_start=None) -> ()");
}
