// Column scores on tensor cores (fp16, bf16).
//
// A block owns a range of prompt keys and takes all rows, 32 per warp, so that every fragment of K
// serves two products. Column sums need all warps: each leaves its own in shared memory, and they
// are added up one tile later, after the barrier that the next tile needs anyway.
#pragma once

#include "cuda/scores_params.cuh"
#include "cuda/tile.cuh"

namespace lookaheadkv::cuda {

template <int D>
struct ScoresTile {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 32;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = D <= 128 ? 128 : 64;
  static constexpr int kChunkKeys = 32;  // of one product
  static constexpr int kStages = 2;
  static constexpr int kStageBytes = TileShape<D>::bytes(kKeys);
  static constexpr int kSumsBytes = kWarps * kKeys * 4;  // of one tile
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kSumsBytes + kRows * 4;
  static constexpr int kWeightBytes = kKeys * 4;  // scales of one tile's keys (InWeightedPages)
  // Blocks that share a multiprocessor: limited by its shared memory and, since a lane holds the Q
  // of all of its rows, by its registers. Three would spill if D is 128.
  static constexpr int kFit = kMultiprocessorBytes / (kSharedBytes + 1024);
  static constexpr int kMost = 2;
  static constexpr int kResident = kFit > kMost ? kMost : kFit < 1 ? 1 : kFit;
};

// Sums eight values over the lanes with equal lane % 4. Every lane ends with the sum of one value
// v, whose bits 2, 1, 0 are bits 4, 3, 2 of the lane.
__device__ __forceinline__ float scatter_sum(const float (&v)[8]) {
  const int lane = thread_index() % 32;
  float four[4], two[2];
  const bool high = (lane & 16) != 0, middle = (lane & 8) != 0, low = (lane & 4) != 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    four[i] = (high ? v[4 + i] : v[i]) + shuffle_xor(high ? v[i] : v[4 + i], 16);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    two[i] = (middle ? four[2 + i] : four[i]) + shuffle_xor(middle ? four[i] : four[2 + i], 8);
  }
  return (low ? two[1] : two[0]) + shuffle_xor(low ? two[0] : two[1], 4);
}

template <class T, int D, class Source>
__global__ void __launch_bounds__(ScoresTile<D>::kThreads, ScoresTile<D>::kResident)
    column_scores_mma_kernel(const ScoresParams params) {
  start_kernel();
  using Tile = ScoresTile<D>;
  constexpr int kKeys = Tile::kKeys, kThreads = Tile::kThreads;
  constexpr int kStageBytes = Tile::kStageBytes + (Source::kWeighted ? Tile::kWeightBytes : 0);
  typename Source::Problem p =
      Source::template problem<T>(params.problem, params.pages, ScoresBlock::unit_of(params));
  ScoresBlock block(params, p, kKeys);
  const Head head(p, block.unit);
  const auto key_rows = Source::template keys<T>(head, params.pages);
  float* const out = params.out + block.unit * params.problem.num_prompt;
  const float weight = Source::kPaged ? 1.0f / static_cast<float>(p.folded) : params.weight;
  if (Source::kPaged) ScoresBlock::clear_behind(params, p.num_prompt, kThreads, out);
  block.clear(params, kThreads);
  block.skip_padding(head, kKeys, kThreads, out);
  const int count = block.tile_end - block.tile_begin;
  char* const shared = shared_memory();
  float* const sums = reinterpret_cast<float*>(shared + Tile::kStages * kStageBytes);
  float* const lse2_of_rows = sums + 2 * Tile::kSumsBytes / 4;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  // If there are few rows, several warps share them and divide the keys.
  const int row_warps = p.folded > 64 ? 4 : p.folded > 32 ? 2 : 1;
  const int row_warp = warp % row_warps, key_warp = warp / row_warps;
  const int key_warps = Tile::kWarps / row_warps;
  const int rows = row_warps * Tile::kWarpRows;

  // From the last tile to the first: where an attention sweep came before, the last keys are those
  // that the L2 cache still holds. The next row tile begins where this one ends, and so on.
  bool backwards = true;
  const auto start_of = [&](int i) {
    return (backwards ? block.tile_end - 1 - i : block.tile_begin + i) * kKeys;
  };
  const auto load = [&](int i) {
    if (i < count) {
      char* const stage = shared + i % 2 * kStageBytes;
      load_tile<D, kKeys, kThreads>(stage, head, key_rows, start_of(i));
      if constexpr (Source::kWeighted) {
        load_weights<kKeys, kThreads>(stage + Tile::kStageBytes, head, key_rows, start_of(i));
      }
    }
    commit_copies();
  };

  for (int row_begin = 0; row_begin < p.folded; row_begin += rows, backwards = !backwards) {
    sync_threads();  // no thread still uses the row tile before
    load(0);
    const int low = row_begin + row_warp * Tile::kWarpRows + lane / 4;
    uint32_t query[2][D / 16][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) load_query(query[m], QueryRows<T>(head, low + 16 * m));
    if (thread_index() < rows) {
      lse2_of_rows[thread_index()] =
          row_lse2<Source>(params, head, block.unit, row_begin + thread_index());
    }
    sync_threads();
    float lse2[4];  // of rows low, low + 8, low + 16, low + 24
#pragma unroll
    for (int i = 0; i < 4; ++i) lse2[i] = lse2_of_rows[low - row_begin + 8 * i];

    // Adds up tile i over the warps. A key belongs to the same thread in all row tiles.
    const auto finish = [&](int i) {
      for (int key = thread_index(); key < kKeys; key += kThreads) {
        float sum = 0.0f;
        for (int w = 0; w < row_warps; ++w) {
          sum += sums[(i % 2 * Tile::kWarps + w) * kKeys + key];
        }
        const int j = start_of(i) + key;
        if (j >= head.first && j < head.last) {
          out[j] = (row_begin == 0 ? 0.0f : out[j]) + sum * weight;
        }
      }
    };

    for (int i = 0; i < count; ++i) {
      wait_copies<0>();
      sync_threads();  // tile i is loaded; the sums of tile i - 1 are complete
      load(i + 1);
      if (i > 0) finish(i - 1);
      const char* const keys = shared + i % 2 * kStageBytes;
      float* const own = sums + (i % 2 * Tile::kWarps + row_warp) * kKeys;
      for (int at = key_warp * Tile::kChunkKeys; at < kKeys; at += key_warps * Tile::kChunkKeys) {
        float logits[2][4][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            uint32_t b[4];
            load_key_fragments<D>(b, keys, at + 16 * n, step);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              mma(logits[m][2 * n], query[m][step], b[0], b[1], T{});
              mma(logits[m][2 * n + 1], query[m][step], b[2], b[3], T{});
            }
          }
        }
        float columns[8];
#pragma unroll
        for (int v = 0; v < 8; ++v) {
          const int n = v / 2, c = v % 2;
          float scale_log2 = p.scale_log2;
          if constexpr (Source::kWeighted) {
            const auto* const weights = reinterpret_cast<const float*>(keys + Tile::kStageBytes);
            scale_log2 *= weights[at + 8 * n + 2 * (lane % 4) + c];
          }
          float sum = 0.0f;
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            sum += exp2_approx(logits[r / 2][n][r % 2 * 2 + c] * scale_log2 - lse2[r]);
          }
          columns[v] = sum;
        }
        const float sum = scatter_sum(columns);
        own[at + lane / 8 * 8 + 2 * (lane % 4) + lane / 4 % 2] = sum;
      }
    }
    sync_threads();
    if (count > 0) finish(count - 1);
  }
}

}  // namespace lookaheadkv::cuda
