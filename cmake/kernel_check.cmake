# kernel_check: the C++ test of the CPU kernels (tests/test_sanitizers.py builds and runs it).
add_executable(kernel_check tests/cpp/kernel_check.cpp)
target_link_libraries(kernel_check PRIVATE lookaheadkv_cpu_kernels)
