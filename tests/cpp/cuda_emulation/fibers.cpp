#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "context.h"
#include "instructions.h"
#include "races.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace lookaheadkv::emulation {

namespace {

constexpr int kLanes = 32, kMostThreads = 1024;

enum class State { kReady, kWaits, kDone };

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::kDone;
  int place = -1, thread = 0;
};

struct Warp {
  void* operands[kLanes];
  Meeting meeting = nullptr;
  int waiting = 0;
};

// One of the blocks at once.
struct Place {
  std::vector<Fiber> fibers;  // kept from block to block, for their stacks
  std::vector<Warp> warps;
  int64_t block = -1;
  std::unique_ptr<char, void (*)(void*)> shared = {nullptr, std::free};
  int waiting = 0, done = 0;
  bool backwards = false;
};

struct Poll {
  Fiber* fiber;
  const int32_t* word;
};

Place places[kMostResident];
std::deque<Fiber*> ready;
std::vector<Poll> polls;
Fiber scheduler;
Fiber* current = nullptr;
Running now;
bool interleave_all = false;
uint64_t all_seed = 0;

// Of the launch that runs.
int threads = 0, shared_bytes = 0;
bool interleaved = false;
uint64_t dice = 1;
const std::function<void()>* body = nullptr;

uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t draw() { return mixed(dice++); }

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif

// Stacks of all fibers, in one range that nobody but its own fiber looks at: races are not looked
// for there.
char* stack_of(int place, int thread) {
  constexpr size_t kBytes = kStackBytes * kMostThreads * kMostResident;
  static char* const all = [] {
    void* const memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stacks");
    races::ignore(memory, kBytes);
    return static_cast<char*>(memory);
  }();
  return all + kStackBytes * static_cast<size_t>(place * kMostThreads + thread);
}

void become(Fiber& fiber) {
  current = &fiber;
  now = {};
  if (fiber.place < 0) return;
  const Place& place = places[fiber.place];
  now = {fiber.place, fiber.thread, place.block, place.shared.get(), shared_bytes};
}

void enter(Fiber& from, Fiber& to, bool leaving) {
  become(to);
#if defined(__SANITIZE_ADDRESS__)
  const bool back = &to == &scheduler;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &from.fake_stack,
                                 back ? scheduler_stack : to.stack,
                                 back ? scheduler_stack_bytes : kStackBytes);
#endif
  (void)leaving;
  switch_contexts(from.context, to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The next fiber to continue, no longer in `ready`; null if none can.
Fiber* take_next() {
  for (size_t i = polls.size(); i-- > 0;) {
    if (*polls[i].word == 0) continue;
    ready.push_back(polls[i].fiber);
    polls[i] = polls.back();
    polls.pop_back();
  }
  if (ready.empty()) return nullptr;
  if (interleaved) std::swap(ready.front(), ready[draw() % ready.size()]);
  Fiber* const next = ready.front();
  ready.pop_front();
  return next;
}

// Leaves the running fiber, which others will make ready again, unless it is done.
void go_on() {
  Fiber& from = *current;
  Fiber* const next = take_next();
  if (next == nullptr) {
    fail(polls.empty() ? "waits for threads that have ended or wait for something else"
                       : "is the last that ran: blocks wait for one that cannot start");
  }
  if (next != &from) enter(from, *next, from.state == State::kDone);
}

void wait_for_others() {
  current->state = State::kWaits;
  go_on();
  current->state = State::kReady;
}

void make_ready(Place& place, int first, int count) {
  for (int i = 0; i < count; ++i) {
    Fiber* const fiber = &place.fibers[first + (place.backwards ? count - 1 - i : i)];
    if (fiber != current) ready.push_back(fiber);
  }
}

void leave_when_done() {
  Place& place = places[current->place];
  if (place.waiting > 0) fail("ends while others wait at a barrier of the block");
  current->state = State::kDone;
  if (++place.done == threads) enter(*current, scheduler, true);
  go_on();
}

void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  if (scheduler_stack == nullptr) {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  } else {
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  }
#endif
  (*body)();
  leave_when_done();
  std::abort();  // never comes back
}

void start_block(int at, int64_t block) {
  Place& place = places[at];
  place.block = block;
  // Of exactly this size, for AddressSanitizer.
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, static_cast<size_t>(shared_bytes)) != 0) std::abort();
  place.shared.reset(static_cast<char*>(memory));
  // NaN in every dtype; a large number in some blocks, as a maximum passes over NaN.
  std::memset(memory, draw() % 2 == 0 ? 0x7f : 0xff, static_cast<size_t>(shared_bytes));
  place.waiting = place.done = 0;
  place.backwards = draw() % 2 == 0;
  place.warps.assign(static_cast<size_t>(threads / kLanes), Warp());
  if (static_cast<int>(place.fibers.size()) < threads) {
    place.fibers.resize(static_cast<size_t>(threads));
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = place.fibers[static_cast<size_t>(i)];
    fiber.place = at;
    fiber.thread = i;
    fiber.state = State::kReady;
    fiber.stack = stack_of(at, i);
#if defined(__SANITIZE_ADDRESS__)
    // Whoever ran here before never returned from its last calls, whose frames are still marked.
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    prepare(fiber.context, fiber.stack, run_fiber);
  }
  start_copies(at, threads);
  races::begin_block(at, block, threads, place.shared.get(), shared_bytes);
  make_ready(place, 0, threads);
}

void end_block(int at) {
  end_copies(at);
  races::end_block(at);
  places[at].block = -1;
  places[at].shared.reset();
}

}  // namespace

Schedule schedule_of(int64_t launch) {
  const uint64_t random = mixed(all_seed + static_cast<uint64_t>(launch));
  return {interleave_all || random % 2 == 0, random / 2 % 2 == 0, random};
}

void always_interleave(uint64_t seed) {
  interleave_all = true;
  all_seed = seed << 32;
}

void run_grid(int64_t blocks, int threads_of_block, int bytes, const Schedule& schedule,
              const std::function<void()>& of_thread) {
  if (threads_of_block % kLanes != 0) fail("a block must have whole warps");
  if (threads_of_block > kMostThreads) fail("a block has more threads than a chip runs");
  threads = threads_of_block;
  shared_bytes = bytes;
  interleaved = schedule.interleaved;
  dice = schedule.seed;
  body = &of_thread;
  ready.clear();
  become(scheduler);
  const int resident = interleaved ? 1 + static_cast<int>(draw() % kMostResident) : 1;
  int64_t started = 0, ended = 0;
  while (ended < blocks) {
    for (int at = 0; at < resident; ++at) {
      if (places[at].block >= 0 || started == blocks) continue;
      start_block(at, schedule.last_block_first ? blocks - 1 - started : started);
      ++started;
    }
    // Comes back when a block has ended.
    Fiber* const next = take_next();
    if (next == nullptr) fail("blocks wait for one that has ended");
    enter(scheduler, *next, false);
    for (int at = 0; at < resident; ++at) {
      if (places[at].block < 0 || places[at].done < threads) continue;
      end_block(at);
      ++ended;
    }
  }
}

const Running& running() { return now; }
int current_thread() { return now.thread; }
int64_t current_block() { return now.block; }
char* current_shared() { return now.shared; }

void meet_block() {
  Place& place = places[current->place];
  if (++place.waiting < threads) {
    wait_for_others();
    return;
  }
  place.waiting = 0;
  races::barrier(current->place);
  make_ready(place, 0, threads);
}

void meet_warp(Meeting meeting, void* operand) {
  Place& place = places[current->place];
  const int warp_index = current->thread / kLanes;
  Warp& warp = place.warps[static_cast<size_t>(warp_index)];
  if (warp.waiting > 0 && warp.meeting != meeting) fail("is at another instruction than its warp");
  warp.meeting = meeting;
  warp.operands[current->thread % kLanes] = operand;
  if (++warp.waiting < kLanes) {
    wait_for_others();
    return;
  }
  warp.waiting = 0;
  meeting(warp.operands);
  make_ready(place, warp_index * kLanes, kLanes);
}

void yield() {
  if (!interleaved) return;
  ready.push_back(current);
  go_on();
}

void wait_until_set(const int32_t* word) {
  while (*word == 0) {
    polls.push_back({current, word});
    wait_for_others();
  }
}

void fail(const char* what) {
  std::printf("FAILED block %lld thread %d of %d %s\n", static_cast<long long>(now.block),
              now.thread, threads, what);
  std::fflush(stdout);
  std::abort();
}

}  // namespace lookaheadkv::emulation
