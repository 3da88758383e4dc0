// Room 3. Pool and Top-K of one row of scores in a single pass over it.
//
// Scores become unsigned rank keys (select_keys.h); a block of keys is pooled in L1 and compared
// with the worst candidate so far, which almost always settles the whole block. What passes is
// appended as (key, ~position), so that one integer order means "larger score first, then smaller
// position"; when the candidate list is full it is cut back to the budget. Exact for any input,
// O(N) whatever the order of the scores.
#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

constexpr int64_t kBlock = 1024;  // pooled at once, stays in L1
constexpr int64_t kProbe = 32;    // compared with the threshold at once

// The best `budget` of a stream of keys, fed in ascending position.
class TopK {
 public:
  explicit TopK(int64_t max_budget)
      : capacity_(2 * std::max<int64_t>(max_budget, kProbe)), candidates_(capacity_) {}

  void reset(int64_t budget) {
    budget_ = budget;
    count_ = 0;
    threshold_ = 0;
    full_ = false;
  }

  // Keys of positions first .. first + count - 1.
  void feed(const Isa& isa, const uint32_t* keys, int64_t count, int64_t first) {
    for (int64_t at = 0; at < count; at += kProbe) {
      const int64_t n = std::min(kProbe, count - at);
      // Once `budget` candidates are known an equal key at a later position loses the tie.
      if (full_ && !isa.vector.any_greater(keys + at, n, threshold_)) continue;
      for (int64_t i = at; i < at + n; ++i) {
        if (!full_ || keys[i] > threshold_) push(keys[i], first + i);
      }
    }
  }

  // The kept positions in any order.
  template <class Visit>
  void finish(const Visit& visit) {
    if (count_ > budget_) cut();
    for (int64_t i = 0; i < count_; ++i) {
      visit(static_cast<int64_t>(~static_cast<uint32_t>(candidates_[i])));
    }
  }

 private:
  void push(uint32_t key, int64_t position) {
    if (count_ == capacity_) cut();
    // Past a cut the caller's test may have used the old threshold: harmless, only more candidates.
    candidates_[count_++] =
        static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(position));
  }

  void cut() {
    uint64_t* begin = candidates_.get();
    std::nth_element(begin, begin + (budget_ - 1), begin + count_, std::greater<uint64_t>());
    count_ = budget_;
    threshold_ = static_cast<uint32_t>(begin[budget_ - 1] >> 32);
    full_ = true;
  }

  const int64_t capacity_;
  Buffer<uint64_t> candidates_;
  int64_t budget_ = 0;
  int64_t count_ = 0;
  uint32_t threshold_ = 0;
  bool full_ = false;
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
  RowSelector(const SelectOptions& options, int64_t num_prompt)
      : options_(options),
        isa_(active()),
        half_(options.pool_kernel / 2),
        topk_(std::min(options.budget, num_prompt)),
        kept_(num_prompt),
        keys_(kBlock + 2 * std::min(half_, num_prompt)),
        pooled_(kBlock) {}

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
      topk_.reset(budget);
      for (int64_t at = free.begin; at < free.end; at += kBlock) {
        const int64_t n = std::min(kBlock, free.end - at);
        topk_.feed(isa_, pool(scores, valid, at, n), n, at);
      }
      topk_.finish([&](int64_t position) { kept_.insert(position); });
    }
    return kept_.drain(out);
  }

 private:
  // Pooled rank keys of positions at .. at + n - 1. Outside the valid range the key is 0, which
  // wins no window; a kernel wider than the row is cut to it.
  const uint32_t* pool(const float* scores, KeyRange valid, int64_t at, int64_t n) {
    const int64_t half = std::min(half_, valid.end - valid.begin);
    const int64_t first = std::max(at - half, valid.begin);
    const int64_t last = std::min(at + n + half, valid.end);
    uint32_t* keys = keys_.get();
    const int64_t before = first - (at - half);
    std::fill(keys, keys + before, 0u);
    isa_.vector.rank_keys(scores + first, last - first, keys + before);
    std::fill(keys + before + (last - first), keys + n + 2 * half, 0u);
    if (half == 0) return keys;
    isa_.vector.window_max(keys, n, 2 * half + 1, pooled_.get());
    return pooled_.get();
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
  const int64_t kept = std::min(options.budget, problem.num_prompt) + options.append_rows;
  executor.run(problem.batch * problem.num_kv_heads, grain(problem.num_prompt),
               [&](int64_t begin, int64_t end) {
                 RowSelector selector(options, problem.num_prompt);
                 for (int64_t row = begin; row < end; ++row) {
                   const KeyRange valid =
                       valid_keys(problem.leftpad_k, problem.seqused_k, row / problem.num_kv_heads,
                                  problem.num_prompt);
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
