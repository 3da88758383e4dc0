// Packing bf16 operands as pairs of neighbours along the depth, the layout VDPBF16PS and TDPBF16PS
// share: right side uint32 [depth / 2][rows], each element (k even, k odd) of one row.
// Included inside an anonymous namespace, after simd_avx512.h.

inline uint32_t load_pair(const void* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return pair;
}

// Depth is padded with zeros to kDimAlign; the left side is padded likewise (AMX) or stops at d.
void pack_query_pairs(const void* const* row_ptrs, int rows, int d, void* packed) {
  uint32_t* out = static_cast<uint32_t*>(packed);
  const int padded = static_cast<int>(round_up(d, kDimAlign));
  for (int r = 0; r < rows; ++r) {
    const char* row = static_cast<const char*>(row_ptrs[r]);
    for (int k = 0; k < padded / 2; ++k) {
      out[static_cast<int64_t>(k) * rows + r] = k < d / 2 ? load_pair(row + 4 * k) : 0;
    }
  }
}

// p [n][rows] fp32 -> pairs of neighbouring keys, [kKeyTile / 2][rows]; keys past n are zero.
const void* prepare_probs_pairs(const float* p, int n, int rows, void* scratch) {
  uint32_t* out = static_cast<uint32_t*>(scratch);
  const int padded = static_cast<int>(round_up(n, kDimAlign));
  for (int j = 0; j < padded; j += 2) {
    for (int r = 0; r < rows; r += 16) {
      const float* at = p + static_cast<int64_t>(j) * rows + r;
      const __m512 even = j < n ? _mm512_loadu_ps(at) : _mm512_setzero_ps();
      const __m512 odd = j + 1 < n ? _mm512_loadu_ps(at + rows) : _mm512_setzero_ps();
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
      const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
      _mm512_storeu_si512(out + static_cast<int64_t>(j / 2) * rows + r,
                          _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
  return scratch;
}

// Pairs of neighbouring keys of a [n, d] tile of V: out[j / 2][k] = (v[j][k], v[j + 1][k]), row
// pitch d; keys past n are zero.
void interleave_keys(const void* value, int64_t stride, int n, int d, int padded, uint32_t* out) {
  for (int j = 0; j < padded; j += 2) {
    const char* even = static_cast<const char*>(value) + j * stride * 2;
    const char* odd = even + stride * 2;
    for (int k = 0; k < d; k += 8) {
      const __m128i zero = _mm_setzero_si128();
      const __m128i a =
          j < n ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(even + 2 * k)) : zero;
      const __m128i b =
          j + 1 < n ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd + 2 * k)) : zero;
      uint32_t* at = out + static_cast<int64_t>(j / 2) * d + k;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_unpacklo_epi16(a, b));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 4), _mm_unpackhi_epi16(a, b));
    }
  }
}
