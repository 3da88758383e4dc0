// The torch ops on CUDA: check, allocate, call the kernels of csrc/cuda. The twin of cpu/ops.cpp;
// see schema.cpp for the signatures and lookaheadkv_kernels/ops.py for what each op means.
//
// Everything runs on the current stream of the tensors' device, takes its memory from torch's
// caching allocator, and waits for nothing: no op can report a value that only the device knows.
#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include "cuda/kernels.h"
#include "cuda/on_device.h"
#include "torch/boxed.h"
#include "torch/calls.h"
#include "torch/op_library.h"
#include "torch/tensors.h"

namespace lookaheadkv::cuda {

namespace {

// The log-sum-exp that was given.
RowLse row_lse(const Call& call) {
  return {call.lse->const_data_ptr<float>(), call.problem.num_rows, nullptr, 0};
}

// Scores, with the log-sum-exp given or from a first sweep over the keys.
void scores_of(const Call& call, const Tensor& query, const Tensor& key, Tensor& scores,
               Workspace& workspace, const Device& device) {
  const RowLse lse = call.lse ? row_lse(call)
                              : attention(call.problem, view(query), view(key), view(key), nullptr,
                                          nullptr, workspace, device);
  if (workspace.counting()) return;
  column_scores(call.problem, view(query), view(key), lse, scores.mutable_data_ptr<float>(),
                !call.lse, device);
}

// ---- the ops

std::tuple<Tensor, Tensor, Tensor> op_lookahead_attention(Tensor query, Tensor key, Tensor value,
                                                          std::optional<double> scale,
                                                          OptionalTensor leftpad_k,
                                                          OptionalTensor seqused_k) {
  const Call call(Validator("lookahead_attention"), query, key, &value, std::nullopt, scale,
                  leftpad_k, seqused_k);
  const OnDevice on(query);
  const Problem& p = call.problem;
  Tensor out = empty_like_device(query, {p.batch, p.num_heads, p.num_rows, p.head_dim});
  Tensor lse = empty_lse(p, query);
  Tensor scores = empty_scores(p, query);
  with_workspace(query, [&](Workspace& workspace) {
    const RowLse parts = attention(p, view(query), view(key), view(value), out.mutable_data_ptr(),
                                   lse.mutable_data_ptr<float>(), workspace, on.device());
    if (workspace.counting()) return;
    column_scores(p, view(query), view(key), parts, scores.mutable_data_ptr<float>(), true,
                  on.device());
  });
  return {out, lse, scores};
}

Tensor op_column_scores(Tensor query, Tensor key, OptionalTensor lse, std::optional<double> scale,
                        OptionalTensor leftpad_k, OptionalTensor seqused_k) {
  const Call call(Validator("column_scores"), query, key, nullptr, lse, scale, leftpad_k,
                  seqused_k);
  const OnDevice on(query);
  Tensor scores = empty_scores(call.problem, query);
  with_workspace(query, [&](Workspace& workspace) {
    scores_of(call, query, key, scores, workspace, on.device());
  });
  return scores;
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
  const OnDevice on(query);
  const Tensor grad = torch::stable::contiguous(grad_scores);
  Tensor row_lse = call.lse ? *call.lse : empty_lse(p, query);
  Tensor grad_query = empty_like_device(query, {p.batch, p.num_heads, p.num_rows, p.head_dim});
  Tensor grad_key = empty_like_device(key, {p.batch, p.num_kv_heads, p.num_keys(), p.head_dim});
  with_workspace(query, [&](Workspace& workspace) {
    if (!call.lse) {
      attention(p, view(query), view(key), view(key), nullptr, row_lse.mutable_data_ptr<float>(),
                workspace, on.device());
    }
    column_scores_backward(p, view(query), view(key), row_lse.const_data_ptr<float>(),
                           grad.const_data_ptr<float>(), grad_query.mutable_data_ptr(),
                           grad_key.mutable_data_ptr(), workspace, on.device());
  });
  return {grad_query, grad_key};
}

std::tuple<Tensor, Tensor, Tensor> op_prefill_attention(Tensor query, Tensor key, Tensor value,
                                                        int64_t num_lookahead,
                                                        std::optional<double> scale) {
  const Validator check("prefill_attention");
  check.prefill_inputs(info("query", query), info("key", key), info("value", value), num_lookahead);
  check.scale(scale);
  const OnDevice on(query);
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
  with_workspace(query, [&](Workspace& workspace) {
    const RowLse rows =
        prefill_attention(p, view(query), view(key), view(value), out.mutable_data_ptr(),
                          lse.mutable_data_ptr<float>(), workspace, on.device());
    if (workspace.counting()) return;
    TensorView last = view(query);
    last.data = last.row(0, 0, p.num_prompt);
    column_scores(p, last, view(key), rows, scores.mutable_data_ptr<float>(), true, on.device());
  });
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
  check.budget(budget, pool_kernel, num_sink, num_recent, std::nullopt);
  const OnDevice on(scores);
  const OptionalTensor first = contiguous(leftpad_k), last = contiguous(seqused_k);
  problem.leftpad_k = lengths_ptr(first);
  problem.seqused_k = lengths_ptr(last);
  const Tensor rows = torch::stable::contiguous(scores);
  const SelectOptions options = {budget, pool_kernel, num_sink, num_recent, 0};
  Tensor indices = empty_indices(problem, options, scores);
  with_workspace(scores, [&](Workspace& workspace) {
    select(problem, rows.const_data_ptr<float>(), options, indices.mutable_data_ptr<int32_t>(),
           workspace, false, on.device());
  });
  return indices;
}

std::tuple<Tensor, Tensor> op_gather_kv(Tensor key, Tensor value, Tensor indices) {
  Validator("gather_kv")
      .gather_inputs(info("key", key), info("value", value), info("indices", indices));
  const OnDevice on(key);
  const Tensor kept = torch::stable::contiguous(indices);
  const int64_t batch = key.size(0), heads = key.size(1), dim = key.size(3);
  Tensor out_key = empty_like_device(key, {batch, heads, kept.size(2), dim});
  Tensor out_value = empty_like_device(key, {batch, heads, kept.size(2), dim});
  gather_kv(batch, heads, key.size(2), dim, view(key), view(value), kept.const_data_ptr<int32_t>(),
            kept.size(2), out_key.mutable_data_ptr(), out_value.mutable_data_ptr(), false,
            on.device());
  return {out_key, out_value};
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
  const OnDevice on(query);
  const int64_t appended = keep_observation ? p.num_rows : 0;
  const SelectOptions options = {budget - appended, pool_kernel, num_sink, num_recent, appended};
  const int64_t slots = num_slots(p, options);
  Tensor scores = empty_scores(p, query);
  Tensor indices = empty_indices(p, options, query);
  Tensor out_key = empty_like_device(key, {p.batch, p.num_kv_heads, slots, p.head_dim});
  Tensor out_value = empty_like_device(key, {p.batch, p.num_kv_heads, slots, p.head_dim});
  const Eviction out = {out_key.mutable_data_ptr(), out_value.mutable_data_ptr(),
                        indices.mutable_data_ptr<int32_t>(), scores.mutable_data_ptr<float>()};
  with_workspace(query, [&](Workspace& workspace) {
    score_and_evict(p, view(query), view(key), view(value),
                    call.lse ? call.lse->const_data_ptr<float>() : nullptr, options, out, workspace,
                    on.device());
  });
  return {out_key, out_value, indices, scores};
}

}  // namespace

LOOKAHEADKV_LIBRARY_IMPL(CUDA, m) {
  m.impl("lookahead_attention", boxed<&op_lookahead_attention>);
  m.impl("column_scores", boxed<&op_column_scores>);
  m.impl("column_scores_backward", boxed<&op_column_scores_backward>);
  m.impl("prefill_attention", boxed<&op_prefill_attention>);
  m.impl("select", boxed<&op_select>);
  m.impl("gather_kv", boxed<&op_gather_kv>);
  m.impl("score_and_evict", boxed<&op_score_and_evict>);
}

}  // namespace lookaheadkv::cuda
