// Stable-ABI tensors as the paged descriptions of core/paged.h. Shared by the CPU and CUDA glue.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "core/paged.h"
#include "core/validate_paged.h"
#include "torch/tensors.h"

namespace lookaheadkv {

// The strides of a validated k_scale: one element, [Hkv] or [num_blocks, page_size, Hkv].
inline KeyScale key_scale(const OptionalTensor& k_scale) {
  if (!k_scale) return {};
  const float* data = k_scale->const_data_ptr<float>();
  const auto strides = k_scale->strides();
  if (k_scale->dim() == 3) return {data, strides[0], strides[1], strides[2]};
  return {data, 0, 0, k_scale->dim() == 1 && k_scale->size(0) > 1 ? strides[0] : 0};
}

// A validated key_cache, whose keys become numbers of the query's dtype.
inline PagedView paged_view(const Tensor& key_cache, const Tensor& query,
                            const OptionalTensor& k_scale) {
  const auto strides = key_cache.strides();
  PagedView view;
  view.data = key_cache.const_data_ptr();
  view.dtype = dtype_of(element_type(query.scalar_type()));
  view.quantised = quantised_of(element_type(key_cache.scalar_type()));
  view.num_blocks = key_cache.size(0);
  view.page_size = key_cache.size(1);
  view.stride_block = strides[0];
  view.stride_slot = strides[1];
  view.stride_h = strides[2];
  view.scale = key_scale(k_scale);
  return view;
}

// A contiguous table.
inline BlockTable table_of(const Tensor& table) {
  return {table.const_data_ptr<int32_t>(), table.size(1)};
}

// A validated [num_blocks, page_size, Hkv] or [num_blocks, page_size, Hkv, D] tensor.
inline CacheBytes cache_bytes(const Tensor& cache) {
  const auto strides = cache.strides();
  const int64_t size = cache.element_size();
  return {static_cast<char*>(cache.mutable_data_ptr()),
          (cache.dim() == 4 ? cache.size(3) : 1) * size, strides[0] * size, strides[1] * size,
          strides[2] * size};
}

inline std::vector<TensorInfo> infos(const char* name, const std::vector<Tensor>& tensors) {
  std::vector<TensorInfo> result;
  for (size_t i = 0; i < tensors.size(); ++i) {
    result.push_back(info(name, tensors[i], static_cast<int64_t>(i)));
  }
  return result;
}

// A validated compaction; its small tensors are contiguous.
inline Compaction compaction_of(const std::vector<Tensor>& caches, const Tensor& indices,
                                const Tensor& kept_lens, const Tensor& src, const Tensor& dst,
                                const OptionalTensor& dst_start) {
  Compaction c;
  c.num_layers = indices.size(0);
  c.parts = static_cast<int64_t>(caches.size()) / c.num_layers;
  c.num_requests = indices.size(1);
  c.num_kv_heads = caches[0].size(2);
  c.index_heads = indices.size(2);
  c.num_slots = indices.size(3);
  c.num_blocks = caches[0].size(0);
  // No position reaches past int32: a larger page is one page.
  c.page_size = std::min<int64_t>(caches[0].size(1), std::numeric_limits<int32_t>::max());
  c.indices = indices.const_data_ptr<int32_t>();
  c.kept_lens = kept_lens.const_data_ptr<int32_t>();
  c.dst_start = lengths_ptr(dst_start);
  c.src = table_of(src);
  c.dst = table_of(dst);
  return c;
}

}  // namespace lookaheadkv
