// Room 4. Copies the kept rows of K and V.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kCopyWidth = 16;  // elements copied in the time that other loops take for one

void copy_row(const TensorView& from, int64_t b, int64_t h, int32_t index, size_t bytes, char* to) {
  if (index < 0) {
    std::memset(to, 0, bytes);
  } else {
    std::memcpy(to, from.row(b, h, index), bytes);
  }
}

}  // namespace

void gather_kv(int64_t batch, int64_t num_kv_heads, int64_t head_dim, const TensorView& key,
               const TensorView& value, const int32_t* indices, int64_t num_kept, void* out_key,
               void* out_value, const Executor& executor) {
  const size_t bytes = static_cast<size_t>(head_dim * element_size(key.dtype));
  const int64_t parts = (num_kept + kRowsPerTask - 1) / kRowsPerTask;
  executor.run(
      batch * num_kv_heads * parts, grain(2 * kRowsPerTask * head_dim / kCopyWidth),
      [&](Tasks& tasks) {
        for (int64_t task = 0; tasks.take(task);) {
          const int64_t row = task / parts;
          const int64_t b = row / num_kv_heads, h = row % num_kv_heads;
          const int64_t first = task % parts * kRowsPerTask;
          const int64_t last = std::min(first + kRowsPerTask, num_kept);
          for (int64_t i = row * num_kept + first; i < row * num_kept + last; ++i) {
            copy_row(key, b, h, indices[i], bytes, static_cast<char*>(out_key) + i * bytes);
            copy_row(value, b, h, indices[i], bytes, static_cast<char*>(out_value) + i * bytes);
          }
        }
      });
}

}  // namespace lookaheadkv::cpu
