// The torch ops on the CPU: check, allocate, call the kernels of csrc/cpu. See schema.cpp for the
// signatures and lookaheadkv_kernels/ops.py for what each op means.

#include <algorithm>
#include <tuple>

#include "cpu/kernels.h"
#include "cpu/torch_executor.h"
#include "torch/boxed.h"
#include "torch/calls.h"
#include "torch/op_library.h"
#include "torch/tensors.h"

namespace lookaheadkv::cpu {

namespace {

const TorchExecutor kExecutor;

// The log-sum-exp given, or computed.
Tensor resolve_lse(const Call& call, const Tensor& query, const Tensor& key) {
  if (call.lse) return *call.lse;
  Tensor lse = empty_lse(call.problem, query);
  attention(call.problem, view(query), view(key), {}, nullptr, lse.mutable_data_ptr<float>(),
            kExecutor);
  return lse;
}

Tensor scores_of(const Call& call, const Tensor& query, const Tensor& key) {
  Tensor scores = empty_scores(call.problem, query);
  if (call.lse) {
    column_scores(call.problem, view(query), view(key), call.lse->const_data_ptr<float>(),
                  scores.mutable_data_ptr<float>(), kExecutor);
  } else {
    Tensor lse = empty_lse(call.problem, query);
    attention_and_scores(call.problem, view(query), view(key), {}, nullptr,
                         lse.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>(),
                         kExecutor);
  }
  return scores;
}

std::tuple<Tensor, Tensor> gather_of(const Tensor& key, const Tensor& value,
                                     const Tensor& indices) {
  const int64_t batch = key.size(0), heads = key.size(1), dim = key.size(3);
  const int64_t kept = indices.size(2);
  Tensor out_key = empty_like_device(key, {batch, heads, kept, dim});
  Tensor out_value = empty_like_device(key, {batch, heads, kept, dim});
  gather_kv(batch, heads, dim, view(key), view(value), indices.const_data_ptr<int32_t>(), kept,
            out_key.mutable_data_ptr(), out_value.mutable_data_ptr(), kExecutor);
  return {out_key, out_value};
}

Tensor select_of(const Problem& problem, const Tensor& scores, const SelectOptions& options) {
  Tensor indices = empty_indices(problem, options, scores);
  select(problem, scores.const_data_ptr<float>(), options, indices.mutable_data_ptr<int32_t>(),
         kExecutor);
  return indices;
}

// ---- the ops

std::tuple<Tensor, Tensor, Tensor> op_lookahead_attention(Tensor query, Tensor key, Tensor value,
                                                          std::optional<double> scale,
                                                          OptionalTensor leftpad_k,
                                                          OptionalTensor seqused_k) {
  const Call call(Validator("lookahead_attention"), query, key, &value, std::nullopt, scale,
                  leftpad_k, seqused_k);
  const Problem& p = call.problem;
  Tensor out = empty_like_device(query, {p.batch, p.num_heads, p.num_rows, p.head_dim});
  Tensor lse = empty_lse(p, query);
  Tensor scores = empty_scores(p, query);
  attention_and_scores(p, view(query), view(key), view(value), out.mutable_data_ptr(),
                       lse.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>(), kExecutor);
  return {out, lse, scores};
}

Tensor op_column_scores(Tensor query, Tensor key, OptionalTensor lse, std::optional<double> scale,
                        OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Call call(Validator("column_scores"), query, key, nullptr, lse, scale, leftpad_k,
                  seqused_k);
  return scores_of(call, query, key);
}

std::tuple<Tensor, Tensor> op_column_scores_backward(Tensor grad_scores, Tensor query, Tensor key,
                                                     OptionalTensor lse,
                                                     std::optional<double> scale,
                                                     OptionalTensor leftpad_k,
                                                     OptionalTensor seqused_k) {
  const Validator check("column_scores_backward");
  const Call call(check, query, key, nullptr, lse, scale, leftpad_k, seqused_k);
  const Problem& p = call.problem;
  check.float_tensor(info("grad_scores", grad_scores), {p.batch, p.num_kv_heads, p.num_prompt},
                     "query", device_name(query));
  const Tensor grad = torch::stable::contiguous(grad_scores);
  const Tensor row_lse = resolve_lse(call, query, key);
  Tensor grad_query = empty_like_device(query, {p.batch, p.num_heads, p.num_rows, p.head_dim});
  Tensor grad_key = empty_like_device(key, {p.batch, p.num_kv_heads, p.num_keys(), p.head_dim});
  column_scores_backward(p, view(query), view(key), row_lse.const_data_ptr<float>(),
                         grad.const_data_ptr<float>(), grad_query.mutable_data_ptr(),
                         grad_key.mutable_data_ptr(), kExecutor);
  return {grad_query, grad_key};
}

std::tuple<Tensor, Tensor, Tensor> op_prefill_attention(Tensor query, Tensor key, Tensor value,
                                                        int64_t num_lookahead,
                                                        std::optional<double> scale) {
  const Validator check("prefill_attention");
  check.prefill_inputs(info("query", query), info("key", key), info("value", value), num_lookahead);
  check.scale(scale);
  Problem p;
  p.batch = query.size(0);
  p.num_heads = query.size(1);
  p.num_kv_heads = key.size(1);
  p.num_rows = num_lookahead;
  p.num_prompt = key.size(2) - num_lookahead;
  p.head_dim = query.size(3);
  p.scale = scale.value_or(1.0 / std::sqrt(static_cast<double>(p.head_dim)));
  Tensor out = empty_like_device(query, {p.batch, p.num_heads, p.num_keys(), p.head_dim});
  Tensor lse = empty_like_device(query, {p.batch, p.num_heads, p.num_keys()}, ScalarType::Float);
  Tensor scores = empty_scores(p, query);
  prefill_attention(p, view(query), view(key), view(value), out.mutable_data_ptr(),
                    lse.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>(), kExecutor);
  return {out, lse, scores};
}

Tensor op_select(Tensor scores, int64_t budget, int64_t pool_kernel, int64_t num_sink,
                 int64_t num_recent, OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Validator check("select");
  const TensorInfo s = info("scores", scores);
  check.scores_input(s);
  Problem problem;
  problem.batch = s.shape[0];
  problem.num_heads = problem.num_kv_heads = s.shape[1];
  problem.num_prompt = s.shape[2];
  if (leftpad_k) check.lengths(info("leftpad_k", *leftpad_k), problem.batch, "scores", s.device);
  if (seqused_k) check.lengths(info("seqused_k", *seqused_k), problem.batch, "scores", s.device);
  const OptionalTensor first = contiguous(leftpad_k), last = contiguous(seqused_k);
  problem.leftpad_k = lengths_ptr(first);
  problem.seqused_k = lengths_ptr(last);
  check.length_values(problem.leftpad_k, problem.seqused_k, problem.batch, problem.num_prompt);
  check.budget(budget, pool_kernel, num_sink, num_recent, std::nullopt);
  return select_of(problem, torch::stable::contiguous(scores),
                   {budget, pool_kernel, num_sink, num_recent, 0});
}

std::tuple<Tensor, Tensor> op_gather_kv(Tensor key, Tensor value, Tensor indices) {
  const Validator check("gather_kv");
  check.gather_inputs(info("key", key), info("value", value), info("indices", indices));
  const Tensor kept = torch::stable::contiguous(indices);
  check.index_values(kept.const_data_ptr<int32_t>(), key.size(0), key.size(1), kept.size(2),
                     key.size(2));
  return gather_of(key, value, kept);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> op_score_and_evict(
    Tensor query, Tensor key, Tensor value, int64_t budget, OptionalTensor lse,
    std::optional<double> scale, int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
    bool keep_observation, OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Validator check("score_and_evict");
  const Call call(check, query, key, &value, lse, scale, leftpad_k, seqused_k);
  const Problem& p = call.problem;
  check.budget(budget, pool_kernel, num_sink, num_recent,
               keep_observation ? std::optional<int64_t>(p.num_rows) : std::nullopt);
  const Tensor scores = scores_of(call, query, key);
  const int64_t appended = keep_observation ? p.num_rows : 0;
  const Tensor indices =
      select_of(p, scores, {budget - appended, pool_kernel, num_sink, num_recent, appended});
  const auto [kept_key, kept_value] = gather_of(key, value, indices);
  return {kept_key, kept_value, indices, scores};
}

}  // namespace

LOOKAHEADKV_LIBRARY_IMPL(CPU, m) {
  m.impl("lookahead_attention", boxed<&op_lookahead_attention>);
  m.impl("column_scores", boxed<&op_column_scores>);
  m.impl("column_scores_backward", boxed<&op_column_scores_backward>);
  m.impl("prefill_attention", boxed<&op_prefill_attention>);
  m.impl("select", boxed<&op_select>);
  m.impl("gather_kv", boxed<&op_gather_kv>);
  m.impl("score_and_evict", boxed<&op_score_and_evict>);
}

}  // namespace lookaheadkv::cpu
