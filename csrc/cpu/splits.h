// How the work of one call is cut into tasks: pure functions of the shapes, never of the number of
// threads, so that results do not depend on it. Unit-tested in tests/cpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

// Enough tasks for the largest machines we know of, few enough that partial sums stay small;
// partial outputs are D times larger, so there are fewer of those.
constexpr int64_t kWantedTasks = 256;
constexpr int64_t kWantedOutputTasks = 64;
constexpr int64_t kMinChunkTiles = 8;  // with fewer, the cost of starting a task shows

// Tasks worth waking a thread for when each touches `elements` elements once (copying, packing,
// comparing); tasks that multiply matrices have a grain of 1.
constexpr int64_t grain(int64_t elements) {
  constexpr int64_t kElementsPerThread = 64 * 1024;  // about 20 us
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
}

// Prompt keys per task when each of `units` independent units of work sweeps `num_prompt` keys; a
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
// allows.
constexpr int64_t queries_per_block(int64_t group, int64_t num_rows, int64_t max_rows) {
  return std::clamp<int64_t>(max_rows / group, 1, std::max<int64_t>(1, num_rows));
}

}  // namespace lookaheadkv::cpu
