// Runs kernels on std::threads, for callers without torch's thread pool.
#pragma once

#include "cpu/kernels.h"

namespace lookaheadkv::numpy {

// CPUs this process may run on.
int64_t usable_cpus();

class ThreadExecutor : public cpu::Executor {
 public:
  explicit ThreadExecutor(int64_t num_threads) : num_threads_(num_threads) {}

  void run(int64_t tasks, int64_t grain, const Body& body) const override;

 private:
  int64_t num_threads_;
};

}  // namespace lookaheadkv::numpy
