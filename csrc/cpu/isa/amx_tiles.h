// AMX tile instructions behind one macro each, or, with LOOKAHEADKV_AMX_EMULATE, the same in plain
// C++: so the tile arithmetic is tested (under sanitizers, too) on machines that lack AMX.
//
// Macros because the intrinsics paste the tile number into the instruction text.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef LOOKAHEADKV_AMX_EMULATE

#include <immintrin.h>

#define LKV_TILE_CONFIG(config) _tile_loadconfig(config)
#define LKV_TILE_RELEASE() _tile_release()
#define LKV_TILE_ZERO(t) _tile_zero(t)
#define LKV_TILE_LOAD(t, base, stride) _tile_loadd(t, base, stride)
#define LKV_TILE_STORE(t, base, stride) _tile_stored(t, base, stride)
#define LKV_TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)

#else

namespace lookaheadkv::cpu {
namespace {

// Eight tiles of 16 rows of 64 bytes.
struct EmulatedTiles {
  alignas(64) unsigned char data[8][16][64];

  void load(int t, const void* base, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(data[t][row], static_cast<const char*>(base) + row * stride, 64);
    }
  }
  void store(int t, void* base, int64_t stride) const {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(static_cast<char*>(base) + row * stride, data[t][row], 64);
    }
  }
  void dot(int c, int a, int b) {
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 16; ++n) {
          float sum;
          std::memcpy(&sum, &data[c][m][4 * n], 4);
          for (int half = 0; half < 2; ++half) {
            sum += widen(&data[a][m][4 * k + 2 * half]) * widen(&data[b][k][4 * n + 2 * half]);
          }
          std::memcpy(&data[c][m][4 * n], &sum, 4);
        }
      }
    }
  }

 private:
  static float widen(const unsigned char* bf16) {
    unsigned char bytes[4] = {0, 0, bf16[0], bf16[1]};
    float value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  }
};

thread_local EmulatedTiles emulated_tiles;

}  // namespace
}  // namespace lookaheadkv::cpu

#define LKV_TILE_CONFIG(config) static_cast<void>(config)
#define LKV_TILE_RELEASE() static_cast<void>(0)
#define LKV_TILE_ZERO(t) std::memset(emulated_tiles.data[t], 0, sizeof(emulated_tiles.data[t]))
#define LKV_TILE_LOAD(t, base, stride) emulated_tiles.load(t, base, stride)
#define LKV_TILE_STORE(t, base, stride) emulated_tiles.store(t, base, stride)
#define LKV_TILE_DOT(c, a, b) emulated_tiles.dot(c, a, b)

#endif
