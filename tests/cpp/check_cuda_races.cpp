// The detector of races itself: small kernels, each with one fault that has to be reported, and the
// same kernels without it, of which nothing may be. Under every schedule: a race does not depend on
// it.
#include "check_cuda.h"
#include "cuda/launch.cuh"
#include "races.h"

namespace lookaheadkv::cuda {

using cpu::check;

namespace {

constexpr int kThreads = 64;  // two warps

// What the kernels work on, in device memory.
struct Arrays {
  float* from;    // [2 * kThreads]
  float* to;      // [2 * kThreads]
  int32_t* word;  // [4], zero
};
using Kernel = void (*)(Arrays);

float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }
float* own_copy() { return shared_floats() + 4 * thread_index(); }
int other_warp() { return thread_index() ^ 32; }

// A thread reads what one of the other warp wrote.
template <bool kRight>
void barrier_kernel(Arrays a) {
  start_kernel();
  float* const shared = shared_floats();
  shared[thread_index()] = a.from[thread_index()];
  if (kRight) sync_threads();
  a.to[thread_index()] = shared[other_warp()];
}

// The next round writes what others may still read.
template <bool kRight>
void reuse_kernel(Arrays a) {
  start_kernel();
  float* const shared = shared_floats();
  for (int round = 0; round < 2; ++round) {
    if (kRight) sync_threads();
    shared[thread_index()] = a.from[round * kThreads + thread_index()];
    sync_threads();
    a.to[round * kThreads + thread_index()] = shared[other_warp()];
  }
}

// Lanes of one warp, between which a shuffle orders nothing.
template <bool kRight>
void shuffle_kernel(Arrays a) {
  start_kernel();
  float* const shared = shared_floats();
  shared[thread_index()] = a.from[thread_index()];
  shuffle_xor(1.0f, 1);
  if (kRight) sync_threads();
  a.to[thread_index()] = shared[thread_index() ^ 1];
}

// So does a matrix load, which reads what other lanes wrote.
template <bool kRight>
void matrix_kernel(Arrays a) {
  start_kernel();
  auto* const rows = reinterpret_cast<uint16_t*>(shared_memory());  // [2 warps, 8, 8]
  const int lane = thread_index() % 32;
  uint16_t* const own = rows + thread_index() / 32 * 64;
  own[lane] = own[lane + 32] = static_cast<uint16_t>(lane);
  if (kRight) sync_threads();
  uint32_t r[4];
  load_matrices(r, own + lane % 8 * 8);
  a.to[thread_index()] = static_cast<float>(r[0]);
}

// Two threads add to one word.
template <bool kRight>
void count_kernel(Arrays a) {
  start_kernel();
  int* const count = reinterpret_cast<int*>(shared_memory());
  if (thread_index() == 0) *count = 0;
  sync_threads();
  if (kRight) {
    atomic_add_shared(count, 1);
  } else {
    *count += 1;
  }
  sync_threads();
  a.to[thread_index()] = static_cast<float>(*count);
}

// Who reads a count has to know that all have counted.
template <bool kRight>
void total_kernel(Arrays a) {
  start_kernel();
  int* const count = reinterpret_cast<int*>(shared_memory());
  if (thread_index() == 0) *count = 0;
  sync_threads();
  atomic_add_shared(count, 1);
  if (kRight) sync_threads();
  a.to[thread_index()] = static_cast<float>(*count);
}

// A copy is read before its own thread has waited.
template <bool kRight>
void copy_kernel(Arrays a) {
  start_kernel();
  copy_async(own_copy(), a.from, true);
  commit_copies();
  if (kRight) wait_copies<0>();
  a.to[thread_index()] = own_copy()[0];
  wait_copies<0>();
}

// It has waited for one group too few.
template <bool kRight>
void groups_kernel(Arrays a) {
  start_kernel();
  copy_async(own_copy(), a.from, true);
  commit_copies();
  copy_async(own_copy() + 4 * kThreads, a.from + 4, true);
  commit_copies();
  wait_copies<kRight ? 0 : 1>();
  a.to[thread_index()] = own_copy()[4 * kThreads];
  wait_copies<0>();
}

// A thread has waited for its own copies alone, and reads those of the other warp.
template <bool kRight>
void copies_kernel(Arrays a) {
  start_kernel();
  copy_async(own_copy(), a.from, true);
  commit_copies();
  wait_copies<0>();
  if (kRight) sync_threads();
  a.to[thread_index()] = shared_floats()[4 * other_warp()];
}

// The next copy is issued while others may still read the one before.
template <bool kRight>
void stage_kernel(Arrays a) {
  start_kernel();
  for (int round = 0; round < 2; ++round) {
    if (kRight) sync_threads();
    copy_async(own_copy(), a.from + 4 * round, true);
    commit_copies();
    wait_copies<0>();
    sync_threads();
    a.to[round * kThreads + thread_index()] = shared_floats()[4 * other_warp()];
  }
}

// What is being copied changes.
template <bool kRight>
void source_kernel(Arrays a) {
  start_kernel();
  float* const own = a.from + block_index() * kThreads;
  if (thread_index() < 16) copy_async(own_copy(), own + 4 * thread_index(), true);
  commit_copies();
  if (kRight) wait_copies<0>();
  if (thread_index() < 16) own[4 * thread_index()] = 1.0f;
  wait_copies<0>();
}

// Device memory is read before the kernel before this one has ended.
template <bool kRight>
void start_too_late_kernel(Arrays a) {
  if (kRight) start_kernel();
  const float value = a.from[thread_index()];
  start_kernel();
  a.to[block_index() * kThreads + thread_index()] = value;
}

// Block 1 reads what block 0 wrote. kRelease: the barrier between the block's writes and the
// publication; kAcquire: the one between the wait and the other threads' reads; kWait: the wait.
template <bool kRelease, bool kAcquire, bool kWait>
void publish_kernel(Arrays a) {
  start_kernel();
  int* const ticket = reinterpret_cast<int*>(shared_memory());
  if (thread_index() == 0) *ticket = atomic_add_device(a.word, 1);
  sync_threads();
  if (*ticket == 0) {
    a.from[thread_index()] = 2.0f;
    if (kRelease) sync_threads();
    if (thread_index() == 0) publish(a.word + 1);
    return;
  }
  if (kWait && thread_index() == 0) wait_until_published(a.word + 1);
  if (kAcquire) sync_threads();
  a.to[thread_index()] = a.from[other_warp()];
}
template <bool kRight>
void early_publish_kernel(Arrays a) {
  publish_kernel<kRight, true, true>(a);
}
template <bool kRight>
void early_read_kernel(Arrays a) {
  publish_kernel<true, kRight, true>(a);
}
template <bool kRight>
void unawaited_kernel(Arrays a) {
  publish_kernel<true, true, kRight>(a);
}

// The thread that publishes writes once more.
template <bool kRight>
void late_write_kernel(Arrays a) {
  start_kernel();
  if (thread_index() != 0) return;
  if (atomic_add_device(a.word, 1) == 0) {
    if (kRight) a.from[0] = 2.0f;
    publish(a.word + 1);
    if (!kRight) a.from[0] = 2.0f;
  } else {
    wait_until_published(a.word + 1);
    a.to[0] = a.from[0];
  }
}

// The last block to arrive adds up what both left.
template <bool kRight>
void last_block_kernel(Arrays a) {
  start_kernel();
  int* const before = reinterpret_cast<int*>(shared_memory());
  a.from[block_index() * kThreads + thread_index()] = 3.0f;
  sync_threads();
  if (thread_index() == 0) *before = kRight ? arrive(a.word) : atomic_add_device(a.word, 1);
  sync_threads();
  if (*before == 1) {
    a.to[thread_index()] = a.from[thread_index()] + a.from[kThreads + thread_index()];
  }
}

// Two blocks write one word.
template <bool kRight>
void same_word_kernel(Arrays a) {
  start_kernel();
  if (thread_index() == 0) a.to[kRight ? block_index() : 0] = 1.0f;
}

// Neighbouring bytes are not one place: halves of a word by two threads, and by two blocks.
template <bool kRight>
void halves_kernel(Arrays a) {
  start_kernel();
  auto* const halves = reinterpret_cast<uint16_t*>(a.to);
  const int64_t at = 2 * thread_index() + block_index();
  halves[kRight ? at : at / 2] = 1;
}

// Read through the read-only cache, which does not see what this launch writes.
template <bool kRight>
void read_only_kernel(Arrays a) {
  start_kernel();
  if (thread_index() != 0 || block_index() != 0) return;
  a.from[0] = 1.0f;
  float v[4];
  if (kRight) {
    v[0] = a.from[0];
  } else {
    const Bytes16 bytes = load_bytes16(a.from);
    std::memcpy(v, &bytes, sizeof(v));
  }
  a.to[0] = v[0];
}

struct Pair {
  const char* name;
  Kernel wrong, right;
  int64_t blocks;
};

std::vector<std::string> reports_of(Kernel kernel, int64_t blocks) {
  std::vector<float> from(2 * kThreads + 16, 1.0f), to(from);
  std::vector<int32_t> word(4, 0);
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, from.size() * sizeof(float)) != 0) std::abort();
  std::memcpy(memory, from.data(), from.size() * sizeof(float));
  const Arrays arrays = {static_cast<float*>(memory), to.data(), word.data()};
  launch(kernel, blocks, kThreads, 8 * kThreads * 4, nullptr, false, arrays);
  std::free(memory);
  return emulation::races::take_reports();
}

#define LOOKAHEADKV_PAIR(kernel, blocks) {#kernel, kernel<false>, kernel<true>, blocks}

}  // namespace

void check_detector() {
  if (!emulation::races::enabled()) return;
  const Pair pairs[] = {
      LOOKAHEADKV_PAIR(barrier_kernel, 1),       LOOKAHEADKV_PAIR(reuse_kernel, 1),
      LOOKAHEADKV_PAIR(shuffle_kernel, 1),       LOOKAHEADKV_PAIR(matrix_kernel, 1),
      LOOKAHEADKV_PAIR(count_kernel, 1),         LOOKAHEADKV_PAIR(total_kernel, 1),
      LOOKAHEADKV_PAIR(copy_kernel, 1),          LOOKAHEADKV_PAIR(groups_kernel, 1),
      LOOKAHEADKV_PAIR(copies_kernel, 1),        LOOKAHEADKV_PAIR(stage_kernel, 1),
      LOOKAHEADKV_PAIR(source_kernel, 2),        LOOKAHEADKV_PAIR(start_too_late_kernel, 2),
      LOOKAHEADKV_PAIR(early_publish_kernel, 2), LOOKAHEADKV_PAIR(early_read_kernel, 2),
      LOOKAHEADKV_PAIR(unawaited_kernel, 2),     LOOKAHEADKV_PAIR(late_write_kernel, 2),
      LOOKAHEADKV_PAIR(last_block_kernel, 2),    LOOKAHEADKV_PAIR(same_word_kernel, 2),
      LOOKAHEADKV_PAIR(halves_kernel, 2),        LOOKAHEADKV_PAIR(read_only_kernel, 1)};
  for (const Pair& pair : pairs) {
    // Every launch has a schedule of its own.
    for (int turn = 0; turn < 12; ++turn) {
      const std::string name = std::string(pair.name) + " turn " + std::to_string(turn);
      check(!reports_of(pair.wrong, pair.blocks).empty(), name + ": the race is reported");
      const std::vector<std::string> reports = reports_of(pair.right, pair.blocks);
      check(reports.empty(), name + " without the race: " + (reports.empty() ? "" : reports[0]));
    }
  }
}

namespace {

// Blocks wait for the one with the next index, which need not have started.
void untidy_kernel(int32_t* words) {
  start_kernel();
  if (thread_index() != 0) return;
  const int64_t next = (block_index() + 1) % 8;
  if (next != 0) wait_until_published(words + next);
  publish(words + block_index());
}

// Nobody publishes.
void hanging_kernel(int32_t* words) {
  start_kernel();
  if (thread_index() == 0) wait_until_published(words);
  sync_threads();
}

}  // namespace

// Ends the program: a block that waits for one that cannot start.
void check_deadlock() {
  emulation::always_interleave(1);
  std::vector<int32_t> words(8, 0);
  launch(untidy_kernel, 8, 32, 0, nullptr, false, words.data());
  check(false, "blocks that wait for later ones are found");
}
void check_hang() {
  std::vector<int32_t> words(8, 0);
  launch(hanging_kernel, 2, 32, 0, nullptr, false, words.data());
  check(false, "a block that waits for nobody is found");
}

}  // namespace lookaheadkv::cuda
