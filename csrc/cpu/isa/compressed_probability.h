// The 16-bit format of cached probabilities: 7 bits of exponent, 9 of mantissa, no sign. Four times
// as exact as bf16 (relative error at most 2^-10) over the range that occurs: relative to a lazily
// raised row maximum (kLazy in tile_kernels.inl) a probability is at most 2^8, and what is below
// 2^-118 counts as 2^-118.
#pragma once

#include <cstdint>

namespace lookaheadkv::cpu {

constexpr int kCompressShift = 23 - 9;
constexpr int32_t kCompressBase = (127 - 118) << 23;  // float bits of code 0: 2^-118
constexpr int32_t kCompressMin = kCompressBase;
// Subtracting half a unit less rounds to nearest.
constexpr int32_t kCompressOffset = kCompressBase - (1 << (kCompressShift - 1));

}  // namespace lookaheadkv::cpu
