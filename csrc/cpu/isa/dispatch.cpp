// Which instruction set runs: the best this machine has, or the one LOOKAHEADKV_CPU_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"

#ifdef LOOKAHEADKV_HAVE_X86
#include <cpuid.h>
#endif
#if defined(LOOKAHEADKV_HAVE_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(LOOKAHEADKV_HAVE_NEON) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(LOOKAHEADKV_HAVE_NEON) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lookaheadkv::cpu {

namespace {

#ifdef LOOKAHEADKV_HAVE_X86

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_amx() {
#if defined(LOOKAHEADKV_AMX_EMULATE)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#elif defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  // Linux hands out the tile registers only on request, once per process.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

#ifdef LOOKAHEADKV_HAVE_NEON

bool has_neon() {
#ifdef __linux__
  constexpr unsigned long kAdvancedSimd = 1ul << 1;  // HWCAP_ASIMD
  return (getauxval(AT_HWCAP) & kAdvancedSimd) != 0;
#else
  return true;  // other systems for AArch64 take it for granted
#endif
}

bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which old headers do not name
  return has_neon() && (getauxval(AT_HWCAP2) & kBf16) != 0;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

#endif

std::vector<const Isa*> find_supported() {
  std::vector<const Isa*> found;
#ifdef LOOKAHEADKV_HAVE_X86
  if (has_amx()) found.push_back(&kAmx);
  if (has_avx512() && __builtin_cpu_supports("avx512bf16")) found.push_back(&kAvx512Bf16);
  if (has_avx512()) found.push_back(&kAvx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    found.push_back(&kAvx2);
  }
#endif
#ifdef LOOKAHEADKV_HAVE_NEON
  if (has_neon_bf16()) found.push_back(&kNeonBf16);
  if (has_neon()) found.push_back(&kNeon);
#endif
  found.push_back(&kPortable);
  return found;
}

const std::vector<const Isa*>& supported() {
  static const std::vector<const Isa*> isas = find_supported();
  return isas;
}

}  // namespace

const Isa& active() {
  const char* wanted = std::getenv("LOOKAHEADKV_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *supported().front();
  std::string names;
  for (const Isa* isa : supported()) {
    if (std::strcmp(isa->name, wanted) == 0) return *isa;
    names += (names.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::invalid_argument("LOOKAHEADKV_CPU_ISA must be one of " + names +
                              " on this machine, got " + wanted);
}

std::vector<const char*> supported_isas() {
  std::vector<const char*> names;
  for (const Isa* isa : supported()) names.push_back(isa->name);
  return names;
}

const char* active_isa() { return active().name; }

}  // namespace lookaheadkv::cpu
