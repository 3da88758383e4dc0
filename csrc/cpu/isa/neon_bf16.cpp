// Kernels for AArch64 with FEAT_BF16: BFMMLA multiplies 2 x 4 by 4 x 2 bf16 into 2 x 2 fp32 sums,
// twice the products of a BFDOT.
//
// Both operands are packed into what one instruction reads, 16 bytes: a *quad* of four neighbours
// along the depth of row i, then that of row i + 1, for even i.
#include <arm_neon.h>

#include <cstring>
#include <type_traits>

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

constexpr int kQuad = 4;

// Right side: element k of row r is at (k / 4 * rows + r) * 4 + k % 4.
void pack_query_quads(const void* const* row_ptrs, int rows, int d, void* packed) {
  uint16_t* out = static_cast<uint16_t*>(packed);
  for (int r = 0; r < rows; ++r) {
    const uint16_t* row = static_cast<const uint16_t*>(row_ptrs[r]);
    for (int k = 0; k < d; k += kQuad) {
      vst1_u16(out + static_cast<int64_t>(k) * rows + r * kQuad, vld1_u16(row + k));
    }
  }
}

// The key behind an odd n is zero.
Operand prepare_key_quads(const void* key, int64_t stride, int n, int d, void* scratch) {
  const uint16_t* rows = static_cast<const uint16_t*>(key);
  uint16_t* out = static_cast<uint16_t*>(scratch);
  for (int j = 0; j < n; j += 2) {
    const uint16_t* even = rows + j * stride;
    for (int k = 0; k < d; k += 2 * kQuad) {
      const uint64x2_t a = vreinterpretq_u64_u16(vld1q_u16(even + k));
      const uint64x2_t b =
          j + 1 < n ? vreinterpretq_u64_u16(vld1q_u16(even + stride + k)) : vdupq_n_u64(0);
      uint16_t* at = out + static_cast<int64_t>(j) * d + 2 * k;
      vst1q_u16(at, vreinterpretq_u16_u64(vzip1q_u64(a, b)));
      vst1q_u16(at + 2 * kQuad, vreinterpretq_u16_u64(vzip2q_u64(a, b)));
    }
  }
  return {scratch, d, 2 * kQuad};
}

// The depth is n, padded to whole quads with zeros.
Operand prepare_value_quads(const void* value, int64_t stride, int n, int d, void* scratch) {
  const uint16_t* rows = static_cast<const uint16_t*>(value);
  uint16_t* out = static_cast<uint16_t*>(scratch);
  for (int j = 0; j < n; j += kQuad) {
    for (int k = 0; k < d; k += 8) {
      uint16x8x4_t keys;
      for (int i = 0; i < kQuad; ++i) {
        keys.val[i] = j + i < n ? vld1q_u16(rows + (j + i) * stride + k) : vdupq_n_u16(0);
      }
      vst4q_u16(out + static_cast<int64_t>(j) * d + k * kQuad, keys);  // interleaves: a transpose
    }
  }
  return {scratch, kQuad, static_cast<int64_t>(d) * kQuad};
}

const void* prepare_probs_quads(const float* p, int n, int rows, void* scratch) {
  uint16_t* out = static_cast<uint16_t*>(scratch);
  for (int j = 0; j < n; j += kQuad) {
    for (int r = 0; r < rows; r += 4) {
      uint16x4x4_t keys;
      for (int i = 0; i < kQuad; ++i) {
        const float* at = p + static_cast<int64_t>(j + i) * rows + r;
        keys.val[i] =
            j + i < n ? vreinterpret_u16_bf16(vcvt_bf16_f32(vld1q_f32(at))) : vdup_n_u16(0);
      }
      vst4_u16(out + static_cast<int64_t>(j) * rows + r * kQuad, keys);
    }
  }
  return scratch;
}

// The 2 x 2 sums of four neighbouring columns of two rows of c.
struct Sums {
  float32x4_t left, right;
};

inline Sums load_sums(const float* even, const float* odd) {
  const float64x2_t a = vreinterpretq_f64_f32(vld1q_f32(even));
  const float64x2_t b = vreinterpretq_f64_f32(vld1q_f32(odd));
  return {vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b))};
}

inline void store_sums(const Sums& sums, float* even, float* odd) {
  const float64x2_t a = vreinterpretq_f64_f32(sums.left);
  const float64x2_t b = vreinterpretq_f64_f32(sums.right);
  vst1q_f32(even, vreinterpretq_f32_f64(vzip1q_f64(a, b)));
  vst1q_f32(odd, vreinterpretq_f32_f64(vzip2q_f64(a, b)));
}

inline bfloat16x8_t load_quads(const uint16_t* p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }

// 2 * kPairs rows of the left side by 8 of the right one, all of the depth.
template <int kPairs>
inline void quad_block(const uint16_t* a, int64_t a_row, int64_t a_step, const uint16_t* b,
                       int64_t rows, float* c, int steps, bool accumulate) {
  Sums sum[kPairs][2];
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) {
    const float* even = c + 2 * i * rows;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      sum[i][v] =
          accumulate ? load_sums(even + 4 * v, even + rows + 4 * v) : Sums{V::zero(), V::zero()};
    }
  }
  for (int k = 0; k < steps; ++k) {
    bfloat16x8_t right[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) right[v] = load_quads(b + (k * rows + 2 * v) * kQuad);
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; ++i) {
      const bfloat16x8_t left = load_quads(a + 2 * i * a_row + k * a_step);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        sum[i][v].left = vbfmmlaq_f32(sum[i][v].left, left, right[2 * v]);
        sum[i][v].right = vbfmmlaq_f32(sum[i][v].right, left, right[2 * v + 1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) {
    float* even = c + 2 * i * rows;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) store_sums(sum[i][v], even + 4 * v, even + rows + 4 * v);
  }
}

// Where n is odd, the row of c behind it is written, too.
void gemm_quads(const Operand& left, const void* right, float* c, int n, int rows, int depth,
                bool accumulate) {
  constexpr int kPairs = 6;  // 24 of the 32 registers hold sums
  const uint16_t* a = static_cast<const uint16_t*>(left.data);
  const int steps = (depth + kQuad - 1) / kQuad;
  for (int r = 0; r < rows; r += 8) {
    const uint16_t* b = static_cast<const uint16_t*>(right) + r * kQuad;
    const auto block = [&](auto pairs, int j) {
      quad_block<decltype(pairs)::value>(a + j * left.row_stride, left.row_stride, left.col_stride,
                                         b, rows, c + static_cast<int64_t>(j) * rows + r, steps,
                                         accumulate);
    };
    int j = 0;
    for (; j + 2 * kPairs <= n; j += 2 * kPairs) block(std::integral_constant<int, kPairs>(), j);
    for (; j < n; j += 2) block(std::integral_constant<int, 1>(), j);
  }
}

}  // namespace

const Isa kNeonBf16 = {
    "neon_bf16",
    float_tile_ops<DType::kFloat32>(),
    float_tile_ops<DType::kFloat16>(),
    {pack_query_quads, prepare_key_quads, prepare_value_quads, prepare_probs_quads, gemm_quads},
    vector_ops(),
};

}  // namespace lookaheadkv::cpu
