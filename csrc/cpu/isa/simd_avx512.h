// Vector type of the AVX-512 kernels (F, BW, VL, DQ). Included inside an anonymous namespace.

struct V {
  using Reg = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kGemmRows = 1;  // a lone register of rows; gemm_steps widens it
  static constexpr int kGemmKeys = 16;

  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static Reg set1(float a) { return _mm512_set1_ps(a); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg fms(Reg a, Reg b, Reg c) { return _mm512_fmsub_ps(a, b, c); }
  static bool any_greater(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

  // -inf -> 0; NaN and +inf stay.
  static Reg finite_or_zero(Reg a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, set1(-kInfinity), _CMP_NEQ_UQ), a);
  }

  // 2^x; 0 below 2^-149; NaN for NaN; inf from 2^128 on.
  static Reg exp2(Reg x) {
    x = _mm512_max_ps(set1(-150.0f), x);  // operand order keeps NaN
    const Reg n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Reg f = sub(x, n);
    Reg p = fma(set1(kExp2C5), f, set1(kExp2C4));
    p = fma(p, f, set1(kExp2C3));
    p = fma(p, f, set1(kExp2C2));
    p = fma(p, f, set1(kExp2C1));
    p = fma(p, f, set1(1.0f));
    return _mm512_scalef_ps(p, n);
  }

  // Probabilities in 16 bits: see compressed_probability.h.
  static void compress(uint16_t* dst, Reg p) {
    const __m512i bits = _mm512_max_epi32(_mm512_castps_si512(p), _mm512_set1_epi32(kCompressMin));
    const __m512i code = _mm512_srli_epi32(
        _mm512_sub_epi32(bits, _mm512_set1_epi32(kCompressOffset)), kCompressShift);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), _mm512_cvtepi32_epi16(code));
  }
  static Reg expand(const uint16_t* src) {
    const __m512i code =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(code, kCompressShift),
                                                _mm512_set1_epi32(kCompressBase)));
  }

  static void store8_from_bf16(float* dst, const char* src) {
    const __m256i half =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
    _mm256_storeu_ps(dst, _mm256_castsi256_ps(_mm256_slli_epi32(half, 16)));
  }
  static void store8_from_fp16(float* dst, const char* src) {
    _mm256_storeu_ps(dst, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
  }
};
