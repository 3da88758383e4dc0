// Argument checks shared by every compiled front end (torch ops, NumPy module). Torch-free.
//
// Each front end describes its tensors as TensorInfo; each check throws std::invalid_argument that
// names the op, the argument and its value. lookaheadkv_kernels/_checks.py gives the same texts for
// fake kernels and Triton; tests/ops/test_bad_input.py holds the two together.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/problem.h"

namespace lookaheadkv {

// The dtypes that the checks tell apart.
enum class ElementType : int {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3,
  kFloat8E5M2,
  kInt8,
  kInt32,
  kOther
};

// The type that has this name in Python; kOther for a name that is not in the table.
ElementType element_type(const std::string& name);
// Converts a type that passed validation. Throws std::logic_error for one that no kernel computes
// with.
DType dtype_of(ElementType type);

struct DeviceId {
  const char* type = "cpu";
  int64_t index = -1;  // negative: there is only one such device
};

struct TensorInfo {
  const char* name;   // of the argument
  int64_t item = -1;  // in an argument that is a list: the place in it
  ElementType type = ElementType::kOther;
  std::string other;  // for kOther: the name of the dtype
  DeviceId device;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements
  bool aligned = true;           // to its element size

  std::string label() const;  // "query", "caches[3]"
  std::string dtype() const;  // "float32"
  std::string typed() const;  // "float32 [2, 3]"
};

class Validator {
 public:
  explicit Validator(const char* op) : op_(op) {}

  // query [B, Hq, L, D], key [B, Hkv, N + L, D] and, if given, value like key.
  void attention_inputs(const TensorInfo& query, const TensorInfo& key,
                        const TensorInfo* value) const;
  // prefill_attention: query, key and value share one sequence length S.
  void prefill_inputs(const TensorInfo& query, const TensorInfo& key, const TensorInfo& value,
                      int64_t num_lookahead) const;
  // gather_kv: key and value [B, Hkv, S, D], indices [B, Hkv, K] int32.
  void gather_inputs(const TensorInfo& key, const TensorInfo& value,
                     const TensorInfo& indices) const;
  // scores [B, Hkv, N] float32.
  void scores_input(const TensorInfo& scores) const;
  // A float32 tensor of exactly this shape, on the device of `owner`.
  void float_tensor(const TensorInfo& tensor, const std::vector<int64_t>& shape,
                    const TensorInfo& owner) const;
  // leftpad_k or seqused_k: int32 [B], on the device of `owner`.
  void lengths(const TensorInfo& tensor, int64_t batch, const TensorInfo& owner) const;
  void scale(const std::optional<double>& scale) const;
  void budget(int64_t budget, int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
              std::optional<int64_t> observation_rows, const char* name = "budget") const;

  // Checks of values, for data that this process can read.
  void length_values(const int32_t* leftpad_k, const int32_t* seqused_k, int64_t batch,
                     int64_t num_prompt) const;
  void index_values(const int32_t* indices, int64_t batch, int64_t num_kv_heads, int64_t num_kept,
                    int64_t num_keys) const;

 protected:
  [[noreturn]] void fail(const std::string& message) const;
  void float_dtype(const TensorInfo& tensor) const;
  void aligned(const TensorInfo& tensor) const;
  void same_device(const TensorInfo& tensor, const TensorInfo& owner) const;
  void int32_tensor(const TensorInfo& tensor, const std::vector<int64_t>& shape,
                    const TensorInfo& owner) const;
  void head_dim(int64_t head_dim) const;
  void last_dim_contiguous(const TensorInfo& tensor) const;

 private:
  void cache_tensor(const TensorInfo& tensor, const TensorInfo& reference) const;
  void same_shape(const TensorInfo& key, const TensorInfo& value) const;
  void positions(const char* name, const char* letter, int64_t count) const;

  const char* op_;
};

// "[2, 3]"
std::string shape_string(const std::vector<int64_t>& shape);

}  // namespace lookaheadkv
