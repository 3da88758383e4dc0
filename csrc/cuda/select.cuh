// Pieces of the exact Top-K: rank keys, pooled windows, and the search for the threshold by digits.
#pragma once

#include "cuda/problem.cuh"

namespace lookaheadkv::cuda {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / 32;
constexpr int kBins = 256;  // a digit has eight bits
constexpr int kDigits = 4;

struct SelectParams {
  const float* scores;   // [B, Hkv, N]; or null: the keys are pooled already
  const uint32_t* keys;  // [B, Hkv, N], of valid positions
  uint32_t* out_keys;    // the same, written by pool_kernel
  int32_t* indices;      // [B, Hkv, slots]
  const int32_t* leftpad_k;
  const int32_t* seqused_k;
  const int32_t* counts;    // [B], instead of budget, or null
  const int32_t* appended;  // [B], instead of append_rows, behind a row's own last key; or null
  int32_t kv_heads, num_prompt;
  int32_t budget, num_sink, num_recent, append_rows, slots;
  int32_t half;  // half of the pool's window
  // Rows that blocks share piece by piece (select_row.cuh), `pieces` > 1.
  int32_t pieces, piece_length;
  int32_t piece_slots;       // a piece keeps at most this many: min(budget, piece_length)
  uint32_t* candidate_keys;  // [B, Hkv, pieces * piece_slots]
  int32_t* candidates;       // their positions, in the same shape
  // Longer rows (select_long.cuh).
  int32_t* histograms;  // [kDigits, rows * chunks, kBins]
  int32_t chunks;
};

// Order of the Top-K as an unsigned integer: larger is better, NaN lowest, -0 equals 0.
__device__ __forceinline__ uint32_t rank_key(float score) {
  const uint32_t bits = float_bits(score + 0.0f);
  const uint32_t key = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
  return score != score ? 0u : key;
}

// One row of scores. Positions below count from its first valid key.
struct SelectRow {
  const SelectParams& params;
  int64_t row;
  int first, length;  // valid positions
  int kept;           // how many of them are kept

  __device__ __forceinline__ SelectRow(const SelectParams& all, int64_t at) : params(all), row(at) {
    const DeviceKeyRange valid =
        valid_prompt(all.leftpad_k, all.seqused_k, at / all.kv_heads, all.num_prompt);
    first = valid.first;
    length = valid.last - valid.first;
    const int budget = all.counts != nullptr ? all.counts[at / all.kv_heads] : all.budget;
    kept = length < budget ? length : budget;
  }

  __device__ __forceinline__ const float* scores() const {
    return params.scores + row * params.num_prompt + first;
  }
  __device__ __forceinline__ bool pinned(int at) const {
    return at < params.num_sink || at >= length - params.num_recent;
  }
  // The key of a pinned position, which no score has.
  __device__ __forceinline__ uint32_t pin(int at, uint32_t key) const {
    return pinned(at) ? 0xffffffffu : key;
  }
  __device__ __forceinline__ uint32_t pooled_key(int at) const {
    return pin(at, params.keys[row * params.num_prompt + first + at]);
  }

  // How many each full piece keeps, where blocks share the row.
  __device__ __forceinline__ int kept_of_piece() const {
    return kept < params.piece_length ? kept : params.piece_length;
  }
  __device__ __forceinline__ int64_t candidates_begin() const {
    return row * params.pieces * params.piece_slots;
  }

  // Slots behind the kept ones: the observation rows' positions, then -1.
  __device__ __forceinline__ void fill_slots(int threads) const {
    int32_t* const out = params.indices + row * params.slots;
    const bool own = params.appended != nullptr;
    const int appended = own ? params.appended[row / params.kv_heads] : params.append_rows;
    const int behind = own ? first + length : params.num_prompt;
    for (int slot = kept + thread_index(); slot < params.slots; slot += threads) {
      const int extra = slot - kept;
      out[slot] = extra < appended ? behind + extra : -1;
    }
  }
};

// Loads the rank keys of positions at - half .. at + count + half - 1 into shared memory; outside
// the row they are 0, which wins no window.
__device__ __forceinline__ void stage_keys(uint32_t* staged, const SelectRow& row, int at,
                                           int count, int half, int threads) {
  for (int i = thread_index(); i < count + 2 * half; i += threads) {
    const int position = at - half + i;
    staged[i] = position >= 0 && position < row.length ? rank_key(row.scores()[position]) : 0u;
  }
}

// The sum over all lanes up to and including this one.
__device__ __forceinline__ int warp_prefix(int value) {
  const int lane = thread_index() % 32;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = shuffle_up(value, delta);
    if (lane >= delta) value += other;
  }
  return value;
}

// The digit of the wanted-th largest key and how many are still wanted among keys of that digit.
// Called by one warp; `counts` [kBins].
struct FoundDigit {
  int digit, wanted;
};
__device__ __forceinline__ FoundDigit find_digit(const int* counts, int wanted) {
  constexpr int kLaneBins = kBins / 32;
  const int lane = thread_index() % 32;
  // Lane 0 has the highest bins, so that a prefix sum counts from the top.
  const int top = kBins - 1 - lane * kLaneBins;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kLaneBins; ++i) sum += counts[top - i];
  int above = warp_prefix(sum) - sum;
  int digit = -1, left = 0;
#pragma unroll
  for (int i = 0; i < kLaneBins; ++i) {
    const int count = counts[top - i];
    if (digit < 0 && above < wanted && above + count >= wanted) {
      digit = top - i;
      left = wanted - above;
    }
    above += count;
  }
  // Exactly one lane has found it.
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const int other = shuffle_xor(digit, mask), other_left = shuffle_xor(left, mask);
    if (other > digit) {
      digit = other;
      left = other_left;
    }
  }
  return {digit, left};
}

}  // namespace lookaheadkv::cuda
