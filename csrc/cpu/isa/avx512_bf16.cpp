// Kernels for x86 with AVX512_BF16: VDPBF16PS multiplies bf16 pairs into fp32 sums.
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
#include "cpu/isa/bf16_pairs.inl"
#include "cpu/isa/simd_avx512.h"
#include "cpu/isa/tile_kernels.inl"

// A row of K holds d / 2 pairs as it is.
Operand prepare_key_pairs(const void* key, int64_t stride, int, int, void*) {
  return {key, stride, 2};
}

Operand prepare_value_pairs(const void* value, int64_t stride, int n, int d, void* scratch) {
  interleave_keys(value, stride, n, d, (n + 1) / 2 * 2, static_cast<uint32_t*>(scratch));
  return {scratch, 2, static_cast<int64_t>(d) * 2};
}

struct PairDot {
  using Left = uint16_t;
  using Right = uint32_t;
  static __m512bh broadcast(const Left* a) {
    return (__m512bh)_mm512_set1_epi32(static_cast<int>(load_pair(a)));
  }
  static __m512bh load(const Right* b) { return (__m512bh)_mm512_loadu_si512(b); }
  static __m512 add(__m512 sum, __m512bh left, __m512bh right) {
    return _mm512_dpbf16_ps(sum, left, right);
  }
};

void gemm_pairs(const Operand& left, const void* right, float* c, int n, int rows, int depth,
                bool accumulate) {
  gemm_steps<PairDot>(left, right, c, n, rows, (depth + 1) / 2, accumulate);
}

}  // namespace

const Isa kAvx512Bf16 = {
    "avx512_bf16",
    float_tile_ops<DType::kFloat32>(),
    float_tile_ops<DType::kFloat16>(),
    {pack_query_pairs, prepare_key_pairs, prepare_value_pairs, prepare_probs_pairs, gemm_pairs},
    vector_ops(),
};

}  // namespace lookaheadkv::cpu
