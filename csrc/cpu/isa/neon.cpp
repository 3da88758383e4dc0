// Kernels for AArch64 with NEON. Halves are widened to fp32: the instructions that multiply fp16
// into fp32 sums (FMLAL) have no more lanes than those of fp32.
#include <arm_neon.h>

#include <cstring>

#include "cpu/isa/compressed_probability.h"
#include "cpu/isa/convert.h"
#include "cpu/isa/exp2_coefficients.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/select_keys.h"

namespace lookaheadkv::cpu {
namespace {
constexpr float kInfinity = __builtin_huge_valf();
#include "cpu/isa/simd_neon.h"
#include "cpu/isa/tile_kernels.inl"
}  // namespace

const Isa kNeon = {
    "neon",
    float_tile_ops<DType::kFloat32>(),
    float_tile_ops<DType::kFloat16>(),
    float_tile_ops<DType::kBFloat16>(),
    vector_ops(),
};

}  // namespace lookaheadkv::cpu
