// Tile operations written once over a vector type V (simd_*.h) and compiled per instruction set.
// Included inside an anonymous namespace: nothing here may be shared between instruction sets.
//
// V offers: Reg, kLanes, load, store, set1, zero, add, sub, mul, max, fma, fms, exp2, any_greater,
// finite_or_zero, compress, expand, store8_from_bf16, store8_from_fp16, and kGemmRows / kGemmKeys,
// the register tile of the gemm.

// Row maxima are kept lazily: they move only when a tile exceeds them by this much (a power of two
// exponent), which spares almost every rescale; sums then stay below 2^kLazy * N.
constexpr float kLazy = 8.0f;

// ---- gemm

// The multiply-add of one gemm: how a step of depth is read and accumulated.
struct FloatDot {
  using Left = float;
  using Right = float;
  static typename V::Reg broadcast(const Left* a) { return V::set1(*a); }
  static typename V::Reg load(const Right* b) { return V::load(b); }
  static typename V::Reg add(typename V::Reg sum, typename V::Reg left, typename V::Reg right) {
    return V::fma(left, right, sum);
  }
};

// kKeys x kRows registers of c, all of the depth.
template <class Dot, int kRows, int kKeys>
inline void gemm_block(const typename Dot::Left* a, int64_t a_row, int64_t a_col,
                       const typename Dot::Right* b, int64_t rows, float* c, int steps,
                       bool accumulate) {
  typename V::Reg sum[kKeys][kRows];
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < kRows; ++v) {
      sum[j][v] = accumulate ? V::load(c + j * rows + v * V::kLanes) : V::zero();
    }
  }
  for (int k = 0; k < steps; ++k) {
    decltype(Dot::load(b)) right[kRows];
#pragma GCC unroll 16
    for (int v = 0; v < kRows; ++v) right[v] = Dot::load(b + k * rows + v * V::kLanes);
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const auto left = Dot::broadcast(a + j * a_row + k * a_col);
#pragma GCC unroll 16
      for (int v = 0; v < kRows; ++v) sum[j][v] = Dot::add(sum[j][v], left, right[v]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j) {
#pragma GCC unroll 16
    for (int v = 0; v < kRows; ++v) V::store(c + j * rows + v * V::kLanes, sum[j][v]);
  }
}

template <class Dot, int kRows, int kKeys>
void gemm_columns(const Operand& left, const typename Dot::Right* b, float* c, int n, int64_t rows,
                  int steps, bool accumulate) {
  const auto* a = static_cast<const typename Dot::Left*>(left.data);
  int j = 0;
  for (; j + kKeys <= n; j += kKeys) {
    gemm_block<Dot, kRows, kKeys>(a + j * left.row_stride, left.row_stride, left.col_stride, b,
                                  rows, c + j * rows, steps, accumulate);
  }
  for (; j < n; ++j) {
    gemm_block<Dot, kRows, 1>(a + j * left.row_stride, left.row_stride, left.col_stride, b, rows,
                              c + j * rows, steps, accumulate);
  }
}

template <class Dot>
void gemm_steps(const Operand& left, const void* right, float* c, int n, int rows, int steps,
                bool accumulate) {
  const auto* b = static_cast<const typename Dot::Right*>(right);
  if constexpr (V::kLanes == 16) {
    // The whole row group in registers; more keys per block where there are fewer rows.
    switch (rows / 16) {
      case 1:
        return gemm_columns<Dot, V::kGemmRows, V::kGemmKeys>(left, b, c, n, rows, steps,
                                                             accumulate);
      case 2:
        return gemm_columns<Dot, 2, 12>(left, b, c, n, rows, steps, accumulate);
      case 3:
        return gemm_columns<Dot, 3, 8>(left, b, c, n, rows, steps, accumulate);
      default:
        return gemm_columns<Dot, 4, 6>(left, b, c, n, rows, steps, accumulate);
    }
  } else {
    constexpr int kStep = V::kGemmRows * V::kLanes;
    static_assert(kRowAlign % kStep == 0, "a padded row group must be whole register tiles");
    for (int r = 0; r < rows; r += kStep) {
      gemm_columns<Dot, V::kGemmRows, V::kGemmKeys>(left, b + r, c + r, n, rows, steps, accumulate);
    }
  }
}

void gemm_float(const Operand& left, const void* right, float* c, int n, int rows, int depth,
                bool accumulate) {
  gemm_steps<FloatDot>(left, right, c, n, rows, depth, accumulate);
}

// ---- packing for the fp32 gemm

template <DType kDtype>
void pack_query_float(const void* const* row_ptrs, int rows, int d, void* packed) {
  float* out = static_cast<float*>(packed);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < d; ++k) {
      if constexpr (kDtype == DType::kFloat32) {
        std::memcpy(out + static_cast<int64_t>(k) * rows + r,
                    static_cast<const char*>(row_ptrs[r]) + 4 * k, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, static_cast<const char*>(row_ptrs[r]) + 2 * k, 2);
        out[static_cast<int64_t>(k) * rows + r] =
            kDtype == DType::kFloat16 ? float_from_fp16(half) : float_from_bf16(half);
      }
    }
  }
}

void to_float(const void* src, DType dtype, int64_t stride, int n, int d, float* dst, int64_t ld) {
  for (int j = 0; j < n; ++j) {
    const char* row = static_cast<const char*>(src) + j * stride * element_size(dtype);
    float* out = dst + j * ld;
    if (dtype == DType::kFloat32) {
      std::memcpy(out, row, static_cast<size_t>(d) * 4);
    } else if (dtype == DType::kBFloat16) {
      for (int k = 0; k < d; k += 8) V::store8_from_bf16(out + k, row + 2 * k);
    } else {
      for (int k = 0; k < d; k += 8) V::store8_from_fp16(out + k, row + 2 * k);
    }
  }
}

template <DType kDtype>
Operand prepare_key_float(const void* key, int64_t stride, int n, int d, void* scratch) {
  if constexpr (kDtype == DType::kFloat32) {
    return {key, stride, 1};
  } else {
    to_float(key, kDtype, stride, n, d, static_cast<float*>(scratch), d);
    return {scratch, d, 1};
  }
}

template <DType kDtype>
Operand prepare_value_float(const void* value, int64_t stride, int n, int d, void* scratch) {
  const Operand rows = prepare_key_float<kDtype>(value, stride, n, d, scratch);
  return {rows.data, rows.col_stride, rows.row_stride};
}

const void* prepare_probs_float(const float* p, int, int, void*) { return p; }

template <DType kDtype>
constexpr TileOps float_tile_ops() {
  return {pack_query_float<kDtype>, prepare_key_float<kDtype>, prepare_value_float<kDtype>,
          prepare_probs_float, gemm_float};
}

// ---- softmax over a logits tile

template <bool kStore>
void accumulate(float* s, int n, int rows, float factor, float* m, float* l, float* acc, int d) {
  const typename V::Reg c = V::set1(factor);
  for (int r = 0; r < rows; r += V::kLanes) {
    typename V::Reg tile_max = V::set1(-kInfinity);
    for (int j = 0; j < n; ++j) {
      tile_max = V::max(tile_max, V::mul(V::load(s + static_cast<int64_t>(j) * rows + r), c));
    }
    typename V::Reg row_max = V::load(m + r);
    typename V::Reg sum = V::load(l + r);
    if (V::any_greater(tile_max, V::add(row_max, V::set1(kLazy)))) {
      // m = -inf means no key yet: there l and acc are 0 and whatever factor is finite will do.
      const typename V::Reg raised = V::max(row_max, tile_max);
      const typename V::Reg keep = V::exp2(V::sub(row_max, V::finite_or_zero(raised)));
      sum = V::mul(sum, keep);
      for (int k = 0; k < d; ++k) {
        float* at = acc + static_cast<int64_t>(k) * rows + r;
        V::store(at, V::mul(V::load(at), keep));
      }
      V::store(m + r, raised);
      row_max = raised;
    }
    const typename V::Reg shift = V::finite_or_zero(row_max);
    typename V::Reg part[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    int j = 0;
    for (; j + 4 <= n; j += 4) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        float* at = s + static_cast<int64_t>(j + u) * rows + r;
        const typename V::Reg p = V::exp2(V::fms(V::load(at), c, shift));
        part[u] = V::add(part[u], p);
        if constexpr (kStore) V::store(at, p);
      }
    }
    for (; j < n; ++j) {
      float* at = s + static_cast<int64_t>(j) * rows + r;
      const typename V::Reg p = V::exp2(V::fms(V::load(at), c, shift));
      part[0] = V::add(part[0], p);
      if constexpr (kStore) V::store(at, p);
    }
    V::store(l + r, V::add(sum, V::add(V::add(part[0], part[1]), V::add(part[2], part[3]))));
  }
}

void accumulate_lse(const float* s, int n, int rows, float factor, float* m, float* l) {
  accumulate<false>(const_cast<float*>(s), n, rows, factor, m, l, nullptr, 0);
}

void accumulate_softmax(float* s, int n, int rows, float factor, float* m, float* l, float* acc,
                        int d) {
  accumulate<true>(s, n, rows, factor, m, l, acc, d);
}

// ---- column sums

// columns[j][lane] += term(row vector v, key j), for kVectors row vectors at a time.
template <int kVectors, class Term>
inline void add_columns(int n, float* columns, const Term& term) {
  for (int j = 0; j < n; ++j) {
    typename V::Reg sum = V::load(columns + j * V::kLanes);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sum = term(sum, v, j);
    V::store(columns + j * V::kLanes, sum);
  }
}

template <int kVectors>
void columns_block(const float* s, int n, int64_t rows, float factor, const float* lse2,
                   float* columns) {
  const typename V::Reg c = V::set1(factor);
  typename V::Reg shift[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) shift[v] = V::load(lse2 + v * V::kLanes);
  add_columns<kVectors>(n, columns, [&](typename V::Reg sum, int v, int j) {
    return V::add(sum, V::exp2(V::fms(V::load(s + j * rows + v * V::kLanes), c, shift[v])));
  });
}

void accumulate_columns(const float* s, int n, int rows, float factor, const float* lse2,
                        float* columns) {
  int r = 0;
  for (; r + 4 * V::kLanes <= rows; r += 4 * V::kLanes) {
    columns_block<4>(s + r, n, rows, factor, lse2 + r, columns);
  }
  for (; r < rows; r += V::kLanes) columns_block<1>(s + r, n, rows, factor, lse2 + r, columns);
}

template <int kVectors, class P>
void weighted_block(const P* p, int n, int64_t rows, const float* weights, float* columns) {
  typename V::Reg weight[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) weight[v] = V::load(weights + v * V::kLanes);
  add_columns<kVectors>(n, columns, [&](typename V::Reg sum, int v, int j) {
    const P* at = p + j * rows + v * V::kLanes;
    if constexpr (sizeof(P) == 4) {
      return V::fma(V::load(at), weight[v], sum);
    } else {
      return V::fma(V::expand(at), weight[v], sum);
    }
  });
}

template <class P>
void weighted_columns(const void* p, int n, int rows, const float* weights, float* columns) {
  const P* at = static_cast<const P*>(p);
  int r = 0;
  for (; r + 4 * V::kLanes <= rows; r += 4 * V::kLanes) {
    weighted_block<4>(at + r, n, rows, weights + r, columns);
  }
  for (; r < rows; r += V::kLanes) weighted_block<1>(at + r, n, rows, weights + r, columns);
}

void compress(const float* p, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += V::kLanes) V::compress(out + i, V::load(p + i));
}

void row_weights(const float* m, const float* lse2, int rows, float* weights) {
  for (int r = 0; r < rows; r += V::kLanes) {
    V::store(weights + r, V::exp2(V::sub(V::load(m + r), V::load(lse2 + r))));
  }
}

void reduce_columns(const float* columns, int n, float weight, float* out) {
  for (int j = 0; j < n; ++j) {
    float sum = 0.0f;
    for (int lane = 0; lane < V::kLanes; ++lane) sum += columns[j * V::kLanes + lane];
    out[j] = weight * sum;
  }
}

// ---- backward

void probabilities(float* s, int n, int rows, float factor, const float* lse2) {
  const typename V::Reg c = V::set1(factor);
  for (int r = 0; r < rows; r += V::kLanes) {
    const typename V::Reg shift = V::load(lse2 + r);
    for (int j = 0; j < n; ++j) {
      float* at = s + static_cast<int64_t>(j) * rows + r;
      V::store(at, V::exp2(V::fms(V::load(at), c, shift)));
    }
  }
}

void accumulate_delta(const float* p, int n, int rows, const float* grad, float* delta) {
  for (int r = 0; r < rows; r += V::kLanes) {
    typename V::Reg sum = V::zero();
    for (int j = 0; j < n; ++j) {
      sum = V::fma(V::set1(grad[j]), V::load(p + static_cast<int64_t>(j) * rows + r), sum);
    }
    V::store(delta + r, V::add(V::load(delta + r), sum));
  }
}

void softmax_jacobian(float* p, int n, int rows, const float* grad, const float* delta,
                      float weight) {
  const typename V::Reg w = V::set1(weight);
  for (int r = 0; r < rows; r += V::kLanes) {
    const typename V::Reg shift = V::load(delta + r);
    for (int j = 0; j < n; ++j) {
      float* at = p + static_cast<int64_t>(j) * rows + r;
      V::store(at, V::mul(V::load(at), V::mul(w, V::sub(V::set1(grad[j]), shift))));
    }
  }
}

// ---- select

inline uint32_t max_key(uint32_t a, uint32_t b) { return a > b ? a : b; }

void rank_keys(const float* scores, int64_t count, uint32_t* keys) {
  for (int64_t i = 0; i < count; ++i) keys[i] = rank_key(scores[i]);
}

void window_max(uint32_t* keys, int64_t count, int64_t window, uint32_t* out) {
  int64_t width = 1;  // keys[i] is the maximum of this many
  for (; 2 * width <= window; width *= 2) {
    const int64_t last = count + window - 1 - 2 * width;
    for (int64_t i = 0; i <= last; ++i) keys[i] = max_key(keys[i], keys[i + width]);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = max_key(keys[i], keys[i + window - width]);
}

void lane_max(const uint32_t* keys, int64_t rows, uint32_t* out) {
  uint32_t best[kKeyLanes];
  std::memcpy(best, keys, sizeof(best));
  for (int64_t row = 1; row < rows; ++row) {
    for (int lane = 0; lane < kKeyLanes; ++lane) {
      best[lane] = max_key(best[lane], keys[row * kKeyLanes + lane]);
    }
  }
  std::memcpy(out, best, sizeof(best));
}

int64_t collect_keys(const uint32_t* keys, int64_t count, uint32_t bound, uint64_t* out) {
  constexpr int64_t kProbe = 32;  // few keys reach the bound: most probes find none
  int64_t found = 0;
  for (int64_t at = 0; at < count; at += kProbe) {
    const int64_t end = at + kProbe < count ? at + kProbe : count;
    if (end - at == kProbe) {
      uint32_t best = 0;
      for (int64_t i = 0; i < kProbe; ++i) best = max_key(best, keys[at + i]);
      if (best < bound) continue;
    }
    for (int64_t i = at; i < end; ++i) {
      if (keys[i] < bound) continue;
      out[found++] = static_cast<uint64_t>(keys[i]) << 32 | ~static_cast<uint32_t>(i);
    }
  }
  return found;
}

constexpr VectorOps vector_ops() {
  return {accumulate_lse,
          accumulate_softmax,
          accumulate_columns,
          compress,
          weighted_columns<float>,
          weighted_columns<uint16_t>,
          row_weights,
          reduce_columns,
          probabilities,
          accumulate_delta,
          softmax_jacobian,
          to_float,
          rank_keys,
          window_max,
          lane_max,
          collect_keys};
}
