// What the score kernels of every dtype share.
#pragma once

#include "cuda/keys.cuh"

namespace lookaheadkv::cuda {

struct ScoresParams {
  DeviceProblem problem;
  DevicePages pages;                    // only if the keys are paged
  int32_t num_splits, tiles_per_split;  // of the prompt keys
  const float* lse;                     // natural log of row i of head h (of all Hq) at
  int64_t lse_head, lse_row;            // h * lse_head + i * lse_row; or null:
  const float* lse_parts;               // [B * Hkv, num_parts, G * L], base 2
  int32_t num_parts;
  float weight;      // 1 / (G * L), if all requests have the same number of rows
  float* out;        // [B, Hkv, N]
  int32_t* cleared;  // [num_cleared], set to zero for the kernel after this one
  int64_t num_cleared;
};

// Base-2 log-sum-exp of folded row r, combined in the order of its parts; infinity past the last
// row, which makes the share of that row zero in every sum.
template <class Source>
__device__ __forceinline__ float row_lse2(const ScoresParams& params, const Head& head,
                                          int64_t unit, int r) {
  const DeviceProblem& p = head.p;
  if (r >= p.folded) return INFINITY;
  if (params.lse != nullptr) {
    // Packed queries are rows of all requests.
    const int64_t of_group = Source::kPaged ? head.h * p.group : unit * p.group;
    const int64_t first = Source::kPaged ? params.pages.plan.get(kFirstRow, head.b) : 0;
    return params.lse[(of_group + r / p.num_rows) * params.lse_head +
                      (first + r % p.num_rows) * params.lse_row] *
           kLog2E;
  }
  const int64_t pitch = params.problem.folded;
  const float* const parts = params.lse_parts + unit * params.num_parts * pitch + r;
  float peak = -INFINITY, total = 0.0f;
  for (int s = 0; s < params.num_parts; ++s) peak = fmaxf(peak, parts[s * pitch]);
  for (int s = 0; s < params.num_parts; ++s) total += exp2_approx(parts[s * pitch] - peak);
  return peak + log2_approx(total);
}

// The block's part of one KV head's prompt keys, whole tiles of them.
struct ScoresBlock {
  int64_t unit;
  int key_begin, key_end;    // all prompt keys of the split
  int tile_begin, tile_end;  // tiles among them that hold a valid key

  __device__ __forceinline__ ScoresBlock(const ScoresParams& params, const DeviceProblem& own,
                                         int tile_keys) {
    const int split = static_cast<int>(block_index() % params.num_splits);
    unit = unit_of(params);
    const int num_prompt = own.num_prompt;
    const int tiles = (num_prompt - 1) / tile_keys + 1;
    // A request may have fewer keys than the maximum: its splits share the keys that it has.
    const int most = params.tiles_per_split;
    const int per_split = most > 0 ? most : (tiles - 1) / params.num_splits + 1;
    tile_begin = split * per_split;
    tile_end = tiles - tile_begin < per_split ? tiles : tile_begin + per_split;
    key_begin = tile_begin * tile_keys;
    key_end = tile_end == tiles ? num_prompt : tile_end * tile_keys;
  }

  __device__ __forceinline__ static int64_t unit_of(const ScoresParams& params) {
    return block_index() / params.num_splits;
  }

  __device__ __forceinline__ void clear(const ScoresParams& params, int threads) const {
    if (block_index() != 0) return;
    for (int64_t i = thread_index(); i < params.num_cleared; i += threads) params.cleared[i] = 0;
  }

  // Writes zeros from key `begin` of a request to the end of its row.
  __device__ __forceinline__ static void clear_behind(const ScoresParams& params, int begin,
                                                      int threads, float* out) {
    const int split = static_cast<int>(block_index() % params.num_splits);
    for (int64_t j = begin + split * threads + thread_index(); j < params.problem.num_prompt;
         j += int64_t{params.num_splits} * threads) {
      out[j] = 0.0f;
    }
  }

  // Writes zeros for the split's padding; the sweep covers the rest.
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
