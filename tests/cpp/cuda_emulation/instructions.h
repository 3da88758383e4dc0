// What the emulated instructions do. It is compiled without the instrumentation that looks for
// races (races.h), which sees only what these functions tell it.
#pragma once

#include <cstdint>

namespace lookaheadkv::emulation {

// --- atomics

int atomic_add(int* word, int value);
int atomic_add_device(int32_t* word, int value);

// Between blocks: what a release and an acquire order, each of which may be left out.
int arrive(int32_t* word, bool release, bool acquire);
void publish(int32_t* word, bool release);
void wait_until_published(const int32_t* word, bool acquire);

// --- lanes of a warp: what `lane` brought

uint32_t shuffle(uint32_t value, int lane);

// --- matrices, by all lanes of a warp (the layouts are described in cuda/ptx.cuh)

void multiply_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
void multiply_fp16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
void load_matrices(uint32_t* r, const void* row, bool transposed);

// --- asynchronous copies of the running thread. They happen as late as they may: when it waits.

void start_copies(int place, int threads);  // of a new block
void end_copies(int place);
void issue_copy(void* shared, const void* global, int bytes);  // of zeros, if `global` is null
void commit_copies();
void wait_copies(int pending);

// --- 16 bytes at once

// From memory that nobody writes in this launch.
void load_16(void* to, const void* global);
void store_16(void* global, const void* from);

}  // namespace lookaheadkv::emulation
