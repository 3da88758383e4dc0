// How the work of one call is cut into blocks: pure functions of the shapes and of the number of
// multiprocessors, so that two calls of the same shapes on the same chip round the same way.
// Unit-tested on the CPU (tests/cpp/cuda_emulation).
#pragma once

#include <algorithm>
#include <cstdint>

namespace lookaheadkv::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Head dimensions the matrix kernels are compiled for; others take the next one.
constexpr int padded_dim(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}

struct Splits {
  int32_t count;  // blocks that share the keys of one KV head (and row tile)
  int32_t tiles;  // key tiles of each; the last may have fewer
};

constexpr int64_t kMostWaves = 6;  // more would not fill the last one much better

// Splits when each of `units` independent units of work sweeps `tiles` key tiles. No split has
// fewer than `min_tiles`, about the fixed cost of a block. Among the splits that fill one wave of
// `resident_blocks` blocks, two, and so on, it takes the fastest: mostly one wave, but with many
// units a single wave may leave half of the chip idle (144 units on 264 blocks).
constexpr Splits split_keys(int64_t units, int64_t tiles, int64_t resident_blocks,
                            int64_t min_tiles, int64_t most_waves = kMostWaves) {
  Splits best = {};
  int64_t least = 0;
  for (int64_t waves = 1; waves <= most_waves; ++waves) {
    const int64_t wanted =
        std::max<int64_t>(1, waves * resident_blocks / std::max<int64_t>(1, units));
    const int64_t per_split = std::max(min_tiles, ceil_div(tiles, wanted));
    const int64_t count = std::max<int64_t>(1, ceil_div(tiles, per_split));
    const int64_t time = ceil_div(units * count, resident_blocks) * (per_split + min_tiles);
    if (waves > 1 && time >= least) continue;
    best = {static_cast<int32_t>(count), static_cast<int32_t>(per_split)};
    least = time;
  }
  return best;
}

// Scores up to this many fit the registers of one block, which finds their Top-K (select_row.cuh).
constexpr int64_t kLongestBlockRow = 32768;
// Half as many candidates from a row's pieces: registers do not suffice for two loops over keys.
constexpr int64_t kMostCandidates = kLongestBlockRow / 2;
constexpr int64_t kShortestPiece = 2048;
// The fixed cost of a block, in positions: it counts four digits with barriers between. An
// estimate.
constexpr int64_t kPieceCost = 8192;

struct Pieces {
  int32_t count;   // blocks that share a row of scores; 0: their candidates exceed a block
  int32_t length;  // positions of each; the last ones may have fewer, or none
};

// How blocks share the Top-K of each of `rows` rows: every block keeps the best `budget` of its
// piece, and one of them chooses among those. Among the feasible cuts it returns the fastest one if
// `resident_blocks` blocks run at once.
constexpr Pieces cut_row(int64_t rows, int64_t num_prompt, int64_t budget,
                         int64_t resident_blocks) {
  Pieces best = {};
  int64_t least = 0;
  for (int64_t wanted = 1; (wanted - 1) * kShortestPiece <= num_prompt; wanted *= 2) {
    const int64_t length =
        std::max<int64_t>(1, ceil_div(ceil_div(num_prompt, wanted), kShortestPiece)) *
        kShortestPiece;
    const int64_t count = std::max<int64_t>(1, ceil_div(num_prompt, length));
    const int64_t candidates = count == 1 ? 0 : count * std::min(budget, length);
    if (length > kLongestBlockRow || candidates > kMostCandidates) continue;
    int64_t time = ceil_div(rows * count, resident_blocks) * (length + kPieceCost);
    if (count > 1) time += ceil_div(rows, resident_blocks) * (candidates + kPieceCost);
    if (best.count > 0 && time >= least) continue;
    best = {static_cast<int32_t>(count), static_cast<int32_t>(length)};
    least = time;
  }
  return best;
}

// Pools wider than this are widened by doubling in memory, in log2(pool) sweeps.
constexpr int64_t kWidestFusedPool = 63;

}  // namespace lookaheadkv::cuda
