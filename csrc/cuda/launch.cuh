// Launching kernels. The emulation of tests/cpp/cuda_emulation has its own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace lookaheadkv::cuda {

using Stream = cudaStream_t;

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("lookaheadkv: ") + what + ": " +
                             cudaGetErrorString(error));
  }
}

inline int current_device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

inline int multiprocessors() { return current_device_attribute(cudaDevAttrMultiProcessorCount); }

// Whether the kernel waits in start_kernel() on the current device. A kernel that the driver
// compiled from the PTX of an older chip does not, even on Hopper and newer.
inline bool waits_for_others(const void* kernel) {
  if (current_device_attribute(cudaDevAttrComputeCapabilityMajor) < 9) return false;
  cudaFuncAttributes attributes = {};
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  return attributes.ptxVersion >= 90;
}

// Runs `kernel` in blocks of `threads` with `shared` bytes of dynamic shared memory.
//
// `follows`: a kernel of the same op was launched just before. This one may then start while that
// one ends (Hopper and newer) if it waits before its first load.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared, Stream stream,
            bool follows, Arguments&&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error("lookaheadkv: more blocks than a grid holds");
  if (shared > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
               "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = follows && waits_for_others(reinterpret_cast<const void*>(kernel));
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launch");
}

}  // namespace lookaheadkv::cuda
