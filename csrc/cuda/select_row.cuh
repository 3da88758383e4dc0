// Pool and Top-K of one row, by one block whose threads hold the row's keys in registers, or by
// several blocks with one piece each. Used alone (select.cu) or followed by the gather (evict.cu).
#pragma once

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/select.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

constexpr int kRowThreads = 512;  // half of the maximum: a thread needs registers for its keys
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kOwn = 4;                             // neighbouring positions per thread
constexpr int kSweep = kOwn * kRowThreads;          // positions per sweep of the block
constexpr int kUsualHalf = 3;                       // half of the usual pool's window: 7
constexpr int kSweeps = kLongestBlockRow / kSweep;  // at most
constexpr int kMergeSweeps = kMostCandidates / kSweep;
static_assert(kSweep == kShortestPiece && kLongestBlockRow % kSweep == 0);
static_assert(kRowWarps <= 32, "a warp adds up the totals of a sweep");

constexpr int kSelectStages = 6;  // sweeps in flight: a row must not wait for memory at every sweep

// Starts copying the scores of positions start - half .. start + kSweep + half - 1; outside the row
// they are NaN, which wins no window.
__device__ __forceinline__ void stage_scores(float* staged, const SelectRow& row, int start,
                                             int half) {
  const float* const scores = row.scores();
  // Copies do not wait for each other; unrolled, each would need a register for its address, and
  // registers are full of keys.
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

// Maxima of the windows of kOwn neighbouring positions; `staged` is where the first one begins. A
// NaN is ignored if the window has a number.
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

// Shared memory of the functions below.
struct SelectShared {
  float* staged;  // [kSelectStages, stage_words]
  int* counts;    // [kBins]
  int* found;     // digit, wanted
  int* totals;    // [kSweeps, kRowWarps]

  __device__ __forceinline__ explicit SelectShared(int half)
      : staged(reinterpret_cast<float*>(shared_memory())),
        counts(reinterpret_cast<int*>(staged + kSelectStages * stage_words(half))),
        found(counts + kBins),
        totals(found + 2) {}
};

// The keys of one block, in registers: in every sweep, a thread holds those of positions sweep *
// kSweep + thread * kOwn .. + kOwn - 1.
template <int kMost>
using OwnKeys = uint32_t[kMost][kOwn];

// Keys of `count` positions from `begin` on, pooled on their way in.
template <int kHalf>
__device__ __forceinline__ void load_keys(OwnKeys<kSweeps>& keys, const SelectRow& row, int begin,
                                          int count, const SelectShared& shared) {
  const SelectParams& params = row.params;
  const int thread = thread_index();
  const int half = kHalf > 0 ? kHalf : params.half;
  const bool pool = params.scores != nullptr;
  const auto load = [&](int s) {
    if (pool && s * kSweep < count) {
      stage_scores(shared.staged + s % kSelectStages * stage_words(half), row, begin + s * kSweep,
                   half);
    }
    commit_copies();
  };
#pragma unroll
  for (int s = 0; s < kSelectStages - 1; ++s) load(s);
#pragma unroll
  for (int s = 0; s < kSweeps; ++s) {
    const int at = s * kSweep + thread * kOwn;
    if (s * kSweep >= count) continue;
    wait_copies<kSelectStages - 2>();
    sync_threads();  // sweep s is loaded, and no thread still reads the one before
    load(s + kSelectStages - 1);
    float best[kOwn];
    if (pool) {
      pool_windows<kHalf>(
          best, shared.staged + s % kSelectStages * stage_words(half) + thread * kOwn, half);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      keys[s][i] = 0;
      if (at + i >= count) continue;
      keys[s][i] =
          pool ? row.pin(begin + at + i, rank_key(best[i])) : row.pooled_key(begin + at + i);
    }
  }
}

// Calls place(slot, at, key) for the best `kept` of `count` keys, earlier ones first among equals;
// the thread that holds a key calls. Slots are in the order of positions.
template <int kMost, class Place>
__device__ __forceinline__ void place_best(const OwnKeys<kMost>& keys, int count, int kept,
                                           const SelectShared& shared, const Place& place) {
  const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
  // Threshold: the kept-th largest key. If all are kept it is 0, which every key reaches.
  uint32_t threshold = 0;
  int wanted = kept;  // among the keys that share the digits found so far
  for (int pass = 0; pass < kDigits && kept < count; ++pass) {
    const int shift = 24 - 8 * pass;
    if (thread < kBins) shared.counts[thread] = 0;
    sync_threads();
#pragma unroll
    for (int s = 0; s < kMost; ++s) {
      if (s * kSweep >= count) continue;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (s * kSweep + thread * kOwn + i >= count) continue;
        const uint32_t key = keys[s][i];
        // The digits before, by two shifts: a single one by 32 would drop nothing.
        if ((key ^ threshold) >> shift >> 8 == 0) {
          atomic_add_shared(shared.counts + ((key >> shift) & 0xff), 1);
        }
      }
    }
    sync_threads();
    if (warp == 0) {
      const FoundDigit digit = find_digit(shared.counts, wanted);
      if (lane == 0) {
        shared.found[0] = digit.digit;
        shared.found[1] = digit.wanted;
      }
    }
    sync_threads();
    threshold |= static_cast<uint32_t>(shared.found[0]) << shift;
    wanted = shared.found[1];
  }

  // The slot of a kept position: the number of keys above and equal before it. Both counts of a
  // sweep fit 16 bits, so one prefix sum serves both. It is computed twice, as registers are full
  // of keys.
  const auto counted = [&](int s) {
    int own = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (s * kSweep + thread * kOwn + i >= count) continue;
      own += keys[s][i] > threshold ? 0x10000 : keys[s][i] == threshold ? 1 : 0;
    }
    return own;
  };
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s * kSweep >= count) continue;
    const int prefix = warp_prefix(counted(s));
    if (lane == 31) shared.totals[s * kRowWarps + warp] = prefix;
  }
  sync_threads();
  int above_base = 0, equal_base = 0;
#pragma unroll
  for (int s = 0; s < kMost; ++s) {
    if (s * kSweep >= count) continue;
    const int total = lane < kRowWarps ? shared.totals[s * kRowWarps + lane] : 0;
    const int prefix = warp_prefix(total);
    const int own = counted(s);
    const int before = shuffle(prefix - total, warp) + warp_prefix(own) - own;
    int above = above_base + (before >> 16), equal = equal_base + (before & 0xffff);
    const int all = shuffle(prefix, 31);
    above_base += all >> 16;
    equal_base += all & 0xffff;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = s * kSweep + thread * kOwn + i;
      if (at >= count) continue;
      const bool is_above = keys[s][i] > threshold, is_equal = keys[s][i] == threshold;
      if (is_above || (is_equal && equal < wanted)) {
        place(above + (equal < wanted ? equal : wanted), at, keys[s][i]);
      }
      above += is_above ? 1 : 0;
      equal += is_equal ? 1 : 0;
    }
  }
}

// Selects in one piece of a row, by one block. If the row has several pieces, what this one keeps
// are candidates; those of a row lie one after the other, without gaps, as all pieces but the last
// have the same number. kHalf: half of the pool's window if it is known at compile time, otherwise
// 0.
template <int kHalf>
__device__ __forceinline__ void select_piece(const SelectParams& params, int64_t at_row,
                                             int piece) {
  const SelectRow row(params, at_row);
  const bool whole = params.pieces == 1;
  if (whole) row.fill_slots(kRowThreads);
  const int begin = piece * params.piece_length;
  const int rest = row.length - begin;
  const int count = rest < params.piece_length ? rest : params.piece_length;
  if (count <= 0 || row.kept == 0) return;
  const SelectShared shared(kHalf > 0 ? kHalf : params.half);
  OwnKeys<kSweeps> keys;
  load_keys<kHalf>(keys, row, begin, count, shared);
  const int first = row.first + begin;
  const int64_t at_candidate = row.candidates_begin() + int64_t{piece} * row.kept_of_piece();
  int32_t* const out =
      whole ? params.indices + row.row * params.slots : params.candidates + at_candidate;
  place_best(keys, count, row.kept < count ? row.kept : count, shared,
             [&](int slot, int at, uint32_t key) {
               out[slot] = first + at;
               if (!whole) params.candidate_keys[at_candidate + slot] = key;
             });
}

// Selects the row's Top-K among the candidates of its pieces, by one block. They contain it: for
// every key that a piece drops, that piece alone has `kept` keys that are better, or equal and
// earlier.
__device__ __forceinline__ void merge_pieces(const SelectParams& params, int64_t at_row) {
  const SelectRow row(params, at_row);
  row.fill_slots(kRowThreads);
  if (row.kept == 0) return;
  const int rest = row.length % params.piece_length;
  const int count =
      row.length / params.piece_length * row.kept_of_piece() + (row.kept < rest ? row.kept : rest);
  const uint32_t* const from = params.candidate_keys + row.candidates_begin();
  OwnKeys<kMergeSweeps> keys;
#pragma unroll
  for (int s = 0; s < kMergeSweeps; ++s) {
    if (s * kSweep >= count) continue;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = s * kSweep + thread_index() * kOwn + i;
      keys[s][i] = at < count ? from[at] : 0;
    }
  }
  const int32_t* const positions = params.candidates + row.candidates_begin();
  int32_t* const out = params.indices + row.row * params.slots;
  place_best(keys, count, row.kept, SelectShared(0),
             [&](int slot, int at, uint32_t) { out[slot] = positions[at]; });
}

// Bytes of dynamic shared memory that both need.
inline int select_row_shared(int half) {
  return (kSelectStages * stage_words(half) + kBins + 2 + kSweeps * kRowWarps) * 4;
}

// The kernels' arguments for scores that are not pooled yet.
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

// Cuts the rows into pieces and takes the memory for their candidates. Returns false and takes
// nothing if blocks cannot share a row like this, or if its windows are too wide to be pooled while
// loading.
inline bool cut_rows(SelectParams& params, int64_t rows, Workspace& workspace,
                     const Device& device) {
  const Pieces pieces = cut_row(rows, params.num_prompt, params.budget, device.num_sms);
  if (pieces.count == 0) return false;
  params.pieces = pieces.count;
  params.piece_length = pieces.length;
  params.piece_slots = std::min(params.budget, pieces.length);
  const int64_t candidates = pieces.count == 1 ? 0 : rows * pieces.count * params.piece_slots;
  params.candidate_keys = workspace.take<uint32_t>(candidates);
  params.candidates = workspace.take<int32_t>(candidates);
  return true;
}

inline bool pools_on_the_way(const SelectParams& params) {
  return 2 * params.half + 1 <= kWidestFusedPool;
}

// Selects in every row, with as many launches as needed (select.cu).
void select_rows(SelectParams params, int64_t rows, Workspace& workspace, bool follows,
                 const Device& device);

}  // namespace lookaheadkv::cuda
