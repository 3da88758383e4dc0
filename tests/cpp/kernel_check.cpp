// The torch-free CPU kernels against straightforward double-precision code, on every instruction
// set this machine has (AMX emulated where the build says so). Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by tests/ops/test_sanitizers.py; every tensor is allocated to its
// exact size.
#include <cstdio>
#include <cstdlib>

#include "check.h"

namespace lookaheadkv::cpu {

void use_isa(const std::string& name) { setenv("LOOKAHEADKV_CPU_ISA", name.c_str(), 1); }

namespace {

int run() {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a sanitizer's abort would drop a full buffer
  check_splits();
  check_tile_rounds();
  check_halves();
  for (const char* name : supported_isas()) {
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

int main() { return lookaheadkv::cpu::run(); }
