// One call as the kernels see it, and which rows and keys exist.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace lookaheadkv::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// A [B, H, S, D] tensor; strides in elements.
struct DeviceTensor {
  const char* data;
  int64_t stride_b, stride_h, stride_s;
  bool vector;  // every row begins at a multiple of 16 bytes
};

// The rows of the G query heads that share a KV head are folded: row r is query r % L of the
// group's head r / L. Keys are 0 .. N + L - 1, and row r sees those up to N + r % L.
struct DeviceProblem {
  DeviceTensor query, key, value;
  int32_t kv_heads, group;
  int32_t num_rows;    // L
  int32_t num_prompt;  // N
  int32_t head_dim;    // D
  int32_t folded;      // G * L
  float scale_log2;    // scale * log2(e)
  const int32_t* leftpad_k;
  const int32_t* seqused_k;
};

struct DeviceKeyRange {
  int first, last;
};

// Valid prompt keys of batch row b, clamped to 0 .. num_prompt.
__device__ __forceinline__ DeviceKeyRange valid_prompt(const int32_t* leftpad_k,
                                                       const int32_t* seqused_k, int64_t b,
                                                       int num_prompt) {
  int last = seqused_k != nullptr ? seqused_k[b] : num_prompt;
  last = last < 0 ? 0 : last > num_prompt ? num_prompt : last;
  int first = leftpad_k != nullptr ? leftpad_k[b] : 0;
  first = first < 0 ? 0 : first > last ? last : first;
  return {first, last};
}

// One KV head of one batch row.
struct Head {
  const DeviceProblem& p;
  int64_t b, h;
  int first, last;  // valid prompt keys

  __device__ __forceinline__ Head(const DeviceProblem& problem, int64_t unit)
      : p(problem), b(unit / problem.kv_heads), h(unit % problem.kv_heads) {
    const DeviceKeyRange valid =
        valid_prompt(problem.leftpad_k, problem.seqused_k, b, problem.num_prompt);
    first = valid.first;
    last = valid.last;
  }

  // Whether key j exists for any row: no padding, not past the end.
  __device__ __forceinline__ bool exists(int j) const {
    return (j >= first && j < last) || (j >= p.num_prompt && j < p.num_prompt + p.num_rows);
  }
  // Whether all of the keys begin .. end - 1 do.
  __device__ __forceinline__ bool all_exist(int begin, int end) const {
    return (begin >= first && end <= last) ||
           (begin >= p.num_prompt && end <= p.num_prompt + p.num_rows);
  }
  // Whether a row that sees keys up to `limit` sees key j.
  __device__ __forceinline__ bool sees(int j, int limit) const {
    return (j >= first && j < last) || (j >= p.num_prompt && j <= limit);
  }
  // Last key of folded row r.
  __device__ __forceinline__ int limit(int r) const { return p.num_prompt + r % p.num_rows; }

  template <class T>
  __device__ __forceinline__ const T* query_row(int r) const {
    return reinterpret_cast<const T*>(p.query.data) + b * p.query.stride_b +
           (h * p.group + r / p.num_rows) * p.query.stride_h + (r % p.num_rows) * p.query.stride_s;
  }
  template <class T>
  __device__ __forceinline__ const T* of(const DeviceTensor& tensor) const {
    return reinterpret_cast<const T*>(tensor.data) + b * tensor.stride_b + h * tensor.stride_h;
  }
};

// The key tiles that a block visits: tiles [begin, end) of its split that hold a key its rows see,
// valid prompt keys first, then the observation keys behind the prompt.
struct TileList {
  int prompt_begin, prompt_count, own_begin, count;

  // `limit`: last key that any of the block's rows sees.
  __device__ __forceinline__ TileList(const Head& head, int tile_keys, int begin, int end,
                                      int limit) {
    const int tiles = limit / tile_keys + 1;
    end = end < tiles ? end : tiles;
    const int valid_begin = head.first / tile_keys;
    const int valid_end = head.last > head.first ? (head.last - 1) / tile_keys + 1 : valid_begin;
    const int prompt_end = end < valid_end ? end : valid_end;
    prompt_begin = begin > valid_begin ? begin : valid_begin;
    prompt_count = prompt_end > prompt_begin ? prompt_end - prompt_begin : 0;
    const int own = head.p.num_prompt / tile_keys;
    own_begin = own > valid_end ? own : valid_end;
    own_begin = begin > own_begin ? begin : own_begin;
    count = prompt_count + (end > own_begin ? end - own_begin : 0);
  }
  __device__ __forceinline__ int tile(int i) const {
    return i < prompt_count ? prompt_begin + i : own_begin + i - prompt_count;
  }
};

}  // namespace lookaheadkv::cuda
