// Exact Top-K of rows so long that several blocks share their chunks, and pools too wide to load
// every window.
//
// Four digits of eight bits, from the highest: each chunk writes the histogram of its keys that
// share the digits found so far, and every block of the next launch sums them in order, so no block
// waits for another. From the same histograms the blocks of the last launch know how many entries
// the chunks before theirs keep, and write their own after those.
#pragma once

#include <algorithm>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/select.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

constexpr int kLongOwn = 8;
constexpr int kLongChunk = kLongOwn * kSelectThreads;

struct LongBlock {
  int64_t row;
  int chunk;
  __device__ __forceinline__ explicit LongBlock(const SelectParams& params)
      : row(block_index() / params.chunks),
        chunk(static_cast<int>(block_index() % params.chunks)) {}
};

// First bin of a chunk's histogram of one digit.
__device__ __forceinline__ int32_t* histogram_of(const SelectParams& params, int64_t rows,
                                                 int digit, int64_t row, int chunk) {
  return params.histograms + ((digit * rows + row) * params.chunks + chunk) * kBins;
}

struct Threshold {
  uint32_t key;  // the digits found; the others are zero
  int wanted;    // keys wanted among those that share them
};

// Returns the first `digits` digits of the kept-th largest key. All threads call it; `counts`
// [kBins] and `found` [2] in shared memory.
__device__ __forceinline__ Threshold find_threshold(const SelectRow& row, int64_t rows, int digits,
                                                    int* counts, int* found) {
  const SelectParams& params = row.params;
  Threshold threshold = {0, row.kept};
  for (int digit = 0; digit < digits; ++digit) {
    if (thread_index() < kBins) {
      int sum = 0;
      for (int chunk = 0; chunk < params.chunks; ++chunk) {
        sum += histogram_of(params, rows, digit, row.row, chunk)[thread_index()];
      }
      counts[thread_index()] = sum;
    }
    sync_threads();
    if (thread_index() < 32) {
      const FoundDigit next = find_digit(counts, threshold.wanted);
      if (thread_index() == 0) {
        found[0] = next.digit;
        found[1] = next.wanted;
      }
    }
    sync_threads();
    threshold.key |= static_cast<uint32_t>(found[0]) << (24 - 8 * digit);
    threshold.wanted = found[1];
  }
  return threshold;
}

// One chunk of one row: counts of digit `kDigit` among the keys that share the higher ones. The
// first of these launches pools, too.
template <int kDigit>
__global__ void __launch_bounds__(kSelectThreads)
    digit_histogram_kernel(const SelectParams params, const int64_t rows) {
  start_kernel();
  const LongBlock block(params);
  const SelectRow row(params, block.row);
  const int thread = thread_index();
  int* const counts = reinterpret_cast<int*>(shared_memory());  // [kBins]
  int* const found = counts + kBins;
  uint32_t* const staged = reinterpret_cast<uint32_t*>(found + 2);
  const int start = block.chunk * kLongChunk;
  const bool pool = kDigit == 0 && params.scores != nullptr;
  Threshold threshold = {0, row.kept};
  if (row.kept == 0) return;  // the row keeps nothing: its histograms are not read
  if constexpr (kDigit > 0) threshold = find_threshold(row, rows, kDigit, counts, found);
  if (pool) stage_keys(staged, row, start, kLongChunk, params.half, kSelectThreads);
  sync_threads();
  if (thread < kBins) counts[thread] = 0;
  sync_threads();
#pragma unroll
  for (int i = 0; i < kLongOwn; ++i) {
    const int own = i * kSelectThreads + thread, at = start + own;
    if (at >= row.length) continue;
    uint32_t key;
    if (pool) {
      uint32_t best = 0;
      for (int w = 0; w <= 2 * params.half; ++w) {
        best = best > staged[own + w] ? best : staged[own + w];
      }
      params.out_keys[row.row * params.num_prompt + row.first + at] = best;
      key = row.pin(at, best);
    } else {
      key = row.pooled_key(at);
    }
    constexpr int kShift = 24 - 8 * kDigit;
    // The digits before, by two shifts: the first digit has none before it, and a single shift by
    // 32 would drop nothing.
    if ((key ^ threshold.key) >> kShift >> 8 == 0) {
      atomic_add_shared(counts + ((key >> kShift) & 0xff), 1);
    }
  }
  sync_threads();
  if (thread < kBins) {
    histogram_of(params, rows, kDigit, block.row, block.chunk)[thread] = counts[thread];
  }
}

// One chunk of one row: its kept positions, behind those of the chunks before it.
__global__ void __launch_bounds__(kSelectThreads, 1)
    write_kept_kernel(const SelectParams params, const int64_t rows) {
  start_kernel();
  const LongBlock block(params);
  const SelectRow row(params, block.row);
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  if (block.chunk == 0) row.fill_slots(kSelectThreads);
  if (row.kept == 0) return;
  int* const counts = reinterpret_cast<int*>(shared_memory());  // [kBins]
  int* const found = counts + kBins;
  int* const totals = found + 2;  // [kSelectWarps]
  const Threshold threshold = find_threshold(row, rows, kDigits, counts, found);

  // Counts what the chunks before keep: keys above the threshold, by the first digit that differs,
  // and keys equal to it. Thread t counts bin t.
  int above = 0, equal = 0;
  if (thread < kBins) {
    for (int digit = 0; digit < kDigits; ++digit) {
      const int mine = static_cast<int>(threshold.key >> (24 - 8 * digit)) & 0xff;
      if (thread < mine || (thread == mine && digit < kDigits - 1)) continue;
      int sum = 0;
      for (int chunk = 0; chunk < block.chunk; ++chunk) {
        sum += histogram_of(params, rows, digit, block.row, chunk)[thread];
      }
      (thread > mine ? above : equal) += sum;
    }
  }
  int own_above = 0, own_equal = 0;
  uint32_t keys[kLongOwn];
#pragma unroll
  for (int i = 0; i < kLongOwn; ++i) {
    const int at = block.chunk * kLongChunk + thread * kLongOwn + i;
    keys[i] = 0;
    if (at >= row.length) continue;
    keys[i] = row.pooled_key(at);
    own_above += keys[i] > threshold.key ? 1 : 0;
    own_equal += keys[i] == threshold.key ? 1 : 0;
  }
  // Sums each of the four over the block: kept before the chunk, and before this thread.
  const auto block_prefix = [&](int value, int& total) {
    const int prefix = warp_prefix(value);
    sync_threads();
    if (lane == 31) totals[warp] = prefix;
    sync_threads();
    const int of_warp = totals[lane], warps = warp_prefix(of_warp);
    total = shuffle(warps, 31);
    return shuffle(warps - of_warp, warp) + prefix - value;
  };
  int before_above = 0, before_equal = 0, unused = 0;
  block_prefix(above, before_above);
  block_prefix(equal, before_equal);
  above = before_above + block_prefix(own_above, unused);
  equal = before_equal + block_prefix(own_equal, unused);
  int32_t* const out = params.indices + row.row * params.slots;
#pragma unroll
  for (int i = 0; i < kLongOwn; ++i) {
    const int at = block.chunk * kLongChunk + thread * kLongOwn + i;
    if (at >= row.length) continue;
    const bool is_above = keys[i] > threshold.key, is_equal = keys[i] == threshold.key;
    if (is_above || (is_equal && equal < threshold.wanted)) {
      out[above + (equal < threshold.wanted ? equal : threshold.wanted)] = row.first + at;
    }
    above += is_above ? 1 : 0;
    equal += is_equal ? 1 : 0;
  }
}

inline void select_long(const SelectParams& params, int64_t rows, Stream stream, bool follows) {
  const int64_t blocks = rows * params.chunks;
  const int shared = (kBins + 2 + kSelectWarps) * 4;
  SelectParams pooled = params;
  if (params.scores != nullptr) {
    pooled.keys = params.out_keys;
    pooled.scores = nullptr;
  }
  const int staging = params.scores != nullptr ? (kLongChunk + 2 * params.half) * 4 : 0;
  launch(digit_histogram_kernel<0>, blocks, kSelectThreads, shared + staging, stream, follows,
         params, rows);
  launch(digit_histogram_kernel<1>, blocks, kSelectThreads, shared, stream, true, pooled, rows);
  launch(digit_histogram_kernel<2>, blocks, kSelectThreads, shared, stream, true, pooled, rows);
  launch(digit_histogram_kernel<3>, blocks, kSelectThreads, shared, stream, true, pooled, rows);
  launch(write_kept_kernel, blocks, kSelectThreads, shared, stream, true, pooled, rows);
}

constexpr int kWidenThreads = 256;
constexpr int kFirstRadius = 8;

// Maxima of the windows at - radius .. at + radius: from the scores if `from` is null, otherwise
// from the maxima of windows of radius `radius` - `step`, two of which, `step` <= `radius` - `step`
// to either side, cover one window. If the centre of one lies outside the row, the one at the row's
// end is taken: it reaches equally far inside.
__global__ void __launch_bounds__(kWidenThreads)
    widen_kernel(const SelectParams params, const uint32_t* from, uint32_t* out, const int radius,
                 const int step, const int64_t total) {
  start_kernel();
  const int64_t index = block_index() * kWidenThreads + thread_index();
  if (index >= total) return;
  const SelectRow row(params, index / params.num_prompt);
  const int at = static_cast<int>(index % params.num_prompt) - row.first;
  if (at < 0 || at >= row.length) return;
  uint32_t best = 0;
  const int step_or_radius = from == nullptr ? radius : step;
  const int begin = at > step_or_radius ? at - step_or_radius : 0;
  const int end = row.length - 1 - at > step_or_radius ? at + step_or_radius : row.length - 1;
  if (from == nullptr) {
    for (int i = begin; i <= end; ++i) {
      const uint32_t key = rank_key(row.scores()[i]);
      best = best > key ? best : key;
    }
  } else {
    const uint32_t* const windows = from + row.row * params.num_prompt + row.first;
    best = windows[begin] > windows[end] ? windows[begin] : windows[end];
  }
  out[index] = best;
}

// Pools the keys of every row and returns which of the two buffers holds the result.
inline const uint32_t* pool_by_doubling(const SelectParams& params, uint32_t* keys, uint32_t* other,
                                        int64_t rows, Stream stream, bool follows) {
  const int64_t total = rows * params.num_prompt;
  const uint32_t* from = nullptr;
  for (int radius = 0; radius < params.half; follows = true) {
    const int next = std::min(params.half, radius == 0 ? kFirstRadius : 2 * radius);
    launch(widen_kernel, ceil_div(total, kWidenThreads), kWidenThreads, 0, stream, follows, params,
           from, keys, next, next - radius, total);
    radius = next;
    from = keys;
    std::swap(keys, other);
  }
  return from;
}

}  // namespace lookaheadkv::cuda
