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

// Splits that fill the chip once when each of `units` independent units of work sweeps `tiles` key
// tiles. One wave: a second, partial one would leave most of the chip idle at its end. No split has
// fewer than `min_tiles`: below that the start of a block costs more than its work.
constexpr Splits split_keys(int64_t units, int64_t tiles, int64_t resident_blocks,
                            int64_t min_tiles) {
  const int64_t wanted = std::max<int64_t>(1, resident_blocks / std::max<int64_t>(1, units));
  const int64_t per_split = std::max(min_tiles, ceil_div(tiles, wanted));
  return {static_cast<int32_t>(std::max<int64_t>(1, ceil_div(tiles, per_split))),
          static_cast<int32_t>(per_split)};
}

// Rows of scores up to this length are selected by one block that holds their keys in registers.
constexpr int64_t kLongestBlockRow = 32768;
// Wider pools than this are widened by doubling in memory: log2(pool) sweeps.
constexpr int64_t kWidestFusedPool = 63;

}  // namespace lookaheadkv::cuda
