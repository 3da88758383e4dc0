// The torch ops on dense caches, for every device: check the arguments, allocate the results, call
// the device's kernels. See schema.cpp for the signatures and lookaheadkv_kernels/ops.py for what
// each op means.
//
// A `Backend` (cpu/backend.cpp, cuda/backend.cpp) is constructed from a tensor of the call, whose
// device it runs on, and writes into allocated results. It computes an `lse` that is null.
#pragma once

#include <tuple>

#include "torch/boxed.h"
#include "torch/calls.h"
#include "torch/tensors.h"

namespace lookaheadkv {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> op_lookahead_attention(Tensor query, Tensor key, Tensor value,
                                                          std::optional<double> scale,
                                                          OptionalTensor leftpad_k,
                                                          OptionalTensor seqused_k) {
  const Call call(Validator("lookahead_attention"), query, key, &value, std::nullopt, scale,
                  leftpad_k, seqused_k);
  const Backend backend(query);
  const Problem& p = call.problem;
  Tensor out = empty_like_device(query, {p.batch, p.num_heads, p.num_rows, p.head_dim});
  Tensor lse = empty_lse(p, query);
  Tensor scores = empty_scores(p, query);
  backend.attention_and_scores(p, call.query, call.key, call.value, out.mutable_data_ptr(),
                               lse.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>());
  return {out, lse, scores};
}

template <class Backend>
Tensor op_column_scores(Tensor query, Tensor key, OptionalTensor lse, std::optional<double> scale,
                        OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Call call(Validator("column_scores"), query, key, nullptr, lse, scale, leftpad_k,
                  seqused_k);
  const Backend backend(query);
  Tensor scores = empty_scores(call.problem, query);
  backend.column_scores(call.problem, call.query, call.key, call.given_lse(),
                        scores.mutable_data_ptr<float>());
  return scores;
}

template <class Backend>
std::tuple<Tensor, Tensor> op_column_scores_backward(Tensor grad_scores, Tensor query, Tensor key,
                                                     OptionalTensor lse,
                                                     std::optional<double> scale,
                                                     OptionalTensor leftpad_k,
                                                     OptionalTensor seqused_k) {
  const Validator check("column_scores_backward");
  const Call call(check, query, key, nullptr, lse, scale, leftpad_k, seqused_k);
  const Problem& p = call.problem;
  check.float_tensor(info("grad_scores", grad_scores), {p.batch, p.num_kv_heads, p.num_prompt},
                     info("query", query));
  const Backend backend(query);
  const Tensor grad = torch::stable::contiguous(grad_scores);
  Tensor row_lse = call.lse ? *call.lse : empty_lse(p, query);
  Tensor grad_query = empty_like_device(query, {p.batch, p.num_heads, p.num_rows, p.head_dim});
  Tensor grad_key = empty_like_device(key, {p.batch, p.num_kv_heads, p.num_keys(), p.head_dim});
  backend.column_scores_backward(p, call.query, call.key,
                                 call.lse ? nullptr : row_lse.mutable_data_ptr<float>(),
                                 row_lse.const_data_ptr<float>(), grad.const_data_ptr<float>(),
                                 grad_query.mutable_data_ptr(), grad_key.mutable_data_ptr());
  return {grad_query, grad_key};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> op_prefill_attention(Tensor query, Tensor key, Tensor value,
                                                        int64_t num_lookahead,
                                                        std::optional<double> scale) {
  const Validator check("prefill_attention");
  check.prefill_inputs(info("query", query), info("key", key), info("value", value), num_lookahead);
  check.scale(scale);
  const Backend backend(query);
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
  backend.prefill_attention(p, view(query), view(key), view(value), out.mutable_data_ptr(),
                            lse.mutable_data_ptr<float>(), scores.mutable_data_ptr<float>());
  return {out, lse, scores};
}

template <class Backend>
Tensor op_select(Tensor scores, int64_t budget, int64_t pool_kernel, int64_t num_sink,
                 int64_t num_recent, OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Validator check("select");
  const TensorInfo s = info("scores", scores);
  check.scores_input(s);
  Problem problem;
  problem.batch = s.shape[0];
  problem.num_heads = problem.num_kv_heads = s.shape[1];
  problem.num_prompt = s.shape[2];
  if (leftpad_k) check.lengths(info("leftpad_k", *leftpad_k), problem.batch, s);
  if (seqused_k) check.lengths(info("seqused_k", *seqused_k), problem.batch, s);
  const OptionalTensor first = contiguous(leftpad_k), last = contiguous(seqused_k);
  problem.leftpad_k = lengths_ptr(first);
  problem.seqused_k = lengths_ptr(last);
  if (scores.is_cpu()) {
    check.length_values(problem.leftpad_k, problem.seqused_k, problem.batch, problem.num_prompt);
  }
  check.budget(budget, pool_kernel, num_sink, num_recent, std::nullopt);
  const Backend backend(scores);
  const Tensor rows = torch::stable::contiguous(scores);
  const SelectOptions options = {budget, pool_kernel, num_sink, num_recent, 0};
  Tensor indices = empty_indices(problem, options, scores);
  backend.select(problem, rows.const_data_ptr<float>(), options,
                 indices.mutable_data_ptr<int32_t>());
  return indices;
}

template <class Backend>
std::tuple<Tensor, Tensor> op_gather_kv(Tensor key, Tensor value, Tensor indices) {
  const Validator check("gather_kv");
  check.gather_inputs(info("key", key), info("value", value), info("indices", indices));
  const Tensor kept = torch::stable::contiguous(indices);
  Problem p;
  p.batch = key.size(0);
  p.num_kv_heads = key.size(1);
  p.num_prompt = key.size(2);
  p.head_dim = key.size(3);
  const int64_t slots = kept.size(2);
  if (key.is_cpu()) {
    check.index_values(kept.const_data_ptr<int32_t>(), p.batch, p.num_kv_heads, slots,
                       p.num_prompt);
  }
  const Backend backend(key);
  Tensor out_key = empty_like_device(key, {p.batch, p.num_kv_heads, slots, p.head_dim});
  Tensor out_value = empty_like_device(key, {p.batch, p.num_kv_heads, slots, p.head_dim});
  backend.gather_kv(p, view(key), view(value), kept.const_data_ptr<int32_t>(), slots,
                    out_key.mutable_data_ptr(), out_value.mutable_data_ptr());
  return {out_key, out_value};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> op_score_and_evict(
    Tensor query, Tensor key, Tensor value, int64_t budget, OptionalTensor lse,
    std::optional<double> scale, int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
    bool keep_observation, OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Validator check("score_and_evict");
  const Call call(check, query, key, &value, lse, scale, leftpad_k, seqused_k);
  const Problem& p = call.problem;
  check.budget(budget, pool_kernel, num_sink, num_recent,
               keep_observation ? std::optional<int64_t>(p.num_rows) : std::nullopt);
  const Backend backend(query);
  const int64_t appended = keep_observation ? p.num_rows : 0;
  const SelectOptions options = {budget - appended, pool_kernel, num_sink, num_recent, appended};
  const int64_t slots = num_slots(p, options);
  Tensor scores = empty_scores(p, query);
  Tensor indices = empty_indices(p, options, query);
  Tensor out_key = empty_like_device(key, {p.batch, p.num_kv_heads, slots, p.head_dim});
  Tensor out_value = empty_like_device(key, {p.batch, p.num_kv_heads, slots, p.head_dim});
  backend.score_and_evict(p, call.query, call.key, call.value, call.given_lse(), options,
                          {out_key.mutable_data_ptr(), out_value.mutable_data_ptr(),
                           indices.mutable_data_ptr<int32_t>(), scores.mutable_data_ptr<float>()});
  return {out_key, out_value, indices, scores};
}

// Registers the ops above for one backend.
template <class Backend, class Library>
void implement_ops(Library& library) {
  library.impl("lookahead_attention", boxed<&op_lookahead_attention<Backend>>);
  library.impl("column_scores", boxed<&op_column_scores<Backend>>);
  library.impl("column_scores_backward", boxed<&op_column_scores_backward<Backend>>);
  library.impl("prefill_attention", boxed<&op_prefill_attention<Backend>>);
  library.impl("select", boxed<&op_select<Backend>>);
  library.impl("gather_kv", boxed<&op_gather_kv<Backend>>);
  library.impl("score_and_evict", boxed<&op_score_and_evict<Backend>>);
}

}  // namespace lookaheadkv
