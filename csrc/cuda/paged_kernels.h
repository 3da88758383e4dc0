// The CUDA kernels on paged caches, torch-free. As in kernels.h: callers validate, nothing here
// allocates or waits, and while a workspace only counts nothing is launched.
//
// Values that only the device knows (lengths, block ids, budgets, positions) are clamped there.
#pragma once

#include "core/paged.h"
#include "cuda/kernels.h"

namespace lookaheadkv::cuda {

// --- the lengths, computed once for all kernels of an op (paged_plan.cu)

struct BatchPlan {
  const int32_t* fields = nullptr;  // [kRequestFields, R], see RequestField in keys.cuh
  int64_t num_requests = 0;
};

struct PlanOptions {
  int64_t num_queries = 0;  // T, packed
  int64_t most_keys = 0;    // upper bound of a request's length
  bool score_all = false;   // score every request, whatever its budget
};

// Takes the plan's memory from `workspace`; writes kept_lens [R], too, unless it is null.
BatchPlan plan_batch(const PagedBatch& batch, const PagedSelection& selection,
                     const PlanOptions& options, int32_t* kept_lens, Workspace& workspace,
                     const Device& device);

// --- attention and scores (attention.cu, scores.cu)

// The log-sum-exp of every request's observation rows, in parts.
RowLse paged_attention(const PagedProblem& problem, const BatchPlan& plan, Workspace& workspace,
                       const Device& device);

// scores [R, Hkv, max_seq_len] contiguous.
void paged_column_scores(const PagedProblem& problem, const BatchPlan& plan, float* scores,
                         Workspace& workspace, const Device& device);

// --- select (paged_select.cu)

// scores [R, Hkv, max_seq_len] contiguous -> indices [R, Hkv or 1, max_budget].
void paged_select(const PagedBatch& batch, int64_t num_kv_heads, const float* scores,
                  const PagedSelection& selection, const BatchPlan& plan, int32_t* indices,
                  Workspace& workspace, const Device& device);

// --- compaction (compact.cu)

// `caches` [num_layers * parts], each in bytes; see docs/paged.md for the contract.
void compact_kv_cache(const Compaction& compaction, const CacheBytes* caches, const Device& device);

}  // namespace lookaheadkv::cuda
