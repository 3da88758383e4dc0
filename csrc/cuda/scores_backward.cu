// Gradient of the column scores, with the softmax Jacobian written out.
//
// With p the probabilities and g the upstream gradient (zero on observation keys), per row: delta =
// <g, p>, ds = p (g - delta) / (G L), then dq = scale * ds k and dk = scale * ds^T q. Three sweeps,
// each of which owns what it writes: delta and dq are split over the keys and summed in the order
// of the splits, dk belongs to its tile of keys. Plain fp32 for every dtype: the gradient of a
// softmax consists of differences of nearly equal numbers.
#include "cuda/device_problem.h"
#include "cuda/fma_tile.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace lookaheadkv::cuda {

namespace {

constexpr int kSumThreads = 256;
constexpr int64_t kMinTiles = 4;

struct BackwardParams {
  DeviceProblem problem;
  const float* lse;    // [B, Hq, L] natural log
  const float* grad;   // [B, Hkv, N]
  const float* delta;  // [B * Hkv, G * L]; the sweep that computes it does not read it
  int32_t row_tiles, num_splits, tiles_per_split;
  float* parts;  // [B * Hkv, splits, G * L], or [.., D]
  float weight;
  void* out_key;  // [B, Hkv, N + L, D]
};

// Probability of key j for row r, whose dot product is `dot`; zero where the row does not see it.
__device__ __forceinline__ float probability(const BackwardParams& params, const Head& head,
                                             int64_t unit, int j, int r, float dot) {
  const DeviceProblem& p = params.problem;
  if (r >= p.folded || !head.sees(j, head.limit(r))) return 0.0f;
  const float lse2 = params.lse[unit * p.folded + r] * kLog2E;
  return exp2_approx(dot * p.scale_log2 - lse2);
}

__device__ __forceinline__ float upstream(const BackwardParams& params, const Head& head,
                                          int64_t unit, int j) {
  return j >= head.first && j < head.last ? params.grad[unit * params.problem.num_prompt + j]
                                          : 0.0f;
}

__device__ __forceinline__ float delta_of(const BackwardParams& params, int64_t unit, int r) {
  const int folded = params.problem.folded;
  return r < folded ? params.delta[unit * folded + r] : 0.0f;
}

// One (KV head, split, row tile): parts of sum_j p g (delta), or of sum_j p (g - delta) k. Rows are
// on the left, keys on the right.
template <class T, bool kDelta>
__global__ void __launch_bounds__(kFmaThreads) row_gradient_kernel(const BackwardParams params) {
  start_kernel();
  const DeviceProblem& p = params.problem;
  const int row_begin = static_cast<int>(block_index() % params.row_tiles) * kFmaRows;
  const int split = static_cast<int>(block_index() / params.row_tiles % params.num_splits);
  const int64_t unit = block_index() / params.row_tiles / params.num_splits;
  const Head head(p, unit);
  const TileList tiles(head, kFmaRows, split * params.tiles_per_split,
                       (split + 1) * params.tiles_per_split, p.num_prompt + p.num_rows - 1);
  const int lane = thread_index() % 32;
  const int warp_row = row_begin + thread_index() / 32 * kFmaWarpRows;
  float* const queries = reinterpret_cast<float*>(shared_memory());
  float* const keys = queries + kFmaRows * fma_pitch(p.head_dim);

  load_fma_tile<T>(queries, p.head_dim, p.query.vector, [&](int r) {
    return row_begin + r < p.folded ? head.query_row<T>(row_begin + r) : nullptr;
  });
  FmaAccumulator acc;
  float sums[kFmaWarpRows] = {};
  for (int i = 0; i < tiles.count; ++i) {
    const int start = tiles.tile(i) * kFmaRows;
    sync_threads();
    load_fma_tile<T>(keys, p.head_dim, p.key.vector, [&](int r) {
      return head.exists(start + r) ? head.of<T>(p.key) + (start + r) * p.key.stride_s : nullptr;
    });
    sync_threads();
    const int j = start + lane;
    const float grad = upstream(params, head, unit, j);
    float values[kFmaWarpRows];
    multiply_rows(values, queries, keys, p.head_dim);
#pragma unroll
    for (int r = 0; r < kFmaWarpRows; ++r) {
      const float prob = probability(params, head, unit, j, warp_row + r, values[r]);
      if constexpr (kDelta) {
        sums[r] += prob * grad;
      } else {
        values[r] = prob * (grad - delta_of(params, unit, warp_row + r));
      }
    }
    if constexpr (!kDelta) acc.add(values, keys, p.head_dim);
  }
#pragma unroll
  for (int r = 0; r < kFmaWarpRows; ++r) {
    const int64_t part = (unit * params.num_splits + split) * p.folded + warp_row + r;
    const float sum = kDelta ? warp_sum(sums[r]) : 0.0f;
    if (warp_row + r >= p.folded) continue;
    if constexpr (kDelta) {
      if (lane == 0) params.parts[part] = sum;
    } else {
      acc.store(r, 1.0f, params.parts + part * p.head_dim, p.head_dim);
    }
  }
}

// One tile of keys of one KV head, all rows; padded keys get zeros. Keys are on the left, rows on
// the right.
template <class T>
__global__ void __launch_bounds__(kFmaThreads) key_gradient_kernel(const BackwardParams params) {
  start_kernel();
  const DeviceProblem& p = params.problem;
  const int num_keys = p.num_prompt + p.num_rows;
  const int tiles = (num_keys - 1) / kFmaRows + 1;
  const int start = static_cast<int>(block_index() % tiles) * kFmaRows;
  const int64_t unit = block_index() / tiles;
  const Head head(p, unit);
  const int warp_key = start + thread_index() / 32 * kFmaWarpRows;
  float* const keys = reinterpret_cast<float*>(shared_memory());
  float* const queries = keys + kFmaRows * fma_pitch(p.head_dim);

  load_fma_tile<T>(keys, p.head_dim, p.key.vector, [&](int r) {
    return head.exists(start + r) ? head.of<T>(p.key) + (start + r) * p.key.stride_s : nullptr;
  });
  float grad[kFmaWarpRows];
#pragma unroll
  for (int i = 0; i < kFmaWarpRows; ++i) grad[i] = upstream(params, head, unit, warp_key + i);
  FmaAccumulator acc;
  for (int row_begin = 0; row_begin < p.folded; row_begin += kFmaRows) {
    sync_threads();
    load_fma_tile<T>(queries, p.head_dim, p.query.vector, [&](int r) {
      return row_begin + r < p.folded ? head.query_row<T>(row_begin + r) : nullptr;
    });
    sync_threads();
    const int row = row_begin + thread_index() % 32;
    const float delta = delta_of(params, unit, row);
    float values[kFmaWarpRows];
    multiply_rows(values, keys, queries, p.head_dim);
#pragma unroll
    for (int i = 0; i < kFmaWarpRows; ++i) {
      values[i] = probability(params, head, unit, warp_key + i, row, values[i]) * (grad[i] - delta);
    }
    acc.add(values, queries, p.head_dim);
  }
#pragma unroll
  for (int i = 0; i < kFmaWarpRows; ++i) {
    if (warp_key + i >= num_keys) continue;
    T* const to = static_cast<T*>(params.out_key) + (unit * num_keys + warp_key + i) * p.head_dim;
    acc.store(i, params.weight, to, p.head_dim);
  }
}

__device__ __forceinline__ void store_element(float* to, float x) { *to = x; }
template <class T>
__device__ __forceinline__ void store_element(T* to, float x) {
  to->bits = static_cast<uint16_t>(pack<T>(x, 0.0f));
}

// out [units, size] = weight * sum over the splits of parts [units, splits, size], in their order.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_splits_kernel(const float* parts, T* out, int64_t total, int64_t size, int splits,
                      float weight) {
  start_kernel();
  const int64_t at = block_index() * kSumThreads + thread_index();
  if (at >= total) return;
  const float* const first = parts + at / size * splits * size + at % size;
  float sum = 0.0f;
  for (int s = 0; s < splits; ++s) sum += first[s * size];
  store_element(out + at, sum * weight);
}

}  // namespace

void column_scores_backward(const Problem& problem, const TensorView& query, const TensorView& key,
                            const float* lse, const float* grad_scores, void* grad_query,
                            void* grad_key, Workspace& workspace, const Device& device) {
  const int64_t units = problem.batch * problem.num_kv_heads;
  const int64_t folded = problem.group() * problem.num_rows, dim = problem.head_dim;
  const int64_t row_tiles = ceil_div(folded, kFmaRows);
  const int64_t key_tiles = ceil_div(problem.num_keys(), kFmaRows);
  const Splits splits =
      split_keys(units * row_tiles, key_tiles, int64_t{3} * device.num_sms, kMinTiles);
  float* const parts = workspace.take<float>(units * splits.count * folded * dim);
  float* const delta = workspace.take<float>(units * folded);
  if (workspace.counting()) return;

  BackwardParams params = {};
  params.problem = device_problem(problem, query, key, key);
  params.lse = lse;
  params.grad = grad_scores;
  params.delta = delta;
  params.row_tiles = static_cast<int32_t>(row_tiles);
  params.num_splits = splits.count;
  params.tiles_per_split = splits.tiles;
  params.parts = parts;
  params.weight = static_cast<float>(problem.scale / static_cast<double>(folded));
  params.out_key = grad_key;
  const auto stream = static_cast<Stream>(device.stream);
  const int shared = 2 * fma_tile_floats(static_cast<int>(dim)) * 4;
  const int64_t row_blocks = units * splits.count * row_tiles;
  const auto sum = [&](auto* out, int64_t size, float weight) {
    using Out = std::remove_pointer_t<decltype(out)>;
    const float* const from = parts;
    launch(sum_splits_kernel<Out>, ceil_div(units * size, kSumThreads), kSumThreads, 0, stream,
           true, from, out, units * size, size, splits.count, weight);
  };
  with_dtype(query.dtype, [&](auto type) {
    using T = decltype(type);
    launch(row_gradient_kernel<T, true>, row_blocks, kFmaThreads, shared, stream, false, params);
    sum(delta, folded, 1.0f);
    launch(row_gradient_kernel<T, false>, row_blocks, kFmaThreads, shared, stream, true, params);
    sum(static_cast<T*>(grad_query), folded * dim, params.weight);
    launch(key_gradient_kernel<T>, units * key_tiles, kFmaThreads, shared, stream, true, params);
  });
}

}  // namespace lookaheadkv::cuda
