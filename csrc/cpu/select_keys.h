// The order of the Top-K as an unsigned integer: a larger key is a better score.
#pragma once

#include <cstdint>
#include <cstring>

namespace lookaheadkv::cpu {

// NaN -> 0, below -inf; -0.0 and 0.0 compare equal, so they share a key. `static`: see convert.h.
[[maybe_unused]] static inline uint32_t rank_key(float score) {
  const float canonical = score + 0.0f;  // -0.0 -> 0.0
  uint32_t bits;
  std::memcpy(&bits, &canonical, sizeof(bits));
  const uint32_t key = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
  return score != score ? 0u : key;
}

}  // namespace lookaheadkv::cpu
