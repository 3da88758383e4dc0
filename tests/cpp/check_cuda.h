// What the parts of cuda_kernel_check share.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "cuda/kernels.h"
#include "reference.h"

namespace lookaheadkv::cuda {

// check_cuda_units.cpp, check_cuda_races.cpp, check_cuda_shapes.cpp, check_cuda_select.cpp,
// check_cuda_evict.cpp, check_cuda_paged.cpp
void check_detector();
void check_deadlock();  // these two end the program
void check_hang();
void check_emulation();
void check_splits();
void check_shapes();
void check_prefill();
void check_select();
void check_evict();
void check_paged();

struct Part {
  const char* name;
  void (*run)();
};
// The main() of both programs, check_cuda_parts.cpp.
int run_parts(const std::vector<Part>& parts, const std::vector<std::string>& arguments);

// Fewer inputs, in seconds, that still take every path of every kernel: each fault of
// tests/cuda/test_cuda_races.py shows among them.
inline bool brief = false;

// A chip with `num_sms` multiprocessors, for which calls are cut.
Device chip(int num_sms);

// Calls body(workspace) as the torch ops do: to count, then with memory of exactly that size, all
// NaN, aligned as torch's allocator does.
template <class Body>
void with_workspace(const Body& body) {
  Workspace counted;
  body(counted);
  const size_t bytes = static_cast<size_t>(counted.size());
  void* memory = nullptr;
  if (posix_memalign(&memory, 512, bytes) != 0) std::abort();
  std::memset(memory, 0xff, bytes);
  Workspace workspace(memory);
  body(workspace);
  cpu::check(workspace.size() == counted.size(), "the workspace is counted right");
  std::free(memory);
}

}  // namespace lookaheadkv::cuda
