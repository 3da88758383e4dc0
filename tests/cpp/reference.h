// One call of every kernel: random inputs, and the results of double-precision code.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"

namespace lookaheadkv::cpu {

struct Shape {
  int64_t batch, num_kv_heads, group, num_rows, num_prompt, head_dim;
};

struct Inputs {
  Problem p;
  DType dtype;
  std::vector<int32_t> leftpad, seqused;  // what p may point to
  StridedTensor q, k, v;
  std::vector<float> grad;       // of the scores
  std::vector<int32_t> indices;  // [B, Hkv, kept], some of them -1
  int64_t kept;

  Inputs(const Shape& s, DType dtype, bool padded, double scale, int turn, std::mt19937& random)
      : dtype(dtype),
        leftpad(static_cast<size_t>(s.batch), 0),
        seqused(static_cast<size_t>(s.batch), static_cast<int32_t>(s.num_prompt)),
        q(dtype, layout(turn + 2), s.batch, s.num_kv_heads * s.group, s.num_rows, s.head_dim,
          random),
        k(dtype, layout(turn), s.batch, s.num_kv_heads, s.num_prompt + s.num_rows, s.head_dim,
          random),
        v(dtype, layout(turn + 1), s.batch, s.num_kv_heads, s.num_prompt + s.num_rows, s.head_dim,
          random),
        grad(static_cast<size_t>(s.batch * s.num_kv_heads * s.num_prompt)),
        kept(s.num_prompt / 3 + 2) {
    p = {s.batch,        s.num_kv_heads * s.group,
         s.num_kv_heads, s.num_rows,
         s.num_prompt,   s.head_dim,
         scale,          nullptr,
         nullptr};
    std::normal_distribution<float> normal;
    for (float& g : grad) g = normal(random);
    if (padded) {
      for (int64_t b = 0; b < s.batch; ++b) {
        leftpad[b] = static_cast<int32_t>(s.num_prompt * (b + 1) / 5);
        seqused[b] = static_cast<int32_t>(s.num_prompt - s.num_prompt / (7 + b));
        // Padding may hold anything.
        for (StridedTensor* tensor : {&k, &v}) {
          tensor->fill_with_nan(b, 0, leftpad[b]);
          tensor->fill_with_nan(b, seqused[b], s.num_prompt);
        }
      }
      p.leftpad_k = leftpad.data();
      p.seqused_k = seqused.data();
    }
    std::uniform_int_distribution<int32_t> any(0,
                                               static_cast<int32_t>(s.num_prompt + s.num_rows - 1));
    for (int64_t i = 0; i < s.batch * s.num_kv_heads * kept; ++i) {
      indices.push_back(i % kept == kept - 1 ? -1 : any(random));
    }
  }

  static Layout layout(int turn) { return static_cast<Layout>(turn % kLayouts); }
};

struct Expected {
  std::vector<double> out, lse, scores, grad_query, grad_key;
  std::vector<char> kept_key, kept_value;
};

Expected reference(const Inputs& in);

double dot(const double* a, const double* b, int64_t n);

// Largest error relative to the largest expected value.
template <class Get>
double relative_error(const std::vector<double>& expected, const Get& actual) {
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = actual(i);
    if (std::isnan(value)) return INFINITY;
    error = std::max(error, std::abs(value - expected[i]));
    size = std::max(size, std::abs(expected[i]));
  }
  return error / size;
}

inline double error_of(const std::vector<double>& expected, const std::vector<float>& actual) {
  return relative_error(expected, [&](size_t i) { return static_cast<double>(actual[i]); });
}

inline double error_of(const std::vector<double>& expected, const std::vector<char>& actual,
                       DType dtype) {
  const size_t size = static_cast<size_t>(element_size(dtype));
  return relative_error(expected,
                        [&](size_t i) { return decode(actual.data() + i * size, dtype); });
}

}  // namespace lookaheadkv::cpu
