// What the attention kernels of every dtype share: their arguments and which part a block does.
#pragma once

#include "cuda/keys.cuh"

namespace lookaheadkv::cuda {

struct AttentionParams {
  DeviceProblem problem;
  DevicePages pages;  // only if the keys are paged
  int32_t row_tiles;
  int32_t num_splits, tiles_per_split;
  void* out;         // [B, Hq, L, D], written where there is one split
  float* out_lse;    // [B, Hq, L] natural log, written where there is one split; or null
  float* out_parts;  // [B * Hkv, splits, G * L, D], written where there are several
  float* lse_parts;  // [B * Hkv, splits, G * L] base 2, or null
};

struct AttentionBlock {
  const AttentionParams& params;
  const DeviceProblem& p;  // the unit's
  int64_t unit;
  int split;
  int row_begin;
  int tile_begin, tile_end;
  int first_limit, last_key;  // smallest and largest last key among the block's rows

  // Row tiles that read the same keys are neighbours. The last rows of a long causal sequence come
  // first, because they take longest.
  __device__ __forceinline__ AttentionBlock(const AttentionParams& all, const DeviceProblem& own,
                                            int rows, int keys)
      : params(all), p(own) {
    int64_t at = block_index();
    const int row_tile = all.row_tiles - 1 - static_cast<int>(at % all.row_tiles);
    at /= all.row_tiles;
    split = static_cast<int>(at % all.num_splits);
    unit = at / all.num_splits;
    row_begin = row_tile * rows;
    const int row_last = (row_begin + rows < p.folded ? row_begin + rows : p.folded) - 1;
    const bool one_head = row_begin / p.num_rows == row_last / p.num_rows;
    first_limit = p.num_prompt + (one_head ? row_begin % p.num_rows : 0);
    last_key = p.num_prompt + (one_head ? row_last % p.num_rows : p.num_rows - 1);
    const int tiles = last_key / keys + 1;
    // A request may have fewer keys than the maximum: its splits share the keys that it has.
    const int own_tiles = (p.num_prompt + p.num_rows - 1) / keys + 1;
    const int most = all.tiles_per_split;
    const int per_split = most > 0 ? most : (own_tiles - 1) / all.num_splits + 1;
    tile_begin = split * per_split;
    tile_end = tiles - tile_begin < per_split ? tiles : tile_begin + per_split;
  }

  __device__ __forceinline__ static int64_t unit_of(const AttentionParams& all) {
    return block_index() / all.row_tiles / all.num_splits;
  }

  // Whether every row of the block sees all keys begin .. end - 1.
  __device__ __forceinline__ bool all_see(const Head& head, int begin, int end) const {
    return (begin >= head.first && end <= head.last) ||
           (begin >= p.num_prompt && end <= first_limit + 1);
  }

  __device__ __forceinline__ int64_t part_row(int row) const {
    return (unit * params.num_splits + split) * params.problem.folded + row;
  }
  // The folded rows of all KV heads are laid out as [B, Hq, L].
  __device__ __forceinline__ int64_t out_row(int row) const {
    return (unit * params.problem.folded + row) * params.problem.head_dim;
  }
  __device__ __forceinline__ void store_lse(int row, float lse2) const {
    if (params.lse_parts != nullptr) params.lse_parts[part_row(row)] = lse2;
    if (params.num_splits == 1 && params.out_lse != nullptr) {
      params.out_lse[unit * params.problem.folded + row] = lse2 * kLn2;
    }
  }
};

}  // namespace lookaheadkv::cuda
