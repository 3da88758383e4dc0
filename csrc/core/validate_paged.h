// Argument checks of the ops on paged caches, with the texts of
// lookaheadkv_kernels/_checks_paged.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/paged.h"
#include "core/validate.h"

namespace lookaheadkv {

class PagedValidator : public Validator {
 public:
  using Validator::Validator;

  // What every op that scores takes: query [T, Hq, D], key_cache [num_blocks, page_size, Hkv, D],
  // block_table [R, max_blocks], cu_seqlens_q [R + 1], seq_lens [R], lse [T, Hq], k_scale.
  void scoring(const TensorInfo& query, const TensorInfo& key_cache, const TensorInfo& block_table,
               const TensorInfo& cu_seqlens_q, const TensorInfo& seq_lens, int64_t num_rows,
               int64_t max_seq_len, const std::optional<TensorInfo>& lse,
               const std::optional<double>& scale, const std::optional<TensorInfo>& k_scale) const;
  // scores [R, Hkv, max_seq_len] float32, and the lengths.
  void paged_scores(const TensorInfo& scores, const TensorInfo& cu_seqlens_q,
                    const TensorInfo& seq_lens, int64_t num_rows) const;
  // What every op that selects takes; `head_reduction` is the reduction's name.
  void selection(const PagedSelection& selection, const std::string& head_reduction,
                 const std::optional<TensorInfo>& budgets, const PagedBatch& batch,
                 const TensorInfo& owner) const;
  // The tensors that paged_score_and_select_out writes.
  void outputs(const TensorInfo& indices, const TensorInfo& kept_lens, const TensorInfo& scores,
               int64_t num_requests, int64_t num_kv_heads, const PagedSelection& selection,
               const TensorInfo& owner) const;
  // compact_kv_cache: caches each [num_blocks, page_size, Hkv, *].
  void compaction(const std::vector<TensorInfo>& caches, const TensorInfo& indices,
                  const TensorInfo& kept_lens, const TensorInfo& src_block_table,
                  const std::optional<TensorInfo>& dst_block_table,
                  const std::optional<TensorInfo>& dst_start) const;

  // Checks of values, for data that this process can read.
  void batch_values(const PagedBatch& batch, int64_t total_queries) const;
  void block_values(const PagedBatch& batch, const BlockTable& table, int64_t num_blocks,
                    int64_t page_size) const;
  void budget_values(const PagedBatch& batch, const PagedSelection& selection) const;
  // Indices ascend and lie in the tables, and no block is written that another request reads or
  // writes. At most 512 KiB of memory, whatever the sizes.
  void compaction_values(const Compaction& compaction) const;

 private:
  void cache_inputs(const TensorInfo& query, const TensorInfo& key_cache) const;
  void compacted_cache(const TensorInfo& cache, const TensorInfo& first) const;
  void batch_inputs(const TensorInfo& cu_seqlens_q, const TensorInfo& seq_lens, int64_t num_rows,
                    int64_t num_requests, const TensorInfo& owner) const;
  void block_table(const TensorInfo& table, std::optional<int64_t> num_requests,
                   const TensorInfo& owner) const;
  void max_seq_len(int64_t max_seq_len) const;
  void key_scale(const TensorInfo& k_scale, const TensorInfo& key_cache,
                 const TensorInfo& query) const;
  void moved_values(const Compaction& compaction, int64_t layer, int64_t r) const;
};

// kNone for a type that is not quantised.
Quantised quantised_of(ElementType type);

// kNone for a name that is not in the table, which validation refuses.
HeadReduction head_reduction_from_name(const std::string& name);

}  // namespace lookaheadkv
