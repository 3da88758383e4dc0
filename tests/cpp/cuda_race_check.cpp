// A small part of cuda_kernel_check, built in seconds: the detector of races, one room, and what
// ends the program.
#include "check_cuda.h"

int main(int argc, char** argv) {
  using namespace lookaheadkv::cuda;
  return run_parts({{"detector", check_detector},
                    {"select", check_select},
                    {"deadlock", check_deadlock},
                    {"hang", check_hang}},
                   {argv + 1, argv + argc});
}
