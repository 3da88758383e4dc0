// What the C++ tests share: counting, executors, and strided tensors in storage of exactly their
// size.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/problem.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"

namespace lookaheadkv::cpu {

// Counts, and prints what failed.
void check(bool ok, const std::string& what);

// Prints the counts; the exit status of the program.
int summary();

// Those of supported_isas() that are to be checked.
const std::vector<const char*>& checked_isas();

// Whether to check a sample of the shapes only, for processors that are emulated.
bool brief();

// Makes the kernels use one of them.
void use_isa(const std::string& name);

// check_units.cpp, check_select.cpp, check_shapes.cpp, check_paged.cpp; those that need an
// instruction set go through all of them, so that what they compare with is computed once.
void check_splits();
void check_tile_rounds();
void check_halves();
void check_vector_ops();
void check_select();
void check_shapes();
void check_paged();

class SerialExecutor final : public Executor {
 public:
  void run(int64_t count, int64_t, const Body& body) const override {
    Tasks tasks(count);
    body(tasks);
  }
};

// As when a second thread wakes up after the first has taken everything.
class GreedyExecutor final : public Executor {
 public:
  void run(int64_t count, int64_t, const Body& body) const override {
    Tasks tasks(count);
    body(tasks);
    body(tasks);
  }
};

class ThreadsExecutor final : public Executor {
 public:
  void run(int64_t count, int64_t, const Body& body) const override {
    Tasks tasks(count);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) threads.emplace_back([&] { body(tasks); });
    for (std::thread& thread : threads) thread.join();
  }
};

// The value of an element, decoded without the kernels' own conversions (cpu/isa/convert.h).
double decode(const char* element, DType dtype);

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

enum class Layout { kContiguous, kSequenceFirst, kPitched, kReversed, kExpandedHeads };
constexpr int kLayouts = 5;

// Random [B, H, S, D], in storage that ends with the last element any view can reach: reading past
// it is an error to AddressSanitizer. What lies between rows is NaN.
class StridedTensor {
 public:
  StridedTensor(DType dtype, Layout layout, int64_t batch, int64_t heads, int64_t length,
                int64_t dim, std::mt19937& random);

  // Rows that no result may depend on.
  void fill_with_nan(int64_t b, int64_t begin, int64_t end);

  TensorView view() const;
  const double* row(int64_t b, int64_t h, int64_t s) const {
    return values_.data() + ((b * heads_ + h) * length_ + s) * dim_;
  }
  const char* row_bytes(int64_t b, int64_t h, int64_t s) const {
    return storage_.data() + offset(b, h, s);
  }
  int64_t row_size() const { return dim_ * size_; }

 private:
  int64_t offset(int64_t b, int64_t h, int64_t s) const {
    return (origin_ + b * stride_b_ + h * stride_h_ + s * stride_s_) * size_;
  }

  DType dtype_;
  int64_t heads_, length_, dim_;
  int64_t size_;  // bytes of an element
  int64_t origin_ = 0, stride_b_ = 0, stride_h_ = 0, stride_s_ = 0;
  std::vector<char> storage_;
  std::vector<double> values_;
};

}  // namespace lookaheadkv::cpu
