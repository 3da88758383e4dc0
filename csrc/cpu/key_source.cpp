#include "cpu/key_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/isa/convert.h"
#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

namespace {

// The value of 8 bits with a sign, kExponentBits of exponent and the rest mantissa.
template <int kExponentBits>
float small_float(uint8_t bits) {
  constexpr int kMantissaBits = 7 - kExponentBits, kBias = (1 << (kExponentBits - 1)) - 1;
  const int mantissa = bits & ((1 << kMantissaBits) - 1);
  const int exponent = (bits & 0x7f) >> kMantissaBits;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), 1 - kBias - kMantissaBits)
                              : std::ldexp(static_cast<float>(mantissa + (1 << kMantissaBits)),
                                           exponent - kBias - kMantissaBits);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

// As OCP's 8-bit formats define them: E4M3 has no infinity and one NaN of each sign.
float value_of(Quantised kind, uint8_t bits) {
  const float nan = float_from_bits(0x7fc00000);
  switch (kind) {
    case Quantised::kFloat8E4M3:
      return (bits & 0x7f) == 0x7f ? nan : small_float<4>(bits);
    case Quantised::kFloat8E5M2:
      if ((bits & 0x7f) > 0x7c) return nan;
      if ((bits & 0x7f) == 0x7c) return (bits & 0x80) != 0 ? -HUGE_VALF : HUGE_VALF;
      return small_float<5>(bits);
    default:
      return static_cast<float>(static_cast<int8_t>(bits));
  }
}

template <class T>
void decode_as(const uint8_t* from, int64_t count, const uint32_t* decoded, void* to) {
  T* out = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(decoded[from[i]]);
}

void prefetch_row(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + at, 0, 2);
  }
}

}  // namespace

KeySource::KeySource(const PagedView& pages, const int32_t* blocks)
    : pages_(pages), blocks_(blocks) {
  if (pages.quantised == Quantised::kNone) return;
  for (size_t bits = 0; bits < decoded_.size(); ++bits) {
    const float value = value_of(pages.quantised, static_cast<uint8_t>(bits));
    decoded_[bits] = pages.dtype == DType::kFloat32   ? bits_from_float(value)
                     : pages.dtype == DType::kFloat16 ? fp16_from_float(value)
                                                      : bf16_from_float(value);
  }
}

// visit(block, slot, first of the n rows, how many) for each page the rows lie in.
template <class Visit>
void KeySource::for_each_run(int64_t key, int64_t n, const Visit& visit) const {
  int64_t page = key / pages_.page_size, slot = key % pages_.page_size;
  for (int64_t done = 0; done < n; ++page, slot = 0) {
    const int64_t run = std::min(pages_.page_size - slot, n - done);
    visit(blocks_[page], slot, done, run);
    done += run;
  }
}

void KeySource::decode(const uint8_t* from, int64_t count, void* to) const {
  if (pages_.dtype == DType::kFloat32) {
    decode_as<uint32_t>(from, count, decoded_.data(), to);
  } else {
    decode_as<uint16_t>(from, count, decoded_.data(), to);
  }
}

int64_t KeySource::scratch_bytes(int64_t head_dim) const {
  return blocks_ ? kKeyTile * head_dim * element_size(pages_.dtype) : 0;
}

KeyRows KeySource::rows(int64_t b, int64_t h, int64_t key, int n, int64_t head_dim,
                        void* scratch) const {
  if (!blocks_) return {dense_.row(b, h, key), dense_.stride_s};
  const bool plain = pages_.quantised == Quantised::kNone;
  const int64_t slot = key % pages_.page_size;
  if (plain && slot + n <= pages_.page_size) {
    return {pages_.row(blocks_[key / pages_.page_size], slot, h), pages_.stride_slot};
  }
  const int64_t row_bytes = head_dim * element_size(pages_.dtype);
  char* out = static_cast<char*>(scratch);
  for_each_run(key, n, [&](int64_t block, int64_t first, int64_t, int64_t run) {
    for (int64_t i = 0; i < run; ++i, out += row_bytes) {
      const void* row = pages_.row(block, first + i, h);
      if (plain) {
        std::memcpy(out, row, static_cast<size_t>(row_bytes));
      } else {
        decode(static_cast<const uint8_t*>(row), head_dim, out);
      }
    }
  });
  return {scratch, head_dim};
}

void KeySource::prefetch(int64_t b, int64_t h, int64_t begin, int64_t end, int64_t head_dim) const {
  if (!blocks_) {
    const int64_t bytes = head_dim * element_size(dense_.dtype);
    for (int64_t s = begin; s < end; ++s) prefetch_row(dense_.row(b, h, s), bytes);
    return;
  }
  const int64_t bytes = head_dim * pages_.bytes_per_element();
  for_each_run(begin, end - begin, [&](int64_t block, int64_t slot, int64_t, int64_t run) {
    for (int64_t i = 0; i < run; ++i) prefetch_row(pages_.row(block, slot + i, h), bytes);
  });
}

void KeySource::scale_logits(int64_t h, int64_t key, int n, int rows, float* s) const {
  if (!pages_.scale.data) return;
  for_each_run(key, n, [&](int64_t block, int64_t slot, int64_t done, int64_t run) {
    for (int64_t i = 0; i < run; ++i) {
      const float scale = pages_.scale.at(block, slot + i, h);
      float* logits = s + (done + i) * rows;
      for (int r = 0; r < rows; ++r) logits[r] *= scale;
    }
  });
}

}  // namespace lookaheadkv::cpu
