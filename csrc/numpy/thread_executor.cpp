#include "numpy/thread_executor.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <exception>
#include <system_error>
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

void ThreadExecutor::run(int64_t tasks, int64_t grain,
                         const std::function<void(int64_t, int64_t)>& body) const {
  const int64_t parts = std::min((tasks + grain - 1) / grain, num_threads_);
  if (parts < 1) return;
  std::vector<std::exception_ptr> errors(parts);
  const auto run_part = [&](int64_t part) {
    try {
      body(tasks / parts * part + std::min(part, tasks % parts),
           tasks / parts * (part + 1) + std::min(part + 1, tasks % parts));
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(parts - 1);
  int64_t started = 1;  // part 0 is the caller's
  try {
    for (; started < parts; ++started) threads.emplace_back(run_part, started);
  } catch (const std::system_error&) {
    // No more threads to be had: the caller does the remaining parts itself.
  }
  run_part(0);
  for (int64_t part = started; part < parts; ++part) run_part(part);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace lookaheadkv::numpy
