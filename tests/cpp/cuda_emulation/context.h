// The registers and stack of a fiber, and switching between two of them.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Fibers switch at every instruction of a warp, and the C library's swapcontext makes a system
// call: where we know the calling convention, the registers are saved by hand (context.cpp).
#if defined(__x86_64__)
extern "C" void lookaheadkv_switch_stacks(void** save, void* load);
#endif

namespace lookaheadkv::emulation {

constexpr size_t kStackBytes = size_t{192} << 10;

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 2;  // aligned as after a call
  *top = reinterpret_cast<void*>(entry);
  context.stack_pointer = top - 6;  // six registers, whatever they hold
}
inline void switch_contexts(Context& from, Context& to) {
  lookaheadkv_switch_stacks(&from.stack_pointer, to.stack_pointer);
}
#else
struct Context {
  ucontext_t context;
};
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = kStackBytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
inline void switch_contexts(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

}  // namespace lookaheadkv::emulation
