// The sources of the CUDA kernels as plain C++ against double-precision code and the CPU's select:
// every thread a fiber, every instruction of cuda/ptx.cuh emulated (cuda_emulation/), shared
// memory, workspaces and results poisoned. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by tests/cuda/test_cuda_emulation.py. Arguments name the parts to run;
// without any, all run.
#include <cstdio>

#include "check_cuda.h"

namespace {

int run(const std::vector<std::string>& wanted) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a sanitizer's abort would drop a full buffer
  using namespace lookaheadkv::cuda;
  const std::pair<const char*, void (*)()> parts[] = {
      {"emulation", check_emulation}, {"splits", check_splits}, {"select", check_select},
      {"evict", check_evict},         {"paged", check_paged},   {"prefill", check_prefill},
      {"shapes", check_shapes}};
  for (const auto& [name, part] : parts) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) part();
  }
  return lookaheadkv::cpu::summary();
}

}  // namespace

int main(int argc, char** argv) { return run({argv + 1, argv + argc}); }
