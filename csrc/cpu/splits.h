// How the work of one call is cut into tasks: pure functions of the shapes, never of the number of
// threads, so that results do not depend on it. Unit-tested in tests/cpp/kernel_check.cpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

// Enough tasks for the largest machines we know of, few enough that partial results stay small.
constexpr int64_t kWantedTasks = 256;
constexpr int64_t kMinChunkTiles = 8;  // below this the start-up of a task shows

// Tasks worth waking a thread for when each touches `elements` elements once (copying, packing,
// comparing); tasks that multiply matrices have a grain of 1.
constexpr int64_t grain(int64_t elements) {
  constexpr int64_t kElementsPerThread = 64 * 1024;  // some 20 us
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
}

// Prompt keys per task when each of `rows` independent units of work sweeps `num_prompt` keys; a
// multiple of kKeyTile.
constexpr int64_t keys_per_chunk(int64_t num_prompt, int64_t units, int64_t wanted_tasks) {
  const int64_t chunks = std::max<int64_t>(1, wanted_tasks / std::max<int64_t>(1, units));
  const int64_t tiles = (num_prompt + chunks * kKeyTile - 1) / (chunks * kKeyTile);
  return std::max(tiles, kMinChunkTiles) * kKeyTile;
}

constexpr int64_t num_chunks(int64_t num_prompt, int64_t chunk) {
  return std::max<int64_t>(1, (num_prompt + chunk - 1) / chunk);
}

// Queries of one row block: G times as many rows are folded together, at most `max_rows` if G
// allows, and a multiple of what fills whole row groups where L is long.
constexpr int64_t queries_per_block(int64_t group, int64_t num_rows, int64_t max_rows) {
  return std::clamp<int64_t>(max_rows / group, 1, std::max<int64_t>(1, num_rows));
}

// Pairs the cheapest with the dearest of `count` causal row blocks (0, n-1, 1, n-2, ...): any
// contiguous range of tasks then holds about the same work.
constexpr int64_t folded(int64_t i, int64_t count) {
  return i % 2 == 0 ? i / 2 : count - 1 - i / 2;
}

}  // namespace lookaheadkv::cpu
