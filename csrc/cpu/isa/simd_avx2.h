// Vector type of the AVX2 kernels (AVX2, FMA, F16C). Included inside an anonymous namespace.

struct V {
  using Reg = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kGemmRows = 2;
  static constexpr int kGemmKeys = 6;

  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static Reg set1(float a) { return _mm256_set1_ps(a); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg fms(Reg a, Reg b, Reg c) { return _mm256_fmsub_ps(a, b, c); }
  static bool any_greater(Reg a, Reg b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
  }

  // -inf -> 0; NaN and +inf stay.
  static Reg finite_or_zero(Reg a) {
    return _mm256_and_ps(a, _mm256_cmp_ps(a, set1(-kInfinity), _CMP_NEQ_UQ));
  }

  // 2^x; 0 below the normal range; NaN for NaN; inf from 2^128 on.
  static Reg exp2(Reg x) {
    const Reg in_range = _mm256_cmp_ps(x, set1(kExp2Min), _CMP_NLT_UQ);  // true for NaN
    const Reg y = _mm256_min_ps(set1(256.0f), _mm256_max_ps(set1(kExp2Min), x));
    const Reg n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Reg f = sub(y, n);
    Reg p = fma(set1(kExp2C5), f, set1(kExp2C4));
    p = fma(p, f, set1(kExp2C3));
    p = fma(p, f, set1(kExp2C2));
    p = fma(p, f, set1(kExp2C1));
    p = fma(p, f, set1(1.0f));
    // 2^n in two factors: n reaches 256, past what one float exponent holds.
    const __m256i half = _mm256_srai_epi32(_mm256_cvtps_epi32(n), 1);
    const __m256i rest = _mm256_sub_epi32(_mm256_cvtps_epi32(n), half);
    p = mul(mul(p, power_of_two(half)), power_of_two(rest));
    return _mm256_and_ps(p, in_range);
  }

  // Probabilities in 16 bits: see compressed_probability.h.
  static void compress(uint16_t* dst, Reg p) {
    const __m256i bits = _mm256_max_epi32(_mm256_castps_si256(p), _mm256_set1_epi32(kCompressMin));
    const __m256i code = _mm256_srli_epi32(
        _mm256_sub_epi32(bits, _mm256_set1_epi32(kCompressOffset)), kCompressShift);
    // Packing works within 128-bit halves; the permutation puts them side by side.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(code, code), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm256_castsi256_si128(packed));
  }
  static Reg expand(const uint16_t* src) {
    const __m256i code =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(code, kCompressShift),
                                                _mm256_set1_epi32(kCompressBase)));
  }

  static void store8_from_bf16(float* dst, const char* src) {
    const __m256i half =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
    store(dst, _mm256_castsi256_ps(_mm256_slli_epi32(half, 16)));
  }
  static void store8_from_fp16(float* dst, const char* src) {
    store(dst, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
  }

 private:
  static Reg power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
};
