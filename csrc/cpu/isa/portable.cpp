// Kernels for any CPU the compiler knows.
#include <cstring>

#include "cpu/isa/compressed_probability.h"
#include "cpu/isa/convert.h"
#include "cpu/isa/exp2_coefficients.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/select_keys.h"

namespace lookaheadkv::cpu {
namespace {
constexpr float kInfinity = __builtin_huge_valf();
#include "cpu/isa/simd_portable.h"
#include "cpu/isa/tile_kernels.inl"
}  // namespace

const Isa kPortable = {
    "portable",
    float_tile_ops<DType::kFloat32>(),
    float_tile_ops<DType::kFloat16>(),
    float_tile_ops<DType::kBFloat16>(),
    vector_ops(),
};

}  // namespace lookaheadkv::cpu
