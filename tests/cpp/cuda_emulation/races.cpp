#include "races.h"

#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>

#include "fibers.h"
#include "shadow.h"

extern "C" char __executable_start, _end;

namespace lookaheadkv::emulation::races {

namespace {

// What is known of a block: all of its accesses before `phase`, and in it those of some threads up
// to a tick.
struct Seen {
  int32_t phase = 0;
  std::map<int32_t, uint32_t> threads;
};
using View = std::map<int32_t, Seen>;  // by block

struct Thread {
  bool started = false;  // has passed griddepcontrol.wait
  View view;             // acquired since the last barrier
};

struct Block {
  int32_t index = kNobody;
  int32_t phase = 0;
  uintptr_t shared = 0, shared_end = 0;
  uint32_t stamp = 0;
  std::vector<Cell> cells;  // of the shared memory
  std::vector<Thread> threads;
  View view;  // acquired, and passed on by a barrier
};

struct Range {
  uintptr_t begin, end;
  bool has(uintptr_t at) const { return at >= begin && at < end; }
};

bool is_enabled = false, stop = false;
bool looking = false;  // nothing of what this file does is an access of a kernel
int64_t looked = 0;
Moment clock_now = 0;
Shadow shadow;
Block blocks[kMostResident];
std::map<const void*, View> words;
std::vector<Range> ignored;
const void* kernel = nullptr;
std::set<std::pair<uint32_t, uint32_t>> reported;
std::vector<std::string> reports;

void merge(View& to, const View& from) {
  for (const auto& [block, seen] : from) {
    Seen& mine = to[block];
    if (seen.phase > mine.phase) {
      mine = seen;
    } else if (seen.phase == mine.phase) {
      for (const auto& [thread, tick] : seen.threads) {
        uint32_t& own = mine.threads[thread];
        own = own > tick ? own : tick;
      }
    }
  }
}

bool covers(const View& view, const Access& access) {
  const auto it = view.find(access.block);
  if (it == view.end()) return false;
  const Seen& seen = it->second;
  if (access.phase != seen.phase) return access.phase < seen.phase;
  const auto thread = seen.threads.find(access.thread);
  return thread != seen.threads.end() && access.tick <= thread->second;
}

uint32_t offset_of(const void* code) {
  return static_cast<uint32_t>(static_cast<const char*>(code) - &__executable_start);
}

const Range& image() {
  static const Range range = {reinterpret_cast<uintptr_t>(&__executable_start),
                              reinterpret_cast<uintptr_t>(&_end)};
  return range;
}

// The stack that launches come from: kernels read their arguments there.
const Range& main_stack() {
  static const Range range = [] {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0 ||
        pthread_attr_getstack(&attributes, &begin, &bytes) != 0) {
      fail("cannot find the stack of the program");
    }
    pthread_attr_destroy(&attributes);
    const auto at = reinterpret_cast<uintptr_t>(begin);
    return Range{at, at + bytes};
  }();
  return range;
}

enum class Kind { kRead, kUnchanging, kWrite, kAtomic, kCopy };

// The running thread, at one access.
class Now {
 public:
  explicit Now(const void* code)
      : block_(blocks[running().place]),
        thread_(running().thread),
        own_(block_.threads[static_cast<size_t>(thread_)]),
        code_(offset_of(code)) {}

  Block& block() const { return block_; }
  Thread& own() const { return own_; }
  Access access() const { return {block_.index, block_.phase, clock_now, thread_, code_}; }

  // Whether that access happened before.
  bool after(const Access& a) const {
    if (a.block == kNobody) return true;
    if (a.block == block_.index) return a.phase < block_.phase || a.thread == thread_;
    return covers(block_.view, a) || covers(own_.view, a);
  }

  template <class Visit>
  void visit(const void* at, size_t bytes, const Visit& visit_cell) const {
    const auto begin = reinterpret_cast<uintptr_t>(at);
    if (begin >= block_.shared && begin < block_.shared_end) {
      shadow.shared(block_.cells, block_.stamp, begin - block_.shared, bytes, visit_cell);
    } else {
      shadow.device(begin, bytes, visit_cell);
    }
  }

  void report(const char* what, const void* at, const Access& other) const {
    if (!reported.insert({other.code, code_}).second) return;
    const auto address = reinterpret_cast<uintptr_t>(at);
    const bool is_shared = address >= block_.shared && address < block_.shared_end;
    char text[400];
    int length = std::snprintf(
        text, sizeof(text), "RACE %s: %s memory %llx, block %d thread %d phase %d at 0x%x", what,
        is_shared ? "shared" : "device",
        static_cast<unsigned long long>(is_shared ? address - block_.shared : address),
        block_.index, thread_, block_.phase, code_);
    if (other.block != kNobody) {
      length += std::snprintf(text + length, sizeof(text) - static_cast<size_t>(length),
                              ", after block %d thread %d phase %d at 0x%x", other.block,
                              other.thread, other.phase, other.code);
    }
    std::snprintf(text + length, sizeof(text) - static_cast<size_t>(length), ", in 0x%x",
                  offset_of(kernel));
    reports.emplace_back(text);
    if (!stop) return;
    std::printf("%s\n", text);
    std::fflush(stdout);
    std::_Exit(3);
  }

  // Of others, the first that this access is not after.
  const Access* unordered(Crowd& crowd) const {
    if (!after(crowd.latest)) return &crowd.latest;
    if (crowd.others == kNobody) return nullptr;
    for (const Access& other : shadow.others(crowd)) {
      if (!after(other)) return &other;
    }
    return nullptr;
  }

  void join(Crowd& crowd) const {
    const Access mine = access();
    if (crowd.latest.block != mine.block && crowd.latest.block != kNobody) {
      std::vector<Access>& others = shadow.others(crowd);
      size_t i = 0;
      while (i < others.size() && others[i].block != mine.block) ++i;
      if (i == others.size()) others.emplace_back();
      std::swap(crowd.latest, others[i]);
    }
    Access& latest = crowd.latest;
    const bool together = latest.block == mine.block && latest.phase == mine.phase;
    const bool many = together && latest.thread != thread_;
    latest = mine;
    if (many) latest.thread = kMany;
  }

  void look(const void* at, size_t bytes, Kind kind) const {
    const bool reads = kind == Kind::kRead || kind == Kind::kUnchanging;
    const char* const verb = reads ? "reads" : "writes";
    const auto* const begin = static_cast<const char*>(at);
    const auto first = reinterpret_cast<uintptr_t>(at);
    const bool is_shared = first >= block_.shared && first < block_.shared_end;
    if (!is_shared && !own_.started) report("before griddepcontrol.wait", at, {});
    uintptr_t base = is_shared ? block_.shared : 0;
    visit(begin, bytes, [&](Cell& cell, uintptr_t offset) {
      const void* const where = reinterpret_cast<const void*>(base + offset);
      const auto complain = [&](const char* text, const Access& other) {
        char what[80];
        std::snprintf(what, sizeof(what), "%s %s", verb, text);
        report(what, where, other);
      };
      if (cell.copying != kNobody) {
        complain("where a copy is under way",
                 {block_.index, block_.phase, 0, cell.copying, cell.copy_code});
      }
      if (!after(cell.write)) complain("what another thread writes", cell.write);
      if (kind != Kind::kAtomic) {
        if (const Access* other = unordered(cell.atomics)) {
          complain("what another thread counts", *other);
        }
      }
      if (kind == Kind::kUnchanging) {
        const bool written = cell.write.block != kNobody || cell.atomics.latest.block != kNobody;
        if (written) complain("through a read-only cache what this launch writes", cell.write);
        cell.unchanging = true;
      }
      if (reads) {
        join(cell.reads);
        return;
      }
      if (const Access* other = unordered(cell.reads)) {
        complain("what another thread reads", *other);
      }
      if (cell.unchanging) {
        complain("what this launch reads through a read-only cache", cell.reads.latest);
      }
      if (kind == Kind::kAtomic) {
        join(cell.atomics);
      } else if (kind == Kind::kCopy) {
        cell.copying = thread_;
        cell.copy_code = code_;
      } else {
        write(cell);
      }
    });
  }

  // Whoever is after this write is after everything that it was after.
  void write(Cell& cell) const {
    cell.write = access();
    cell.reads = cell.atomics = Crowd();
  }

 private:
  Block& block_;
  int32_t thread_;
  Thread& own_;
  uint32_t code_;
};

class Looking {
 public:
  Looking() { looking = true; }
  ~Looking() { looking = false; }
};

bool idle() { return !is_enabled || looking || running().place < 0; }

void look(const void* at, size_t bytes, Kind kind, const void* code) {
  if (idle() || bytes == 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(at);
  for (const Range& range : ignored) {
    if (range.has(begin)) return;
  }
  const Looking guard;
  if (image().has(begin) || main_stack().has(begin)) return;
  ++looked;
  Now(code).look(at, bytes, kind);
}

}  // namespace

void read(const void* at, size_t bytes, const void* code) { look(at, bytes, Kind::kRead, code); }
void read_unchanging(const void* at, size_t bytes, const void* code) {
  look(at, bytes, Kind::kUnchanging, code);
}
void write(const void* at, size_t bytes, const void* code) { look(at, bytes, Kind::kWrite, code); }
void atomic(const void* at, size_t bytes, const void* code) {
  look(at, bytes, Kind::kAtomic, code);
}

Moment copy_issued(void* to, const void* from, size_t bytes, const void* code) {
  if (idle()) return {};
  if (from != nullptr) look(from, bytes, Kind::kRead, code);
  look(to, bytes, Kind::kCopy, code);
  return clock_now++;
}

void copy_waited(void* to, const void* from, size_t bytes, Moment issued) {
  if (idle()) return;
  const Looking guard;
  uint32_t code = 0;
  Now(&__executable_start).visit(to, bytes, [&](const Cell& cell, uintptr_t) {
    code = cell.copy_code;
  });
  const Now now(&__executable_start + code);
  now.visit(to, bytes, [&](Cell& cell, uintptr_t) {
    cell.copying = kNobody;
    now.write(cell);
  });
  if (from == nullptr) return;
  // Writes before the issue were looked for then.
  now.visit(from, bytes, [&](Cell& cell, uintptr_t at) {
    if (cell.write.block != kNobody && cell.write.tick > issued) {
      now.report("copies what is written before the copy is waited for",
                 reinterpret_cast<const void*>(at), cell.write);
    }
    now.join(cell.reads);
  });
}

void release(const void* word, bool keep) {
  if (idle()) return;
  const Looking guard;
  const Now now(&__executable_start);
  View view = now.block().view;
  merge(view, now.own().view);
  Seen own;
  own.phase = now.block().phase;
  own.threads[running().thread] = clock_now++;
  merge(view, {{now.block().index, own}});
  if (keep) {
    merge(words[word], view);
  } else {
    words[word] = view;
  }
}

void acquire(const void* word) {
  if (idle()) return;
  const Looking guard;
  const Now now(&__executable_start);
  if (const auto it = words.find(word); it != words.end()) merge(now.own().view, it->second);
}

void begin_launch(const void* of_kernel) {
  kernel = of_kernel;
  clock_now = 0;
  shadow.begin_launch();
  words.clear();
}

void begin_block(int place, int64_t index, int threads, const char* shared, int shared_bytes) {
  if (!is_enabled) return;
  Block& block = blocks[place];
  block.index = static_cast<int32_t>(index);
  block.phase = 0;
  block.shared = reinterpret_cast<uintptr_t>(shared);
  block.shared_end = block.shared + static_cast<uintptr_t>(shared_bytes);
  block.stamp = shadow.next_stamp();
  const auto cells = static_cast<size_t>(shared_bytes) / kGrain + 1;
  if (block.cells.size() < cells) block.cells.resize(cells);
  block.threads.assign(static_cast<size_t>(threads), Thread());
  block.view.clear();
}

void end_block(int place) { blocks[place].index = kNobody; }

void barrier(int place) {
  if (!is_enabled) return;
  Block& block = blocks[place];
  ++block.phase;
  bool started = false;
  for (Thread& thread : block.threads) {
    started = started || thread.started;
    if (thread.view.empty()) continue;
    merge(block.view, thread.view);
    thread.view.clear();
  }
  for (Thread& thread : block.threads) thread.started = started;
}

void kernel_started() {
  if (!idle()) Now(&__executable_start).own().started = true;
}

void ignore(const void* begin, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  ignored.push_back({at, at + bytes});
}

void enable() { is_enabled = true; }
bool enabled() { return is_enabled; }
int64_t looked_at() { return looked; }
void stop_at_first() { stop = true; }

std::vector<std::string> take_reports() {
  reported.clear();
  return std::exchange(reports, {});
}

}  // namespace lookaheadkv::emulation::races
