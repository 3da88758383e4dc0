// Stable-ABI tensors as the torch-free descriptions of csrc/core. Shared by the CPU and CUDA glue.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cctype>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/problem.h"
#include "core/validate.h"

namespace lookaheadkv {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The name Python gives this dtype.
inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::ComplexHalf:
      return "complex32";
    default: {  // "UInt16", "Float8_e4m3fn": Python's names in capitals
      std::string name = torch::headeronly::toString(dtype);
      for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
      return name;
    }
  }
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string type = tensor.is_cuda() ? "cuda" : "device";
  return type + ":" + std::to_string(tensor.get_device_index());
}

inline TensorInfo info(const std::string& name, const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const auto address = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  return {name,
          dtype_name(tensor.scalar_type()),
          device_name(tensor),
          {sizes.begin(), sizes.end()},
          {strides.begin(), strides.end()},
          address % tensor.element_size() == 0};
}

inline std::optional<TensorInfo> info(const std::string& name, const OptionalTensor& tensor) {
  return tensor ? std::optional<TensorInfo>(info(name, *tensor)) : std::nullopt;
}

// Of a validated [B, H, S, D] tensor.
inline TensorView view(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.const_data_ptr(), dtype_from_name(dtype_name(tensor.scalar_type())), strides[0],
          strides[1], strides[2]};
}

inline const int32_t* lengths_ptr(const OptionalTensor& lengths) {
  return lengths ? lengths->const_data_ptr<int32_t>() : nullptr;
}

inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : std::nullopt;
}

inline Tensor empty_like_device(const Tensor& like, const std::vector<int64_t>& shape,
                                std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, shape, dtype);
}

}  // namespace lookaheadkv
