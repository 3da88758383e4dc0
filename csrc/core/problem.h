// Plain descriptions of one call, shared by every compiled backend. No torch in here.
#pragma once

#include <cstdint>

namespace lookaheadkv {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// `static`: used under several instruction sets, see cpu/isa/convert.h.
static constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// A read-only [B, H, S, D] tensor with any strides (in elements); the last dimension is contiguous.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride_b = 0;
  int64_t stride_h = 0;
  int64_t stride_s = 0;

  const void* row(int64_t b, int64_t h, int64_t s) const {
    return static_cast<const char*>(data) +
           (b * stride_b + h * stride_h + s * stride_s) * element_size(dtype);
  }
};

// Sizes of one call; see docs/architecture.md for the terms.
struct Problem {
  int64_t batch = 0;         // B
  int64_t num_heads = 0;     // Hq
  int64_t num_kv_heads = 0;  // Hkv, divides Hq
  int64_t num_rows = 0;      // L, observation rows
  int64_t num_prompt = 0;    // N, prompt keys
  int64_t head_dim = 0;      // D, a multiple of 8 up to 256
  double scale = 1.0;
  const int32_t* leftpad_k = nullptr;  // [B], first valid prompt key; null: 0
  const int32_t* seqused_k = nullptr;  // [B], end of the valid prompt keys; null: N
  int64_t score_columns = 0;           // elements between the scores of two heads; 0: N

  int64_t group() const { return num_kv_heads == 0 ? 1 : num_heads / num_kv_heads; }
  int64_t num_keys() const { return num_prompt + num_rows; }
  int64_t score_pitch() const { return score_columns > 0 ? score_columns : num_prompt; }
};

// What select keeps.
struct SelectOptions {
  int64_t budget = 0;  // 0 is legal here: nothing is kept
  int64_t pool_kernel = 7;
  int64_t num_sink = 0;
  int64_t num_recent = 0;
  int64_t append_rows = 0;  // positions N .. N + append_rows - 1 follow the kept ones
};

// What score_and_evict writes, all contiguous; K = min(budget, N) + append_rows.
struct Eviction {
  void* key;         // [B, Hkv, K, D]
  void* value;       // [B, Hkv, K, D]
  int32_t* indices;  // [B, Hkv, K]
  float* scores;     // [B, Hkv, N]
};

// Half-open range of the valid prompt keys of one batch row.
struct KeyRange {
  int64_t begin;
  int64_t end;
};

inline KeyRange valid_keys(const int32_t* leftpad_k, const int32_t* seqused_k, int64_t b,
                           int64_t num_prompt) {
  return {leftpad_k ? leftpad_k[b] : 0, seqused_k ? seqused_k[b] : num_prompt};
}

}  // namespace lookaheadkv
