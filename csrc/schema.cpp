// Every op of the library and its schema, in one place. Implementations register themselves per
// dispatch key (csrc/cpu/ops.cpp, csrc/cuda/ops.cpp); fake kernels and autograd formulas live in
// lookaheadkv_kernels/. tests/test_schema.py pins this page: a change here is an API change.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lookaheadkv, m) {
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
}
