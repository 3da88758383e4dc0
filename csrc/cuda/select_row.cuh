// Pool and Top-K of one row of up to kLongestBlockRow positions by one block, whose threads hold
// the row's keys in registers. Alone (select.cu), or with the gather behind it (evict.cu).
#pragma once

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/select.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

constexpr int kRowThreads = 512;  // half of the most: a thread needs registers for its keys
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kOwn = 4;                             // neighbouring positions of a thread
constexpr int kSweep = kOwn * kRowThreads;          // positions of one sweep of the block
constexpr int kUsualHalf = 3;                       // of the pool's window: 7
constexpr int kSweeps = kLongestBlockRow / kSweep;  // at most
static_assert(kRowWarps <= 32, "a warp adds up the totals of a sweep");

constexpr int kSelectStages = 6;  // sweeps under way: a row must not wait for memory once a sweep

// Starts copying the scores of positions start - half .. start + kSweep + half - 1; NaN, which wins
// no window, outside the row.
__device__ __forceinline__ void stage_scores(float* staged, const SelectRow& row, int start,
                                             int half) {
  const float* const scores = row.scores();
  // Copies do not wait for each other; unrolled, each has an address in registers full of keys.
#pragma unroll 1
  for (int i = thread_index(); i < kSweep + 2 * half; i += kRowThreads) {
    const int position = start - half + i;
    if (position >= 0 && position < row.length) {
      copy_async_word(staged + i, scores + position);
    } else {
      staged[i] = NAN;
    }
  }
}

// Maxima of the windows of kOwn neighbouring positions; `staged` is where the first one begins.
// A NaN is passed over where there is a number.
template <int kHalf>
__device__ __forceinline__ void pool_windows(float (&best)[kOwn], const float* staged, int half) {
  if constexpr (kHalf >= 2) {
    // All windows share their middle. Whole vectors: single words of neighbouring threads would
    // come from the same banks.
    constexpr int kWords = 2 * kHalf + kOwn;
    float words[(kWords + 3) / 4 * 4];
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const Float4 four = *reinterpret_cast<const Float4*>(staged + i);
#pragma unroll
      for (int c = 0; c < 4; ++c) words[i + c] = four.v[c];
    }
    float middle = words[kOwn - 1];
#pragma unroll
    for (int i = kOwn; i <= 2 * kHalf; ++i) middle = fmaxf(middle, words[i]);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      best[i] = middle;
#pragma unroll
      for (int w = i; w < kOwn - 1; ++w) best[i] = fmaxf(best[i], words[w]);
#pragma unroll
      for (int w = 2 * kHalf + 1; w <= 2 * kHalf + i; ++w) best[i] = fmaxf(best[i], words[w]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      best[i] = staged[i];
#pragma unroll 1
      for (int w = 1; w <= 2 * half; ++w) best[i] = fmaxf(best[i], staged[i + w]);
    }
  }
}

// Words of one staged sweep, whole vectors.
__host__ __device__ constexpr int stage_words(int half) { return (kSweep + 2 * half + 3) / 4 * 4; }

// One row, by one block. A thread holds positions sweep * kSweep + thread * kOwn .. + kOwn - 1 of
// every sweep. kHalf: half of the pool's window, where it is known at compile time; otherwise 0.
template <int kHalf>
__device__ __forceinline__ void select_row(const SelectParams& params, int64_t at_row) {
  const SelectRow row(params, at_row);
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  row.fill_slots(kRowThreads);
  if (row.kept == 0) return;
  const int half = kHalf > 0 ? kHalf : params.half;
  float* const staged = reinterpret_cast<float*>(shared_memory());  // [kSelectStages, stage_words]
  int* const counts =
      reinterpret_cast<int*>(staged + kSelectStages * stage_words(half));  // [kBins]
  int* const found = counts + kBins;                                       // digit, wanted
  int* const totals = found + 2;                                           // [kSweeps, kRowWarps]

  const bool pool = params.scores != nullptr;
  const auto load = [&](int s) {
    if (pool && s * kSweep < row.length) {
      stage_scores(staged + s % kSelectStages * stage_words(half), row, s * kSweep, half);
    }
    commit_copies();
  };
#pragma unroll
  for (int s = 0; s < kSelectStages - 1; ++s) load(s);
  uint32_t keys[kSweeps][kOwn];
#pragma unroll
  for (int s = 0; s < kSweeps; ++s) {
    const int at = s * kSweep + thread * kOwn;
    if (s * kSweep >= row.length) continue;
    wait_copies<kSelectStages - 2>();
    sync_threads();  // sweep s is there for all, and nobody reads the one before any more
    load(s + kSelectStages - 1);
    float best[kOwn];
    if (pool) {
      pool_windows<kHalf>(best, staged + s % kSelectStages * stage_words(half) + thread * kOwn,
                          half);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      keys[s][i] = 0;
      if (at + i >= row.length) continue;
      keys[s][i] = pool ? row.pin(at + i, rank_key(best[i])) : row.pooled_key(at + i);
    }
  }

  // Threshold: the kept-th largest key. Where all are kept, every key reaches 0.
  uint32_t threshold = 0;
  int wanted = row.kept;  // of the keys that share the digits found so far
  for (int pass = 0; pass < kDigits && row.kept < row.length; ++pass) {
    const int shift = 24 - 8 * pass;
    if (thread < kBins) counts[thread] = 0;
    sync_threads();
#pragma unroll
    for (int s = 0; s < kSweeps; ++s) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (s * kSweep + thread * kOwn + i >= row.length) continue;
        const uint32_t key = keys[s][i];
        // The digits before: two shifts, as one by 32 would drop nothing.
        if ((key ^ threshold) >> shift >> 8 == 0) {
          atomic_add_shared(counts + ((key >> shift) & 0xff), 1);
        }
      }
    }
    sync_threads();
    if (warp == 0) {
      const FoundDigit digit = find_digit(counts, wanted);
      if (lane == 0) {
        found[0] = digit.digit;
        found[1] = digit.wanted;
      }
    }
    sync_threads();
    threshold |= static_cast<uint32_t>(found[0]) << shift;
    wanted = found[1];
  }

  // Where each kept position goes: counts of keys above and equal before it. Both of a sweep fit 16
  // bits, so one prefix sum serves both. Computed twice, as registers are full of keys.
  const auto counted = [&](int s) {
    int own = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (s * kSweep + thread * kOwn + i >= row.length) continue;
      own += keys[s][i] > threshold ? 0x10000 : keys[s][i] == threshold ? 1 : 0;
    }
    return own;
  };
#pragma unroll
  for (int s = 0; s < kSweeps; ++s) {
    const int prefix = warp_prefix(counted(s));
    if (lane == 31) totals[s * kRowWarps + warp] = prefix;
  }
  sync_threads();
  int32_t* const out = params.indices + row.row * params.slots;
  int above_base = 0, equal_base = 0;
#pragma unroll
  for (int s = 0; s < kSweeps; ++s) {
    if (s * kSweep >= row.length) continue;
    const int total = lane < kRowWarps ? totals[s * kRowWarps + lane] : 0;
    const int prefix = warp_prefix(total);
    const int own = counted(s);
    const int at = shuffle(prefix - total, warp) + warp_prefix(own) - own;
    int above = above_base + (at >> 16), equal = equal_base + (at & 0xffff);
    const int all = shuffle(prefix, 31);
    above_base += all >> 16;
    equal_base += all & 0xffff;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int position = s * kSweep + thread * kOwn + i;
      if (position >= row.length) continue;
      const bool is_above = keys[s][i] > threshold, is_equal = keys[s][i] == threshold;
      if (is_above || (is_equal && equal < wanted)) {
        out[above + (equal < wanted ? equal : wanted)] = row.first + position;
      }
      above += is_above ? 1 : 0;
      equal += is_equal ? 1 : 0;
    }
  }
}

// Bytes of dynamic shared memory that select_row needs.
inline int select_row_shared(int half) {
  return (kSelectStages * stage_words(half) + kBins + 2 + kSweeps * kRowWarps) * 4;
}

// The arguments of a call, for scores that are not pooled yet.
inline SelectParams select_params(const Problem& problem, const float* scores,
                                  const SelectOptions& options, int32_t* indices) {
  const int64_t length = problem.num_prompt;
  SelectParams params = {};
  params.scores = scores;
  params.indices = indices;
  params.leftpad_k = problem.leftpad_k;
  params.seqused_k = problem.seqused_k;
  params.kv_heads = static_cast<int32_t>(problem.num_kv_heads);
  params.num_prompt = static_cast<int32_t>(length);
  params.budget = static_cast<int32_t>(std::min(options.budget, length));
  params.num_sink = static_cast<int32_t>(std::min(options.num_sink, length));
  params.num_recent = static_cast<int32_t>(std::min(options.num_recent, length));
  params.append_rows = static_cast<int32_t>(options.append_rows);
  params.slots = params.budget + params.append_rows;
  // A wider window holds the whole row anyway.
  params.half = static_cast<int32_t>(std::min(options.pool_kernel / 2, length));
  return params;
}

// Selects every row, by however many launches it takes (select.cu).
void select_rows(SelectParams params, int64_t rows, Workspace& workspace, bool follows,
                 const Device& device);

// Whether one block selects a row, with the pool on the way.
inline bool fits_one_block(const SelectParams& params) {
  return params.num_prompt <= kLongestBlockRow && 2 * params.half + 1 <= kWidestFusedPool;
}

}  // namespace lookaheadkv::cuda
