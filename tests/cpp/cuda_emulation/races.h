// Finds races of the emulated kernels by what CUDA orders, not by what happens to come first: one
// run of a kernel finds a race in whatever order its threads run.
//
// Two accesses to a byte, at least one of them a write and not both atomic, must be ordered:
//   - in a block, they are of one thread, or a barrier of the block lies between them;
//   - across blocks, only a release (arrive, publish) after the first and an acquire (arrive,
//     wait_until_published) of the same word before the second order them: for the releasing thread
//     what it did before, and for its block what was done before its last barrier; for the
//     acquiring thread at once, and for its block from the next barrier on.
// Shuffles, ldmatrix and mma order nothing. An asynchronous copy writes its bytes, and reads what
// it copies, at any time from its issue until its thread has waited; behind that, it is a write of
// that thread. Nothing in device memory is touched before griddepcontrol.wait, and nothing that is
// read through the read-only cache is written in the same launch.
//
// Reads and writes come from the compiler: sources of kernels are compiled with -fsanitize=thread,
// whose calls tsan.cpp answers (CMake: LOOKAHEADKV_RACES). Without, nothing is looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lookaheadkv::emulation::races {

// --- told by the compiler and by the instructions; `code` is where the access is

void read(const void* at, size_t bytes, const void* code);
void read_unchanging(const void* at, size_t bytes, const void* code);  // through a read-only cache
void write(const void* at, size_t bytes, const void* code);
void atomic(const void* at, size_t bytes, const void* code);

// A point in time, counted in copies and releases.
using Moment = uint32_t;
Moment copy_issued(void* to, const void* from, size_t bytes, const void* code);
void copy_waited(void* to, const void* from, size_t bytes, Moment issued);

// What the running thread knows goes to the word, beside what is there or instead of it.
void release(const void* word, bool keep);
void acquire(const void* word);

// --- told by the emulation of launches, blocks and barriers

void begin_launch(const void* kernel);
void begin_block(int place, int64_t block, int threads, const char* shared, int shared_bytes);
void end_block(int place);
void barrier(int place);  // all threads of the block have met
void kernel_started();    // griddepcontrol.wait of the running thread
void ignore(const void* begin, size_t bytes);

// --- results

void enable();
bool enabled();
int64_t looked_at();  // accesses of kernels so far

// The races found since the last call, each pair of places in the code once. Places are printed as
// offsets in the program, for addr2line.
std::vector<std::string> take_reports();

// Ends the program (status 3) at the first race, which is printed.
void stop_at_first();

}  // namespace lookaheadkv::emulation::races
