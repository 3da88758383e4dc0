// Room 4 over a paged cache: the kept entries of every layer and head move, in place.
//
// docs/paged.md ("The hazard contract") shows why no entry is overwritten before it is read. Here
// one block moves one head of one request in one cache, in chunks: a chunk is read as a whole
// before any of it is written (a barrier separates the two), and chunks follow each other in the
// order of the contract, so that what is read later lies further on in the direction of travel. A
// chunk may cut an entry: its words move one by one, and the argument holds for each of them.
#include <algorithm>

#include "cuda/keys.cuh"
#include "cuda/launch.cuh"
#include "cuda/paged_kernels.h"

namespace lookaheadkv::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kThreadWords = 4;
constexpr int kChunkWords = kThreads * kThreadWords;
constexpr int kMostCaches = 64;  // per launch: what fits into kernel arguments

struct MovedCache {
  char* data;
  int64_t stride_block, stride_slot, stride_h;  // in bytes
  int32_t row_bytes, word;                      // bytes of an entry, and of the words it moves by
};

struct CompactParams {
  MovedCache caches[kMostCaches];
  const int32_t* indices;    // [layers, R, index_heads, K]
  const int32_t* kept_lens;  // [layers, R]
  const int32_t* dst_start;  // [layers, R], or null: 0
  const int32_t* src_table;  // [R, src_blocks]
  const int32_t* dst_table;  // [R, dst_blocks]
  int64_t src_blocks, dst_blocks;
  int32_t first_cache, parts;  // index of caches[0], caches per layer
  int32_t requests, kv_heads, index_heads, slots, num_blocks, page_size;
};
static_assert(sizeof(CompactParams) <= 4096, "more than fits into kernel arguments");

// One head of one request in one cache.
struct MovedHead {
  const CompactParams& params;
  const MovedCache& cache;
  char* data;
  const int32_t* indices;
  const int32_t *src_row, *dst_row;
  int start;

  __device__ __forceinline__ char* at(const int32_t* table, int64_t blocks, int position) const {
    const Place place = place_of(table, blocks, params.num_blocks, params.page_size, position);
    return data + place.block * cache.stride_block + place.slot * cache.stride_slot;
  }
  // Where entry j is and where it goes; null if it lies past the end of the table.
  __device__ __forceinline__ const char* source(int j) const {
    const int position = indices[j];
    if (position >= params.src_blocks * params.page_size) return nullptr;
    return at(src_row, params.src_blocks, position);
  }
  __device__ __forceinline__ char* destination(int j) const {
    const int64_t position = int64_t{start} + j;
    if (position < 0 || position >= params.dst_blocks * params.page_size) return nullptr;
    return at(dst_row, params.dst_blocks, static_cast<int>(position));
  }

  // Words `begin` .. `begin` + kChunkWords - 1 of entries first .. last - 1, laid end to end.
  template <class Word>
  __device__ __forceinline__ void move_chunk(int first, int last, int64_t begin) const {
    const int width = cache.row_bytes / static_cast<int>(sizeof(Word));
    // The chunk begins in the middle of an entry; from there on numbers are small.
    const int first_entry = first + static_cast<int>(begin / width);
    const int first_word = static_cast<int>(begin % width);
    Word held[kThreadWords];
    char* to[kThreadWords];
#pragma unroll
    for (int i = 0; i < kThreadWords; ++i) {
      const int word = first_word + i * kThreads + thread_index();
      const int j = first_entry + word / width;
      to[i] = nullptr;
      if (j >= last) continue;
      const int64_t offset = word % width * static_cast<int64_t>(sizeof(Word));
      const char* const from = source(j);
      to[i] = destination(j);
      if (from == nullptr || to[i] == nullptr) {
        to[i] = nullptr;
        continue;
      }
      held[i] = *reinterpret_cast<const Word*>(from + offset);
      to[i] += offset;
    }
    sync_threads();
#pragma unroll
    for (int i = 0; i < kThreadWords; ++i) {
      if (to[i] != nullptr) *reinterpret_cast<Word*>(to[i]) = held[i];
    }
  }

  // The first `up` entries move to higher positions, the others up to `there` to lower ones.
  template <class Word>
  __device__ __forceinline__ void move(int up, int there) const {
    const int64_t width = cache.row_bytes / static_cast<int>(sizeof(Word));
    if (width == 0) return;
    for (int64_t chunk = (up * width + kChunkWords - 1) / kChunkWords - 1; chunk >= 0; --chunk) {
      move_chunk<Word>(0, up, chunk * kChunkWords);
    }
    for (int64_t begin = 0; begin < (there - up) * width; begin += kChunkWords) {
      move_chunk<Word>(up, there, begin);
    }
  }
};

__global__ void __launch_bounds__(kThreads) compact_kv_cache_kernel(const CompactParams params) {
  start_kernel();
  const int64_t h = block_index() % params.kv_heads;
  const int64_t r = block_index() / params.kv_heads % params.requests;
  const int at = static_cast<int>(block_index() / params.kv_heads / params.requests);
  const int64_t row = (params.first_cache + at) / params.parts * int64_t{params.requests} + r;
  const MovedCache& cache = params.caches[at];
  const MovedHead head = {
      params,
      cache,
      cache.data + h * cache.stride_h,
      params.indices + (row * params.index_heads + h % params.index_heads) * params.slots,
      params.src_table + r * params.src_blocks,
      params.dst_table + r * params.dst_blocks,
      params.dst_start != nullptr ? params.dst_start[row] : 0};
  int* const counts = reinterpret_cast<int*>(shared_memory());  // moving up, there
  if (thread_index() < 2) counts[thread_index()] = 0;
  sync_threads();
  const int kept = params.kept_lens[row];
  const int count = kept < params.slots ? kept : params.slots;
  int up = 0, there = 0;
  for (int j = thread_index(); j < count; j += kThreads) {
    const int position = head.indices[j];
    there += position >= 0 ? 1 : 0;
    up += position >= 0 && position < int64_t{head.start} + j ? 1 : 0;
  }
  if (up > 0) atomic_add_shared(counts, up);
  if (there > 0) atomic_add_shared(counts + 1, there);
  sync_threads();
  up = counts[0];
  there = counts[1];
  switch (cache.word) {
    case 16:
      return head.move<Bytes16>(up, there);
    case 8:
      return head.move<uint64_t>(up, there);
    case 4:
      return head.move<uint32_t>(up, there);
    case 2:
      return head.move<uint16_t>(up, there);
    default:
      return head.move<uint8_t>(up, there);
  }
}

// With the widest words that divide the entries of a cache.
MovedCache moved_cache(const CacheBytes& cache) {
  int64_t word = 16;
  for (const int64_t number :
       {static_cast<int64_t>(reinterpret_cast<uintptr_t>(cache.data) % 16), cache.row_bytes,
        cache.stride_block, cache.stride_slot, cache.stride_h}) {
    while (number % word != 0) word /= 2;
  }
  return {cache.data,
          cache.stride_block,
          cache.stride_slot,
          cache.stride_h,
          static_cast<int32_t>(cache.row_bytes),
          static_cast<int32_t>(word)};
}

}  // namespace

void compact_kv_cache(const Compaction& compaction, const CacheBytes* caches,
                      const Device& device) {
  const int64_t count = compaction.num_layers * compaction.parts;
  if (compaction.num_slots == 0 || compaction.num_blocks == 0) return;
  if (compaction.src.max_blocks == 0 || compaction.dst.max_blocks == 0) return;
  CompactParams params = {};
  params.indices = compaction.indices;
  params.kept_lens = compaction.kept_lens;
  params.dst_start = compaction.dst_start;
  params.src_table = compaction.src.blocks;
  params.dst_table = compaction.dst.blocks;
  params.src_blocks = compaction.src.max_blocks;
  params.dst_blocks = compaction.dst.max_blocks;
  params.parts = static_cast<int32_t>(compaction.parts);
  params.requests = static_cast<int32_t>(compaction.num_requests);
  params.kv_heads = static_cast<int32_t>(compaction.num_kv_heads);
  params.index_heads = static_cast<int32_t>(compaction.index_heads);
  params.slots = static_cast<int32_t>(compaction.num_slots);
  params.num_blocks = static_cast<int32_t>(compaction.num_blocks);
  params.page_size = static_cast<int32_t>(compaction.page_size);
  for (int64_t first = 0; first < count; first += kMostCaches) {
    const int64_t members = std::min<int64_t>(kMostCaches, count - first);
    params.first_cache = static_cast<int32_t>(first);
    for (int64_t i = 0; i < members; ++i) params.caches[i] = moved_cache(caches[first + i]);
    launch(compact_kv_cache_kernel, members * compaction.num_requests * compaction.num_kv_heads,
           kThreads, 2 * 4, static_cast<Stream>(device.stream), false, params);
  }
}

}  // namespace lookaheadkv::cuda
