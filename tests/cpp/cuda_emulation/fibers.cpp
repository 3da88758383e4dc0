#include "fibers.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Fibers switch at every instruction of a warp, and the C library's swapcontext makes a system
// call: where we know the calling convention, the registers are saved by hand.
#if defined(__x86_64__)
extern "C" void lookaheadkv_switch_stacks(void** save, void* load);
asm(R"(
.text
.type lookaheadkv_switch_stacks, @function
lookaheadkv_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lookaheadkv_switch_stacks, .-lookaheadkv_switch_stacks
)");
#endif

namespace lookaheadkv::emulation {

namespace {

constexpr size_t kStackBytes = size_t{192} << 10;
constexpr int kLanes = 32;

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 2;  // aligned as after a call
  *top = reinterpret_cast<void*>(entry);
  context.stack_pointer = top - 6;  // six registers, whatever they hold
}
void switch_contexts(Context& from, Context& to) {
  lookaheadkv_switch_stacks(&from.stack_pointer, to.stack_pointer);
}
#else
struct Context {
  ucontext_t context;
};
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = kStackBytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
void switch_contexts(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

// --- fibers

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::kDone;
};

struct Warp {
  void* operands[kLanes];
  Meeting meeting = nullptr;
  int waiting = 0;
};

struct Block {
  std::vector<Fiber> fibers;  // kept from block to block, for their stacks
  std::vector<Warp> warps;
  Fiber scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  int threads = 0, current = 0, waiting = 0;
  bool backwards = false;
  const std::function<void()>* body = nullptr;
};
Block block;

void enter(Fiber& from, Fiber& to, bool leaving) {
#if defined(__SANITIZE_ADDRESS__)
  const bool back = &to == &block.scheduler;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &from.fake_stack,
                                 back ? block.scheduler_stack : to.stack,
                                 back ? block.scheduler_stack_bytes : kStackBytes);
#endif
  (void)leaving;
  switch_contexts(from.context, to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Continues with the next fiber that can run, or with the scheduler when all are done.
void go_on(bool leaving) {
  Fiber& from = block.fibers[block.current];
  for (int step = 1; step <= block.threads; ++step) {
    const int distance = block.backwards ? block.threads - step : step;
    const int next = (block.current + distance) % block.threads;
    if (block.fibers[next].state != State::kReady) continue;
    if (next == block.current) return;
    block.current = next;
    enter(from, block.fibers[next], leaving);
    return;
  }
  if (!leaving) fail("waits for threads that have ended or wait for something else");
  enter(from, block.scheduler, true);
}

void leave_when_done() {
  if (block.waiting > 0) fail("ends while others wait at a barrier of the block");
  block.fibers[block.current].state = State::kDone;
  bool all = true;
  for (int i = 0; i < block.threads; ++i) all = all && block.fibers[i].state == State::kDone;
  if (all) enter(block.fibers[block.current], block.scheduler, true);
  go_on(true);
}

void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  if (block.scheduler_stack == nullptr) {
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  } else {
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  }
#endif
  (*block.body)();
  leave_when_done();
  std::abort();  // never comes back
}

}  // namespace

void run_block(int threads, bool backwards, const std::function<void()>& body) {
  if (threads % kLanes != 0) fail("a block must have whole warps");
  while (static_cast<int>(block.fibers.size()) < threads) {
    Fiber fiber;
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) fail("no memory for a stack");
    fiber.stack = static_cast<char*>(stack);
    block.fibers.push_back(fiber);
  }
  block.threads = threads;
  block.backwards = backwards;
  block.body = &body;
  block.waiting = 0;
  block.warps.assign(threads / kLanes, Warp());
  for (int i = 0; i < threads; ++i) {
    prepare(block.fibers[i].context, block.fibers[i].stack, run_fiber);
    block.fibers[i].state = State::kReady;
  }
  block.current = backwards ? threads - 1 : 0;
  enter(block.scheduler, block.fibers[block.current], false);
}

int current_thread() { return block.current; }

void meet_block() {
  if (++block.waiting < block.threads) {
    block.fibers[block.current].state = State::kAtBlock;
    go_on(false);
    return;
  }
  block.waiting = 0;
  for (int i = 0; i < block.threads; ++i) block.fibers[i].state = State::kReady;
}

void meet_warp(Meeting meeting, void* operand) {
  Warp& warp = block.warps[block.current / kLanes];
  if (warp.waiting > 0 && warp.meeting != meeting) fail("is at another instruction than its warp");
  warp.meeting = meeting;
  warp.operands[block.current % kLanes] = operand;
  if (++warp.waiting < kLanes) {
    block.fibers[block.current].state = State::kAtWarp;
    go_on(false);
    return;
  }
  warp.waiting = 0;
  meeting(warp.operands);
  const int first = block.current / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) block.fibers[first + lane].state = State::kReady;
}

void fail(const char* what) {
  std::printf("FAILED thread %d of %d %s\n", block.current, block.threads, what);
  std::fflush(stdout);
  std::abort();
}

}  // namespace lookaheadkv::emulation
