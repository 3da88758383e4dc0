# lookaheadkv_cpu: schemas and CPU kernels as torch ops, on the LibTorch stable ABI.
# Any torch >= 2.10 can build it, and every torch >= 2.10 can load the result.
set(TORCH_TARGET_VERSION 0x020a000000000000)

if(NOT LOOKAHEADKV_TORCH_DIR)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  # find_spec does not import torch, which would take seconds.
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(LOOKAHEADKV_TORCH_DIR "${torch_dir}" CACHE PATH "Folder of the installed torch package" FORCE)
endif()
if(NOT EXISTS ${LOOKAHEADKV_TORCH_DIR}/include/torch/csrc/stable/library.h)
  message(FATAL_ERROR "no torch >= 2.10 found (LOOKAHEADKV_TORCH_DIR='${LOOKAHEADKV_TORCH_DIR}'): "
                      "install torch, or set LOOKAHEADKV_TORCH_DIR to the folder of its package")
endif()
set(torch_lib_dir ${LOOKAHEADKV_TORCH_DIR}/lib)

# Settings common to the op libraries of all devices.
add_library(lookaheadkv_torch_stable INTERFACE)
target_include_directories(lookaheadkv_torch_stable INTERFACE ${PROJECT_SOURCE_DIR}/csrc)
target_include_directories(lookaheadkv_torch_stable SYSTEM INTERFACE
                           ${LOOKAHEADKV_TORCH_DIR}/include)
target_compile_definitions(lookaheadkv_torch_stable INTERFACE
                           TORCH_TARGET_VERSION=${TORCH_TARGET_VERSION})
if(LOOKAHEADKV_OP_NAMESPACE)  # another than torch.ops.lookaheadkv, see docs/kernels_hub.md
  target_compile_definitions(lookaheadkv_torch_stable INTERFACE
                             LOOKAHEADKV_OP_NAMESPACE=${LOOKAHEADKV_OP_NAMESPACE})
endif()

file(GLOB torch_glue CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/torch/*.cpp)
add_library(lookaheadkv_cpu SHARED ${PROJECT_SOURCE_DIR}/csrc/schema.cpp ${torch_glue}
                                   ${PROJECT_SOURCE_DIR}/csrc/cpu/backend.cpp)
target_link_libraries(lookaheadkv_cpu PRIVATE lookaheadkv_torch_stable lookaheadkv_cpu_kernels
                                              ${torch_lib_dir}/libtorch_cpu.so)
set_target_properties(lookaheadkv_cpu PROPERTIES SUFFIX .so)  # .so on macOS too
if(CMAKE_SYSTEM_NAME STREQUAL Linux)
  target_link_options(lookaheadkv_cpu PRIVATE LINKER:--as-needed LINKER:--exclude-libs,ALL)
  if(NOT LOOKAHEADKV_SANITIZE)  # the sanitizers' own symbols come with the program
    target_link_options(lookaheadkv_cpu PRIVATE LINKER:-z,defs)
  endif()
endif()
install(TARGETS lookaheadkv_cpu LIBRARY DESTINATION lookaheadkv_kernels/lib)
