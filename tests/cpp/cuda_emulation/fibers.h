// Runs the threads of one block as fibers on one thread of the CPU: each runs until it has to wait
// for others (at a barrier, or an instruction of the whole warp), then the next one continues.
#pragma once

#include <cstdint>
#include <functional>

namespace lookaheadkv::emulation {

// Runs body once for every thread of a block. `backwards`: the last thread goes first, which finds
// some of the missing barriers that the other order hides.
void run_block(int threads, bool backwards, const std::function<void()>& body);

// The thread that the running fiber is.
int current_thread();

// Waits for all threads of the block.
void meet_block();

// Waits for the other lanes of the warp; the last to come runs meeting(operands), with
// operands[lane] what each lane brought. All have to call with the same meeting.
using Meeting = void (*)(void* const* operands);
void meet_warp(Meeting meeting, void* operand);

// Ends the program with a message about the running thread.
[[noreturn]] void fail(const char* what);

}  // namespace lookaheadkv::emulation
