# lookaheadkv_cuda: the CUDA op library, its own shared object because it is loaded only where CUDA
# is available. Building it needs nvcc, not a GPU and not a CUDA build of torch.
string(TOLOWER "${LOOKAHEADKV_CUDA}" cuda_mode)
if(NOT cuda_mode MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "LOOKAHEADKV_CUDA must be auto, on or off, got '${LOOKAHEADKV_CUDA}'")
endif()
if(cuda_mode STREQUAL "off")
  return()
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/cuda/*.cu
                                         ${PROJECT_SOURCE_DIR}/csrc/cuda/*.cpp)
file(GLOB core_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/core/*.cpp)
set(cuda_kernels ${cuda_sources})
list(FILTER cuda_kernels INCLUDE REGEX "\\.cu$")
if(NOT cuda_kernels)
  if(cuda_mode STREQUAL "on")
    message(FATAL_ERROR "LOOKAHEADKV_CUDA=on, but this version has no CUDA sources (csrc/cuda/*.cu)")
  endif()
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(cuda_mode STREQUAL "on")
    message(FATAL_ERROR "LOOKAHEADKV_CUDA=on, but nvcc was not found: put it on PATH or set CUDACXX")
  endif()
  message(STATUS "nvcc not found: the CUDA op library is not built")
  return()
endif()
# Always a fixed list: the building machine may have no GPU. 80 brings PTX along, from which drivers
# compile for newer chips; others are named in LOOKAHEADKV_CUDA_ARCHS, e.g. "80;86;89;90a;100a;120a".
set(LOOKAHEADKV_CUDA_ARCHS "80;90a-real" CACHE STRING "Chips to compile the CUDA kernels for")
set(CMAKE_CUDA_ARCHITECTURES ${LOOKAHEADKV_CUDA_ARCHS})
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

add_library(lookaheadkv_cuda SHARED ${cuda_sources} ${core_sources})
target_include_directories(lookaheadkv_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_definitions(lookaheadkv_cuda PRIVATE USE_CUDA)  # declares the CUDA shims
# libtorch.so brings libtorch_cuda.so along where it is loaded; a CPU-only torch has none to link.
target_link_libraries(lookaheadkv_cuda PRIVATE lookaheadkv_torch_stable ${torch_lib_dir}/libtorch.so)
if(CMAKE_SYSTEM_NAME STREQUAL Linux)
  # The CPU-only libtorch.so has no symbol of its own: a linker that drops what is not needed here
  # would drop what brings libtorch_cuda.so along there.
  target_link_options(lookaheadkv_cuda PRIVATE LINKER:--no-as-needed LINKER:--exclude-libs,ALL)
endif()
set_target_properties(lookaheadkv_cuda PROPERTIES SUFFIX .so)
install(TARGETS lookaheadkv_cuda LIBRARY DESTINATION lookaheadkv_kernels/lib)
