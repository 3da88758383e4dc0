// Host side of problem.cuh: converts the plain descriptions of csrc/core to the kernels' structs.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/problem.h"
#include "cuda/problem.cuh"
#include "cuda/splits.h"

namespace lookaheadkv::cuda {

// Whether every row of `tensor` begins at a multiple of `bytes`.
inline bool rows_aligned(const TensorView& tensor, int64_t bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(tensor.data) % bytes == 0;
  for (const int64_t stride : {tensor.stride_b, tensor.stride_h, tensor.stride_s}) {
    aligned = aligned && stride * element_size(tensor.dtype) % bytes == 0;
  }
  return aligned;
}

inline DeviceTensor device_tensor(const TensorView& tensor) {
  return {static_cast<const char*>(tensor.data), tensor.stride_b, tensor.stride_h, tensor.stride_s,
          rows_aligned(tensor, 16)};
}

inline DeviceProblem device_problem(const Problem& p, const TensorView& query,
                                    const TensorView& key, const TensorView& value) {
  if (p.group() > 0x7fffffff / p.num_rows) {
    throw std::invalid_argument("lookaheadkv: G * L must be below 2^31, got G=" +
                                std::to_string(p.group()) + ", L=" + std::to_string(p.num_rows));
  }
  return {device_tensor(query),
          device_tensor(key),
          device_tensor(value),
          static_cast<int32_t>(p.num_kv_heads),
          static_cast<int32_t>(p.group()),
          static_cast<int32_t>(p.num_rows),
          static_cast<int32_t>(p.num_prompt),
          static_cast<int32_t>(p.head_dim),
          static_cast<int32_t>(p.group() * p.num_rows),
          static_cast<float>(p.scale * 1.4426950408889634),
          p.leftpad_k,
          p.seqused_k};
}

// Calls f with a value of the kernels' type for this dtype.
template <class F>
void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(fp16{});
    case DType::kBFloat16:
      return f(bf16{});
  }
}

// Calls f(T{}, integral_constant<D>) for the types tensor cores multiply and the head dimensions
// that kernels exist for.
template <class F>
void with_matrix_type(DType dtype, int64_t head_dim, const F& f) {
  const auto with_dim = [&](auto type) {
    switch (padded_dim(head_dim)) {
      case 64:
        return f(type, std::integral_constant<int, 64>{});
      case 96:
        return f(type, std::integral_constant<int, 96>{});
      case 128:
        return f(type, std::integral_constant<int, 128>{});
      default:
        return f(type, std::integral_constant<int, 256>{});
    }
  };
  dtype == DType::kFloat16 ? with_dim(fp16{}) : with_dim(bf16{});
}

}  // namespace lookaheadkv::cuda
