# lookaheadkv_cpu_kernels: validation and CPU kernels, torch-free, shared by the op library and the
# NumPy module. Each instruction set is one file with its own flags; isa/dispatch.cpp picks at run time.
include(CheckCXXCompilerFlag)
find_package(Threads REQUIRED)

file(GLOB cpu_kernel_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/core/*.cpp
                                               ${PROJECT_SOURCE_DIR}/csrc/cpu/*.cpp)
list(FILTER cpu_kernel_sources EXCLUDE REGEX "backend\\.cpp$")
set(isa_dir ${PROJECT_SOURCE_DIR}/csrc/cpu/isa)
list(APPEND cpu_kernel_sources ${isa_dir}/dispatch.cpp ${isa_dir}/portable.cpp)

add_library(lookaheadkv_cpu_kernels STATIC ${cpu_kernel_sources})
target_include_directories(lookaheadkv_cpu_kernels PUBLIC ${PROJECT_SOURCE_DIR}/csrc)
target_link_libraries(lookaheadkv_cpu_kernels PUBLIC Threads::Threads)

set(avx2_flags -mavx2 -mfma -mf16c)
set(avx512_flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c)
set(avx512_bf16_flags ${avx512_flags} -mavx512bf16)
set(amx_flags ${avx512_bf16_flags} -mamx-tile -mamx-bf16)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC's own AVX-512 intrinsics set these warnings off (GCC bug 105593).
  foreach(isa avx512 avx512_bf16 amx)
    list(APPEND ${isa}_flags -Wno-uninitialized -Wno-maybe-uninitialized)
  endforeach()
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  # amx_flags holds the newest: a compiler that knows them (GCC 11, Clang 12) knows the others.
  string(JOIN " " newest_flags ${amx_flags})
  check_cxx_compiler_flag("${newest_flags}" LOOKAHEADKV_X86_FLAGS)
  if(LOOKAHEADKV_X86_FLAGS)
    foreach(isa avx2 avx512 avx512_bf16 amx)
      target_sources(lookaheadkv_cpu_kernels PRIVATE ${isa_dir}/${isa}.cpp)
      set_source_files_properties(${isa_dir}/${isa}.cpp PROPERTIES COMPILE_OPTIONS "${${isa}_flags}")
    endforeach()
    target_compile_definitions(lookaheadkv_cpu_kernels PRIVATE LOOKAHEADKV_HAVE_X86)
    if(LOOKAHEADKV_AMX_EMULATE)
      target_compile_definitions(lookaheadkv_cpu_kernels PRIVATE LOOKAHEADKV_AMX_EMULATE)
    endif()
  else()
    message(WARNING "${CMAKE_CXX_COMPILER} knows no AMX: only the portable kernels are built")
  endif()
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(neon_flags)
  set(neon_bf16_flags -march=armv8.2-a+bf16)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # GCC's scheduler would load all left operands of a gemm step first: with its 24 sums that is more
    # than the 32 registers hold, and sums would go through memory at every step.
    list(APPEND neon_flags -fno-schedule-insns)
    list(APPEND neon_bf16_flags -fno-schedule-insns)
  endif()
  check_cxx_compiler_flag(-march=armv8.2-a+bf16 LOOKAHEADKV_NEON_FLAGS)
  if(LOOKAHEADKV_NEON_FLAGS)
    foreach(isa neon neon_bf16)
      target_sources(lookaheadkv_cpu_kernels PRIVATE ${isa_dir}/${isa}.cpp)
      set_source_files_properties(${isa_dir}/${isa}.cpp PROPERTIES COMPILE_OPTIONS "${${isa}_flags}")
    endforeach()
    target_compile_definitions(lookaheadkv_cpu_kernels PRIVATE LOOKAHEADKV_HAVE_NEON)
  else()
    message(WARNING "${CMAKE_CXX_COMPILER} knows no BF16: only the portable kernels are built")
  endif()
endif()
