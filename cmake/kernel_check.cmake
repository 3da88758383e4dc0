# kernel_check: the C++ test of the CPU kernels. cuda_kernel_check, and a small part of
# it, cuda_race_check: the sources of the CUDA kernels as plain C++, on emulated instructions.
# tests/ops/test_sanitizers.py, tests/cuda/test_cuda_emulation.py and test_cuda_races.py run them.
set(checks ${PROJECT_SOURCE_DIR}/tests/cpp)
add_executable(kernel_check ${checks}/kernel_check.cpp ${checks}/check.cpp ${checks}/reference.cpp
                            ${checks}/check_units.cpp ${checks}/check_select.cpp
                            ${checks}/check_shapes.cpp ${checks}/check_paged.cpp)
target_link_libraries(kernel_check PRIVATE lookaheadkv_cpu_kernels)

if(TARGET lookaheadkv_cuda)
  return()  # a file has one language in a build: nvcc's there, the host compiler's here
endif()
# What emulates a GPU. Its headers come first: they stand for those of the same names in csrc/cuda.
set(emulation ${checks}/cuda_emulation)
add_library(
  cuda_emulation STATIC EXCLUDE_FROM_ALL
  ${emulation}/context.cpp ${emulation}/faults.cpp ${emulation}/fibers.cpp
  ${emulation}/instructions.cpp ${emulation}/races.cpp ${checks}/check.cpp
  ${checks}/check_cuda_parts.cpp ${checks}/check_cuda_races.cpp ${checks}/check_cuda_select.cpp
  # Of the CPU kernels, select on the portable instruction set: its indices are to be the same.
  ${PROJECT_SOURCE_DIR}/csrc/cpu/select.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/isa/dispatch.cpp
  ${PROJECT_SOURCE_DIR}/csrc/cpu/isa/portable.cpp)
target_include_directories(cuda_emulation PUBLIC ${emulation} ${PROJECT_SOURCE_DIR}/csrc ${checks})
if(LOOKAHEADKV_RACES)
  target_sources(cuda_emulation PRIVATE ${emulation}/tsan.cpp)
  # Of ThreadSanitizer only the calls before every access, in the sources of kernels alone.
  set(instrumented "-fsanitize=thread;-O1;-g1")
endif()

file(GLOB cuda_kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu)
set_source_files_properties(
  ${cuda_kernel_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
  "-x;c++;-Wno-unknown-pragmas;-Wno-unused-variable;${instrumented}")
set_source_files_properties(${checks}/check_cuda_units.cpp ${checks}/check_cuda_races.cpp
                            PROPERTIES COMPILE_OPTIONS "${instrumented}")
set_source_files_properties(${checks}/check_cuda_paged.cpp PROPERTIES COMPILE_OPTIONS
                            "-Wno-unknown-pragmas")  # it includes sources of the kernels
add_executable(
  cuda_kernel_check EXCLUDE_FROM_ALL
  ${cuda_kernel_sources} ${checks}/cuda_kernel_check.cpp ${checks}/check_cuda_shapes.cpp
  ${checks}/check_cuda_units.cpp ${checks}/check_cuda_evict.cpp ${checks}/check_cuda_paged.cpp
  ${checks}/reference.cpp)
add_executable(cuda_race_check EXCLUDE_FROM_ALL ${checks}/cuda_race_check.cpp
                                                ${PROJECT_SOURCE_DIR}/csrc/cuda/select.cu)
foreach(program cuda_kernel_check cuda_race_check)
  target_link_libraries(${program} PRIVATE cuda_emulation)
endforeach()
