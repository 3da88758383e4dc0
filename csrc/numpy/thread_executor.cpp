#include "numpy/thread_executor.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace lookaheadkv::numpy {

int64_t usable_cpus() {
#ifdef __linux__
  cpu_set_t cpus;
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return CPU_COUNT(&cpus);
#endif
  return std::max<int64_t>(1, std::thread::hardware_concurrency());
}

void ThreadExecutor::run(int64_t tasks, int64_t grain, const Body& body) const {
  const int64_t count = std::min((tasks + grain - 1) / grain, num_threads_);
  if (count < 1) return;
  cpu::Tasks source(tasks);
  std::vector<std::exception_ptr> errors(count);
  const auto take_tasks = [&](int64_t thread) {
    try {
      body(source);
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(count - 1);
  try {
    for (int64_t thread = 1; thread < count; ++thread) threads.emplace_back(take_tasks, thread);
  } catch (...) {
    // No further thread can be started: those that run, and the caller, do all tasks.
  }
  take_tasks(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace lookaheadkv::numpy
