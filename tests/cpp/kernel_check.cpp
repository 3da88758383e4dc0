// The torch-free CPU kernels against straightforward double-precision code, on every instruction
// set this machine has (AMX emulated where the build says so), or on those named as arguments;
// with --brief on a sample of the shapes.
// Built with AddressSanitizer and UndefinedBehaviorSanitizer by tests/ops/test_sanitizers.py, for
// another processor by tests/ops/test_aarch64.py; every tensor is allocated to its exact size.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "check.h"

namespace lookaheadkv::cpu {

void use_isa(const std::string& name) { setenv("LOOKAHEADKV_CPU_ISA", name.c_str(), 1); }

namespace {
std::vector<const char*> isas;
bool is_brief = false;
}  // namespace

const std::vector<const char*>& checked_isas() { return isas; }

bool brief() { return is_brief; }

namespace {

// Those named, or all.
bool choose_isas(const std::vector<std::string>& names) {
  for (const char* isa : supported_isas()) {
    if (names.empty() || std::count(names.begin(), names.end(), isa) > 0) isas.push_back(isa);
  }
  std::printf("instruction sets:");
  for (const char* isa : isas) std::printf(" %s", isa);
  std::printf("\n");
  return names.empty() || names.size() == isas.size();
}

int run(std::vector<std::string> names) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a sanitizer's abort would drop a full buffer
  const auto option = std::find(names.begin(), names.end(), "--brief");
  is_brief = option != names.end();
  if (is_brief) names.erase(option);
  if (!choose_isas(names)) {
    std::printf("not every instruction set that was named is one of this machine\n");
    return 2;
  }
  check_splits();
  check_tile_rounds();
  check_halves();
  for (const char* name : isas) {
    use_isa(name);
    check(std::string(active_isa()) == name, std::string(name) + " can be chosen");
  }
  check_vector_ops();
  check_select();
  check_shapes();
  check_paged();
  return summary();
}

}  // namespace
}  // namespace lookaheadkv::cpu

int main(int count, char** arguments) {
  return lookaheadkv::cpu::run({arguments + 1, arguments + count});
}
