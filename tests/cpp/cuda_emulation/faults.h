// Faults planted in the emulated kernels while they run: one instruction, at one line of the
// sources, that orders less than it should. tests/cuda/test_cuda_races.py shows that each is found.
#pragma once

namespace lookaheadkv::emulation {

enum class Fault {
  kNoBarrier,      // sync_threads does nothing
  kNoCopyWait,     // wait_copies does nothing
  kShortCopyWait,  // wait_copies leaves one group more under way
  kNoCommit,       // commit_copies does nothing
  kNoKernelWait,   // start_kernel does nothing
  kNoRelease,      // publish and arrive release nothing
  kNoAcquire,      // wait_until_published and arrive acquire nothing
  kNoWait,         // wait_until_published does nothing
};

// Whether the instruction at this line has the fault. Every question is remembered.
bool has_fault(Fault fault, const char* file, int line);

// "barrier:evict.cu:75": the fault's name (what has_fault prints), the end of the file's name and
// the line. Returns false if it is none.
bool plant_fault(const char* text);

// Prints, in that form, every fault that could have been planted so far.
void print_faults();

}  // namespace lookaheadkv::emulation
