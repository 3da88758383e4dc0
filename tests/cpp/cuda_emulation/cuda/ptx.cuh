// csrc/cuda/ptx.cuh in plain C++: the same functions, as the PTX ISA defines the instructions.
// Reads and writes are ordinary ones, so that the sanitizers see them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/isa/convert.h"
#include "faults.h"
#include "fibers.h"
#include "instructions.h"
#include "races.h"

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

// Of an instruction that orders: the line of the kernel that calls it, to plant faults there.
#define LOOKAHEADKV_LINE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline int thread_index() { return emulation::current_thread(); }
inline int64_t block_index() { return emulation::current_block(); }
inline char* shared_memory() { return emulation::current_shared(); }
inline void sync_threads(LOOKAHEADKV_LINE) {
  if (!emulation::has_fault(emulation::Fault::kNoBarrier, file, line)) emulation::meet_block();
}
inline void start_kernel(LOOKAHEADKV_LINE) {
  if (emulation::has_fault(emulation::Fault::kNoKernelWait, file, line)) return;
  emulation::races::kernel_started();
}

// --- lanes of a warp

template <class V>
V shuffle(V value, int lane) {
  static_assert(sizeof(V) == 4, "a register");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = emulation::shuffle(bits, lane);
  std::memcpy(&value, &bits, 4);
  return value;
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
  return emulation::atomic_add(address, value);
}

// --- between blocks

inline int atomic_add_device(int32_t* word, int value) {
  return emulation::atomic_add_device(word, value);
}
inline int arrive(int32_t* word, LOOKAHEADKV_LINE) {
  return emulation::arrive(word, !emulation::has_fault(emulation::Fault::kNoRelease, file, line),
                           !emulation::has_fault(emulation::Fault::kNoAcquire, file, line));
}
inline void publish(int32_t* word, LOOKAHEADKV_LINE) {
  emulation::publish(word, !emulation::has_fault(emulation::Fault::kNoRelease, file, line));
}
inline void wait_until_published(const int32_t* word, LOOKAHEADKV_LINE) {
  if (emulation::has_fault(emulation::Fault::kNoWait, file, line)) return;
  emulation::wait_until_published(word,
                                  !emulation::has_fault(emulation::Fault::kNoAcquire, file, line));
}

// --- matrix instructions

inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
  emulation::multiply_bf16(d, a, b0, b1);
}
inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, fp16) {
  emulation::multiply_fp16(d, a, b0, b1);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulation::load_matrices(r, row, false);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  emulation::load_matrices(r, row, true);
}

// --- asynchronous copies

inline void copy_async(void* shared, const void* global, bool fetch) {
  emulation::issue_copy(shared, fetch ? global : nullptr, 16);
}
struct CachePolicy {};
inline CachePolicy cache_policy(bool) { return {}; }
inline void copy_async(void* shared, const void* global, bool fetch, CachePolicy) {
  copy_async(shared, global, fetch);
}
inline void copy_async_word(void* shared, const void* global) {
  emulation::issue_copy(shared, global, 4);
}
inline void commit_copies(LOOKAHEADKV_LINE) {
  if (!emulation::has_fault(emulation::Fault::kNoCommit, file, line)) emulation::commit_copies();
}
template <int kPending>
void wait_copies(LOOKAHEADKV_LINE) {
  if (emulation::has_fault(emulation::Fault::kNoCopyWait, file, line)) return;
  const bool is_short = emulation::has_fault(emulation::Fault::kShortCopyWait, file, line);
  emulation::wait_copies(is_short ? kPending + 1 : kPending);
}
#undef LOOKAHEADKV_LINE

// --- 16 bytes at once

struct alignas(16) Bytes16 {
  uint32_t words[4];
};
struct alignas(16) Float4 {
  float v[4];
};
inline Bytes16 load_bytes16(const void* global) {
  Bytes16 bytes;
  emulation::load_16(&bytes, global);
  return bytes;
}
inline void store_bytes16(void* global, const Bytes16& bytes) {
  emulation::store_16(global, &bytes);
}

}  // namespace lookaheadkv::cuda
