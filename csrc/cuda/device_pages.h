// Host side of keys.cuh: converts a call on a paged cache to the kernels' structs.
#pragma once

#include <algorithm>

#include "cuda/device_problem.h"
#include "cuda/keys.cuh"
#include "cuda/paged_kernels.h"

namespace lookaheadkv::cuda {

inline DeviceBatchPlan device_plan(const BatchPlan& plan) {
  return {plan.fields, static_cast<int32_t>(plan.num_requests)};
}

// Sizes as if every request had the maximal length and number of rows.
inline DeviceProblem device_problem(const PagedProblem& paged) {
  Problem problem;
  problem.batch = paged.batch.num_requests;
  problem.num_heads = paged.num_heads;
  problem.num_kv_heads = paged.num_kv_heads;
  problem.num_rows = std::max<int64_t>(1, std::min(paged.batch.num_rows, paged.batch.max_seq_len));
  problem.num_prompt = paged.batch.max_seq_len;
  problem.head_dim = paged.head_dim;
  problem.scale = paged.scale;
  return device_problem(problem, paged.query, paged.query, paged.query);
}

inline DevicePages device_pages(const PagedProblem& paged, const BatchPlan& plan) {
  const PagedView& cache = paged.cache;
  // Quantised keys are read eight bytes at once.
  const int64_t bytes = cache.quantised == Quantised::kNone ? 16 : 8;
  bool vector = reinterpret_cast<uintptr_t>(cache.data) % static_cast<uintptr_t>(bytes) == 0;
  for (const int64_t stride : {cache.stride_block, cache.stride_slot, cache.stride_h}) {
    vector = vector && stride * cache.bytes_per_element() % bytes == 0;
  }
  return {static_cast<const char*>(cache.data), cache.stride_block, cache.stride_slot,
          cache.stride_h, vector, static_cast<int32_t>(cache.quantised), cache.scale.data,
          cache.scale.stride_block, cache.scale.stride_slot, cache.scale.stride_h,
          paged.table.blocks, paged.table.max_blocks, static_cast<int32_t>(cache.num_blocks),
          // No position reaches past int32: a larger page is one page.
          static_cast<int32_t>(std::min<int64_t>(cache.page_size, 0x7fffffff)), device_plan(plan)};
}

}  // namespace lookaheadkv::cuda
