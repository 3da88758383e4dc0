// Facts about the CPU kernels for `lookaheadkv info`, read through ctypes.
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

extern "C" {

__attribute__((visibility("default"))) const char* lookaheadkv_cpu_supported_isas() {
  static const std::string names = [] {
    std::string joined;
    for (const char* name : lookaheadkv::cpu::supported_isas()) {
      joined += (joined.empty() ? "" : ",") + std::string(name);
    }
    return joined;
  }();
  return names.c_str();
}

// Null when LOOKAHEADKV_CPU_ISA names an instruction set that is not there.
__attribute__((visibility("default"))) const char* lookaheadkv_cpu_active_isa() {
  try {
    return lookaheadkv::cpu::active_isa();
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}
}
