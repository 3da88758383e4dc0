// Room 3. Pool and exact Top-K of one row of scores.
//
// Scores become unsigned rank keys (select_keys.h), pooled block by block in L1. The maxima of
// disjoint groups of keys give a bound for free: if at least `budget` groups have a maximum >= t,
// the budget-th largest key is >= t. Only the few keys that reach the bound become candidates (key,
// ~position), where one integer order means "larger score first, then smaller position";
// nth_element settles the rest. Exact for any input, O(N).
#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

constexpr int64_t kBlock = 1024;       // keys pooled at once, stays in L1
constexpr int64_t kGroupsPerKept = 4;  // more groups: a tighter bound, but a longer search for it

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

class RowSelector {
 public:
  RowSelector(const SelectOptions& options, int64_t num_prompt, const Isa& isa)
      : options_(options),
        isa_(isa),
        half_(options.pool_kernel / 2),
        topk_(num_prompt),
        kept_(num_prompt),
        keys_(kBlock + 2 * std::min(half_, num_prompt)),
        pooled_(num_prompt) {}

  // Kept positions of the valid range of one row, ascending; returns the end of what was written.
  int32_t* run(const float* scores, KeyRange valid, int32_t* out) {
    const int64_t count = valid.end - valid.begin;
    if (count <= options_.budget) {
      for (int64_t i = valid.begin; i < valid.end; ++i) *out++ = static_cast<int32_t>(i);
      return out;
    }
    if (options_.budget == 0) return out;
    // Pinned positions are kept outright and leave the competition.
    const KeyRange free = {valid.begin + options_.num_sink, valid.end - options_.num_recent};
    for (int64_t i = valid.begin; i < free.begin; ++i) kept_.insert(i);
    for (int64_t i = free.end; i < valid.end; ++i) kept_.insert(i);
    const int64_t budget = options_.budget - options_.num_sink - options_.num_recent;
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

  const SelectOptions& options_;
  const Isa& isa_;
  const int64_t half_;
  TopK topk_;
  PositionSet kept_;
  Buffer<uint32_t> keys_;
  Buffer<uint32_t> pooled_;
};

}  // namespace

void select(const Problem& problem, const float* scores, const SelectOptions& options,
            int32_t* indices, const Executor& executor) {
  const Isa& isa = active();
  const int64_t kept = std::min(options.budget, problem.num_prompt) + options.append_rows;
  executor.run(problem.batch * problem.num_kv_heads, grain(problem.num_prompt), [&](Tasks& tasks) {
    RowSelector selector(options, problem.num_prompt, isa);
    for (int64_t row = 0; tasks.take(row);) {
      const KeyRange valid = valid_keys(problem.leftpad_k, problem.seqused_k,
                                        row / problem.num_kv_heads, problem.num_prompt);
      int32_t* out = indices + row * kept;
      int32_t* at = selector.run(scores + row * problem.num_prompt, valid, out);
      for (int64_t i = 0; i < options.append_rows; ++i) {
        *at++ = static_cast<int32_t>(problem.num_prompt + i);
      }
      std::fill(at, out + kept, -1);
    }
  });
}

}  // namespace lookaheadkv::cpu
