// Checks of the values in a paged call: lengths, block ids, budgets, and the hazards of a
// compaction.
#include <algorithm>
#include <vector>

#include "core/validate_paged.h"

namespace lookaheadkv {

namespace {

std::string str(int64_t value) { return std::to_string(value); }

std::string at(const std::string& name, int64_t i) { return name + "[" + str(i) + "]"; }

std::string at(const std::string& name, int64_t i, int64_t j) {
  return name + "[" + str(i) + ", " + str(j) + "]";
}

// For a window of block ids, the writer of each block: the request and the place in its tables.
class BlockOwners {
 public:
  explicit BlockOwners(int64_t num_blocks)
      : owners_(static_cast<size_t>(std::min(num_blocks, kWindow)), kNobody) {}

  static constexpr int64_t kWindow = int64_t{1} << 16;

  void start(int64_t first_block) {
    first_ = first_block;
    std::fill(owners_.begin(), owners_.end(), kNobody);
  }
  // Records the writer. False if another place already writes the block.
  bool write(int64_t block, int64_t r, int64_t place) {
    if (!inside(block)) return true;
    int64_t& owner = owners_[static_cast<size_t>(block - first_)];
    if (owner == kNobody) owner = code(r, place);
    return owner == code(r, place);
  }
  // The request that writes the block from another place than this; -1 if there is none.
  int64_t other_writer(int64_t block, int64_t r, int64_t place) const {
    if (!inside(block)) return -1;
    const int64_t owner = owners_[static_cast<size_t>(block - first_)];
    return owner == kNobody || owner == code(r, place) ? -1 : owner >> 32;
  }

 private:
  static constexpr int64_t kNobody = -1;

  static int64_t code(int64_t r, int64_t place) { return r << 32 | place; }
  bool inside(int64_t block) const {
    return block >= first_ && block - first_ < static_cast<int64_t>(owners_.size());
  }

  int64_t first_ = 0;
  std::vector<int64_t> owners_;
};

// visit(source place, destination place, whether the entry moves) for every kept entry of a layer.
template <class Visit>
void for_each_entry(const Compaction& c, int64_t layer, int64_t r, const Visit& visit) {
  const int64_t count = c.count(layer, r), start = c.start(layer, r);
  const int32_t* src = c.src.row(r);
  const int32_t* dst = c.dst.row(r);
  const uint32_t page_size = static_cast<uint32_t>(c.page_size);
  for (int64_t h = 0; h < c.index_heads; ++h) {
    const int32_t* indices = c.head_indices(layer, r, h);
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t from = static_cast<uint32_t>(indices[j]);
      const uint32_t to = static_cast<uint32_t>(start + j);
      const uint32_t from_place = from / page_size, to_place = to / page_size;
      const bool moves = src[from_place] != dst[to_place] || from % page_size != to % page_size;
      visit(from_place, to_place, moves);
    }
  }
}

// visit(place) for every source block that a request needs: those of its kept entries, or, if it
// takes no part, all of its first kept_lens entries.
template <class Visit>
void for_each_read(const Compaction& c, int64_t layer, int64_t r, const Visit& visit) {
  if (c.count(layer, r) > 0) {
    for_each_entry(c, layer, r, [&](int64_t place, int64_t, bool) { visit(place); });
    return;
  }
  const int64_t length = c.kept_lens[layer * c.num_requests + r];
  const int64_t places = (length + c.page_size - 1) / c.page_size;
  for (int64_t place = 0; place < std::min(places, c.src.max_blocks); ++place) visit(place);
}

}  // namespace

void PagedValidator::batch_values(const PagedBatch& batch, int64_t total_queries) const {
  const int32_t* starts = batch.cu_seqlens_q;
  for (int64_t r = 0; r <= batch.num_requests; ++r) {
    const int64_t least = r == 0 ? 0 : starts[r - 1];
    // paged_select has no query: it passes total_queries = -1.
    if (starts[r] < least || (total_queries >= 0 && starts[r] > total_queries)) {
      fail(at("cu_seqlens_q", r) + " must be " +
           (total_queries >= 0 ? "in " + str(least) + "..T=" + str(total_queries)
                               : "at least " + str(least)) +
           ", got " + str(starts[r]));
    }
  }
  for (int64_t r = 0; r < batch.num_requests; ++r) {
    const int64_t rows = std::min<int64_t>(batch.num_rows, starts[r + 1] - starts[r]);
    if (batch.seq_lens[r] < rows || batch.seq_lens[r] > batch.max_seq_len) {
      fail(at("seq_lens", r) + " must be in " + str(rows) +
           " (its observation rows)..max_seq_len=" + str(batch.max_seq_len) + ", got " +
           str(batch.seq_lens[r]));
    }
  }
}

void PagedValidator::block_values(const PagedBatch& batch, const BlockTable& table,
                                  int64_t num_blocks, int64_t page_size) const {
  for (int64_t r = 0; r < batch.num_requests; ++r) {
    const int64_t pages = (batch.seq_lens[r] + page_size - 1) / page_size;
    if (pages > table.max_blocks) {
      fail(at("seq_lens", r) + " must be at most max_blocks * page_size = " +
           str(table.max_blocks * page_size) + ", got " + str(batch.seq_lens[r]));
    }
    for (int64_t i = 0; i < pages; ++i) {
      const int32_t block = table.row(r)[i];
      if (block < 0 || block >= num_blocks) {
        fail(at("block_table", r, i) + " must be in 0..num_blocks-1=" + str(num_blocks - 1) +
             ", got " + str(block));
      }
    }
  }
}

void PagedValidator::budget_values(const PagedBatch& batch, const PagedSelection& s) const {
  for (int64_t r = 0; r < batch.num_requests; ++r) {
    const int64_t budget = s.budget_of(r);
    if (budget > s.max_budget) {
      fail(at("budgets", r) + " must be at most max_budget=" + str(s.max_budget) + ", got " +
           str(budget));
    }
    const Request request = request_of(batch, r);
    if (!request.evicts(s, r)) continue;
    const int64_t rows = s.keep_observation ? request.rows : 0;
    const int64_t pinned = rows + s.num_sink + s.num_recent;
    if (budget < pinned) {
      fail(at("budgets", r) + " must be 0 or hold " +
           (s.keep_observation ? "L + num_sink + num_recent = " : "num_sink + num_recent = ") +
           str(pinned) + " entries, got " + str(budget));
    }
  }
}

// The entries of one request: ascending, and in both tables.
void PagedValidator::moved_values(const Compaction& c, int64_t layer, int64_t r) const {
  const int64_t count = c.count(layer, r), start = c.start(layer, r);
  const uint32_t page_size = static_cast<uint32_t>(c.page_size);
  // `what` gives the name of the position, which only a failure needs.
  const auto in_table = [&](const BlockTable& table, const char* name, int64_t position,
                            const auto& what) {
    const int64_t place = position < 0 ? -1 : static_cast<uint32_t>(position) / page_size;
    if (place < 0 || place >= table.max_blocks) {
      fail(what() + " must be in 0.." + name + "'s max_blocks * page_size - 1 = " +
           str(table.max_blocks * c.page_size - 1) + ", got " + str(position));
    }
    const int32_t block = table.row(r)[place];
    if (block < 0 || block >= c.num_blocks) {
      fail(at(name, r, place) + " must be in 0..num_blocks-1=" + str(c.num_blocks - 1) + ", got " +
           str(block));
    }
  };
  for (int64_t j = 0; j < count; ++j) {
    in_table(c.dst, "dst_block_table", start + j,
             [&] { return at("dst_start", layer, r) + (j > 0 ? " + " + str(j) : ""); });
  }
  const bool any = c.kept_lens[layer * c.num_requests + r] > 0 && c.num_slots > 0;
  for (int64_t h = 0; any && h < c.index_heads; ++h) {
    const int32_t* indices = c.head_indices(layer, r, h);
    const auto name = [&](int64_t j) {
      return "indices[" + str(layer) + ", " + str(r) + ", " + str(h) + ", " + str(j) + "]";
    };
    if (count == 0 && indices[0] >= 0) {
      fail(name(0) + " must be -1 like that of head 0, got " + str(indices[0]));
    }
    for (int64_t j = 0; j < count; ++j) {
      const int64_t before = j > 0 ? indices[j - 1] : -1;
      if (indices[j] <= before) {
        fail(name(j) + " must be above " + str(before) + " (kept positions ascend), got " +
             str(indices[j]));
      }
      in_table(c.src, "src_block_table", indices[j], [&] { return name(j); });
    }
  }
}

void PagedValidator::compaction_values(const Compaction& c) const {
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    for (int64_t r = 0; r < c.num_requests; ++r) moved_values(c, layer, r);
  }
  BlockOwners owners(c.num_blocks);
  const auto fails = [&](int64_t block, int64_t writer, int64_t other, const char* verb) {
    fail("block " + str(block) + " would be written for request " + str(writer) + " and " + verb +
         " for request " + str(other) + " at another place: give request " + str(writer) +
         " blocks of its own in dst_block_table");
  };
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    for (int64_t first = 0; first < c.num_blocks; first += BlockOwners::kWindow) {
      owners.start(first);
      for (int64_t r = 0; r < c.num_requests; ++r) {
        for_each_entry(c, layer, r, [&](int64_t, int64_t place, bool moves) {
          const int64_t block = c.dst.row(r)[place];
          if (moves && !owners.write(block, r, place)) {
            fails(block, owners.other_writer(block, r, place), r, "written");
          }
        });
      }
      for (int64_t r = 0; r < c.num_requests; ++r) {
        for_each_read(c, layer, r, [&](int64_t place) {
          const int64_t block = c.src.row(r)[place];
          const int64_t writer = owners.other_writer(block, r, place);
          if (writer >= 0) fails(block, writer, r, "read");
        });
      }
    }
  }
}

}  // namespace lookaheadkv
