# kernel_check: the C++ test of the CPU kernels (tests/test_sanitizers.py builds and runs it).
add_executable(kernel_check tests/cpp/kernel_check.cpp tests/cpp/check_units.cpp
                            tests/cpp/check_select.cpp tests/cpp/check_shapes.cpp)
target_link_libraries(kernel_check PRIVATE lookaheadkv_cpu_kernels)
