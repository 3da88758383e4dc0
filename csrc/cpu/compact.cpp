// Room 4 in place: the kept entries of every layer and head move to their slots, byte by byte.
//
// docs/paged.md ("The hazard contract") shows why no entry is overwritten before it is read: the
// entries that move up go first, in descending order, then the others, in ascending order. Here one
// thread moves a head of a layer, entry by entry; Validator::compaction_values has checked that no
// two requests disturb each other.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

constexpr int64_t kBatch = 32;  // rows asked for together: memory answers them side by side

struct Slot {
  int64_t block;
  int64_t slot;
};

Slot slot_of(const int32_t* blocks, int64_t position, int64_t page_size) {
  // Positions are int32: the division is of 32 bits, much faster than one of 64.
  const uint32_t at = static_cast<uint32_t>(position), size = static_cast<uint32_t>(page_size);
  return {blocks[at / size], at % size};
}

// One head of one layer of one request.
class HeadMover {
 public:
  HeadMover(const Compaction& c, const CacheBytes* parts, int64_t layer, int64_t r, int64_t h)
      : c_(c),
        parts_(parts),
        h_(h),
        indices_(c.head_indices(layer, r, h)),
        start_(c.start(layer, r)),
        src_(c.src.row(r)),
        dst_(c.dst.row(r)) {}

  void run(int64_t count) const {
    const int64_t upward = std::partition_point(indices_, indices_ + count,
                                                [&](const int32_t& index) {
                                                  return start_ + (&index - indices_) > index;
                                                }) -
                           indices_;
    for (int64_t end = upward; end > 0; end -= kBatch) {
      const int64_t begin = std::max<int64_t>(0, end - kBatch);
      move(end - 1, -1, end - begin);
    }
    for (int64_t begin = upward; begin < count; begin += kBatch) {
      move(begin, 1, std::min(kBatch, count - begin));
    }
  }

 private:
  // Entries first, first + step, ..., n of them.
  void move(int64_t first, int64_t step, int64_t n) const {
    Slot from[kBatch], to[kBatch];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t j = first + i * step;
      from[i] = slot_of(src_, indices_[j], c_.page_size);
      to[i] = slot_of(dst_, start_ + j, c_.page_size);
    }
    for (int64_t p = 0; p < c_.parts; ++p) {
      const CacheBytes& part = parts_[p];
      for (int64_t i = 0; i < n; ++i) {
        const char* row = part.row(from[i].block, from[i].slot, h_);
        for (int64_t at = 0; at < part.row_bytes; at += 64) __builtin_prefetch(row + at, 0, 0);
      }
    }
    for (int64_t p = 0; p < c_.parts; ++p) {
      const CacheBytes& part = parts_[p];
      for (int64_t i = 0; i < n; ++i) {
        const char* row = part.row(from[i].block, from[i].slot, h_);
        char* out = part.row(to[i].block, to[i].slot, h_);
        if (row != out) std::memcpy(out, row, static_cast<size_t>(part.row_bytes));
      }
    }
  }

  const Compaction& c_;
  const CacheBytes* const parts_;
  const int64_t h_;
  const int32_t* const indices_;
  const int64_t start_;
  const int32_t* const src_;
  const int32_t* const dst_;
};

}  // namespace

void compact_kv_cache(const Compaction& c, const CacheBytes* caches, const Executor& executor) {
  constexpr int64_t kCopyWidth = 16;  // bytes per element of other loops, in time
  int64_t bytes = 0;
  for (int64_t p = 0; p < c.parts; ++p) bytes += caches[p].row_bytes;
  const int64_t rows = c.num_requests * c.num_kv_heads;
  executor.run(c.num_layers * rows, grain(c.num_slots * bytes / kCopyWidth), [&](Tasks& tasks) {
    for (int64_t task = 0; tasks.take(task);) {
      const int64_t layer = task / rows, r = task % rows / c.num_kv_heads;
      const int64_t count = c.count(layer, r);
      if (count == 0) continue;
      HeadMover(c, caches + layer * c.parts, layer, r, task % c.num_kv_heads).run(count);
    }
  });
}

}  // namespace lookaheadkv::cpu
