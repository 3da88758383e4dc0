// The sources of the CUDA kernels as plain C++ against double-precision code and the CPU's select:
// every thread a fiber, every instruction of cuda/ptx.cuh emulated (cuda_emulation/), shared
// memory, workspaces and results poisoned. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by tests/cuda/test_cuda_emulation.py, and so that races are found
// (cuda_emulation/races.h) by tests/cuda/test_cuda_races.py.
//
// Arguments name the parts to run; without any, all run. --interleave=SEED runs several blocks at
// once in every launch; --faults prints which faults could be planted; --fault=FAULT plants one,
// and the first race ends the program.
#include <cstdio>
#include <cstring>

#include "check_cuda.h"
#include "faults.h"
#include "fibers.h"
#include "races.h"

namespace {

using lookaheadkv::cpu::check;
using namespace lookaheadkv::emulation;

struct Part {
  const char* name;
  void (*run)();
  bool usual = true;
};

// Runs one part, in which no kernel may have a race.
void run_part(const Part& part) {
  const int64_t before = races::looked_at();
  part.run();
  if (!races::enabled()) return;
  for (const std::string& report : races::take_reports()) {
    check(false, std::string(part.name) + ": " + report);
  }
  const long long looked = races::looked_at() - before;
  std::printf("%s: %lld accesses looked at\n", part.name, looked);
}

// Takes an option, if it is one.
bool take_option(const std::string& argument, bool* faults) {
  if (argument == "--faults") {
    *faults = true;
  } else if (argument.rfind("--fault=", 0) == 0) {
    if (!plant_fault(argument.c_str() + std::strlen("--fault="))) std::abort();
    races::stop_at_first();
  } else if (argument.rfind("--interleave=", 0) == 0) {
    always_interleave(std::stoull(argument.substr(std::strlen("--interleave="))));
  } else {
    return false;
  }
  return true;
}

int run(const std::vector<std::string>& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a sanitizer's abort would drop a full buffer
  using namespace lookaheadkv::cuda;
  const Part parts[] = {{"emulation", check_emulation},
                        {"detector", check_detector},
                        {"splits", check_splits},
                        {"select", check_select},
                        {"evict", check_evict},
                        {"paged", check_paged},
                        {"prefill", check_prefill},
                        {"shapes", check_shapes},
                        {"deadlock", check_deadlock, false},
                        {"hang", check_hang, false}};
  std::vector<std::string> wanted;
  bool faults = false;
  for (const std::string& argument : arguments) {
    if (!take_option(argument, &faults)) wanted.push_back(argument);
  }
  for (const Part& part : parts) {
    const bool named = std::find(wanted.begin(), wanted.end(), part.name) != wanted.end();
    if (wanted.empty() ? part.usual : named) run_part(part);
  }
  if (faults) print_faults();
  return lookaheadkv::cpu::summary();
}

}  // namespace

int main(int argc, char** argv) { return run({argv + 1, argv + argc}); }
