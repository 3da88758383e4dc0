#include "instructions.h"

#include <cstddef>
#include <cstring>
#include <vector>

#include "cpu/isa/convert.h"
#include "fibers.h"
#include "races.h"

namespace lookaheadkv::emulation {

namespace {

constexpr int kLanes = 32;

// --- lanes of a warp

struct Exchange {
  uint32_t value, result;
  int lane;
};

void exchange(void* const* operands) {
  for (int i = 0; i < kLanes; ++i) {
    auto* const to = static_cast<Exchange*>(operands[i]);
    to->result = static_cast<const Exchange*>(operands[to->lane % kLanes])->value;
  }
}

// --- matrices

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};

using Decode = float (*)(uint16_t bits);
template <Decode kDecode>
float half_of(uint32_t two, int which) {
  return kDecode(static_cast<uint16_t>(two >> (16 * which)));
}

template <Decode kDecode>
__attribute__((no_sanitize("address", "undefined"))) void multiply(void* const* operands) {
  float a[16][16], b[8][16], d[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Product*>(operands[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      for (int which = 0; which < 2; ++which) {
        a[group + i % 2 * 8][pair + i / 2 * 8 + which] = half_of<kDecode>(mine.a[i], which);
      }
      d[group + i / 2 * 8][pair + i % 2] = mine.d[i];
    }
    for (int which = 0; which < 2; ++which) {
      b[group][pair + which] = half_of<kDecode>(mine.b0, which);
      b[group][pair + 8 + which] = half_of<kDecode>(mine.b1, which);
    }
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[i][k] * b[j][k];
      d[i][j] += sum;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Product*>(operands[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) mine.d[i] = d[group + i / 2 * 8][pair + i % 2];
  }
}

struct MatrixLoad {
  uint32_t* r;
  const void* row;
};

template <bool kTransposed>
void load_four(void* const* operands) {
  uint16_t m[4][8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    std::memcpy(m[lane / 8][lane % 8], static_cast<const MatrixLoad*>(operands[lane])->row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t* const r = static_cast<const MatrixLoad*>(operands[lane])->r;
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const uint16_t low = kTransposed ? m[i][pair][group] : m[i][group][pair];
      const uint16_t high = kTransposed ? m[i][pair + 1][group] : m[i][group][pair + 1];
      r[i] = low | static_cast<uint32_t>(high) << 16;
    }
  }
}

// --- copies

struct Copy {
  char* to;
  const char* from;  // null: zeros
  int bytes;
  races::Moment issued;
};
struct ThreadCopies {
  std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);  // the last one open
};
std::vector<ThreadCopies> copies[kMostResident];

int add(int* word, int value, const void* code) {
  races::atomic(word, sizeof(*word), code);
  const int before = *word;
  *word += value;
  return before;
}

ThreadCopies& own_copies() { return copies[running().place][running().thread]; }

void require_aligned(const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) != 0) {
    fail(bytes == 16 ? "needs 16 aligned bytes" : "needs an aligned word");
  }
}
void require_shared(const void* address, int bytes) {
  require_aligned(address, bytes);
  const char* const at = static_cast<const char*>(address);
  const char* const begin = running().shared;
  if (at < begin || at + bytes > begin + running().shared_bytes) fail("leaves the shared memory");
}

}  // namespace

int atomic_add(int* word, int value) { return add(word, value, __builtin_return_address(0)); }

int atomic_add_device(int32_t* word, int value) {
  yield();
  return add(word, value, __builtin_return_address(0));
}

int arrive(int32_t* word, bool release, bool acquire) {
  yield();
  races::atomic(word, sizeof(*word), __builtin_return_address(0));
  if (release) races::release(word, true);
  if (acquire) races::acquire(word);
  return (*word)++;
}

void publish(int32_t* word, bool release) {
  yield();
  races::atomic(word, sizeof(*word), __builtin_return_address(0));
  if (release) races::release(word, false);
  *word = 1;
}

void wait_until_published(const int32_t* word, bool acquire) {
  yield();
  races::atomic(word, sizeof(*word), __builtin_return_address(0));
  wait_until_set(word);
  if (acquire) races::acquire(word);
}

uint32_t shuffle(uint32_t value, int lane) {
  Exchange mine = {value, value, lane};
  meet_warp(&exchange, &mine);
  return mine.result;
}

void multiply_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  Product mine = {d, a, b0, b1};
  meet_warp(&multiply<cpu::float_from_bf16>, &mine);
}

void multiply_fp16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  Product mine = {d, a, b0, b1};
  meet_warp(&multiply<cpu::float_from_fp16>, &mine);
}

void load_matrices(uint32_t* r, const void* row, bool transposed) {
  require_shared(row, 16);
  races::read(row, 16, __builtin_return_address(0));
  MatrixLoad mine = {r, row};
  meet_warp(transposed ? &load_four<true> : &load_four<false>, &mine);
}

void start_copies(int place, int threads) {
  copies[place].assign(static_cast<size_t>(threads), ThreadCopies());
}

void end_copies(int place) {
  for (const ThreadCopies& of_thread : copies[place]) {
    for (const auto& group : of_thread.groups) {
      if (!group.empty()) fail("or another of its block ended without waiting for its copies");
    }
  }
}

void issue_copy(void* shared, const void* global, int bytes) {
  require_shared(shared, bytes);
  if (global != nullptr) require_aligned(global, bytes);
  const races::Moment issued =
      races::copy_issued(shared, global, static_cast<size_t>(bytes), __builtin_return_address(0));
  own_copies().groups.back().push_back(
      {static_cast<char*>(shared), static_cast<const char*>(global), bytes, issued});
}

void commit_copies() { own_copies().groups.emplace_back(); }

void wait_copies(int pending) {
  auto& groups = own_copies().groups;
  while (static_cast<int>(groups.size()) > pending + 1) {
    for (const Copy& copy : groups.front()) {
      const auto bytes = static_cast<size_t>(copy.bytes);
      races::copy_waited(copy.to, copy.from, bytes, copy.issued);
      if (copy.from != nullptr) {
        std::memcpy(copy.to, copy.from, bytes);
      } else {
        std::memset(copy.to, 0, bytes);
      }
    }
    groups.erase(groups.begin());
  }
}

void load_16(void* to, const void* global) {
  require_aligned(global, 16);
  races::read_unchanging(global, 16, __builtin_return_address(0));
  std::memcpy(to, global, 16);
}

void store_16(void* global, const void* from) {
  require_aligned(global, 16);
  races::write(global, 16, __builtin_return_address(0));
  std::memcpy(global, from, 16);
}

}  // namespace lookaheadkv::emulation
