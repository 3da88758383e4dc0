// The namespace that the ops are registered in: torch.ops.lookaheadkv, unless a build names another
// so that two builds can be loaded into one process (docs/kernels_hub.md).
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef LOOKAHEADKV_OP_NAMESPACE
#define LOOKAHEADKV_OP_NAMESPACE lookaheadkv
#endif

// The indirection makes torch's macro see the namespace and not the name of the macro.
#define LOOKAHEADKV_LIBRARY_IN(name, m) STABLE_TORCH_LIBRARY(name, m)
#define LOOKAHEADKV_LIBRARY_IMPL_IN(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

#define LOOKAHEADKV_LIBRARY(m) LOOKAHEADKV_LIBRARY_IN(LOOKAHEADKV_OP_NAMESPACE, m)
#define LOOKAHEADKV_LIBRARY_IMPL(key, m) \
  LOOKAHEADKV_LIBRARY_IMPL_IN(LOOKAHEADKV_OP_NAMESPACE, key, m)
