// Room 4: copies the kept rows of K and V.
#include "cuda/gather.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

namespace {

constexpr int kThreads = 256;

// Every thread copies one chunk of K and the same chunk of V.
template <class E>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const GatherParams params, const int64_t chunks) {
  start_kernel();
  const int64_t at = block_index() * kThreads + thread_index();
  if (at >= chunks) return;
  const int64_t slot = at / params.row_chunks, unit = slot / params.num_kept;
  gather_chunk<E>(params, unit / params.kv_heads, unit % params.kv_heads, slot,
                  static_cast<int>(at % params.row_chunks));
}

}  // namespace

void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t num_keys, int64_t head_dim,
               const TensorView& key, const TensorView& value, const int32_t* indices,
               int64_t num_kept, void* out_key, void* out_value, bool follows,
               const Device& device) {
  const GatherParams params = gather_params(batch, num_kv_heads, num_keys, head_dim, key, value,
                                            indices, num_kept, out_key, out_value);
  const int64_t chunks = params.rows * num_kept * params.row_chunks;
  launch(element_size(key.dtype) == 4 ? gather_kernel<uint32_t> : gather_kernel<uint16_t>,
         ceil_div(chunks, kThreads), kThreads, 0, static_cast<Stream>(device.stream), follows,
         params, chunks);
}

}  // namespace lookaheadkv::cuda
