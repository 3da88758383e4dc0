// Counting, and tensors, for the C++ tests.
#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cpu/isa/convert.h"

namespace lookaheadkv::cpu {

namespace {
int passed = 0, failed = 0;
}

void check(bool ok, const std::string& what) {
  (ok ? passed : failed) += 1;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

int summary() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

double decode(const char* element, DType dtype) {
  if (dtype == DType::kFloat32) {
    float value;
    std::memcpy(&value, element, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  const int mantissa_bits = dtype == DType::kFloat16 ? 10 : 7;
  const int exponent_bits = 15 - mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
  } else {
    value = std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  }
  return (bits >> 15) != 0 ? -value : value;
}

StridedTensor::StridedTensor(DType dtype, Layout layout, int64_t batch, int64_t heads,
                             int64_t length, int64_t dim, std::mt19937& random)
    : dtype_(dtype), heads_(heads), length_(length), dim_(dim), size_(element_size(dtype)) {
  stride_s_ = dim;
  stride_h_ = length * dim;
  stride_b_ = heads * length * dim;
  switch (layout) {
    case Layout::kContiguous:
      break;
    case Layout::kSequenceFirst:  // [B, S, H, D]
      stride_h_ = dim;
      stride_s_ = heads * dim;
      break;
    case Layout::kPitched:  // odd: rows of 16-bit elements are not even aligned to 4 bytes
      stride_s_ = dim + 3;
      stride_h_ = length * stride_s_ + 5;
      stride_b_ = heads * stride_h_ + 1;
      break;
    case Layout::kReversed:
      stride_s_ = -dim;
      stride_h_ = -length * dim;
      origin_ = batch > 0 ? heads * length * dim - dim : 0;
      break;
    case Layout::kExpandedHeads:
      stride_h_ = 0;
      stride_b_ = length * dim;
      break;
  }
  int64_t elements = 0;
  for (int64_t b : {int64_t{0}, batch - 1}) {
    for (int64_t h : {int64_t{0}, heads - 1}) {
      for (int64_t s : {int64_t{0}, length - 1}) {
        if (b < batch && b >= 0) elements = std::max(elements, offset(b, h, s) / size_ + dim);
      }
    }
  }
  storage_.assign(static_cast<size_t>(elements * size_), '\xff');  // a NaN in every dtype
  values_.resize(static_cast<size_t>(batch * heads * length * dim));
  std::normal_distribution<float> normal;
  const int64_t own_heads = layout == Layout::kExpandedHeads ? 1 : heads;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < own_heads; ++h) {
      for (int64_t s = 0; s < length; ++s) {
        for (int64_t c = 0; c < dim; ++c) {
          store_float(storage_.data() + offset(b, h, s), c, dtype, normal(random));
        }
      }
    }
  }
  double* value = values_.data();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = 0; s < length; ++s) {
        for (int64_t c = 0; c < dim; ++c) *value++ = decode(row_bytes(b, h, s) + c * size_, dtype);
      }
    }
  }
}

void StridedTensor::fill_with_nan(int64_t b, int64_t begin, int64_t end) {
  for (int64_t h = 0; h < heads_; ++h) {
    for (int64_t s = begin; s < end; ++s) {
      std::memset(storage_.data() + offset(b, h, s), 0xff, static_cast<size_t>(row_size()));
    }
  }
}

TensorView StridedTensor::view() const {
  return {storage_.data() + origin_ * size_, dtype_, stride_b_, stride_h_, stride_s_};
}

}  // namespace lookaheadkv::cpu
