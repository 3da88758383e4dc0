// Plain descriptions of the calls on paged caches, shared by every compiled backend. No torch.
//
// Position p of request r is slot p % page_size of block block_table[r][p / page_size]. What the
// lengths mean is written down once, in request_of() and budget_of(): lookaheadkv_kernels/paged.py
// says it in words.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.h"

namespace lookaheadkv {

// How a stored key becomes a number: as it is, or from 8 bits, times a scale.
enum class Quantised : int { kNone = 0, kFloat8E4M3 = 1, kFloat8E5M2 = 2, kInt8 = 3 };

// What quantised keys are multiplied by; a stride is 0 if the scale does not depend on that index.
struct KeyScale {
  const float* data = nullptr;  // null: 1
  int64_t stride_block = 0;
  int64_t stride_slot = 0;
  int64_t stride_h = 0;

  // Whether entries of one head may have different scales.
  bool per_entry() const { return stride_block != 0 || stride_slot != 0; }
  float at(int64_t block, int64_t slot, int64_t h) const {
    return data[block * stride_block + slot * stride_slot + h * stride_h];
  }
};

// A read-only cache [num_blocks, page_size, Hkv, D] with any strides (in elements); the last
// dimension is contiguous.
struct PagedView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;  // the query's; also the cache's unless it is quantised
  Quantised quantised = Quantised::kNone;
  int64_t num_blocks = 0;
  int64_t page_size = 1;
  int64_t stride_block = 0;
  int64_t stride_slot = 0;
  int64_t stride_h = 0;
  KeyScale scale;

  int64_t bytes_per_element() const {
    return quantised == Quantised::kNone ? element_size(dtype) : 1;
  }
  const void* row(int64_t block, int64_t slot, int64_t h) const {
    return static_cast<const char*>(data) +
           (block * stride_block + slot * stride_slot + h * stride_h) * bytes_per_element();
  }
};

// The requests of one call.
struct PagedBatch {
  int64_t num_requests = 0;               // R
  int64_t num_rows = 0;                   // at most so many observation rows per request
  int64_t max_seq_len = 0;                // columns of the scores
  const int32_t* cu_seqlens_q = nullptr;  // [R + 1]
  const int32_t* seq_lens = nullptr;      // [R]
};

struct BlockTable {
  const int32_t* blocks = nullptr;  // [R, max_blocks], contiguous
  int64_t max_blocks = 0;

  const int32_t* row(int64_t r) const { return blocks + r * max_blocks; }
};

// One call that scores the keys of a paged cache.
struct PagedProblem {
  PagedBatch batch;
  PagedView cache;
  BlockTable table;
  TensorView query;  // [T, Hq, D]: stride_s from one packed query to the next, stride_b unused
  int64_t num_queries = 0;   // T
  int64_t num_heads = 0;     // Hq
  int64_t num_kv_heads = 0;  // Hkv, divides Hq
  int64_t head_dim = 0;      // D
  double scale = 1.0;
  const float* lse = nullptr;  // [T, Hq] natural log; null: it is computed
  int64_t lse_stride_row = 0;
  int64_t lse_stride_h = 0;
};

enum class HeadReduction : int { kNone = 0, kMean = 1, kMax = 2 };

// What is kept of each request.
struct PagedSelection {
  const int32_t* budgets = nullptr;  // [R]; null: max_budget
  int64_t max_budget = 0;
  int64_t pool_kernel = 7;
  int64_t num_sink = 0;
  int64_t num_recent = 0;
  bool keep_observation = false;
  HeadReduction head_reduction = HeadReduction::kNone;

  // Heads of the indices: one choice for each KV head, or one for all.
  int64_t index_heads(int64_t num_kv_heads) const {
    return head_reduction == HeadReduction::kNone ? num_kv_heads : 1;
  }
  int64_t budget_of(int64_t r) const { return budgets ? budgets[r] : max_budget; }
};

// What the lengths say about one request.
struct Request {
  int64_t rows;       // L_r
  int64_t first_row;  // place of the first among the packed queries
  int64_t prompt;     // N_r

  int64_t entries(bool keep_observation) const { return keep_observation ? prompt + rows : prompt; }
  // Whether the scores decide what is kept; if not, everything is.
  bool evicts(const PagedSelection& selection, int64_t r) const {
    const int64_t budget = selection.budget_of(r);
    return rows > 0 && budget > 0 && entries(selection.keep_observation) > budget;
  }
  // The length after compaction; a request that takes no part keeps everything.
  int64_t kept_length(const PagedSelection& selection, int64_t r) const {
    const int64_t budget = selection.budget_of(r);
    if (budget <= 0) return prompt + rows;
    return evicts(selection, r) ? budget : entries(selection.keep_observation);
  }
};

inline Request request_of(const PagedBatch& batch, int64_t r) {
  const int64_t end = batch.cu_seqlens_q[r + 1];
  const int64_t rows = std::min(batch.num_rows, end - batch.cu_seqlens_q[r]);
  return {rows, end - rows, batch.seq_lens[r] - rows};
}

// A cache to be compacted, by bytes.
struct CacheBytes {
  char* data = nullptr;
  int64_t row_bytes = 0;  // size of one entry of one head
  int64_t stride_block = 0;
  int64_t stride_slot = 0;
  int64_t stride_h = 0;

  char* row(int64_t block, int64_t slot, int64_t h) const {
    return data + block * stride_block + slot * stride_slot + h * stride_h;
  }
};

// One compaction: entry j of a head goes from position indices[layer, r, h, j] to position
// dst_start[layer, r] + j.
struct Compaction {
  int64_t num_layers = 0;
  int64_t parts = 0;  // caches per layer
  int64_t num_requests = 0;
  int64_t num_kv_heads = 0;
  int64_t index_heads = 0;  // Hkv, or 1: all heads of a slot move together
  int64_t num_slots = 0;    // K
  int64_t num_blocks = 0;
  int64_t page_size = 1;
  const int32_t* indices = nullptr;    // [num_layers, R, index_heads, K]
  const int32_t* kept_lens = nullptr;  // [num_layers, R]
  const int32_t* dst_start = nullptr;  // [num_layers, R]; null: 0
  BlockTable src;
  BlockTable dst;

  const int32_t* head_indices(int64_t layer, int64_t r, int64_t h) const {
    return indices + ((layer * num_requests + r) * index_heads + h % index_heads) * num_slots;
  }
  // Number of entries per head that move; 0 for a request that takes no part.
  int64_t count(int64_t layer, int64_t r) const {
    const int64_t kept = kept_lens[layer * num_requests + r];
    const bool none = kept <= 0 || num_slots == 0 || head_indices(layer, r, 0)[0] < 0;
    return none ? 0 : std::min(kept, num_slots);
  }
  int64_t start(int64_t layer, int64_t r) const {
    return dst_start ? dst_start[layer * num_requests + r] : 0;
  }
};

}  // namespace lookaheadkv
