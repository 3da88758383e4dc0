// torch's threads as an Executor.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace lookaheadkv::cpu {

class TorchExecutor final : public Executor {
 public:
  void run(int64_t tasks, int64_t grain, const Body& body) const override {
    const int64_t threads = (tasks + grain - 1) / grain;
    if (threads == 0) return;
    Tasks source(tasks);
    std::optional<std::string> error;  // the text, which torch's C interface would lose
    std::mutex mutex;
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      try {
        body(source);
      } catch (const std::exception& thrown) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = thrown.what();
      }
    });
    if (error) throw std::runtime_error(*error);
  }
};

}  // namespace lookaheadkv::cpu
