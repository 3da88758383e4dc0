// Vector type of the portable kernels: the compiler's own 16-byte vectors, which become SSE2, NEON
// or plain scalars. Included inside an anonymous namespace.

struct V {
  using Reg = float __attribute__((vector_size(16)));
  using Int = int32_t __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kGemmRows = 2;
  static constexpr int kGemmKeys = 6;

  static Reg load(const float* p) {
    Reg a;
    std::memcpy(&a, p, sizeof(a));
    return a;
  }
  static void store(float* p, Reg a) { std::memcpy(p, &a, sizeof(a)); }
  static Reg set1(float a) { return Reg{a, a, a, a}; }
  static Reg zero() { return set1(0.0f); }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg max(Reg a, Reg b) { return pick(a > b, a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg fms(Reg a, Reg b, Reg c) { return a * b - c; }
  static bool any_greater(Reg a, Reg b) {
    const Int mask = a > b;
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
  }

  // -inf -> 0; NaN and +inf stay.
  static Reg finite_or_zero(Reg a) { return pick(a != set1(-kInfinity), a, zero()); }

  // 2^x; 0 below the normal range; NaN for NaN; inf from 2^128 on.
  static Reg exp2(Reg x) {
    const Int small = x < set1(kExp2Min);
    const Int nan = x != x;
    Reg y = pick(small | nan, set1(kExp2Min), x);
    y = pick(y > set1(256.0f), set1(256.0f), y);
    const Reg magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Reg shifted = y + magic;
    const Reg n = shifted - magic;
    const Reg f = y - n;
    Reg p = set1(kExp2C5) * f + set1(kExp2C4);
    p = p * f + set1(kExp2C3);
    p = p * f + set1(kExp2C2);
    p = p * f + set1(kExp2C1);
    p = p * f + set1(1.0f);
    // 2^n in two factors: n reaches 256, past what one float exponent holds.
    const Int exponent = as_int(shifted) - as_int(magic);
    const Int half = exponent >> 1;
    p = p * power_of_two(half) * power_of_two(exponent - half);
    return pick(nan, x, pick(small, zero(), p));
  }

  // Probabilities in 16 bits: see compressed_probability.h.
  static void compress(uint16_t* dst, Reg p) {
    for (int i = 0; i < kLanes; ++i) {
      const int32_t bits = static_cast<int32_t>(bits_from_float(p[i]));
      const int32_t clamped = bits > kCompressMin ? bits : kCompressMin;
      dst[i] =
          static_cast<uint16_t>(static_cast<uint32_t>(clamped - kCompressOffset) >> kCompressShift);
    }
  }
  static Reg expand(const uint16_t* src) {
    Reg p;
    for (int i = 0; i < kLanes; ++i) {
      p[i] = float_from_bits((static_cast<uint32_t>(src[i]) << kCompressShift) + kCompressBase);
    }
    return p;
  }

  static void store8_from_bf16(float* dst, const char* src) {
    uint16_t half[8];
    std::memcpy(half, src, sizeof(half));
    for (int i = 0; i < 8; ++i) dst[i] = float_from_bf16(half[i]);
  }
  static void store8_from_fp16(float* dst, const char* src) {
    uint16_t half[8];
    std::memcpy(half, src, sizeof(half));
    for (int i = 0; i < 8; ++i) dst[i] = float_from_fp16(half[i]);
  }

 private:
  // A cast between vectors of one size keeps the bits.
  static Int as_int(Reg a) { return (Int)a; }
  static Reg pick(Int mask, Reg a, Reg b) { return mask ? a : b; }
  static Reg power_of_two(Int n) { return (Reg)((n + 127) << 23); }
};
