// Kernels for x86 with AMX-BF16: TDPBF16PS multiplies 16 x 32 by 32 x 16 bf16 into 16 x 16 fp32.
//
// K is the left operand and needs no packing where the tile is full; the packed query and the
// packed probabilities are the right operand, in the layout VDPBF16PS uses too.
#include <immintrin.h>

#include <cstring>

#include "cpu/isa/amx_tiles.h"
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

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // bf16 elements of a 64-byte tile row

Operand prepare_key_amx(const void* key, int64_t stride, int n, int d, void* scratch) {
  if (n % kTileRows == 0 && d % kTileDepth == 0) return {key, stride, 2};
  const int64_t pitch = round_up(d, kTileDepth);
  uint16_t* out = static_cast<uint16_t*>(scratch);
  std::memset(out, 0, static_cast<size_t>(round_up(n, kTileRows) * pitch) * 2);
  for (int j = 0; j < n; ++j) {
    std::memcpy(out + j * pitch, static_cast<const uint16_t*>(key) + j * stride,
                static_cast<size_t>(d) * 2);
  }
  return {scratch, pitch, 2};
}

// Transposes 16 x 16 32-bit elements; rows past `rows` read as zero.
void transpose16(const uint32_t* src, int64_t src_pitch, int rows, uint32_t* dst,
                 int64_t dst_pitch) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = i < rows ? _mm512_loadu_si512(src + i * src_pitch) : _mm512_setzero_si512();
  }
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4 q + c] now holds column 4 lane + c of source rows 4 q .. 4 q + 3, one 128-bit lane each.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
    const __m512i high01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i low23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i high23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    b[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    b[4 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    b[8 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    b[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(dst + i * dst_pitch, b[i]);
}

// V transposed, [round_up(d, 32)][padded keys] bf16. Interleaving neighbouring keys first makes it
// a transpose of 32-bit pairs; the pairs live in the upper half of the scratch.
Operand prepare_value_amx(const void* value, int64_t stride, int n, int d, void* scratch) {
  const int padded_keys = static_cast<int>(round_up(n, kTileDepth));
  const int padded_dim = static_cast<int>(round_up(d, kTileDepth));
  const int64_t pitch = padded_keys / 2;
  uint32_t* out = static_cast<uint32_t*>(scratch);
  uint32_t* pairs = out + static_cast<int64_t>(padded_dim) * (kKeyTile / 2);
  interleave_keys(value, stride, n, d, padded_keys, pairs);
  int k = 0;
  for (; k + 16 <= d; k += 16) {
    for (int j = 0; j < pitch; j += 16) {
      transpose16(pairs + static_cast<int64_t>(j) * d + k, d, 16, out + k * pitch + j, pitch);
    }
  }
  for (; k < padded_dim; ++k) {  // d is a multiple of 8: at most one odd half block, then padding
    for (int j = 0; j < pitch; ++j) {
      out[k * pitch + j] = k < d ? pairs[static_cast<int64_t>(j) * d + k] : 0;
    }
  }
  return {scratch, static_cast<int64_t>(padded_keys), 2};
}

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileConfig kTileConfig;

// Two by two tiles of c (fewer at the edges): tiles 0-3 accumulate, 4-5 hold left, 6-7 right.
void gemm_amx(const Operand& left, const void* right, float* c, int n, int rows, int depth,
              bool accumulate) {
  const int steps = (depth + kTileDepth - 1) / kTileDepth;
  const int64_t left_stride = left.row_stride * 2;
  const int64_t row_bytes = static_cast<int64_t>(rows) * 4;
  LKV_TILE_CONFIG(&kTileConfig);
  for (int j = 0; j < n; j += 2 * kTileRows) {
    const bool two_left = j + kTileRows < n;
    const char* a0 = static_cast<const char*>(left.data) + j * left_stride;
    const char* a1 = a0 + kTileRows * left_stride;
    for (int r = 0; r < rows; r += 2 * kTileRows) {
      const bool two_right = r + kTileRows < rows;
      const char* b0 = static_cast<const char*>(right) + r * 4;
      const char* b1 = b0 + 64;
      char* c00 = reinterpret_cast<char*>(c + static_cast<int64_t>(j) * rows + r);
      char* c10 = c00 + kTileRows * row_bytes;
      LKV_TILE_ZERO(0);
      LKV_TILE_ZERO(1);
      LKV_TILE_ZERO(2);
      LKV_TILE_ZERO(3);
      if (accumulate) {
        LKV_TILE_LOAD(0, c00, row_bytes);
        if (two_right) LKV_TILE_LOAD(1, c00 + 64, row_bytes);
        if (two_left) LKV_TILE_LOAD(2, c10, row_bytes);
        if (two_left && two_right) LKV_TILE_LOAD(3, c10 + 64, row_bytes);
      }
      for (int k = 0; k < steps; ++k) {
        const int64_t left_at = static_cast<int64_t>(k) * 64;
        const int64_t right_at = static_cast<int64_t>(k) * 16 * row_bytes;
        LKV_TILE_LOAD(4, a0 + left_at, left_stride);
        LKV_TILE_LOAD(6, b0 + right_at, row_bytes);
        LKV_TILE_DOT(0, 4, 6);
        if (two_right) {
          LKV_TILE_LOAD(7, b1 + right_at, row_bytes);
          LKV_TILE_DOT(1, 4, 7);
        }
        if (two_left) {
          LKV_TILE_LOAD(5, a1 + left_at, left_stride);
          LKV_TILE_DOT(2, 5, 6);
          if (two_right) LKV_TILE_DOT(3, 5, 7);
        }
      }
      LKV_TILE_STORE(0, c00, row_bytes);
      if (two_right) LKV_TILE_STORE(1, c00 + 64, row_bytes);
      if (two_left) LKV_TILE_STORE(2, c10, row_bytes);
      if (two_left && two_right) LKV_TILE_STORE(3, c10 + 64, row_bytes);
    }
  }
  LKV_TILE_RELEASE();
}

}  // namespace

const Isa kAmx = {
    "amx",
    float_tile_ops<DType::kFloat32>(),
    float_tile_ops<DType::kFloat16>(),
    {pack_query_pairs, prepare_key_amx, prepare_value_amx, prepare_probs_pairs, gemm_amx},
    vector_ops(),
};

}  // namespace lookaheadkv::cpu
