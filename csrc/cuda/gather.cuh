// Pieces of the gather: what is copied, and one chunk of it.
#pragma once

#include "cuda/device_problem.h"
#include "cuda/kernels.h"

namespace lookaheadkv::cuda {

struct GatherParams {
  DeviceTensor key, value;
  const int32_t* indices;  // [B, Hkv, K]
  char* out_key;           // [B, Hkv, K, D]
  char* out_value;
  int64_t rows;  // B * Hkv
  int64_t num_kept;
  int32_t row_chunks;  // of a kept row, 16 bytes each
  int32_t kv_heads, num_keys;
};

// A chunk that is only aligned to elements of type E.
template <class E>
__device__ __forceinline__ Bytes16 load_chunk(const char* from) {
  union {
    E elements[16 / sizeof(E)];
    Bytes16 bytes;
  } chunk;
#pragma unroll
  for (size_t i = 0; i < 16 / sizeof(E); ++i) {
    chunk.elements[i] = reinterpret_cast<const E*>(from)[i];
  }
  return chunk.bytes;
}

// One chunk of entry `slot` of the outputs, of K and of V, which is one of row (b, h). E: unsigned
// integer as large as an element.
template <class E>
__device__ __forceinline__ void gather_chunk(const GatherParams& params, int64_t b, int64_t h,
                                             int64_t slot, int chunk) {
  int index = params.indices[slot];
  index = index < params.num_keys ? index : params.num_keys - 1;
  const auto copy = [&](const DeviceTensor& tensor, char* out) {
    Bytes16 bytes = {};
    if (index >= 0) {
      const char* const from =
          tensor.data +
          (b * tensor.stride_b + h * tensor.stride_h + index * tensor.stride_s) *
              static_cast<int64_t>(sizeof(E)) +
          chunk * 16;
      bytes = tensor.vector ? load_bytes16(from) : load_chunk<E>(from);
    }
    store_bytes16(out + (slot * params.row_chunks + chunk) * 16, bytes);
  };
  copy(params.key, params.out_key);
  copy(params.value, params.out_value);
}

// The same for chunks begin, begin + step, .. (kCount of them, below `end`) of the entries of row
// (b, h), the first of which is entry `slot`; rows begin at multiples of 16 bytes. All indices are
// loaded before any chunk, and all chunks before any is stored: the compiler does not move loads
// across stores.
template <class E, int kCount>
__device__ __forceinline__ void gather_chunks(const GatherParams& params, int64_t b, int64_t h,
                                              int64_t slot, int begin, int step, int end) {
  int index[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int at = begin + i * step;
    index[i] = at < end ? params.indices[slot + at / params.row_chunks] : -1;
    index[i] = index[i] < params.num_keys ? index[i] : params.num_keys - 1;
  }
  const auto load = [&](Bytes16(&bytes)[kCount], const DeviceTensor& tensor) {
    const char* const head =
        tensor.data + (b * tensor.stride_b + h * tensor.stride_h) * static_cast<int64_t>(sizeof(E));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      bytes[i] = {};
      if (index[i] < 0) continue;
      const int chunk = (begin + i * step) % params.row_chunks;
      bytes[i] = load_bytes16(head + index[i] * tensor.stride_s * static_cast<int64_t>(sizeof(E)) +
                              chunk * 16);
    }
  };
  const auto store = [&](char* out, const Bytes16(&bytes)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int at = begin + i * step;
      if (at < end) store_bytes16(out + (slot * params.row_chunks + at) * 16, bytes[i]);
    }
  };
  Bytes16 key[kCount], value[kCount];
  load(key, params.key);
  load(value, params.value);
  store(params.out_key, key);
  store(params.out_value, value);
}

inline GatherParams gather_params(int64_t batch, int64_t num_kv_heads, int64_t num_keys,
                                  int64_t head_dim, const TensorView& key, const TensorView& value,
                                  const int32_t* indices, int64_t num_kept, void* out_key,
                                  void* out_value) {
  return {device_tensor(key),
          device_tensor(value),
          indices,
          static_cast<char*>(out_key),
          static_cast<char*>(out_value),
          batch * num_kv_heads,
          num_kept,
          static_cast<int32_t>(head_dim * element_size(key.dtype) / 16),
          static_cast<int32_t>(num_kv_heads),
          static_cast<int32_t>(num_keys)};
}

}  // namespace lookaheadkv::cuda
