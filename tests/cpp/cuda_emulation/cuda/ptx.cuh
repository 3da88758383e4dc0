// csrc/cuda/ptx.cuh in plain C++: the same functions, as the PTX ISA defines the instructions.
// Reads and writes are ordinary ones, so that the sanitizers see them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/isa/convert.h"
#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace lookaheadkv::cuda {

constexpr int kMultiprocessorBytes = 164 * 1024;

struct fp16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// What launch.cuh sets up for each block.
struct EmulatedBlock {
  int64_t index = 0;
  char* shared = nullptr;
  int shared_bytes = 0;
};
inline EmulatedBlock emulated_block;

inline int thread_index() { return emulation::current_thread(); }
inline int64_t block_index() { return emulated_block.index; }
inline char* shared_memory() { return emulated_block.shared; }
inline void sync_threads() { emulation::meet_block(); }
inline void start_kernel() {}

// --- lanes of a warp

template <class V>
struct Exchange {
  V value, result;
  int argument;
};
template <class V>
V shuffle(V value, int lane) {
  Exchange<V> mine = {value, value, lane};
  emulation::meet_warp(
      [](void* const* operands) {
        for (int i = 0; i < 32; ++i) {
          auto* to = static_cast<Exchange<V>*>(operands[i]);
          to->result = static_cast<Exchange<V>*>(operands[to->argument % 32])->value;
        }
      },
      &mine);
  return mine.result;
}
template <class V>
V shuffle_xor(V value, int mask) {
  return shuffle(value, thread_index() % 32 ^ mask);
}
template <class V>
V shuffle_up(V value, int delta) {
  const int lane = thread_index() % 32;
  return shuffle(value, lane >= delta ? lane - delta : lane);
}

// --- arithmetic

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float exp2_approx(float x) { return flushed(std::exp2(flushed(x))); }
inline float log2_approx(float x) { return std::log2(flushed(x)); }
inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return cpu::float_from_bf16(x.bits); }
inline float to_float(fp16 x) { return cpu::float_from_fp16(x.bits); }

template <class T>
uint32_t pack(float low, float high);
template <>
inline uint32_t pack<bf16>(float low, float high) {
  return cpu::bf16_from_float(low) | static_cast<uint32_t>(cpu::bf16_from_float(high)) << 16;
}
template <>
inline uint32_t pack<fp16>(float low, float high) {
  return cpu::fp16_from_float(low) | static_cast<uint32_t>(cpu::fp16_from_float(high)) << 16;
}

inline int atomic_add_shared(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}

// --- between blocks, which run one after the other here: none may ever wait

inline int atomic_add_device(int32_t* word, int value) { return atomic_add_shared(word, value); }
inline int arrive(int32_t* word) { return atomic_add_shared(word, 1); }
inline void publish(int32_t* word) { *word = 1; }
inline void wait_until_published(const int32_t* word) {
  if (*word != 1) emulation::fail("waits for a block that has not run");
}

// --- matrix instructions

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};
template <class T>
float half_of(uint32_t two, int which) {
  return to_float(T{static_cast<uint16_t>(two >> (16 * which))});
}
template <class T>
__attribute__((no_sanitize("address", "undefined"))) void multiply(void* const* operands) {
  float a[16][16], b[8][16], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Product*>(operands[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      for (int which = 0; which < 2; ++which) {
        a[group + i % 2 * 8][pair + i / 2 * 8 + which] = half_of<T>(mine.a[i], which);
      }
      d[group + i / 2 * 8][pair + i % 2] = mine.d[i];
    }
    for (int which = 0; which < 2; ++which) {
      b[group][pair + which] = half_of<T>(mine.b0, which);
      b[group][pair + 8 + which] = half_of<T>(mine.b1, which);
    }
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[i][k] * b[j][k];
      d[i][j] += sum;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Product*>(operands[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) mine.d[i] = d[group + i / 2 * 8][pair + i % 2];
  }
}
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T) {
  Product mine = {d, a, b0, b1};
  emulation::meet_warp(&multiply<T>, &mine);
}

struct MatrixLoad {
  uint32_t* r;
  const char* row;
};
template <bool kTransposed>
void load_four(void* const* operands) {
  uint16_t m[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(m[lane / 8][lane % 8], static_cast<const MatrixLoad*>(operands[lane])->row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t* const r = static_cast<const MatrixLoad*>(operands[lane])->r;
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const uint16_t low = kTransposed ? m[i][pair][group] : m[i][group][pair];
      const uint16_t high = kTransposed ? m[i][pair + 1][group] : m[i][group][pair + 1];
      r[i] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}
inline void require_aligned(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) emulation::fail("needs 16 aligned bytes");
}
inline void require_shared(const void* address) {
  require_aligned(address);
  const char* const at = static_cast<const char*>(address);
  const char* const begin = shared_memory();
  if (at < begin || at + 16 > begin + emulated_block.shared_bytes) {
    emulation::fail("leaves the shared memory");
  }
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  require_shared(row);
  MatrixLoad mine = {r, static_cast<const char*>(row)};
  emulation::meet_warp(&load_four<false>, &mine);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  require_shared(row);
  MatrixLoad mine = {r, static_cast<const char*>(row)};
  emulation::meet_warp(&load_four<true>, &mine);
}

// --- asynchronous copies. They happen as late as they may: when their thread waits for them.

struct Copy {
  char* to;
  const char* from;  // null: zeros
  int bytes;
};
struct ThreadCopies {
  std::vector<std::vector<Copy>> groups = {{}};  // the last one is not committed yet
};
inline std::vector<ThreadCopies> thread_copies;

inline void copy_async(void* shared, const void* global, bool fetch) {
  require_shared(shared);
  if (fetch) require_aligned(global);
  thread_copies[thread_index()].groups.back().push_back(
      {static_cast<char*>(shared), fetch ? static_cast<const char*>(global) : nullptr, 16});
}
struct CachePolicy {};
inline CachePolicy cache_policy(bool) { return {}; }
inline void copy_async(void* shared, const void* global, bool fetch, CachePolicy) {
  copy_async(shared, global, fetch);
}
inline void copy_async_word(void* shared, const void* global) {
  thread_copies[thread_index()].groups.back().push_back(
      {static_cast<char*>(shared), static_cast<const char*>(global), 4});
}
inline void commit_copies() { thread_copies[thread_index()].groups.emplace_back(); }
template <int kPending>
void wait_copies() {
  auto& groups = thread_copies[thread_index()].groups;
  while (groups.size() > kPending + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.from != nullptr) {
        std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      } else {
        std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
      }
    }
    groups.erase(groups.begin());
  }
}

// --- 16 bytes at once

struct alignas(16) Bytes16 {
  uint32_t words[4];
};
struct alignas(16) Float4 {
  float v[4];
};
inline Bytes16 load_bytes16(const void* global) {
  require_aligned(global);
  Bytes16 bytes;
  std::memcpy(&bytes, global, 16);
  return bytes;
}
inline void store_bytes16(void* global, const Bytes16& bytes) {
  require_aligned(global);
  std::memcpy(global, &bytes, 16);
}

}  // namespace lookaheadkv::cuda
