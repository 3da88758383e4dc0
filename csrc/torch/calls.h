// What the torch ops on dense caches do on every device before a kernel runs: check the arguments,
// keep the contiguous copies that the kernels point into, allocate results.
#pragma once

#include <algorithm>

#include "torch/tensors.h"

namespace lookaheadkv {

// The validated arguments that the scoring ops share. Holds the contiguous copies it points into.
struct Call {
  Problem problem;
  TensorView query, key, value;  // value is the key if the op has none
  OptionalTensor lse;
  OptionalTensor leftpad_k;
  OptionalTensor seqused_k;

  Call(const Validator& check, const Tensor& query_in, const Tensor& key_in, const Tensor* value_in,
       const OptionalTensor& lse_in, std::optional<double> scale, const OptionalTensor& leftpad_in,
       const OptionalTensor& seqused_in) {
    const TensorInfo q = info("query", query_in);
    const TensorInfo k = info("key", key_in);
    const std::optional<TensorInfo> v =
        value_in ? std::optional<TensorInfo>(info("value", *value_in)) : std::nullopt;
    check.attention_inputs(q, k, v ? &*v : nullptr);
    const int64_t batch = q.shape[0], num_prompt = k.shape[2] - q.shape[2];
    if (lse_in) {
      check.float_tensor(info("lse", *lse_in), {batch, q.shape[1], q.shape[2]}, q);
    }
    if (leftpad_in) check.lengths(info("leftpad_k", *leftpad_in), batch, q);
    if (seqused_in) check.lengths(info("seqused_k", *seqused_in), batch, q);
    lse = contiguous(lse_in);
    leftpad_k = contiguous(leftpad_in);
    seqused_k = contiguous(seqused_in);
    // On other devices, looking at values would wait for the device.
    if (query_in.is_cpu()) {
      check.length_values(lengths_ptr(leftpad_k), lengths_ptr(seqused_k), batch, num_prompt);
    }
    check.scale(scale);
    query = view(query_in);
    key = view(key_in);
    value = value_in ? view(*value_in) : key;
    problem = {batch,
               q.shape[1],
               k.shape[1],
               q.shape[2],
               num_prompt,
               q.shape[3],
               scale.value_or(1.0 / std::sqrt(static_cast<double>(q.shape[3]))),
               lengths_ptr(leftpad_k),
               lengths_ptr(seqused_k)};
  }

  const float* given_lse() const { return floats_ptr(lse); }
};

inline Tensor empty_scores(const Problem& p, const Tensor& like) {
  return empty_like_device(like, {p.batch, p.num_kv_heads, p.num_prompt}, ScalarType::Float);
}

inline Tensor empty_lse(const Problem& p, const Tensor& like) {
  return empty_like_device(like, {p.batch, p.num_heads, p.num_rows}, ScalarType::Float);
}

inline int64_t num_slots(const Problem& p, const SelectOptions& options) {
  return std::min(options.budget, p.num_prompt) + options.append_rows;
}

inline Tensor empty_indices(const Problem& p, const SelectOptions& options, const Tensor& like) {
  return empty_like_device(like, {p.batch, p.num_kv_heads, num_slots(p, options)}, ScalarType::Int);
}

}  // namespace lookaheadkv
