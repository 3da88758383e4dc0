// Probability tiles kept between the sweep that finds the log-sum-exp and the column sums, so that
// q k^T is computed once. Bounded: a few KV heads at a time, and of a very long prompt only the
// first chunks; the rest is computed again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

// About one KV head of a 32K prompt in fp32 (128 rows), or two in 16 bits: fits a usual L3.
constexpr int64_t kTileCacheBytes = int64_t{20} << 20;

class TileCache {
 public:
  // Tiles of kKeyTile keys by padded_rows rows, `chunks` chunks of `tiles` tiles for each of
  // `heads` KV heads. fp32 inputs keep fp32 probabilities, 16-bit inputs 16-bit ones
  // (VectorOps::compress).
  TileCache(int64_t heads, int64_t chunks, int64_t tiles, int64_t padded_rows, bool compressed)
      : chunks_(chunks),
        tiles_(tiles),
        padded_rows_(padded_rows),
        element_size_(compressed ? 2 : 4),
        slot_(padded_rows * (4 + kKeyTile * element_size_)),
        heads_(std::clamp<int64_t>(kTileCacheBytes / std::max<int64_t>(1, chunks * tiles * slot_),
                                   1, std::max<int64_t>(1, heads))),
        cached_chunks_(std::min(chunks, kTileCacheBytes / (tiles * slot_))),
        data_(heads_ * cached_chunks_ * tiles * slot_) {}

  int64_t heads_per_round() const { return heads_; }
  bool compressed() const { return element_size_ == 2; }
  bool holds(int64_t chunk) const { return chunk < cached_chunks_; }

  // Row maxima [padded_rows] the probabilities of a tile are relative to.
  float* maxima(int64_t head, int64_t chunk, int64_t tile) const {
    return reinterpret_cast<float*>(slot(head, chunk, tile));
  }
  // Probabilities of row group g, [keys][group rows].
  void* probs(int64_t head, int64_t chunk, int64_t tile, int64_t g) const {
    return slot(head, chunk, tile) + padded_rows_ * 4 + g * kRowGroup * kKeyTile * element_size_;
  }

 private:
  char* slot(int64_t head, int64_t chunk, int64_t tile) const {
    return data_ + ((head % heads_ * cached_chunks_ + chunk) * tiles_ + tile) * slot_;
  }

  const int64_t chunks_;
  const int64_t tiles_;
  const int64_t padded_rows_;
  const int64_t element_size_;
  const int64_t slot_;  // bytes of one tile
  const int64_t heads_;
  const int64_t cached_chunks_;
  Buffer<char> data_;
};

}  // namespace lookaheadkv::cpu
