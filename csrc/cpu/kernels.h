// The CPU kernels, torch-free: attention -> scores -> select -> gather.
//
// Callers validate first (csrc/core/validate.h); nothing here checks or allocates tensors. Every
// result is independent of the number of threads: work is cut by pure functions of the shapes
// (csrc/cpu/splits.h) and partial results are combined in a fixed order.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/paged.h"
#include "core/problem.h"
#include "cpu/key_source.h"

namespace lookaheadkv::cpu {

// Hands out the tasks of one parallel region in ascending order, each to exactly one thread.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}
  bool take(int64_t& task) {
    task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_;
  }

 private:
  const int64_t count_;
  std::atomic<int64_t> next_{0};
};

// Runs body on one or more threads, all taking from one Tasks until it is empty, and returns when
// all are done: if the system preempts a thread, the others take over its remaining tasks. At most
// one further thread is woken per `grain` tasks: waiting for one costs more than a small copy. An
// exception thrown by a body reaches the caller, at least its text.
class Executor {
 public:
  using Body = std::function<void(Tasks&)>;
  virtual ~Executor() = default;
  virtual void run(int64_t tasks, int64_t grain, const Body& body) const = 0;
};

// --- attention (attention.cpp)

// Rows `query` [B, Hq, L, D] over keys [B, Hkv, N + L, D]; row i sees keys 0 .. N + i.
// out [B, Hq, L, D] contiguous in the query's dtype (null: only lse), lse [B, Hq, L] natural log.
void attention(const Problem& problem, const TensorView& query, const KeySource& key,
               const TensorView& value, void* out, float* lse, const Executor& executor);

// --- scores (scores.cpp)

// scores [B, Hkv, N]: mean over the G * L rows of exp(scale * q k^T - lse); 0 on padding.
void column_scores(const Problem& problem, const TensorView& query, const KeySource& key,
                   const float* lse, float* scores, const Executor& executor);

// Both of the above; without `out` nothing of `value` is read. Computes q k^T once where
// attention() and column_scores() would twice, keeping probability tiles of up to tile_cache_bytes:
// about one KV head of a 32K prompt in fp32 (128 rows), or two in 16 bits, which a usual L3 holds.
constexpr int64_t kTileCacheBytes = int64_t{20} << 20;
void attention_and_scores(const Problem& problem, const TensorView& query, const KeySource& key,
                          const TensorView& value, void* out, float* lse, float* scores,
                          const Executor& executor, int64_t tile_cache_bytes = kTileCacheBytes);

// --- the whole prompt (prefill.cpp)

// All S = N + L rows of `query` [B, Hq, S, D], causal: out [B, Hq, S, D], lse [B, Hq, S], and the
// scores [B, Hkv, N] of the last L rows. `problem` describes those L rows.
void prefill_attention(const Problem& problem, const TensorView& query, const TensorView& key,
                       const TensorView& value, void* out, float* lse, float* scores,
                       const Executor& executor);

// --- backward (scores_backward.cpp)

// grad_query [B, Hq, L, D] and grad_key [B, Hkv, N + L, D], contiguous, in the inputs' dtype.
void column_scores_backward(const Problem& problem, const TensorView& query, const TensorView& key,
                            const float* lse, const float* grad_scores, void* grad_query,
                            void* grad_key, const Executor& executor);

// --- select (select.cpp)

// scores [B, Hkv, N] contiguous -> indices [B, Hkv, min(budget, N) + append_rows], ascending, -1
// in the slots at the end that a padded row cannot fill.
void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, const Executor& executor);

// --- gather (gather.cpp)

// Rows indices [B, Hkv, K] of key and value -> [B, Hkv, K, D] contiguous; -1 gives zeros.
void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t head_dim, const TensorView& key,
               const TensorView& value, const int32_t* indices, int64_t num_kept, void* out_key,
               void* out_value, const Executor& executor);

// --- paged caches (paged_scores.cpp, paged_select.cpp, compact.cpp)

// scores [R, Hkv, max_seq_len], all of them written: those of column_scores() for each request, bit
// by bit, 0 elsewhere. With `selection` only requests that it evicts from are scored.
void paged_column_scores(const PagedProblem& paged, const PagedSelection* selection, float* scores,
                         const Executor& executor);

// scores [R, Hkv, max_seq_len] contiguous -> indices [R, Hkv or 1, max_budget], kept_lens [R].
void paged_select(const PagedBatch& batch, int64_t num_kv_heads, const float* scores,
                  const PagedSelection& selection, int32_t* indices, int32_t* kept_lens,
                  const Executor& executor);

// caches: num_layers * parts of them, layer by layer. Takes no memory.
void compact_kv_cache(const Compaction& compaction, const CacheBytes* caches,
                      const Executor& executor);

// --- instruction sets (isa/dispatch.cpp)

// Names this machine can run, best first, e.g. {"avx512_bf16", "avx512", "avx2", "portable"}.
std::vector<const char*> supported_isas();

// The one in use: LOOKAHEADKV_CPU_ISA if set (an error when unknown or not supported), else the
// best. Read anew at every call, so that a test can switch.
const char* active_isa();

}  // namespace lookaheadkv::cpu
