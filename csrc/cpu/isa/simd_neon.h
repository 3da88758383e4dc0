// Vector type of the NEON kernels, of what every AArch64 CPU has. Included inside an anonymous
// namespace.

struct V {
  using Reg = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kGemmRows = 4;  // 24 of the 32 registers hold sums
  static constexpr int kGemmKeys = 6;

  static Reg load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Reg a) { vst1q_f32(p, a); }
  static Reg set1(float a) { return vdupq_n_f32(a); }
  static Reg zero() { return vdupq_n_f32(0.0f); }
  static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg max(Reg a, Reg b) { return vmaxnmq_f32(a, b); }  // of a number and NaN: the number
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Reg fms(Reg a, Reg b, Reg c) { return vfmaq_f32(vnegq_f32(c), a, b); }
  static bool any_greater(Reg a, Reg b) { return vmaxvq_u32(vcgtq_f32(a, b)) != 0; }

  // -inf -> 0; NaN and +inf stay.
  static Reg finite_or_zero(Reg a) { return clear(a, vceqq_f32(a, set1(-kInfinity))); }

  // 2^x; 0 below the normal range; NaN for NaN; inf from 2^128 on.
  static Reg exp2(Reg x) {
    const uint32x4_t small = vcltq_f32(x, set1(kExp2Min));                // false for NaN
    const Reg y = vminq_f32(set1(256.0f), vmaxq_f32(set1(kExp2Min), x));  // these keep NaN
    const Reg n = vrndnq_f32(y);
    const Reg f = sub(y, n);
    Reg p = fma(set1(kExp2C5), f, set1(kExp2C4));
    p = fma(p, f, set1(kExp2C3));
    p = fma(p, f, set1(kExp2C2));
    p = fma(p, f, set1(kExp2C1));
    p = fma(p, f, set1(1.0f));
    // 2^n in two factors: n reaches 256, past what one float exponent holds.
    const int32x4_t exponent = vcvtq_s32_f32(n);
    const int32x4_t half = vshrq_n_s32(exponent, 1);
    p = mul(mul(p, power_of_two(half)), power_of_two(vsubq_s32(exponent, half)));
    return clear(p, small);
  }

  // Probabilities in 16 bits: see compressed_probability.h.
  static void compress(uint16_t* dst, Reg p) {
    const int32x4_t bits = vmaxq_s32(vreinterpretq_s32_f32(p), vdupq_n_s32(kCompressMin));
    const int32x4_t code = vsubq_s32(bits, vdupq_n_s32(kCompressOffset));
    vst1_u16(dst, vshrn_n_u32(vreinterpretq_u32_s32(code), kCompressShift));
  }
  static Reg expand(const uint16_t* src) {
    const uint32x4_t code = vshll_n_u16(vld1_u16(src), kCompressShift);
    return vreinterpretq_f32_u32(vaddq_u32(code, vdupq_n_u32(kCompressBase)));
  }

  static void store8_from_bf16(float* dst, const char* src) {
    const uint16x8_t half = vld1q_u16(reinterpret_cast<const uint16_t*>(src));
    store(dst, widen_bf16(vget_low_u16(half)));
    store(dst + 4, widen_bf16(vget_high_u16(half)));
  }
  static void store8_from_fp16(float* dst, const char* src) {
    const uint16x8_t half = vld1q_u16(reinterpret_cast<const uint16_t*>(src));
    store(dst, vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half))));
    store(dst + 4, vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(half))));
  }

 private:
  // 0 where the mask is set.
  static Reg clear(Reg a, uint32x4_t mask) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), mask));
  }
  static Reg widen_bf16(uint16x4_t half) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(half), 16));
  }
  static Reg power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
};
