// What races.cpp remembers about every byte that kernels touch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

namespace lookaheadkv::emulation::races {

constexpr int kNobody = -1;
constexpr int kMany = -2;  // threads of one block

// The last access of a kind by one block.
struct Access {
  int32_t block = kNobody;
  int32_t phase = 0;
  uint32_t tick = 0;
  int32_t thread = kNobody;
  uint32_t code = 0;
};

// Accesses that need no order among themselves, reads or atomics: one of each block.
struct Crowd {
  Access latest;
  int32_t others = kNobody;  // index of those of other blocks in Shadow's lists
};

struct Cell {
  uint32_t stamp = 0;  // what it is about: a launch, or a block's shared memory
  int32_t split = kNobody;
  int32_t copying = kNobody;  // the thread whose copy to here is under way
  uint32_t copy_code = 0;
  bool unchanging = false;
  Access write;
  Crowd reads, atomics;
};

constexpr uintptr_t kGrain =
    4;  // bytes of a cell; those touched one by one have cells of their own
constexpr size_t kPageCells = 1024;

// Cells of device memory, found by address, and of shared memory, by offset.
class Shadow {
 public:
  void begin_launch() {
    ++stamp_;
    splits_.clear();
    lists_.clear();
    if (pages_.size() > kMostPages) {
      pages_.clear();
      recent_ = {};
    }
  }

  // A stamp for the shared memory of a new block.
  uint32_t next_stamp() { return ++shared_stamp_ | kShared; }

  // Calls visit(cell, first byte) for every cell of these bytes.
  template <class Visit>
  void device(uintptr_t begin, size_t bytes, const Visit& visit) {
    visit_cells(
        begin, bytes, [&](uintptr_t at) -> Cell& { return device_cell(at, stamp_); }, visit);
  }
  template <class Visit>
  void shared(std::vector<Cell>& cells, uint32_t stamp, uintptr_t begin, size_t bytes,
              const Visit& visit) {
    const auto find = [&](uintptr_t at) -> Cell& {
      return fresh(cells[static_cast<size_t>(at / kGrain)], stamp);
    };
    visit_cells(begin, bytes, find, visit);
  }

  std::vector<Access>& others(Crowd& crowd) {
    if (crowd.others == kNobody) {
      crowd.others = static_cast<int32_t>(lists_.size());
      lists_.emplace_back();
    }
    return lists_[static_cast<size_t>(crowd.others)];
  }

 private:
  static constexpr uint32_t kShared = uint32_t{1} << 31;
  static constexpr size_t kMostPages = 8192;
  struct Page {
    std::array<Cell, kPageCells> cells;
  };
  struct Recent {
    uintptr_t number = 0;
    Page* page = nullptr;
  };

  static Cell& fresh(Cell& cell, uint32_t stamp) {
    if (cell.stamp != stamp) {
      cell = Cell();
      cell.stamp = stamp;
    }
    return cell;
  }

  // With lists of its own.
  Cell copy_of(const Cell& cell) {
    Cell copy = cell;
    for (Crowd* crowd : {&copy.reads, &copy.atomics}) {
      if (crowd->others == kNobody) continue;
      lists_.push_back(std::vector<Access>(lists_[static_cast<size_t>(crowd->others)]));
      crowd->others = static_cast<int32_t>(lists_.size()) - 1;
    }
    return copy;
  }

  Cell& device_cell(uintptr_t at, uint32_t stamp) {
    const uintptr_t number = at / (kGrain * kPageCells);
    Recent& recent = recent_[number % recent_.size()];
    if (recent.page == nullptr || recent.number != number) {
      std::unique_ptr<Page>& page = pages_[number];
      if (page == nullptr) page = std::make_unique<Page>();
      recent = {number, page.get()};
    }
    return fresh(recent.page->cells[at / kGrain % kPageCells], stamp);
  }

  template <class Find, class Visit>
  void visit_cells(uintptr_t begin, size_t bytes, const Find& find, const Visit& visit) {
    const uintptr_t end = begin + bytes;
    for (uintptr_t at = begin; at < end;) {
      const uintptr_t next = at / kGrain * kGrain + kGrain;
      Cell& cell = find(at);
      const bool whole = at % kGrain == 0 && next <= end;
      if (whole && cell.split == kNobody) {
        visit(cell, at);
      } else {
        if (cell.split == kNobody) {
          cell.split = static_cast<int32_t>(splits_.size());
          splits_.push_back({copy_of(cell), copy_of(cell), copy_of(cell), copy_of(cell)});
        }
        auto& parts = splits_[static_cast<size_t>(cell.split)];
        for (; at < next && at < end; ++at) visit(parts[at % kGrain], at);
      }
      at = next;
    }
  }

  uint32_t stamp_ = 0, shared_stamp_ = 0;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  std::array<Recent, 256> recent_;
  std::deque<std::array<Cell, kGrain>> splits_;
  std::vector<std::vector<Access>> lists_;
};

}  // namespace lookaheadkv::emulation::races
