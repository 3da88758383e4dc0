# lookaheadkv_numpy: the CPU kernels for NumPy arrays, without torch. One build per Python version.
set(PYBIND11_FINDPYTHON ON)
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
find_package(pybind11 CONFIG REQUIRED)

file(GLOB numpy_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/numpy/*.cpp)
pybind11_add_module(lookaheadkv_numpy MODULE NO_EXTRAS ${numpy_sources})
target_compile_definitions(lookaheadkv_numpy PRIVATE LOOKAHEADKV_VERSION="${PROJECT_VERSION}")
target_link_libraries(lookaheadkv_numpy PRIVATE lookaheadkv_cpu_kernels)
if(CMAKE_SYSTEM_NAME STREQUAL Linux)
  target_link_options(lookaheadkv_numpy PRIVATE LINKER:--as-needed LINKER:--exclude-libs,ALL)
endif()
install(TARGETS lookaheadkv_numpy LIBRARY DESTINATION .)
