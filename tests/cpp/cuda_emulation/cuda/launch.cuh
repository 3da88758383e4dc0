// csrc/cuda/launch.cuh on the CPU: the blocks of a launch on fibers.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "cuda/ptx.cuh"
#include "races.h"

namespace lookaheadkv::cuda {

using Stream = void*;

// The shared memory that every supported chip offers a block: an RTX 3090 or 4090 has the least.
constexpr int kSharedLimit = 99 * 1024;

inline int emulated_multiprocessors = 4;
inline std::vector<bool> emulated_launches;  // whether each launch was declared to follow another
inline int multiprocessors() { return emulated_multiprocessors; }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared, Stream,
            bool follows, Arguments&&... arguments) {
  if (blocks == 0) return;
  if (shared > kSharedLimit) emulation::fail("would have more shared memory than some GPUs have");
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  emulated_launches.push_back(follows);
  emulation::races::begin_launch(reinterpret_cast<const void*>(kernel));
  emulation::run_grid(blocks, threads, shared,
                      emulation::schedule_of(static_cast<int64_t>(emulated_launches.size())),
                      [&] { std::apply(kernel, parameters); });
}

}  // namespace lookaheadkv::cuda
