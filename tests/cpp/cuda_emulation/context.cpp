#include "context.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl lookaheadkv_switch_stacks
.hidden lookaheadkv_switch_stacks
.type lookaheadkv_switch_stacks, @function
lookaheadkv_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lookaheadkv_switch_stacks, .-lookaheadkv_switch_stacks
)");
#endif
