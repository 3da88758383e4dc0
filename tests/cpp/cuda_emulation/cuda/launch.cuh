// csrc/cuda/launch.cuh on the CPU: block after block, each in shared memory of its own.
#pragma once

#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/ptx.cuh"

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
  const auto launches = static_cast<int64_t>(emulated_launches.size());
  for (int64_t turn = 0; turn < blocks; ++turn) {
    // No kernel may count on the order of its blocks.
    const int64_t i = launches % 3 == 0 ? blocks - 1 - turn : turn;
    // Of exactly this size, for AddressSanitizer.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, static_cast<size_t>(shared)) != 0) std::abort();
    // NaN in every dtype; a large number in the other blocks, as a maximum passes over NaN.
    const int poison = (launches + i / 2) % 2 == 0 ? 0x7f : 0xff;
    std::memset(memory, poison, static_cast<size_t>(shared));
    emulated_block = {i, static_cast<char*>(memory), shared};
    thread_copies.assign(static_cast<size_t>(threads), ThreadCopies());
    const bool backwards = (launches + i) % 2 == 0;
    emulation::run_block(threads, backwards, [&] { std::apply(kernel, parameters); });
    std::free(memory);
  }
}

}  // namespace lookaheadkv::cuda
