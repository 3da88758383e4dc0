// Probability tiles kept between the sweep that finds the log-sum-exp and the column sums, so that
// q k^T is computed once. Bounded: it holds a few KV heads at a time, and only the first chunks of
// a very long prompt; the rest is computed again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

// Bytes of one tile: row maxima, then probabilities of `element_size` bytes.
constexpr int64_t tile_bytes(int64_t padded_rows, int64_t element_size) {
  return padded_rows * (4 + kKeyTile * element_size);
}

// How a call is cut into rounds whose tiles fit the cache.
struct TileRounds {
  int64_t heads_per_round;  // KV heads swept together
  int64_t chunk;            // prompt keys per task
  int64_t chunks;           // per head
  int64_t cached_chunks;    // of them, those whose tiles are kept
};

constexpr TileRounds tile_rounds(int64_t heads, int64_t num_prompt, int64_t padded_rows,
                                 int64_t element_size, int64_t wanted_tasks, int64_t bytes) {
  const int64_t tile = tile_bytes(padded_rows, element_size);
  const int64_t tiles = std::max<int64_t>(1, (num_prompt + kKeyTile - 1) / kKeyTile);
  heads = std::max<int64_t>(1, heads);
  // The heads of one round share the tasks that keep all threads busy.
  for (const int64_t round : {std::clamp<int64_t>(bytes / (tiles * tile), 1, heads), heads}) {
    const int64_t chunk = keys_per_chunk(num_prompt, round, wanted_tasks);
    const int64_t chunks = num_chunks(num_prompt, chunk);
    const int64_t cached = std::min(chunks, bytes / (round * (chunk / kKeyTile) * tile));
    // Where not even one chunk fits there is no reason for rounds.
    if (cached > 0 || round == heads) return {round, chunk, chunks, cached};
  }
  return {};  // not reached: the second round is `heads`
}

class TileCache {
 public:
  // fp32 inputs keep fp32 probabilities, 16-bit inputs compressed ones (compressed_probability.h).
  TileCache(const TileRounds& rounds, int64_t padded_rows, int64_t element_size)
      : heads_(rounds.heads_per_round),
        chunks_(rounds.cached_chunks),
        tiles_(rounds.chunk / kKeyTile),
        padded_rows_(padded_rows),
        element_size_(element_size),
        data_(heads_ * chunks_ * tiles_ * tile_bytes(padded_rows, element_size)) {}

  bool compressed() const { return element_size_ == 2; }
  bool holds(int64_t chunk) const { return chunk < chunks_; }

  // Row maxima [padded_rows] the probabilities of a tile are relative to.
  float* maxima(int64_t head, int64_t chunk, int64_t tile) const {
    return reinterpret_cast<float*>(slot(head, chunk, tile));
  }
  // Probabilities of row group g, [keys][group rows].
  void* probs(int64_t head, int64_t chunk, int64_t tile, int64_t g) const {
    return slot(head, chunk, tile) + padded_rows_ * 4 + g * kRowGroup * kKeyTile * element_size_;
  }

 private:
  // Rounds start at multiples of heads_, so a head's place in its round is the remainder.
  char* slot(int64_t head, int64_t chunk, int64_t tile) const {
    return data_ + ((head % heads_ * chunks_ + chunk) * tiles_ + tile) *
                       tile_bytes(padded_rows_, element_size_);
  }

  const int64_t heads_;
  const int64_t chunks_;
  const int64_t tiles_;
  const int64_t padded_rows_;
  const int64_t element_size_;
  Buffer<char> data_;
};

}  // namespace lookaheadkv::cpu
