// Kernels for x86 with AVX-512 (F, BW, VL, DQ); bf16 and fp16 are widened to fp32.
#include <immintrin.h>

#include <cstring>

#include "cpu/isa/compressed_probability.h"
#include "cpu/isa/convert.h"
#include "cpu/isa/exp2_coefficients.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/select_keys.h"

namespace lookaheadkv::cpu {
namespace {
constexpr float kInfinity = __builtin_huge_valf();
#include "cpu/isa/simd_avx512.h"
#include "cpu/isa/tile_kernels.inl"
}  // namespace

const Isa kAvx512 = {
    "avx512",
    float_tile_ops<DType::kFloat32>(),
    float_tile_ops<DType::kFloat16>(),
    float_tile_ops<DType::kBFloat16>(),
    vector_ops(),
};

}  // namespace lookaheadkv::cpu
