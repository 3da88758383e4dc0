# kernel_check: the C++ test of the CPU kernels (tests/test_sanitizers.py builds and runs it).
add_executable(kernel_check tests/cpp/kernel_check.cpp)
target_link_libraries(kernel_check PRIVATE lookaheadkv_cpu_kernels)
if(LOOKAHEADKV_X86_FLAGS)
  target_compile_definitions(kernel_check PRIVATE LOOKAHEADKV_HAVE_X86)
endif()
