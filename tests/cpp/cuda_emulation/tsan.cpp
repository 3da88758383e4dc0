// The calls that a compiler puts before reads and writes for -fsanitize=thread, answered by
// races.cpp: nothing of ThreadSanitizer is linked.
#include <cstring>

#include "races.h"

namespace races = lookaheadkv::emulation::races;

extern "C" {

void __tsan_init() { races::enable(); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define LOOKAHEADKV_ACCESSES(prefix, size)               \
  void __tsan_##prefix##read##size(void* at) {           \
    races::read(at, size, __builtin_return_address(0));  \
  }                                                      \
  void __tsan_##prefix##write##size(void* at) {          \
    races::write(at, size, __builtin_return_address(0)); \
  }
LOOKAHEADKV_ACCESSES(, 1)
LOOKAHEADKV_ACCESSES(, 2)
LOOKAHEADKV_ACCESSES(, 4)
LOOKAHEADKV_ACCESSES(, 8)
LOOKAHEADKV_ACCESSES(, 16)
LOOKAHEADKV_ACCESSES(unaligned_, 2)
LOOKAHEADKV_ACCESSES(unaligned_, 4)
LOOKAHEADKV_ACCESSES(unaligned_, 8)
LOOKAHEADKV_ACCESSES(unaligned_, 16)
LOOKAHEADKV_ACCESSES(volatile_, 1)
LOOKAHEADKV_ACCESSES(volatile_, 2)
LOOKAHEADKV_ACCESSES(volatile_, 4)
LOOKAHEADKV_ACCESSES(volatile_, 8)
LOOKAHEADKV_ACCESSES(volatile_, 16)
#undef LOOKAHEADKV_ACCESSES

void __tsan_read_range(void* at, unsigned long bytes) {
  races::read(at, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* at, unsigned long bytes) {
  races::write(at, bytes, __builtin_return_address(0));
}

// Clang's, instead of the C library's.
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  races::read(from, bytes, __builtin_return_address(0));
  races::write(to, bytes, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
  races::write(to, bytes, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}

// Tables of virtual functions are the host's alone.
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

}  // extern "C"
