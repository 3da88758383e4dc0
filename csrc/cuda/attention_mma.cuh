// Attention of the folded rows on tensor cores (fp16, bf16).
//
// A block owns a tile of rows, 16 per warp, and sweeps the key tiles of its split; cp.async loads
// the next tiles while the current one is used. Q stays in registers; the softmax is online, to
// base 2.
#pragma once

#include "cuda/attention_params.cuh"
#include "cuda/tile.cuh"

namespace lookaheadkv::cuda {

template <int D, bool kWithValue>
struct AttentionTile {
  static constexpr int kWarps = D <= 128 ? 8 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = D <= 128 ? 64 : 32;
  static constexpr int kStages = D <= 128 ? 3 : 2;
  // Blocks that share a multiprocessor: with output accumulators, one fills the registers.
  static constexpr int kResident = kWithValue ? 1 : 2;
  // With 128 output accumulators per lane, Q does not fit into registers: every lane keeps its
  // fragments in shared memory, where no other lane reads them.
  static constexpr bool kQueryShared = D > 128 && kWithValue;
  static constexpr int kTileBytes = TileShape<D>::bytes(kKeys);
  static constexpr int kStageBytes = kTileBytes * (kWithValue ? 2 : 1);
  static constexpr int kSharedBytes = kStages * kStageBytes + (kQueryShared ? kRows * D * 2 : 0);
  static constexpr int kWeightBytes = kKeys * 4;  // scales of one tile's keys (InWeightedPages)
};

// The query fragments of one warp's 16 rows, in registers.
template <class T, int D, bool kShared>
class QueryFragments {
 public:
  __device__ __forceinline__ QueryFragments(const Head& head, int row, char*) {
    load_query(a_, QueryRows<T>(head, row));
  }
  __device__ __forceinline__ void get(uint32_t (&a)[4], int step) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = a_[step][i];
  }

 private:
  uint32_t a_[D / 16][4];
};

// The same in shared memory.
template <class T, int D>
class QueryFragments<T, D, true> {
 public:
  __device__ __forceinline__ QueryFragments(const Head& head, int row, char* shared)
      : mine_(reinterpret_cast<Bytes16*>(shared) + thread_index() / 32 * (D / 16 * 32) +
              thread_index() % 32) {
    const QueryRows<T> rows(head, row);
#pragma unroll 4
    for (int step = 0; step < D / 16; ++step) {
      uint32_t a[4];
      load_query(a, rows, step, rows.vector);
      mine_[step * 32] = {{a[0], a[1], a[2], a[3]}};
    }
  }
  __device__ __forceinline__ void get(uint32_t (&a)[4], int step) const {
    const Bytes16 bytes = mine_[step * 32];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = bytes.words[i];
  }

 private:
  Bytes16* mine_;
};

template <class T, int D, bool kWithValue, class Source>
__global__ void __launch_bounds__(AttentionTile<D, kWithValue>::kThreads,
                                  AttentionTile<D, kWithValue>::kResident)
    attention_mma_kernel(const AttentionParams params) {
  start_kernel();
  using Tile = AttentionTile<D, kWithValue>;
  constexpr int kKeys = Tile::kKeys, kStages = Tile::kStages, kThreads = Tile::kThreads;
  constexpr int kStageBytes = Tile::kStageBytes + (Source::kWeighted ? Tile::kWeightBytes : 0);
  typename Source::Problem p =
      Source::template problem<T>(params.problem, params.pages, AttentionBlock::unit_of(params));
  const AttentionBlock block(params, p, Tile::kRows, kKeys);
  if (Source::kPaged && block.row_begin >= p.folded) return;
  const Head head(p, block.unit);
  const auto key_rows = Source::template keys<T>(head, params.pages);
  const ValueRows<T> value_rows(head, params.row_tiles == 1);
  const TileList tiles(head, kKeys, block.tile_begin, block.tile_end, block.last_key);
  char* const shared = shared_memory();
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int warp_row = block.row_begin + 16 * warp;
  const int low = warp_row + lane / 4;  // this lane's rows are low and low + 8
  const bool working = warp_row < p.folded;

  const auto load = [&](int i) {
    if (i < tiles.count) {
      char* const stage = shared + i % kStages * kStageBytes;
      const int start = tiles.tile(i) * kKeys;
      load_tile<D, kKeys, kThreads>(stage, head, key_rows, start);
      if constexpr (Source::kWeighted) {
        load_weights<kKeys, kThreads>(stage + Tile::kStageBytes, head, key_rows, start);
      }
      if constexpr (kWithValue) {
        load_tile<D, kKeys, kThreads>(stage + Tile::kTileBytes, head, value_rows, start);
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(i);

  const QueryFragments<T, D, Tile::kQueryShared> query(head, low, shared + kStages * kStageBytes);
  float out[kWithValue ? D / 8 : 1][4] = {};
  float peak[2] = {-INFINITY, -INFINITY};  // running maxima of the base-2 logits
  float total[2] = {0.0f, 0.0f};           // this lane's part of the sum of exp2(logit - peak)

  for (int i = 0; i < tiles.count; ++i) {
    wait_copies<kStages - 2>();
    sync_threads();  // tile i is loaded, and no thread still reads tile i - 1
    load(i + kStages - 1);
    if (!working) continue;
    const char* const keys = shared + i % kStages * kStageBytes;
    const int start = tiles.tile(i) * kKeys;

    float logits[kKeys / 8][4] = {};
    constexpr int kUnroll = Tile::kQueryShared ? 1 : D / 16;
#pragma unroll kUnroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t a[4];
      query.get(a, step);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t b[4];
        load_key_fragments<D>(b, keys, 16 * n, step);
        mma(logits[2 * n], a, b[0], b[1], T{});
        mma(logits[2 * n + 1], a, b[2], b[3], T{});
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) logits[n][c] *= p.scale_log2;
    }
    if constexpr (Source::kWeighted) {
      const float* const weights =
          reinterpret_cast<const float*>(keys + Tile::kStageBytes) + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) logits[n][c] *= weights[8 * n + c % 2];
      }
    }
    if (!block.all_see(head, start, start + kKeys)) {
      const int limit[2] = {head.limit(low), head.limit(low + 8)};
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int j = start + 8 * n + 2 * (lane % 4) + c % 2;
          if (!head.sees(j, limit[c / 2])) logits[n][c] = -INFINITY;
        }
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = peak[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        best = fmaxf(best, fmaxf(logits[n][2 * half], logits[n][2 * half + 1]));
      }
      best = fmaxf(best, shuffle_xor(best, 1));
      best = fmaxf(best, shuffle_xor(best, 2));
      const float shift = best == -INFINITY ? 0.0f : best;  // a row that has seen nothing yet
      const float fade = exp2_approx(peak[half] - shift);
      peak[half] = best;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          logits[n][c] = exp2_approx(logits[n][c] - shift);
          sum += logits[n][c];
        }
      }
      total[half] = total[half] * fade + sum;
      if constexpr (kWithValue) {
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          out[n][2 * half] *= fade;
          out[n][2 * half + 1] *= fade;
        }
      }
    }

    if constexpr (kWithValue) {
      const char* const values = keys + Tile::kTileBytes;
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
        // The accumulators of one product are, pair by pair, the left operand of the next.
        const float (&left)[4] = logits[2 * step];
        const float (&right)[4] = logits[2 * step + 1];
        const uint32_t a[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]),
                               pack<T>(right[0], right[1]), pack<T>(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < D / 16; ++n) {
          uint32_t b[4];
          load_value_fragments<D>(b, values, 16 * step, n);
          mma(out[2 * n], a, b[0], b[1], T{});
          mma(out[2 * n + 1], a, b[2], b[3], T{});
        }
      }
    }
  }

  if (!working) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = low + 8 * half;
    total[half] += shuffle_xor(total[half], 1);
    total[half] += shuffle_xor(total[half], 2);
    if (row >= p.folded) continue;
    const float share = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
    if (lane % 4 == 0) block.store_lse(row, peak[half] + log2_approx(total[half]));
    if constexpr (kWithValue) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const int column = 8 * n + 2 * (lane % 4);
        if (column >= p.head_dim) continue;
        const float a = out[n][2 * half] * share, b = out[n][2 * half + 1] * share;
        if (params.num_splits == 1) {
          *reinterpret_cast<uint32_t*>(static_cast<T*>(params.out) + block.out_row(row) + column) =
              pack<T>(a, b);
        } else {
          float* const to = params.out_parts + block.part_row(row) * p.head_dim + column;
          to[0] = a;
          to[1] = b;
        }
      }
    }
  }
}

}  // namespace lookaheadkv::cuda
