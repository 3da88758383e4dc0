// 16-bit tiles: how key and value rows lie in shared memory, and how they and the query become
// fragments of mma.m16n8k16.
#pragma once

#include "cuda/keys.cuh"

namespace lookaheadkv::cuda {

// Rows of D elements as 16-byte chunks. The eight rows that one matrix load touches must lie in
// different banks: chunks are permuted by the row where a row is a multiple of 128 bytes, otherwise
// rows are one chunk longer.
template <int D>
struct TileShape {
  static constexpr int kChunks = D / 8;
  static constexpr bool kPermuted = kChunks % 8 == 0;
  static constexpr int kPitch = kPermuted ? kChunks : kChunks + 1;
  static_assert(kPermuted || kPitch % 2 == 1, "rows would share banks");

  static constexpr int bytes(int rows) { return rows * kPitch * 16; }
  // Byte offset of a chunk.
  __device__ __forceinline__ static int offset(int row, int chunk) {
    return (row * kPitch + (kPermuted ? chunk ^ (row & 7) : chunk)) * 16;
  }
};

// Starts copying keys start .. start + kRows - 1 of one head, which `rows` locates, into `tile`.
// Keys that no row sees and columns past the head dimension become zeros, so that NaN in padding
// has no effect.
template <int D, int kRows, int kThreads, class Rows>
__device__ __forceinline__ void load_tile(char* tile, const Head& head, const Rows& rows,
                                          int start) {
  using Shape = TileShape<D>;
  static_assert(kRows * Shape::kChunks % kThreads == 0, "every thread copies as many chunks");
  constexpr int kCopies = kRows * Shape::kChunks / kThreads;
  if constexpr (Rows::kStrided && kThreads % Shape::kChunks == 0) {
    // Nearly every tile: all keys exist. A thread copies the same chunk of rows kStep apart.
    if (rows.vector && head.all_exist(start, start + kRows)) {
      constexpr int kStep = kThreads / Shape::kChunks;
      const int row = thread_index() / Shape::kChunks, chunk = thread_index() % Shape::kChunks;
      const bool fetch = chunk * 8 < head.p.head_dim;
      auto from = fetch ? rows.at(start + row, chunk * 8) : rows.rows;
      const int64_t step = fetch ? kStep * rows.stride : 0;
#pragma unroll 4
      for (int i = 0; i < kCopies; ++i, from += step) {
        rows.copy_aligned(tile + Shape::offset(row + i * kStep, chunk), from, fetch);
      }
      return;
    }
  }
  // Unrolled, every copy has its own addresses in registers, which are full if D is 256.
  constexpr int kUnroll = D > 128 ? 1 : 2;
#pragma unroll kUnroll
  for (int i = 0; i < kCopies; ++i) {
    const int at = i * kThreads + thread_index();
    const int row = at / Shape::kChunks, chunk = at % Shape::kChunks;
    const bool fetch = chunk * 8 < head.p.head_dim && head.exists(start + row);
    rows.copy(tile + Shape::offset(row, chunk), start + row, chunk * 8, fetch);
  }
}

// Writes the scales of keys start .. start + kKeys - 1 to shared memory.
template <int kKeys, int kThreads, class Rows>
__device__ __forceinline__ void load_weights(char* to, const Head& head, const Rows& rows,
                                             int start) {
  static_assert(kThreads >= kKeys, "one thread per key");
  const int key = thread_index();
  if (key >= kKeys) return;
  reinterpret_cast<float*>(to)[key] = head.exists(start + key) ? rows.weight(start + key) : 1.0f;
}

// Query rows `low` and `low + 8` of a lane, located once. Past the last row they are the last one:
// zeros times an infinite key would be NaN where no real row has one.
template <class T>
struct QueryRows {
  const T* rows[2];
  int head_dim;
  bool vector;

  __device__ __forceinline__ QueryRows(const Head& head, int low)
      : head_dim(head.p.head_dim), vector(head.p.query.vector) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = low + 8 * half < head.p.folded ? low + 8 * half : head.p.folded - 1;
      rows[half] = head.query_row<T>(row);
    }
  }
};

// Sixteen columns, from 16 * step, of those rows as fragment a of mma. Directly from device memory:
// the rows are read once, by one warp. `vector` is query.vector, possibly known at compile time.
template <class T>
__device__ __forceinline__ void load_query(uint32_t (&a)[4], const QueryRows<T>& query, int step,
                                           bool vector) {
  const int pair = 16 * step + 2 * (thread_index() % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int column = pair + 8 * part;
      uint32_t two = 0;
      if (column < query.head_dim) {
        const T* const from = query.rows[half] + column;
        two = vector ? *reinterpret_cast<const uint32_t*>(from)
                     : static_cast<uint32_t>(from[0].bits) |
                           (static_cast<uint32_t>(from[1].bits) << 16);
      }
      a[half + 2 * part] = two;
    }
  }
}

// All steps; tests only once whether the rows are aligned.
template <int kSteps, class T>
__device__ __forceinline__ void load_query(uint32_t (&a)[kSteps][4], const QueryRows<T>& query) {
  if (query.vector) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load_query(a[step], query, step, true);
  } else {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) load_query(a[step], query, step, false);
  }
}

// Fragments b of mma for keys first_key .. + 15 (two of them: r[0], r[1] and r[2], r[3]) and the
// sixteen columns of `step`.
template <int D>
__device__ __forceinline__ void load_key_fragments(uint32_t (&r)[4], const char* tile,
                                                   int first_key, int step) {
  const int lane = thread_index() % 32;
  const int key = first_key + lane % 8 + (lane >= 16 ? 8 : 0);
  load_matrices(r, tile + TileShape<D>::offset(key, 2 * step + lane / 8 % 2));
}

// Fragments b of mma for value rows first_key .. + 15 and columns 16 * column_step .. + 15: r[0],
// r[1] for the first eight columns, r[2], r[3] for the others.
template <int D>
__device__ __forceinline__ void load_value_fragments(uint32_t (&r)[4], const char* tile,
                                                     int first_key, int column_step) {
  const int lane = thread_index() % 32;
  const int chunk = 2 * column_step + lane / 16;
  load_matrices_transposed(r, tile + TileShape<D>::offset(first_key + lane % 16, chunk));
}

}  // namespace lookaheadkv::cuda
