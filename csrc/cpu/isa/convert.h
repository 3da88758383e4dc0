// fp16 and bf16 to float and back, one element at a time, in integer arithmetic.
//
// Every function is `static`: this header is compiled under several instruction sets, and an inline
// function with external linkage could be emitted once with instructions the machine lacks.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/problem.h"

namespace lookaheadkv::cpu {

[[maybe_unused]] static float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

[[maybe_unused]] static uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

[[maybe_unused]] static float float_from_bf16(uint16_t half) {
  return float_from_bits(static_cast<uint32_t>(half) << 16);
}

// Round to nearest even; NaN stays NaN.
[[maybe_unused]] static uint16_t bf16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

[[maybe_unused]] static float float_from_fp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) {  // inf, NaN
    return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  }
  if (magnitude < 0x400) {  // zero, subnormal: magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  return float_from_bits(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

// Round to nearest even; overflow gives inf, NaN stays NaN.
[[maybe_unused]] static uint16_t fp16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // >= 65520
  if (magnitude < 0x38800000) {  // subnormal: adding 2^-1 * ulp-aligned constant rounds for us
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - ((127 - 15) << 10)));
}

// out[at] = value, rounded to dtype.
[[maybe_unused]] static void store_float(void* out, int64_t at, DType dtype, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(out)[at] = value;
  } else {
    static_cast<uint16_t*>(out)[at] =
        dtype == DType::kFloat16 ? fp16_from_float(value) : bf16_from_float(value);
  }
}

}  // namespace lookaheadkv::cpu
