// The CPU kernels, torch-free: attention -> scores -> select -> gather.
//
// Callers validate first (csrc/core/validate.h); nothing here checks or allocates tensors. Every
// result is independent of the number of threads: work is cut by pure functions of the shapes
// (csrc/cpu/splits.h) and partial results are combined in a fixed order.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/problem.h"

namespace lookaheadkv::cpu {

// Runs body(begin, end) over disjoint ranges that cover [0, tasks), possibly in parallel, and
// returns when all are done. A thread is woken for no less than `grain` tasks: waiting for one
// costs more than a small copy. An exception thrown by a body reaches the caller.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual void run(int64_t tasks, int64_t grain,
                   const std::function<void(int64_t, int64_t)>& body) const = 0;
};

// --- attention (attention.cpp)

// Rows `query` [B, Hq, L, D] over keys [B, Hkv, N + L, D]; row i sees keys 0 .. N + i.
// out [B, Hq, L, D] contiguous in the query's dtype (null: only lse), lse [B, Hq, L] natural log.
void attention(const Problem& problem, const TensorView& query, const TensorView& key,
               const TensorView& value, void* out, float* lse, const Executor& executor);

// --- scores (scores.cpp, scores_backward.cpp)

// scores [B, Hkv, N]: mean over the G * L rows of exp(scale * q k^T - lse); 0 on padding.
void column_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                   const float* lse, float* scores, const Executor& executor);

// Both of the above; without `out` nothing of `value` is read. Computes q k^T once where
// attention() and column_scores() would twice.
void attention_and_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                          const TensorView& value, void* out, float* lse, float* scores,
                          const Executor& executor);

// grad_query [B, Hq, L, D] and grad_key [B, Hkv, N + L, D], contiguous, in the inputs' dtype.
void column_scores_backward(const Problem& problem, const TensorView& query, const TensorView& key,
                            const float* lse, const float* grad_scores, void* grad_query,
                            void* grad_key, const Executor& executor);

// --- select (select.cpp)

struct SelectOptions {
  int64_t budget = 0;  // 0 is legal here: nothing is kept
  int64_t pool_kernel = 7;
  int64_t num_sink = 0;
  int64_t num_recent = 0;
  int64_t append_rows = 0;  // positions N .. N + append_rows - 1 are put behind the kept ones
};

// scores [B, Hkv, N] contiguous -> indices [B, Hkv, min(budget, N) + append_rows], ascending, -1
// in the slots at the end that a padded row cannot fill.
void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, const Executor& executor);

// --- gather (gather.cpp)

// Rows indices [B, Hkv, K] of key and value -> [B, Hkv, K, D] contiguous; -1 gives zeros.
void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t head_dim, const TensorView& key,
               const TensorView& value, const int32_t* indices, int64_t num_kept, void* out_key,
               void* out_value, const Executor& executor);

// --- instruction sets (isa/dispatch.cpp)

// Names this machine can run, best first, e.g. {"avx512_bf16", "avx512", "avx2", "portable"}.
std::vector<const char*> supported_isas();

// The one in use: LOOKAHEADKV_CPU_ISA if set (an error when unknown or not supported), else the
// best. Read anew at every call, so that a test can switch.
const char* active_isa();

}  // namespace lookaheadkv::cpu
