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

inline ElementType element_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return ElementType::kFloat32;
    case ScalarType::Half:
      return ElementType::kFloat16;
    case ScalarType::BFloat16:
      return ElementType::kBFloat16;
    case ScalarType::Float8_e4m3fn:
      return ElementType::kFloat8E4M3;
    case ScalarType::Float8_e5m2:
      return ElementType::kFloat8E5M2;
    case ScalarType::Char:
      return ElementType::kInt8;
    case ScalarType::Int:
      return ElementType::kInt32;
    default:
      return ElementType::kOther;
  }
}

// Python's name of a dtype that is kOther to the checks.
inline std::string other_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Double:
      return "float64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::ComplexHalf:
      return "complex32";
    default: {  // "Bool", "UInt16": capitalised forms of Python's names
      std::string name = torch::headeronly::toString(dtype);
      for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
      return name;
    }
  }
}

inline DeviceId device_id(const Tensor& tensor) {
  if (tensor.is_cpu()) return {};
  return {tensor.is_cuda() ? "cuda" : "device", tensor.get_device_index()};
}

inline TensorInfo info(const char* name, const Tensor& tensor, int64_t item = -1) {
  const ElementType type = element_type(tensor.scalar_type());
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const auto address = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  return {name,
          item,
          type,
          type == ElementType::kOther ? other_name(tensor.scalar_type()) : std::string(),
          device_id(tensor),
          {sizes.begin(), sizes.end()},
          {strides.begin(), strides.end()},
          address % tensor.element_size() == 0};
}

inline std::optional<TensorInfo> info(const char* name, const OptionalTensor& tensor) {
  return tensor ? std::optional<TensorInfo>(info(name, *tensor)) : std::nullopt;
}

// A validated [B, H, S, D] tensor.
inline TensorView view(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.const_data_ptr(), dtype_of(element_type(tensor.scalar_type())), strides[0],
          strides[1], strides[2]};
}

inline const float* floats_ptr(const OptionalTensor& floats) {
  return floats ? floats->const_data_ptr<float>() : nullptr;
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
