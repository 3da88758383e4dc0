// Room 4: copies the kept rows of K and V.
#include "cuda/device_problem.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

namespace {

constexpr int kThreads = 256;

struct GatherParams {
  DeviceTensor key, value;
  const int32_t* indices;  // [B, Hkv, K]
  char* out_key;           // [B, Hkv, K, D]
  char* out_value;
  int64_t chunks;  // B * Hkv * K * D, in chunks of 16 bytes
  int64_t num_kept;
  int32_t row_chunks, kv_heads, num_keys;
};

// A chunk that is aligned to elements of type E only.
template <class E>
__device__ __forceinline__ Bytes16 load_chunk(const char* from) {
  union {
    E elements[16 / sizeof(E)];
    Bytes16 bytes;
  } chunk;
#pragma unroll
  for (size_t i = 0; i < 16 / sizeof(E); ++i)
    chunk.elements[i] = reinterpret_cast<const E*>(from)[i];
  return chunk.bytes;
}

// E: unsigned integer as large as an element. One chunk of K and the same of V a thread.
template <class E>
__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherParams params) {
  start_kernel();
  const int64_t at = block_index() * kThreads + thread_index();
  if (at >= params.chunks) return;
  const int64_t slot = at / params.row_chunks;  // of B * Hkv * K
  const int chunk = static_cast<int>(at % params.row_chunks);
  const int64_t unit = slot / params.num_kept;
  const int64_t b = unit / params.kv_heads, h = unit % params.kv_heads;
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
    store_bytes16(out + at * 16, bytes);
  };
  copy(params.key, params.out_key);
  copy(params.value, params.out_value);
}

}  // namespace

void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t num_keys, int64_t head_dim,
               const TensorView& key, const TensorView& value, const int32_t* indices,
               int64_t num_kept, void* out_key, void* out_value, bool follows,
               const Device& device) {
  const int64_t row_chunks = head_dim * element_size(key.dtype) / 16;
  GatherParams params = {};
  params.key = device_tensor(key);
  params.value = device_tensor(value);
  params.indices = indices;
  params.out_key = static_cast<char*>(out_key);
  params.out_value = static_cast<char*>(out_value);
  params.chunks = batch * num_kv_heads * num_kept * row_chunks;
  params.num_kept = num_kept;
  params.row_chunks = static_cast<int32_t>(row_chunks);
  params.kv_heads = static_cast<int32_t>(num_kv_heads);
  params.num_keys = static_cast<int32_t>(num_keys);
  launch(element_size(key.dtype) == 4 ? gather_kernel<uint32_t> : gather_kernel<uint16_t>,
         ceil_div(params.chunks, kThreads), kThreads, 0, static_cast<Stream>(device.stream),
         follows, params);
}

}  // namespace lookaheadkv::cuda
