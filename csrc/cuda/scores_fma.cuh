// Column scores in plain fp32.
#pragma once

#include "cuda/fma_tile.cuh"
#include "cuda/scores_params.cuh"

namespace lookaheadkv::cuda {

inline int column_scores_fma_shared(int64_t head_dim) {
  return (2 * fma_tile_floats(static_cast<int>(head_dim)) + kFmaThreads) * 4;
}

// A lane has one key of the tile and adds up its warp's rows.
template <class Source>
__global__ void __launch_bounds__(kFmaThreads) column_scores_fma_kernel(const ScoresParams params) {
  start_kernel();
  typename Source::Problem p =
      Source::template problem<float>(params.problem, params.pages, ScoresBlock::unit_of(params));
  ScoresBlock block(params, p, kFmaRows);
  const Head head(p, block.unit);
  float* const out = params.out + block.unit * params.problem.num_prompt;
  const float weight = Source::kPaged ? 1.0f / static_cast<float>(p.folded) : params.weight;
  if (Source::kPaged) ScoresBlock::clear_behind(params, p.num_prompt, kFmaThreads, out);
  block.clear(params, kFmaThreads);
  block.skip_padding(head, kFmaRows, kFmaThreads, out);
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int tile_floats = kFmaRows * fma_pitch(p.head_dim);
  float* const queries = reinterpret_cast<float*>(shared_memory());
  float* const keys = queries + tile_floats;
  float* const sums = keys + tile_floats;  // [warps, 32]

  for (int tile = block.tile_end - 1; tile >= block.tile_begin; --tile) {
    const int start = tile * kFmaRows;
    sync_threads();  // no thread still reads the tile before
    fill_fma_tile(keys, p.head_dim, [&](float (&eight)[8], int r, int d) {
      // Located anew each time: kept across the tile, the rows would be spilled.
      if (head.exists(start + r)) {
        Source::template keys<float>(head, params.pages).load(eight, start + r, d);
      }
    });
    float sum = 0.0f;
    for (int row_begin = 0; row_begin < p.folded; row_begin += kFmaRows) {
      const int rows_left = p.folded - row_begin;
      sync_threads();
      load_fma_tile<float>(queries, p.head_dim, p.query.vector, [&](int r) {
        // Past the last row, the last one again, as in tile.cuh.
        return head.query_row<float>(r < rows_left ? row_begin + r : p.folded - 1);
      });
      sync_threads();
      float logits[kFmaWarpRows];
      multiply_rows(logits, queries, keys, p.head_dim);
      if constexpr (Source::kWeighted) {
        const auto key_rows = Source::template keys<float>(head, params.pages);
        const float weight = head.exists(start + lane) ? key_rows.weight(start + lane) : 1.0f;
#pragma unroll
        for (int i = 0; i < kFmaWarpRows; ++i) logits[i] *= weight;
      }
#pragma unroll
      for (int i = 0; i < kFmaWarpRows; ++i) {
        const int row = row_begin + warp * kFmaWarpRows + i;
        const float lse2 = row_lse2<Source>(params, head, block.unit, row);
        sum += exp2_approx(logits[i] * p.scale_log2 - lse2);
      }
    }
    sums[thread_index()] = sum;
    sync_threads();
    const int j = start + lane;
    if (warp == 0 && j >= head.first && j < head.last) {
      float all = 0.0f;
#pragma unroll
      for (int w = 0; w < kFmaWarps; ++w) all += sums[w * 32 + lane];
      out[j] = all * weight;
    }
  }
}

}  // namespace lookaheadkv::cuda
