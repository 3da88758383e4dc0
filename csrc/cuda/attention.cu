// Room 1: attention of the folded observation rows, split over the keys.
//
// There are too few rows to fill a chip, so the keys are cut into splits; each split writes its
// normalised output and base-2 log-sum-exp, and a small kernel combines them in the order of the
// splits: no atomics, the same bits every time. Without `out` the parts of the log-sum-exp go
// directly to the scores kernel, which combines them itself.
#include "cuda/attention_fma.cuh"
#include "cuda/attention_mma.cuh"
#include "cuda/device_pages.h"
#include "cuda/device_problem.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace lookaheadkv::cuda {

namespace {

constexpr int kCombineThreads = 128;
constexpr int64_t kMinTiles = 4;

// out [rows, D] (if there are parts of it) and lse [rows]; one warp per row. Rows of part s of a
// unit begin at (unit * splits + s) * folded.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const AttentionParams params, const int64_t rows) {
  start_kernel();
  const int lane = thread_index() % 32;
  const int head_dim = params.out_parts != nullptr ? params.problem.head_dim : 0;
  const int folded = params.problem.folded, splits = params.num_splits;
  const int64_t row = block_index() * (kCombineThreads / 32) + thread_index() / 32;
  if (row >= rows) return;
  const int64_t first = row / folded * splits * folded + row % folded;
  float peak = -INFINITY;
  for (int s = lane; s < splits; s += 32) {
    peak = fmaxf(peak, params.lse_parts[first + static_cast<int64_t>(s) * folded]);
  }
  peak = warp_max(peak);
  float total = 0.0f, out[4][2] = {};
  for (int s = 0; s < splits; ++s) {
    const int64_t part = first + static_cast<int64_t>(s) * folded;
    const float weight = exp2_approx(params.lse_parts[part] - peak);
    total += weight;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int d = 64 * i + 2 * lane;
      if (d >= head_dim) continue;
      const float* const from = params.out_parts + part * head_dim + d;
      out[i][0] += weight * from[0];
      out[i][1] += weight * from[1];
    }
  }
  if (lane == 0) params.out_lse[row] = (peak + log2_approx(total)) * kLn2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int d = 64 * i + 2 * lane;
    if (d >= head_dim) continue;
    T* const to = static_cast<T*>(params.out) + row * head_dim + d;
    const float a = out[i][0] / total, b = out[i][1] / total;
    if constexpr (sizeof(T) == 4) {
      to[0] = a;
      to[1] = b;
    } else {
      *reinterpret_cast<uint32_t*>(to) = pack<T>(a, b);
    }
  }
}

// The kernel for one dtype and head dimension, and the rows and keys of one of its tiles.
struct AttentionKernel {
  void (*run)(AttentionParams);
  int threads, shared, rows, keys;
  int resident;  // blocks that share a multiprocessor, about
};

template <bool kWithValue, class Source>
AttentionKernel kernel_for(DType dtype, int64_t head_dim) {
  if (dtype == DType::kFloat32) {
    const int tiles = kWithValue ? 3 : 2;
    return {attention_fma_kernel<kWithValue, Source>,
            kFmaThreads,
            tiles * fma_tile_floats(static_cast<int>(head_dim)) * 4,
            kFmaRows,
            kFmaRows,
            2};
  }
  AttentionKernel kernel = {};
  with_matrix_type(dtype, head_dim, [&](auto type, auto dim) {
    using Tile = AttentionTile<dim(), kWithValue>;
    kernel = {attention_mma_kernel<decltype(type), dim(), kWithValue, Source>,
              Tile::kThreads,
              Tile::kSharedBytes + (Source::kWeighted ? Tile::kStages * Tile::kWeightBytes : 0),
              Tile::kRows,
              Tile::kKeys,
              Tile::kResident};
  });
  return kernel;
}

}  // namespace

int multiprocessors_of_current_device() { return multiprocessors(); }

RowLse attention(const Problem& problem, const TensorView& query, const TensorView& key,
                 const TensorView& value, void* out, float* lse, Workspace& workspace,
                 const Device& device) {
  const AttentionKernel kernel = out != nullptr
                                     ? kernel_for<true, InTensor>(query.dtype, problem.head_dim)
                                     : kernel_for<false, InTensor>(query.dtype, problem.head_dim);
  AttentionParams params = {};
  params.problem = device_problem(problem, query, key, value);
  const int64_t units = problem.batch * problem.num_kv_heads;
  const int64_t folded = problem.group() * problem.num_rows;
  params.row_tiles = static_cast<int32_t>(ceil_div(folded, kernel.rows));
  // Without a prompt, row tiles see from few keys to all, the longest first: if there are more of
  // them than run at once, the short ones fill the end without splits.
  const int64_t most_waves = problem.num_prompt == 0 ? 1 : kMostWaves;
  const Splits splits =
      split_keys(units * params.row_tiles, ceil_div(problem.num_keys(), kernel.keys),
                 int64_t{kernel.resident} * device.num_sms, kMinTiles, most_waves);
  params.num_splits = splits.count;
  params.tiles_per_split = splits.tiles;
  params.out = out;
  params.out_lse = lse;
  params.lse_parts = workspace.take<float>(units * splits.count * folded);
  const bool combine = splits.count > 1 && (out != nullptr || lse != nullptr);
  if (combine && out != nullptr) {
    params.out_parts = workspace.take<float>(units * splits.count * folded * problem.head_dim);
  }
  if (workspace.counting()) return {};
  const auto stream = static_cast<Stream>(device.stream);
  launch(kernel.run, units * splits.count * params.row_tiles, kernel.threads, kernel.shared, stream,
         false, params);
  if (combine) {
    with_dtype(query.dtype, [&](auto type) {
      launch(combine_kernel<decltype(type)>, ceil_div(units * folded, kCombineThreads / 32),
             kCombineThreads, 0, stream, true, params, units * folded);
    });
  }
  return {nullptr, 0, params.lse_parts, splits.count};
}

RowLse prefill_attention(const Problem& problem, const TensorView& query, const TensorView& key,
                         const TensorView& value, void* out, float* lse, Workspace& workspace,
                         const Device& device) {
  // All S rows are observation rows without a prompt.
  Problem all = problem;
  all.num_rows = problem.num_keys();
  all.num_prompt = 0;
  attention(all, query, key, value, out, lse, workspace, device);
  return {lse + problem.num_prompt, all.num_rows, nullptr, 0};
}

RowLse paged_attention(const PagedProblem& problem, const BatchPlan& plan, Workspace& workspace,
                       const Device& device) {
  const AttentionKernel kernel =
      problem.cache.scale.per_entry()
          ? kernel_for<false, InWeightedPages>(problem.query.dtype, problem.head_dim)
          : kernel_for<false, InPages>(problem.query.dtype, problem.head_dim);
  const int64_t units = problem.batch.num_requests * problem.num_kv_heads;
  AttentionParams params = {};
  params.problem = device_problem(problem);
  params.pages = device_pages(problem, plan);
  const int64_t folded = params.problem.folded;
  params.row_tiles = static_cast<int32_t>(ceil_div(folded, kernel.rows));
  // As many splits as if every request had the maximal length; each request splits its own keys.
  const Splits splits =
      split_keys(units * params.row_tiles, ceil_div(problem.batch.max_seq_len, kernel.keys),
                 int64_t{kernel.resident} * device.num_sms, kMinTiles);
  params.num_splits = splits.count;
  params.lse_parts = workspace.take<float>(units * splits.count * folded);
  if (workspace.counting()) return {};
  launch(kernel.run, units * splits.count * params.row_tiles, kernel.threads, kernel.shared,
         static_cast<Stream>(device.stream), true, params);
  return {nullptr, 0, params.lse_parts, splits.count};
}

}  // namespace lookaheadkv::cuda
