// The sources of the CUDA kernels as plain C++ against double-precision code and the CPU's select:
// every thread a fiber, every instruction of cuda/ptx.cuh emulated (cuda_emulation/), shared
// memory, workspaces and results poisoned. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by tests/cuda/test_cuda_emulation.py, and so that races are found
// (cuda_emulation/races.h) by tests/cuda/test_cuda_races.py. Arguments: check_cuda_parts.cpp.
#include "check_cuda.h"

int main(int argc, char** argv) {
  using namespace lookaheadkv::cuda;
  return run_parts({{"emulation", check_emulation},
                    {"detector", check_detector},
                    {"splits", check_splits},
                    {"select", check_select},
                    {"evict", check_evict},
                    {"paged", check_paged},
                    {"prefill", check_prefill},
                    {"shapes", check_shapes}},
                   {argv + 1, argv + argc});
}
