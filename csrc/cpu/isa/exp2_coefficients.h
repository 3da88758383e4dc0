// 2^f for f in [-0.5, 0.5]: weighted least-squares polynomial of degree 5, relative error 1.3e-7
// (tests/cpp/kernel_check.cpp measures it). The constant term is exactly 1, so that exp2(0) is.
#pragma once

namespace lookaheadkv::cpu {

constexpr float kExp2C1 = 0.693146944f;
constexpr float kExp2C2 = 0.240221202f;
constexpr float kExp2C3 = 0.0555071346f;
constexpr float kExp2C4 = 0.00967554096f;
constexpr float kExp2C5 = 0.00132764701f;

// Below this exponent AVX2, NEON and portable code give 0, which keeps 2^n a normal number; AVX-512
// has an instruction that scales into the subnormals.
constexpr float kExp2Min = -126.0f;

}  // namespace lookaheadkv::cpu
