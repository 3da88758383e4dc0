// Every instruction and builtin of the GPU that the kernels use, and nothing else: the emulation in
// tests/cpp/cuda_emulation has the same functions in plain C++, so that the kernels' own sources
// run on a CPU. Fragment layouts are those of the PTX ISA ("Matrix Fragments for mma.m16n8k16").
#pragma once

#include <cstdint>

namespace lookaheadkv::cuda {

// 16-bit storage types. Arithmetic is in float; these are only converted.
struct fp16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// --- places and barriers

// Shared memory of a multiprocessor. It decides how many registers a thread may have if several
// blocks share a multiprocessor. (The host does not use it.)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800
constexpr int kMultiprocessorBytes = 164 * 1024;
#elif __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
constexpr int kMultiprocessorBytes = 228 * 1024;
#else
constexpr int kMultiprocessorBytes = 100 * 1024;
#endif

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }

// The block's dynamic shared memory.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char bytes[];
  return bytes;
}

__device__ __forceinline__ void sync_threads() { __syncthreads(); }

// Every kernel calls this first. With programmatic dependent launch (Hopper and newer) it waits
// until the kernels launched before have finished their writes, and lets the next kernel start as
// soon as there is room. After an ordinary launch there is nothing to wait for.
__device__ __forceinline__ void start_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// --- lanes of a warp, all of which call

template <class V>
__device__ __forceinline__ V shuffle(V value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <class V>
__device__ __forceinline__ V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// The lowest `delta` lanes keep their value.
template <class V>
__device__ __forceinline__ V shuffle_up(V value, int delta) {
  return __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(delta));
}

// --- arithmetic

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ uint32_t float_bits(float x) { return __float_as_uint(x); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(fp16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Two floats, rounded to nearest even, as one register of a fragment; `low` comes first in memory.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
__device__ __forceinline__ uint32_t pack<fp16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ int atomic_add_shared(int* address, int value) {
  return atomicAdd(address, value);
}

// --- between blocks, by words of device memory

// Returns the old value of the word.
__device__ __forceinline__ int atomic_add_device(int32_t* word, int value) {
  return atomicAdd(word, value);
}
// Release-adds 1 to `word` and returns its old value; call it after a block barrier. Writes made
// before that barrier are visible, after their next block barrier, to blocks that add later.
__device__ __forceinline__ int arrive(int32_t* word) {
  int before;
  __threadfence();
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(word))
               : "memory");
  return before;
}
// Release-sets `word` to 1; call it after a block barrier. Writes made before that barrier are
// visible to blocks that wait for the word.
__device__ __forceinline__ void publish(int32_t* word) {
  __threadfence();
  asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(__cvta_generic_to_global(word))
               : "memory");
}
// Acquire-waits until `word` is published. After the next block barrier all threads see what was
// written before it was.
__device__ __forceinline__ void wait_until_published(const int32_t* word) {
  int value;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                 : "=r"(value)
                 : "l"(__cvta_generic_to_global(word))
                 : "memory");
  } while (value == 0);
}

// --- matrix instructions

// d [16, 8] += a [16, 16] b [16, 8]. With group = lane / 4 and pair = 2 * (lane % 4), a lane holds
//   d: (group, pair), (group, pair + 1), (group + 8, pair), (group + 8, pair + 1)
//   a: two columns from (group, pair), (group + 8, pair), (group, pair + 8), (group + 8, pair + 8)
//   b: two rows of column `group`, from pair and from pair + 8.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    bf16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    fp16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit elements. Lane i names row i % 8 of matrix i / 8 (16 bytes,
// aligned) and gets, in r[m], elements (lane / 4, 2 * (lane % 4)) and the next of matrix m.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// --- asynchronous copies to shared memory

// 16 aligned bytes from device memory, past L1; zeros, and nothing read, unless `fetch`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool fetch) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(fetch ? 16 : 0)
               : "memory");
}
// The L2 cache's eviction priority for what a copy reads: normal, or first, for data read only
// once.
struct CachePolicy {
  uint64_t bits;
};
__device__ __forceinline__ CachePolicy cache_policy(bool once) {
  uint64_t usual, first;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(usual));
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  return {once ? first : usual};
}
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool fetch,
                                           CachePolicy policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(fetch ? 16 : 0), "l"(policy.bits)
               : "memory");
}
// One aligned word.
__device__ __forceinline__ void copy_async_word(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
// Ends this thread's current group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the `kPending` latest groups of this thread are in flight.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- 16 bytes at once

struct alignas(16) Bytes16 {
  uint32_t words[4];
};
struct alignas(16) Float4 {
  float v[4];
};
// Read once, from memory that no thread of this kernel writes.
__device__ __forceinline__ Bytes16 load_bytes16(const void* global) {
  const uint4 v = __ldg(static_cast<const uint4*>(global));
  return {{v.x, v.y, v.z, v.w}};
}
__device__ __forceinline__ void store_bytes16(void* global, const Bytes16& bytes) {
  *static_cast<uint4*>(global) =
      make_uint4(bytes.words[0], bytes.words[1], bytes.words[2], bytes.words[3]);
}

}  // namespace lookaheadkv::cuda
