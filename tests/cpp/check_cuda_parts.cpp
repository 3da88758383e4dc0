// Runs the parts of a program that the arguments name, or all. --brief takes fewer inputs.
// --interleave=SEED runs several blocks at once in every launch. --faults prints which faults could
// be planted in what ran; --fault=FAULT plants one, and the first race ends the program.
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "check_cuda.h"
#include "faults.h"
#include "fibers.h"
#include "races.h"

namespace lookaheadkv::cuda {

namespace {

using namespace emulation;

// No kernel may have a race.
void run_part(const Part& part) {
  const int64_t before = races::looked_at();
  part.run();
  if (!races::enabled()) return;
  for (const std::string& report : races::take_reports()) {
    cpu::check(false, std::string(part.name) + ": " + report);
  }
  std::printf("%s: %lld accesses looked at\n", part.name,
              static_cast<long long>(races::looked_at() - before));
}

}  // namespace

int run_parts(const std::vector<Part>& parts, const std::vector<std::string>& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a sanitizer's abort would drop a full buffer
  std::vector<std::string> wanted;
  bool list_faults = false;
  for (const std::string& argument : arguments) {
    const size_t equals = argument.find('=');
    const std::string option = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (option == "--brief") {
      brief = true;
    } else if (option == "--faults") {
      list_faults = true;
    } else if (option == "--fault") {
      if (!plant_fault(value.c_str())) throw std::invalid_argument("no such fault: " + value);
      races::stop_at_first();
    } else if (option == "--interleave") {
      always_interleave(std::stoull(value));
    } else {
      wanted.push_back(argument);
    }
  }
  for (const Part& part : parts) {
    const bool named = std::find(wanted.begin(), wanted.end(), part.name) != wanted.end();
    if (wanted.empty() || named) run_part(part);
  }
  if (list_faults) print_faults();
  return cpu::summary();
}

Device chip(int num_sms) { return {nullptr, num_sms}; }

}  // namespace lookaheadkv::cuda
