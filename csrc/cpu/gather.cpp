// Room 4. Copies the kept rows of K and V.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {
constexpr int64_t kCopyWidth = 16;  // elements copied in the time others take for one
}

void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t head_dim, const TensorView& key,
               const TensorView& value, const int32_t* indices, int64_t num_kept, void* out_key,
               void* out_value, const Executor& executor) {
  const size_t bytes = static_cast<size_t>(head_dim * element_size(key.dtype));
  executor.run(batch * num_kv_heads, grain(2 * num_kept * head_dim / kCopyWidth),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t b = row / num_kv_heads, h = row % num_kv_heads;
                   for (int64_t i = row * num_kept; i < (row + 1) * num_kept; ++i) {
                     const auto copy = [&](const TensorView& from, void* to) {
                       char* out = static_cast<char*>(to) + static_cast<size_t>(i) * bytes;
                       if (indices[i] < 0) {
                         std::memset(out, 0, bytes);
                       } else {
                         std::memcpy(out, from.row(b, h, indices[i]), bytes);
                       }
                     };
                     copy(key, out_key);
                     copy(value, out_value);
                   }
                 }
               });
}

}  // namespace lookaheadkv::cpu
