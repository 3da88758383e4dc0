// The ops on NumPy arrays: the same checks, kernels, names and defaults as csrc/torch/ops.h.
#pragma once

#include <tuple>

#include "numpy/arrays.h"

namespace lookaheadkv::numpy {

using OptionalScale = std::optional<double>;
using OptionalThreads = std::optional<int64_t>;  // nullopt: one per usable CPU

struct Attention {
  py::array out;     // [B, Hq, R, D]
  py::array lse;     // [B, Hq, R] float32
  py::array scores;  // [B, Hkv, N] float32
};

struct KeyValue {
  py::array key;    // [B, Hkv, K, D]
  py::array value;  // [B, Hkv, K, D]
};

struct Evicted {
  py::array key;      // [B, Hkv, K, D]
  py::array value;    // [B, Hkv, K, D]
  py::array indices;  // [B, Hkv, K] int32
  py::array scores;   // [B, Hkv, N] float32
};

Attention lookahead_attention(const py::array& query, const py::array& key, const py::array& value,
                              OptionalScale scale, const OptionalArray& leftpad_k,
                              const OptionalArray& seqused_k, OptionalThreads num_threads);

py::array column_scores(const py::array& query, const py::array& key, const OptionalArray& lse,
                        OptionalScale scale, const OptionalArray& leftpad_k,
                        const OptionalArray& seqused_k, OptionalThreads num_threads);

Attention prefill_attention(const py::array& query, const py::array& key, const py::array& value,
                            int64_t num_lookahead, OptionalScale scale,
                            OptionalThreads num_threads);

py::array select(const py::array& scores, int64_t budget, int64_t pool_kernel, int64_t num_sink,
                 int64_t num_recent, const OptionalArray& leftpad_k, const OptionalArray& seqused_k,
                 OptionalThreads num_threads);

KeyValue gather_kv(const py::array& key, const py::array& value, const py::array& indices,
                   OptionalThreads num_threads);

Evicted score_and_evict(const py::array& query, const py::array& key, const py::array& value,
                        int64_t budget, const OptionalArray& lse, OptionalScale scale,
                        int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
                        bool keep_observation, const OptionalArray& leftpad_k,
                        const OptionalArray& seqused_k, OptionalThreads num_threads);

}  // namespace lookaheadkv::numpy
