// Where the keys of a call lie: in one tensor, or in the pages of a cache. The kernels of attention
// and scores are compiled for both.
#pragma once

#include "cuda/problem.cuh"

namespace lookaheadkv::cuda {

// Eight elements from an address that is aligned to one element only.
template <class T>
__device__ __forceinline__ Bytes16 load_elements(const T* from) {
  Bytes16 bytes;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bytes.words[i] = static_cast<uint32_t>(from[2 * i].bits) |
                     (static_cast<uint32_t>(from[2 * i + 1].bits) << 16);
  }
  return bytes;
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float* from, bool vector) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (vector) {
      const Float4 four = *reinterpret_cast<const Float4*>(from + 4 * half);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[4 * half + i] = four.v[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[4 * half + i] = from[4 * half + i];
    }
  }
}
template <class T>
__device__ __forceinline__ void load_eight(float (&to)[8], const T* from, bool vector) {
  if (vector) {
    const Bytes16 bytes = load_bytes16(from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      to[i] = to_float(T{static_cast<uint16_t>(bytes.words[i / 2] >> (16 * (i % 2)))});
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = to_float(from[i]);
  }
}

// Copies the eight elements at `from` to the 16 bytes at `to` (in shared memory); zeros unless
// `fetch`.
template <class T, class... Policy>
__device__ __forceinline__ void copy_eight(char* to, const T* from, bool vector, bool fetch,
                                           Policy... policy) {
  if (vector) {
    copy_async(to, from, fetch, policy...);
  } else {
    *reinterpret_cast<Bytes16*>(to) = fetch ? load_elements(from) : Bytes16{};
  }
}

// Keys (or values) of one head in a tensor.
template <class T>
struct TensorRows {
  static constexpr bool kStrided = true;
  const T* rows;
  int64_t stride;
  bool vector;

  __device__ __forceinline__ TensorRows(const Head& head, const DeviceTensor& tensor)
      : rows(head.of<T>(tensor)), stride(tensor.stride_s), vector(tensor.vector) {}

  __device__ __forceinline__ const T* at(int j, int column) const {
    return rows + j * stride + column;
  }
  // Elements column .. column + 7 of key j to shared memory.
  __device__ __forceinline__ void copy(char* to, int j, int column, bool fetch) const {
    copy_eight(to, fetch ? rows + j * stride + column : rows, vector, fetch);
  }
  // The same for a known address, if every row is aligned.
  __device__ __forceinline__ void copy_aligned(char* to, const T* from, bool fetch) const {
    copy_async(to, from, fetch);
  }
  __device__ __forceinline__ void load(float (&to)[8], int j, int column) const {
    load_eight(to, rows + j * stride + column, vector);
  }
};

// Values of one head. The second sweep over the keys should find them in the L2 cache; values are
// not read again, if one block reads all of a key's, so they should be evicted first.
template <class T>
struct ValueRows : TensorRows<T> {
  CachePolicy policy;

  __device__ __forceinline__ ValueRows(const Head& head, bool once)
      : TensorRows<T>(head, head.p.value), policy(cache_policy(once)) {}

  __device__ __forceinline__ void copy(char* to, int j, int column, bool fetch) const {
    copy_eight(to, fetch ? this->at(j, column) : this->rows, this->vector, fetch, policy);
  }
  __device__ __forceinline__ void copy_aligned(char* to, const T* from, bool fetch) const {
    copy_async(to, from, fetch, policy);
  }
};

// --- pages

// What plan_kernel works out about every request (paged_plan.cu).
struct DeviceBatchPlan {
  const int32_t* fields;  // [kRequestFields, requests]
  int32_t requests;

  __device__ __forceinline__ int32_t get(int field, int64_t r) const {
    return fields[field * static_cast<int64_t>(requests) + r];
  }
};
enum RequestField { kFirstRow, kRows, kPrompt, kCount, kAppended, kRequestFields };

// A paged cache of keys; strides in elements.
struct DevicePages {
  const char* data;
  int64_t stride_block, stride_slot, stride_h;
  bool vector;        // every row begins at a multiple of 16 bytes (8, if quantised)
  int32_t quantised;  // as Quantised in core/paged.h
  const float* scale;
  int64_t scale_block, scale_slot, scale_h;
  const int32_t* table;  // [R, max_blocks]
  int64_t max_blocks;
  int32_t num_blocks, page_size;
  DeviceBatchPlan plan;
};

struct Place {
  int64_t block, slot;
};

// The place of position j of a request, from its row of the block table; ids out of range are
// clamped.
__device__ __forceinline__ Place place_of(const int32_t* table, int64_t max_blocks, int num_blocks,
                                          int page_size, int j) {
  const int64_t page = j / page_size;
  int block = table[page < max_blocks ? page : max_blocks - 1];
  block = block < 0 ? 0 : block < num_blocks ? block : num_blocks - 1;
  return {block, j % page_size};
}

// The number that a quantised byte represents.
__device__ __forceinline__ float number_of(uint32_t byte, int quantised) {
  if (quantised == 3) return static_cast<float>(static_cast<int8_t>(byte));
  if (quantised == 2) return to_float(fp16{static_cast<uint16_t>(byte << 8)});
  // The exponent of e4m3 is a part of fp16's, 8 too low.
  const uint32_t half = (byte & 0x80) << 8 | (byte & 0x7f) << 7;
  const float number = to_float(fp16{static_cast<uint16_t>(half)}) * 256.0f;
  return (byte & 0x7f) == 0x7f ? NAN : number;
}

// Keys of one head of one request.
template <class T>
struct PagedRows {
  static constexpr bool kStrided = false;
  const DevicePages& pages;
  const char* rows;      // the head's
  const int32_t* table;  // the request's
  const float* scale;    // the head's

  __device__ __forceinline__ PagedRows(const Head& head, const DevicePages& all)
      : pages(all),
        rows(all.data + head.h * all.stride_h * (all.quantised != 0 ? 1 : int64_t{sizeof(T)})),
        table(all.table + head.b * all.max_blocks),
        scale(all.scale + head.h * all.scale_h) {}

  __device__ __forceinline__ Place place(int j) const {
    return place_of(table, pages.max_blocks, pages.num_blocks, pages.page_size, j);
  }
  __device__ __forceinline__ int64_t offset(const Place& at, int column) const {
    return at.block * pages.stride_block + at.slot * pages.stride_slot + column;
  }
  // What the logits of key j are multiplied by (InWeightedPages).
  __device__ __forceinline__ float weight(int j) const {
    const Place at = place(j);
    return scale[at.block * pages.scale_block + at.slot * pages.scale_slot];
  }
  // Eight quantised elements of a row, exactly: their scale multiplies the logits.
  __device__ __forceinline__ void numbers(float (&to)[8], const Place& at, int column) const {
    const auto* const bytes = reinterpret_cast<const uint8_t*>(rows) + offset(at, column);
    uint32_t words[2] = {};
    if (pages.vector) {
      words[0] = reinterpret_cast<const uint32_t*>(bytes)[0];
      words[1] = reinterpret_cast<const uint32_t*>(bytes)[1];
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) words[i / 4] |= static_cast<uint32_t>(bytes[i]) << (8 * (i % 4));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      to[i] = number_of(words[i / 4] >> (8 * (i % 4)) & 0xff, pages.quantised);
    }
  }

  __device__ __forceinline__ void copy(char* to, int j, int column, bool fetch) const {
    const Place at = fetch ? place(j) : Place{0, 0};
    if (pages.quantised == 0) {
      const T* const head = reinterpret_cast<const T*>(rows);
      copy_eight(to, fetch ? head + offset(at, column) : head, pages.vector, fetch);
      return;
    }
    float eight[8] = {};
    if (fetch) numbers(eight, at, column);
    Bytes16 bytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) bytes.words[i] = pack<T>(eight[2 * i], eight[2 * i + 1]);
    *reinterpret_cast<Bytes16*>(to) = bytes;
  }
  __device__ __forceinline__ void load(float (&to)[8], int j, int column) const {
    const Place at = place(j);
    if (pages.quantised != 0) return numbers(to, at, column);
    load_eight(to, reinterpret_cast<const T*>(rows) + offset(at, column), pages.vector);
  }
};

// --- where keys lie, as template arguments: each gives a block its own problem and its key rows

struct InTensor {
  static constexpr bool kPaged = false, kWeighted = false;
  using Problem = const DeviceProblem&;

  template <class T>
  __device__ __forceinline__ static Problem problem(const DeviceProblem& p, const DevicePages&,
                                                    int64_t) {
    return p;
  }
  template <class T>
  __device__ __forceinline__ static TensorRows<T> keys(const Head& head, const DevicePages&) {
    return {head, head.p.key};
  }
};

struct InPages {
  static constexpr bool kPaged = true, kWeighted = false;
  using Problem = const DeviceProblem;

  // The request as a problem of its own, with as many rows and keys as it has. One without rows
  // has no keys either.
  template <class T>
  __device__ __forceinline__ static DeviceProblem problem(const DeviceProblem& p,
                                                          const DevicePages& pages, int64_t unit) {
    DeviceProblem own = p;
    const int64_t r = unit / p.kv_heads, h = unit % p.kv_heads;
    const int rows = pages.plan.get(kRows, r);
    own.num_rows = rows > 0 ? rows : 1;
    own.num_prompt = rows > 0 ? pages.plan.get(kPrompt, r) : 0;
    own.folded = p.group * rows;
    own.query.data +=
        pages.plan.get(kFirstRow, r) * p.query.stride_s * static_cast<int64_t>(sizeof(T));
    if (pages.scale != nullptr) own.scale_log2 *= pages.scale[h * pages.scale_h];
    return own;
  }
  template <class T>
  __device__ __forceinline__ static PagedRows<T> keys(const Head& head, const DevicePages& pages) {
    return {head, pages};
  }
};

// Where every entry of a head has a scale of its own, which multiplies the logits of its key.
struct InWeightedPages : InPages {
  static constexpr bool kWeighted = true;

  template <class T>
  __device__ __forceinline__ static DeviceProblem problem(const DeviceProblem& p, DevicePages pages,
                                                          int64_t unit) {
    pages.scale = nullptr;
    return InPages::problem<T>(p, pages, unit);
  }
};

}  // namespace lookaheadkv::cuda
