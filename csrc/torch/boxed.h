// Boxed kernels for STABLE_TORCH_LIBRARY_IMPL, with the errors of torch ops.
#pragma once

#include <torch/csrc/stable/library.h>

#include <stdexcept>

namespace lookaheadkv {

// Failed checks throw std::invalid_argument, which Python would see as ValueError; like every error
// of a torch op they reach it as RuntimeError, the type that fake kernels raise too.
template <auto* op>
void boxed(StableIValue* stack, uint64_t num_args, uint64_t num_outputs) {
  try {
    TORCH_BOX(op)(stack, num_args, num_outputs);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(error.what());
  }
}

}  // namespace lookaheadkv
