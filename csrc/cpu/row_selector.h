// Room 3, one row: pool and exact Top-K of its scores.
//
// Scores become unsigned rank keys (select_keys.h), pooled block by block in L1. The maxima of
// disjoint groups of keys give a bound at no cost: if at least `budget` groups have a maximum >= t,
// the budget-th largest key is >= t. Only the few keys that reach the bound become candidates (key,
// ~position), where one integer order means "larger score first, then smaller position";
// nth_element settles the rest. Exact for any input, O(N).
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"

namespace lookaheadkv::cpu {

// The best `budget` of a row of keys.
class TopK {
 public:
  explicit TopK(int64_t max_count) : maxima_(max_count), candidates_(max_count) {}

  // Calls visit(position) for the kept ones of `count` keys, in any order; 0 < budget < count.
  template <class Visit>
  void run(const Isa& isa, const uint32_t* keys, int64_t count, int64_t budget,
           const Visit& visit) {
    const uint32_t bound = lower_bound(isa, keys, count, budget);
    const int64_t found = isa.vector.collect_keys(keys, count, bound, candidates_.get());
    uint64_t* begin = candidates_.get();
    std::nth_element(begin, begin + (budget - 1), begin + found, std::greater<uint64_t>());
    for (int64_t i = 0; i < budget; ++i) {
      visit(static_cast<int64_t>(~static_cast<uint32_t>(begin[i])));
    }
  }

 private:
  // More groups: a tighter bound, but a longer search for it.
  static constexpr int64_t kGroupsPerKept = 4;

  // A key that at least `budget` of the keys reach.
  uint32_t lower_bound(const Isa& isa, const uint32_t* keys, int64_t count, int64_t budget) {
    const int64_t rows = std::max<int64_t>(1, count / (kGroupsPerKept * budget));
    const int64_t segment = rows * kKeyLanes;
    int64_t groups = 0;
    for (int64_t at = 0; at + segment <= count; at += segment, groups += kKeyLanes) {
      isa.vector.lane_max(keys + at, rows, maxima_ + groups);
    }
    if (groups < budget) return 0;
    uint32_t* begin = maxima_.get();
    std::nth_element(begin, begin + (budget - 1), begin + groups, std::greater<uint32_t>());
    return begin[budget - 1];
  }

  Buffer<uint32_t> maxima_;
  Buffer<uint64_t> candidates_;
};

// A set of positions as bits: written in any order, read in ascending order.
class PositionSet {
 public:
  explicit PositionSet(int64_t size)
      : words_((size + 63) / 64), bits_(std::max<int64_t>(1, words_)) {
    std::memset(bits_.get(), 0, static_cast<size_t>(words_) * sizeof(uint64_t));
  }
  void insert(int64_t i) { bits_[i / 64] |= uint64_t{1} << (i % 64); }

  // Appends the members to out in ascending order, empties the set, and returns the end.
  int32_t* drain(int32_t* out) {
    for (int64_t w = 0; w < words_; ++w) {
      for (uint64_t word = bits_[w]; word != 0; word &= word - 1) {
        *out++ = static_cast<int32_t>(w * 64 + __builtin_ctzll(word));
      }
      bits_[w] = 0;
    }
    return out;
  }

 private:
  const int64_t words_;
  Buffer<uint64_t> bits_;
};

// The scratch of one thread, for rows of up to num_prompt positions.
class RowSelector {
 public:
  RowSelector(int64_t pool_kernel, int64_t num_prompt, const Isa& isa)
      : isa_(isa),
        half_(pool_kernel / 2),
        topk_(num_prompt),
        kept_(num_prompt),
        keys_(kBlock + 2 * std::min(half_, num_prompt)),
        pooled_(num_prompt) {}

  // Kept positions of the valid range of one row, ascending; returns the end of what was written.
  int32_t* run(const float* scores, KeyRange valid, const SelectOptions& options, int32_t* out) {
    const int64_t count = valid.end - valid.begin;
    if (count <= options.budget) {
      for (int64_t i = valid.begin; i < valid.end; ++i) *out++ = static_cast<int32_t>(i);
      return out;
    }
    if (options.budget == 0) return out;
    // Pinned positions are kept outright and leave the competition.
    const KeyRange free = {valid.begin + options.num_sink, valid.end - options.num_recent};
    for (int64_t i = valid.begin; i < free.begin; ++i) kept_.insert(i);
    for (int64_t i = free.end; i < valid.end; ++i) kept_.insert(i);
    const int64_t budget = options.budget - options.num_sink - options.num_recent;
    if (budget > 0) {
      for (int64_t at = free.begin; at < free.end; at += kBlock) {
        pool(scores, valid, at, std::min(kBlock, free.end - at), pooled_ + (at - free.begin));
      }
      topk_.run(isa_, pooled_.get(), free.end - free.begin, budget,
                [&](int64_t i) { kept_.insert(free.begin + i); });
    }
    return kept_.drain(out);
  }

 private:
  // out = pooled rank keys of positions at .. at + n - 1. Outside the valid range the key is 0,
  // which wins no window; a kernel wider than the row is cut to it.
  void pool(const float* scores, KeyRange valid, int64_t at, int64_t n, uint32_t* out) {
    const int64_t half = std::min(half_, valid.end - valid.begin);
    const int64_t first = std::max(at - half, valid.begin);
    const int64_t last = std::min(at + n + half, valid.end);
    uint32_t* keys = keys_.get();
    const int64_t before = first - (at - half);
    std::fill(keys, keys + before, 0u);
    isa_.vector.rank_keys(scores + first, last - first, keys + before);
    std::fill(keys + before + (last - first), keys + n + 2 * half, 0u);
    isa_.vector.window_max(keys, n, 2 * half + 1, out);
  }

  static constexpr int64_t kBlock = 1024;  // keys pooled at once, stays in L1

  const Isa& isa_;
  const int64_t half_;
  TopK topk_;
  PositionSet kept_;
  Buffer<uint32_t> keys_;
  Buffer<uint32_t> pooled_;
};

}  // namespace lookaheadkv::cpu
