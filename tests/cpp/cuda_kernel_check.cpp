// The sources of the CUDA kernels as plain C++ against double-precision code and the CPU's select:
// every thread a fiber, every instruction of cuda/ptx.cuh emulated (cuda_emulation/), shared
// memory, workspaces and results poisoned. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by tests/test_cuda_emulation.py.
#include <cstdio>

#include "check_cuda.h"

namespace {

int run() {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a sanitizer's abort would drop a full buffer
  using namespace lookaheadkv::cuda;
  check_emulation();
  check_splits();
  check_select();
  check_shapes();
  check_prefill();
  return lookaheadkv::cpu::summary();
}

}  // namespace

int main() { return run(); }
