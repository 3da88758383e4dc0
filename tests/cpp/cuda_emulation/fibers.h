// Runs the threads of a grid as fibers on one thread of the CPU: each runs until it has to wait for
// others (at a barrier, at an instruction of the whole warp, for another block), then another one
// continues.
#pragma once

#include <cstdint>
#include <functional>

namespace lookaheadkv::emulation {

// How blocks and threads take turns. No kernel may count on any of it.
struct Schedule {
  // One block after the other, its threads in order; or several blocks at once, of whose threads
  // any that can run may be the next.
  bool interleaved = false;
  bool last_block_first = false;
  uint64_t seed = 0;
};
constexpr int kMostResident = 4;  // blocks at once

// The schedule of one launch of many: each has a turn.
Schedule schedule_of(int64_t launch);

// Makes every launch interleaved, of blocks and threads in an order that depends on `seed`.
void always_interleave(uint64_t seed);

// Runs `body` once for every thread of every block.
void run_grid(int64_t blocks, int threads, int shared_bytes, const Schedule& schedule,
              const std::function<void()>& body);

// What the running fiber is: a thread of a block, which has a place among those at once, or -1
// where no kernel runs.
struct Running {
  int place = -1, thread = 0;
  int64_t block = 0;
  char* shared = nullptr;
  int shared_bytes = 0;
};
const Running& running();

// The same for code in which every read is looked at.
int current_thread();
int64_t current_block();
char* current_shared();

// Waits for all threads of the block.
void meet_block();

// Waits for the other lanes of the warp; the last to come runs meeting(operands), with
// operands[lane] what each lane brought. All have to call with the same meeting.
using Meeting = void (*)(void* const* operands);
void meet_warp(Meeting meeting, void* operand);

// Lets any other thread go first, if blocks are interleaved.
void yield();

// Waits until the word is not zero. A program in which nobody else can run any more ends.
void wait_until_set(const int32_t* word);

// Ends the program with a message about the running thread.
[[noreturn]] void fail(const char* what);

}  // namespace lookaheadkv::emulation
