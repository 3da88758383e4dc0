// What the score kernels of every dtype share.
#pragma once

#include "cuda/problem.cuh"

namespace lookaheadkv::cuda {

struct ScoresParams {
  DeviceProblem problem;
  int32_t num_splits, tiles_per_split;  // of the prompt keys
  float weight;                         // 1 / (G * L)
  const float* lse;                     // natural log, [B, Hq] rows lse_stride apart; or null:
  int64_t lse_stride;
  const float* lse_parts;  // [B * Hkv, num_parts, G * L], base 2
  int32_t num_parts;
  float* out;        // [B, Hkv, N]
  int32_t* cleared;  // [num_cleared], set to zero for the kernel behind this one
  int64_t num_cleared;
};

// Base-2 log-sum-exp of folded row r, combined in the order of its parts; infinity past the last
// row, which makes that row's share of every sum zero.
__device__ __forceinline__ float row_lse2(const ScoresParams& params, int64_t unit, int r) {
  const DeviceProblem& p = params.problem;
  if (r >= p.folded) return INFINITY;
  if (params.lse != nullptr) {
    const int64_t head = unit * p.group + r / p.num_rows;
    return params.lse[head * params.lse_stride + r % p.num_rows] * kLog2E;
  }
  const float* const parts =
      params.lse_parts + unit * params.num_parts * static_cast<int64_t>(p.folded) + r;
  float peak = -INFINITY, total = 0.0f;
  for (int s = 0; s < params.num_parts; ++s) {
    peak = fmaxf(peak, parts[static_cast<int64_t>(s) * p.folded]);
  }
  for (int s = 0; s < params.num_parts; ++s) {
    total += exp2_approx(parts[static_cast<int64_t>(s) * p.folded] - peak);
  }
  return peak + log2_approx(total);
}

// The block's part of one KV head's prompt keys, whole tiles of them.
struct ScoresBlock {
  int64_t unit;
  int key_begin, key_end;    // all prompt keys of the split
  int tile_begin, tile_end;  // tiles among them that hold a valid key

  __device__ __forceinline__ ScoresBlock(const ScoresParams& params, int tile_keys) {
    const int split = static_cast<int>(block_index() % params.num_splits);
    unit = block_index() / params.num_splits;
    const int num_prompt = params.problem.num_prompt;
    const int tiles = (num_prompt - 1) / tile_keys + 1;
    tile_begin = split * params.tiles_per_split;
    tile_end =
        tiles - tile_begin < params.tiles_per_split ? tiles : tile_begin + params.tiles_per_split;
    key_begin = tile_begin * tile_keys;
    key_end = tile_end == tiles ? num_prompt : tile_end * tile_keys;
  }

  __device__ __forceinline__ void clear(const ScoresParams& params, int threads) const {
    if (block_index() != 0) return;
    for (int64_t i = thread_index(); i < params.num_cleared; i += threads) params.cleared[i] = 0;
  }

  // Zeros for the padding of the split; the sweep goes over what is left.
  __device__ __forceinline__ void skip_padding(const Head& head, int tile_keys, int threads,
                                               float* out) {
    for (int j = key_begin + thread_index(); j < key_end; j += threads) {
      if (j < head.first || j >= head.last) out[j] = 0.0f;
    }
    const int first = head.first / tile_keys;
    const int last = head.last > head.first ? (head.last - 1) / tile_keys + 1 : first;
    tile_begin = tile_begin > first ? tile_begin : first;
    tile_end = tile_end < last ? tile_end : last;
  }
};

}  // namespace lookaheadkv::cuda
