// Tiles for plain fp32 arithmetic: attention and scores of fp32 inputs, and every gradient. Any
// head dimension, any dtype: elements become floats on their way to shared memory.
//
// A block of four warps has 32 rows "on the left", eight per warp, and 32 "on the right", one per
// lane.
#pragma once

#include "cuda/keys.cuh"

namespace lookaheadkv::cuda {

constexpr int kFmaWarps = 4;
constexpr int kFmaThreads = 32 * kFmaWarps;
constexpr int kFmaRows = 32;     // on either side
constexpr int kFmaWarpRows = 8;  // rows on the left of one warp
static_assert(kFmaWarps * kFmaWarpRows == kFmaRows, "every row on the left has a warp");

// Floats from one row to the next: one chunk of 16 bytes more than D, so that the rows that eight
// neighbouring lanes read lie in different banks.
__host__ __device__ constexpr int fma_pitch(int head_dim) { return head_dim + 4; }
constexpr int fma_tile_floats(int head_dim) { return kFmaRows * fma_pitch(head_dim); }

// Fills a tile with 32 rows. `load(eight, r, d)` fills in elements d .. d + 7 of row r if that row
// exists; otherwise they stay zero.
template <class Load>
__device__ __forceinline__ void fill_fma_tile(float* tile, int head_dim, const Load& load) {
  const int chunks = head_dim / 8;
  for (int at = thread_index(); at < kFmaRows * chunks; at += kFmaThreads) {
    const int r = at / chunks, d = at % chunks * 8;
    float eight[8] = {};
    load(eight, r, d);
    Float4* const to = reinterpret_cast<Float4*>(tile + r * fma_pitch(head_dim) + d);
    to[0] = {{eight[0], eight[1], eight[2], eight[3]}};
    to[1] = {{eight[4], eight[5], eight[6], eight[7]}};
  }
}

// The same where `row(r)` is the address of row r, or null.
template <class T, class Row>
__device__ __forceinline__ void load_fma_tile(float* tile, int head_dim, bool vector,
                                              const Row& row) {
  fill_fma_tile(tile, head_dim, [&](float (&eight)[8], int r, int d) {
    const T* const from = row(r);
    if (from != nullptr) load_eight(eight, from + d, vector);
  });
}

// dots[i] = <left row 8 * warp + i, right row `lane`>.
__device__ __forceinline__ void multiply_rows(float (&dots)[kFmaWarpRows], const float* left,
                                              const float* right, int head_dim) {
  const int pitch = fma_pitch(head_dim);
  const float* const mine = right + thread_index() % 32 * pitch;
  const float* const rows = left + thread_index() / 32 * kFmaWarpRows * pitch;
#pragma unroll
  for (int i = 0; i < kFmaWarpRows; ++i) dots[i] = 0.0f;
  for (int d = 0; d < head_dim; d += 4) {
    const Float4 a = *reinterpret_cast<const Float4*>(mine + d);
#pragma unroll
    for (int i = 0; i < kFmaWarpRows; ++i) {
      const Float4 b = *reinterpret_cast<const Float4*>(rows + i * pitch + d);
#pragma unroll
      for (int c = 0; c < 4; ++c) dots[i] += a.v[c] * b.v[c];
    }
  }
}

// Columns 4 * lane + 128 * part .. + 3 of the warp's eight rows, for D up to 256.
struct FmaAccumulator {
  float sum[kFmaWarpRows][2][4] = {};

  // Row i += sum over the lanes of weights[i] * right row `lane`.
  __device__ __forceinline__ void add(const float (&weights)[kFmaWarpRows], const float* right,
                                      int head_dim) {
    const int d = 4 * (thread_index() % 32);
    for (int lane = 0; lane < 32; ++lane) {
      const float* const row = right + lane * fma_pitch(head_dim);
      float w[kFmaWarpRows];
#pragma unroll
      for (int i = 0; i < kFmaWarpRows; ++i) w[i] = shuffle(weights[i], lane);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        if (d + 128 * part >= head_dim) continue;
        const Float4 four = *reinterpret_cast<const Float4*>(row + d + 128 * part);
#pragma unroll
        for (int i = 0; i < kFmaWarpRows; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[i][part][c] += w[i] * four.v[c];
        }
      }
    }
  }

  // Writes row i, times `weight`, to `to`.
  __device__ __forceinline__ void store(int i, float weight, float* to, int head_dim) const {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int d = 4 * (thread_index() % 32) + 128 * part;
      if (d >= head_dim) continue;
#pragma unroll
      for (int c = 0; c < 4; ++c) to[d + c] = sum[i][part][c] * weight;
    }
  }
  template <class T>
  __device__ __forceinline__ void store(int i, float weight, T* to, int head_dim) const {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int d = 4 * (thread_index() % 32) + 128 * part;
      if (d >= head_dim) continue;
      const float (&s)[4] = sum[i][part];
      uint32_t* const pairs = reinterpret_cast<uint32_t*>(to + d);
      pairs[0] = pack<T>(s[0] * weight, s[1] * weight);
      pairs[1] = pack<T>(s[2] * weight, s[3] * weight);
    }
  }
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

}  // namespace lookaheadkv::cuda
