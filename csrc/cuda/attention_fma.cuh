// Attention of the folded rows in plain fp32, whose products tensor cores would round.
#pragma once

#include "cuda/attention_params.cuh"
#include "cuda/fma_tile.cuh"

namespace lookaheadkv::cuda {

template <bool kWithValue, class Source>
__global__ void __launch_bounds__(kFmaThreads) attention_fma_kernel(const AttentionParams params) {
  start_kernel();
  typename Source::Problem p = Source::template problem<float>(params.problem, params.pages,
                                                               AttentionBlock::unit_of(params));
  const AttentionBlock block(params, p, kFmaRows, kFmaRows);
  if (Source::kPaged && block.row_begin >= p.folded) return;
  const Head head(p, block.unit);
  const auto key_rows = Source::template keys<float>(head, params.pages);
  const TileList tiles(head, kFmaRows, block.tile_begin, block.tile_end, block.last_key);
  const int lane = thread_index() % 32;
  const int warp_row = block.row_begin + thread_index() / 32 * kFmaWarpRows;
  const int tile_floats = kFmaRows * fma_pitch(p.head_dim);
  float* const queries = reinterpret_cast<float*>(shared_memory());
  float* const keys = queries + tile_floats;
  float* const values = keys + tile_floats;

  load_fma_tile<float>(queries, p.head_dim, p.query.vector, [&](int r) {
    const int row = block.row_begin + r;
    return row < p.folded ? head.query_row<float>(row) : nullptr;
  });
  FmaAccumulator out;
  float peak[kFmaWarpRows], total[kFmaWarpRows];  // per row: the same in all lanes
#pragma unroll
  for (int i = 0; i < kFmaWarpRows; ++i) {
    peak[i] = -INFINITY;
    total[i] = 0.0f;
  }

  for (int i = 0; i < tiles.count; ++i) {
    const int start = tiles.tile(i) * kFmaRows;
    const auto load = [&](float* tile, const auto& rows) {
      fill_fma_tile(tile, p.head_dim, [&](float (&eight)[8], int r, int d) {
        if (head.exists(start + r)) rows.load(eight, start + r, d);
      });
    };
    sync_threads();  // no thread still reads the tile before
    load(keys, key_rows);
    if constexpr (kWithValue) load(values, TensorRows<float>(head, p.value));
    sync_threads();
    float logits[kFmaWarpRows];
    multiply_rows(logits, queries, keys, p.head_dim);
    if constexpr (Source::kWeighted) {
      const float weight = head.exists(start + lane) ? key_rows.weight(start + lane) : 1.0f;
#pragma unroll
      for (int r = 0; r < kFmaWarpRows; ++r) logits[r] *= weight;
    }
#pragma unroll
    for (int r = 0; r < kFmaWarpRows; ++r) {
      const bool seen = head.sees(start + lane, head.limit(warp_row + r));
      const float logit = seen ? logits[r] * p.scale_log2 : -INFINITY;
      const float best = fmaxf(peak[r], warp_max(logit));
      const float shift = best == -INFINITY ? 0.0f : best;
      const float fade = exp2_approx(peak[r] - shift);
      logits[r] = exp2_approx(logit - shift);
      total[r] = total[r] * fade + warp_sum(logits[r]);
      peak[r] = best;
      if constexpr (kWithValue) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
#pragma unroll
          for (int c = 0; c < 4; ++c) out.sum[r][part][c] *= fade;
        }
      }
    }
    if constexpr (kWithValue) out.add(logits, values, p.head_dim);
  }

#pragma unroll
  for (int r = 0; r < kFmaWarpRows; ++r) {
    const int row = warp_row + r;
    if (row >= p.folded) continue;
    if (lane == 0) block.store_lse(row, peak[r] + log2_approx(total[r]));
    if constexpr (kWithValue) {
      float* const to = params.num_splits == 1
                            ? static_cast<float*>(params.out) + block.out_row(row)
                            : params.out_parts + block.part_row(row) * p.head_dim;
      out.store(r, total[r] == 0.0f ? 0.0f : 1.0f / total[r], to, p.head_dim);
    }
  }
}

}  // namespace lookaheadkv::cuda
