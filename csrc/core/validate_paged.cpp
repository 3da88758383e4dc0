#include "core/validate_paged.h"

#include <algorithm>
#include <limits>

namespace lookaheadkv {

namespace {

constexpr int64_t kMaxPositions = std::numeric_limits<int32_t>::max();

std::string str(int64_t value) { return std::to_string(value); }

bool is_contiguous(const TensorInfo& tensor) {
  int64_t dense = 1;
  for (size_t i = tensor.shape.size(); i-- > 0; dense *= tensor.shape[i]) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != dense) return false;
  }
  return true;
}

}  // namespace

Quantised quantised_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat8E4M3:
      return Quantised::kFloat8E4M3;
    case ElementType::kFloat8E5M2:
      return Quantised::kFloat8E5M2;
    case ElementType::kInt8:
      return Quantised::kInt8;
    default:
      return Quantised::kNone;
  }
}

HeadReduction head_reduction_from_name(const std::string& name) {
  if (name == "mean") return HeadReduction::kMean;
  return name == "max" ? HeadReduction::kMax : HeadReduction::kNone;
}

void PagedValidator::scoring(const TensorInfo& query, const TensorInfo& key_cache,
                             const TensorInfo& table, const TensorInfo& cu_seqlens_q,
                             const TensorInfo& seq_lens, int64_t num_rows, int64_t columns,
                             const std::optional<TensorInfo>& lse,
                             const std::optional<double>& logit_scale,
                             const std::optional<TensorInfo>& k_scale) const {
  cache_inputs(query, key_cache);
  block_table(table, std::nullopt, query);
  batch_inputs(cu_seqlens_q, seq_lens, num_rows, table.shape[0], query);
  max_seq_len(columns);
  if (lse) float_tensor(*lse, {query.shape[0], query.shape[1]}, query);
  scale(logit_scale);
  if (k_scale) key_scale(*k_scale, key_cache, query);
}

void PagedValidator::paged_scores(const TensorInfo& scores, const TensorInfo& cu_seqlens_q,
                                  const TensorInfo& seq_lens, int64_t num_rows) const {
  if (scores.type != ElementType::kFloat32 || scores.shape.size() != 3) {
    fail("scores must be a float32 tensor of shape [R, Hkv, max_seq_len], got " + scores.typed());
  }
  if (scores.shape[1] < 1) {
    fail("scores must have at least one head, got Hkv=" + str(scores.shape[1]));
  }
  batch_inputs(cu_seqlens_q, seq_lens, num_rows, scores.shape[0], scores);
  max_seq_len(scores.shape[2]);
  aligned(scores);
}

void PagedValidator::selection(const PagedSelection& s, const std::string& head_reduction,
                               const std::optional<TensorInfo>& budgets, const PagedBatch& batch,
                               const TensorInfo& owner) const {
  budget(s.max_budget, s.pool_kernel, s.num_sink, s.num_recent,
         s.keep_observation ? std::optional<int64_t>(batch.num_rows) : std::nullopt, "max_budget");
  if (s.max_budget > kMaxPositions) {
    fail("max_budget must be at most " + str(kMaxPositions) + ", got " + str(s.max_budget));
  }
  if (head_reduction != "none" && head_reduction != "mean" && head_reduction != "max") {
    fail("head_reduction must be \"none\", \"mean\" or \"max\", got \"" + head_reduction + "\"");
  }
  if (budgets) int32_tensor(*budgets, {batch.num_requests}, owner);
}

void PagedValidator::outputs(const TensorInfo& indices, const TensorInfo& kept_lens,
                             const TensorInfo& scores, int64_t num_requests, int64_t num_kv_heads,
                             const PagedSelection& selection, const TensorInfo& owner) const {
  int32_tensor(indices, {num_requests, selection.index_heads(num_kv_heads), selection.max_budget},
               owner);
  int32_tensor(kept_lens, {num_requests}, owner);
  const int64_t columns = scores.shape.size() == 3 ? scores.shape[2] : 0;
  float_tensor(scores, {num_requests, num_kv_heads, columns}, owner);
  for (const TensorInfo* tensor : {&indices, &kept_lens, &scores}) {
    if (!is_contiguous(*tensor)) fail(tensor->label() + " must be contiguous");
  }
}

void PagedValidator::compaction(const std::vector<TensorInfo>& caches, const TensorInfo& indices,
                                const TensorInfo& kept_lens, const TensorInfo& src_block_table,
                                const std::optional<TensorInfo>& dst_block_table,
                                const std::optional<TensorInfo>& dst_start) const {
  if (caches.empty()) fail("caches must hold at least one tensor");
  const TensorInfo& first = caches[0];
  for (const TensorInfo& cache : caches) compacted_cache(cache, first);
  const int64_t heads = first.shape[2];
  if (indices.type != ElementType::kInt32 || indices.shape.size() != 4 ||
      (indices.shape[2] != heads && indices.shape[2] != 1)) {
    fail("indices must be an int32 tensor of shape [num_layers, R, Hkv or 1, K] = [*, *, " +
         str(heads) + " or 1, *], got " + indices.typed());
  }
  same_device(indices, first);
  aligned(indices);
  const int64_t layers = indices.shape[0], requests = indices.shape[1];
  if (layers < 1 || static_cast<int64_t>(caches.size()) % layers != 0) {
    fail("caches must hold the same number of tensors for each of num_layers=" + str(layers) +
         " layers, got " + std::to_string(caches.size()));
  }
  int32_tensor(kept_lens, {layers, requests}, first);
  block_table(src_block_table, requests, first);
  if (dst_block_table) block_table(*dst_block_table, requests, first);
  if (dst_start) int32_tensor(*dst_start, {layers, requests}, first);
}

void PagedValidator::cache_inputs(const TensorInfo& query, const TensorInfo& key_cache) const {
  if (query.shape.size() != 3) {
    fail("query must have 3 dimensions [T, Hq, D], got shape " + shape_string(query.shape));
  }
  if (key_cache.shape.size() != 4) {
    fail("key_cache must have 4 dimensions [num_blocks, page_size, Hkv, D], got shape " +
         shape_string(key_cache.shape));
  }
  float_dtype(query);
  if (key_cache.type != query.type && quantised_of(key_cache.type) == Quantised::kNone) {
    fail("key_cache must have query's dtype " + query.dtype() +
         " or be float8_e4m3fn, float8_e5m2 or int8, got " + key_cache.dtype());
  }
  same_device(key_cache, query);
  const int64_t heads = query.shape[1], kv_heads = key_cache.shape[2];
  if (key_cache.shape[3] != query.shape[2]) {
    fail("key_cache must have query's head_dim " + str(query.shape[2]) + ", got " +
         str(key_cache.shape[3]));
  }
  head_dim(query.shape[2]);
  if (key_cache.shape[1] < 1) {
    fail("key_cache must have a page_size of at least 1, got " + str(key_cache.shape[1]));
  }
  if (kv_heads < 1) fail("key_cache must have at least one head, got Hkv=" + str(kv_heads));
  if (heads < 1 || heads % kv_heads != 0) {
    fail("query heads must be a positive multiple of KV heads, got Hq=" + str(heads) +
         ", Hkv=" + str(kv_heads));
  }
  last_dim_contiguous(query);
  last_dim_contiguous(key_cache);
}

void PagedValidator::compacted_cache(const TensorInfo& cache, const TensorInfo& first) const {
  const size_t dims = cache.shape.size();
  if (dims != 3 && dims != 4) {
    fail(cache.label() +
         " must have the dimensions [num_blocks, page_size, Hkv, D] or [num_blocks, page_size, "
         "Hkv], got shape " +
         shape_string(cache.shape));
  }
  if (cache.shape[1] < 1 || cache.shape[2] < 1) {
    fail(cache.label() + " must have at least one slot a page and one head, got shape " +
         shape_string(cache.shape));
  }
  if (!std::equal(first.shape.begin(), first.shape.begin() + 3, cache.shape.begin())) {
    fail(cache.label() + " must have caches[0]'s sizes " +
         shape_string({first.shape.begin(), first.shape.begin() + 3}) + ", got shape " +
         shape_string(cache.shape));
  }
  same_device(cache, first);
  for (size_t i = 0; i < 3; ++i) {
    if (cache.shape[i] > 1 && cache.strides[i] == 0) {
      fail(cache.label() + " must not be expanded: its entries would share memory");
    }
  }
  if (dims == 4) last_dim_contiguous(cache);
}

void PagedValidator::batch_inputs(const TensorInfo& cu_seqlens_q, const TensorInfo& seq_lens,
                                  int64_t num_rows, int64_t num_requests,
                                  const TensorInfo& owner) const {
  int32_tensor(cu_seqlens_q, {num_requests + 1}, owner);
  int32_tensor(seq_lens, {num_requests}, owner);
  if (num_rows < 1) fail("num_rows must be at least 1, got " + str(num_rows));
}

void PagedValidator::block_table(const TensorInfo& table, std::optional<int64_t> num_requests,
                                 const TensorInfo& owner) const {
  if (table.type != ElementType::kInt32 || table.shape.size() != 2 ||
      (num_requests && table.shape[0] != *num_requests)) {
    fail(table.label() + " must be an int32 tensor of shape [" +
         (num_requests ? str(*num_requests) : "R") + ", max_blocks], got " + table.typed());
  }
  same_device(table, owner);
  aligned(table);
}

void PagedValidator::max_seq_len(int64_t max_seq_len) const {
  if (max_seq_len < 0 || max_seq_len > kMaxPositions) {
    fail("max_seq_len must be in 0.." + str(kMaxPositions) + ", got " + str(max_seq_len));
  }
}

void PagedValidator::key_scale(const TensorInfo& k_scale, const TensorInfo& key_cache,
                               const TensorInfo& query) const {
  if (quantised_of(key_cache.type) == Quantised::kNone) {
    fail("k_scale is for a key_cache of float8_e4m3fn, float8_e5m2 or int8, got " +
         key_cache.dtype());
  }
  const std::vector<int64_t> entries(key_cache.shape.begin(), key_cache.shape.begin() + 3);
  const std::vector<int64_t>& shape = k_scale.shape;
  const bool one = shape.empty() || shape == std::vector<int64_t>{1};
  if (k_scale.type != ElementType::kFloat32 ||
      !(one || shape == std::vector<int64_t>{entries[2]} || shape == entries)) {
    fail("k_scale must be a float32 tensor of shape [], [1], [" + str(entries[2]) + "] or " +
         shape_string(entries) + ", got " + k_scale.typed());
  }
  same_device(k_scale, query);
  aligned(k_scale);
}

}  // namespace lookaheadkv
