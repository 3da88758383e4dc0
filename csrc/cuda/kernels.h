// The CUDA kernels, torch-free: attention -> scores -> select -> gather. The twin of cpu/kernels.h.
//
// Callers validate first. Nothing here allocates: temporary memory comes from a caller-provided
// workspace, whose size depends on the shapes and the chip alone. Nothing waits for the device.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace lookaheadkv::cuda {

// The stream and the chip that a call runs on.
struct Device {
  void* stream;  // cudaStream_t of the current device
  int num_sms;   // multiprocessors()
};

int multiprocessors_of_current_device();

// Hands out parts of one allocation; without an allocation it only counts.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)), counting_(false) {}
  // Aligned to 256 bytes; null while counting.
  template <class T>
  T* take(int64_t count) {
    const int64_t at = size_;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return counting_ ? nullptr : reinterpret_cast<T*>(memory_ + at);
  }
  int64_t size() const { return size_; }
  bool counting() const { return counting_; }

 private:
  char* memory_ = nullptr;
  bool counting_ = true;
  int64_t size_ = 0;
};

// Every function below first takes its temporary memory from `workspace`. While that only counts,
// the function launches nothing and reads no pointer of the call.

// The log-sum-exp of the observation rows, as the scores need it: given, or in parts (base 2).
struct RowLse {
  const float* given = nullptr;  // natural log, [B, Hq] rows `head_stride` apart
  int64_t head_stride = 0;
  const float* parts = nullptr;  // [B * Hkv, num_parts, G * L]
  int32_t num_parts = 0;
};

// --- attention (attention.cu)

// out [B, Hq, L, D] contiguous (null: only the log-sum-exp), lse [B, Hq, L] natural log (null: only
// its parts, which are returned either way and live in the workspace).
RowLse attention(const Problem& problem, const TensorView& query, const TensorView& key,
                 const TensorView& value, void* out, float* lse, Workspace& workspace,
                 const Device& device);

// All S = N + L rows of `query`, causal: out [B, Hq, S, D], lse [B, Hq, S]. `problem` describes the
// last L rows; the result is their log-sum-exp.
RowLse prefill_attention(const Problem& problem, const TensorView& query, const TensorView& key,
                         const TensorView& value, void* out, float* lse, Workspace& workspace,
                         const Device& device);

// --- scores (scores.cu)

// Words that a kernel sets to zero for the kernel after it.
struct Cleared {
  int32_t* words = nullptr;
  int64_t count = 0;
};

// scores [B, Hkv, N]: mean over the G * L rows of exp(scale * q k^T - lse); 0 on padding.
// `follows`: see launch.cuh. With N = 0 nothing is launched, nothing cleared.
void column_scores(const Problem& problem, const TensorView& query, const TensorView& key,
                   const RowLse& lse, float* scores, bool follows, const Device& device,
                   const Cleared& cleared = {});

// --- backward (scores_backward.cu)

// grad_query [B, Hq, L, D] and grad_key [B, Hkv, N + L, D], contiguous, in the inputs' dtype.
void column_scores_backward(const Problem& problem, const TensorView& query, const TensorView& key,
                            const float* lse, const float* grad_scores, void* grad_query,
                            void* grad_key, Workspace& workspace, const Device& device);

// --- select (select.cu)

// scores [B, Hkv, N] contiguous -> indices [B, Hkv, min(budget, N) + append_rows], as on the CPU.
void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, Workspace& workspace, bool follows, const Device& device);

// --- gather (gather.cu)

// Rows indices [B, Hkv, K] of key and value [B, Hkv, S, D] -> [B, Hkv, K, D] contiguous; -1 gives
// zeros, and an index past the end gives the last row.
void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t num_keys, int64_t head_dim,
               const TensorView& key, const TensorView& value, const int32_t* indices,
               int64_t num_kept, void* out_key, void* out_value, bool follows,
               const Device& device);

// --- all of them (evict.cu)

// `lse` [B, Hq, L] natural log, or null: it is computed.
void score_and_evict(const Problem& problem, const TensorView& query, const TensorView& key,
                     const TensorView& value, const float* lse, const SelectOptions& options,
                     const Eviction& out, Workspace& workspace, const Device& device);

}  // namespace lookaheadkv::cuda
