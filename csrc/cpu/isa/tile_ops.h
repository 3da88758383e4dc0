// The tile operations a CPU instruction set has to offer; the rooms (attention.cpp, scores.cpp,
// ...) are written once on top of them.
//
// Layout. One tile holds up to kKeyTile keys and one *row group* of up to kRowGroup query rows (the
// L observation rows of the G query heads that share a KV head, folded together). Query rows lie in
// the vector lanes: a logits tile is s[key][row], so maxima and sums over keys need no horizontal
// operation, K is read in its own layout (one broadcast per element) and only the small Q is
// packed.
//
// A row group is padded to a multiple of kRowAlign rows by repeating its first row; padded lanes
// get lse = +inf, which makes their probability 0.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace lookaheadkv::cpu {

constexpr int kKeyTile = 96;   // divisible by every register tile and by AMX's 32 (key pairs)
constexpr int kRowGroup = 64;  // rows of one logits tile: four AVX-512 registers
constexpr int kRowAlign = 16;
constexpr int kDimAlign = 32;  // packed operands are padded to this many head dims
constexpr int kMaxLanes = 16;
constexpr double kLog2e = 1.4426950408889634074;
constexpr int kKeyLanes = 16;  // rank keys are compared this many at a time

// The left operand of gemm. Step k of row i (one float, a pair of bf16, or four bf16 of each of two
// rows) starts at element i * row_stride + k * col_stride, counted in floats or in single bf16.
struct Operand {
  const void* data;
  int64_t row_stride;
  int64_t col_stride;
};

struct TileOps {
  // Packs `rows` (a multiple of kRowAlign) query rows of d elements for gemm's right side; `packed`
  // holds round_up(d, kDimAlign) * rows floats.
  void (*pack_query)(const void* const* row_ptrs, int rows, int d, void* packed);

  // A [n, d] tile of K (n <= kKeyTile) as gemm's left side; scratch holds kKeyTile * round_up(d,
  // kDimAlign) floats which may stay unused.
  Operand (*prepare_key)(const void* key, int64_t stride, int n, int d, void* scratch);

  // The transpose of a [n, d] tile of V as gemm's left side (same scratch).
  Operand (*prepare_value)(const void* value, int64_t stride, int n, int d, void* scratch);

  // Probabilities p[n][rows] as gemm's right side; scratch holds kKeyTile * rows floats.
  const void* (*prepare_probs)(const float* p, int n, int rows, void* scratch);

  // c[i][r] (+)= sum over k of left(i, k) * right[k][r], for i < n, r < rows, k < depth, fp32
  // accumulation. c is [round_up(n, kDimAlign)][rows]: rows past n may be overwritten.
  void (*gemm)(const Operand& left, const void* right, float* c, int n, int rows, int depth,
               bool accumulate);
};

// Operations on fp32 tiles, the same for every dtype. `factor` is scale * log2(e): exponentials are
// powers of two throughout.
struct VectorOps {
  // Online softmax, exponentials only summed: folds a logits tile into row maxima m and sums l
  // (both in units of factor * s).
  void (*accumulate_lse)(const float* s, int n, int rows, float factor, float* m, float* l);

  // The same, also turning s into probabilities relative to m and rescaling acc [d][rows] whenever
  // m moves.
  void (*accumulate_softmax)(float* s, int n, int rows, float factor, float* m, float* l,
                             float* acc, int d);

  // columns[j][lane] += sum over row vectors of exp2(factor * s - lse2).
  void (*accumulate_columns)(const float* s, int n, int rows, float factor, const float* lse2,
                             float* columns);

  // Probabilities in 16 bits, and the column sums of cached tiles (tile_cache.h): columns[j][lane]
  // += sum over row vectors of weights * p.
  void (*compress)(const float* p, int64_t count, uint16_t* out);
  void (*accumulate_weighted_columns)(const void* p, int n, int rows, const float* weights,
                                      float* columns);
  void (*accumulate_compressed_columns)(const void* p, int n, int rows, const float* weights,
                                        float* columns);

  // weights[r] = exp2(m[r] - lse2[r]).
  void (*row_weights)(const float* m, const float* lse2, int rows, float* weights);

  // out[j] = weight * sum over lanes of columns[j][lane].
  void (*reduce_columns)(const float* columns, int n, float weight, float* out);

  // s = exp2(factor * s - lse2), in place.
  void (*probabilities)(float* s, int n, int rows, float factor, const float* lse2);

  // delta[r] += sum over j of grad[j] * p[j][r].
  void (*accumulate_delta)(const float* p, int n, int rows, const float* grad, float* delta);

  // p[j][r] *= weight * (grad[j] - delta[r]), the softmax Jacobian, in place.
  void (*softmax_jacobian)(float* p, int n, int rows, const float* grad, const float* delta,
                           float weight);

  // dst [n][d] (row pitch ld) = the float value of a tile of any dtype.
  void (*to_float)(const void* src, DType dtype, int64_t stride, int n, int d, float* dst,
                   int64_t ld);

  // Rank keys (select_keys.h) of count scores.
  void (*rank_keys)(const float* scores, int64_t count, uint32_t* keys);

  // out[i] = max of keys[i .. i + window - 1], for i < count; overwrites the count + window - 1
  // keys.
  void (*window_max)(uint32_t* keys, int64_t count, int64_t window, uint32_t* out);

  // out[lane] = max over rows of keys[row * kKeyLanes + lane].
  void (*lane_max)(const uint32_t* keys, int64_t rows, uint32_t* out);

  // Appends key << 32 | ~position for every key >= bound, in ascending position; returns how many.
  int64_t (*collect_keys)(const uint32_t* keys, int64_t count, uint32_t bound, uint64_t* out);
};

struct Isa {
  const char* name;
  TileOps float32;
  TileOps float16;
  TileOps bfloat16;
  VectorOps vector;

  const TileOps& tile_ops(DType dtype) const {
    return dtype == DType::kFloat32 ? float32 : dtype == DType::kFloat16 ? float16 : bfloat16;
  }
};

extern const Isa kPortable;
#ifdef LOOKAHEADKV_HAVE_X86
extern const Isa kAvx2;
extern const Isa kAvx512;
extern const Isa kAvx512Bf16;
extern const Isa kAmx;
#endif
#ifdef LOOKAHEADKV_HAVE_NEON
extern const Isa kNeon;
extern const Isa kNeonBf16;
#endif

// The instruction set in use, see active_isa() in kernels.h.
const Isa& active();

static constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace lookaheadkv::cpu
