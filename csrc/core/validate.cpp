#include "core/validate.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <stdexcept>

namespace lookaheadkv {

namespace {

std::string str(int64_t value) { return std::to_string(value); }

// The sum of non-negative numbers, which may exceed int64.
std::string sum_string(std::initializer_list<int64_t> terms) {
  unsigned __int128 sum = 0;
  for (const int64_t term : terms) sum += static_cast<uint64_t>(term);
  std::string digits;
  do {
    digits.insert(digits.begin(), static_cast<char>('0' + static_cast<int>(sum % 10)));
    sum /= 10;
  } while (sum > 0);
  return digits;
}

// The names that Python gives the types, in the order of ElementType.
constexpr const char* kTypeNames[] = {"float32",     "float16", "bfloat16", "float8_e4m3fn",
                                      "float8_e5m2", "int8",    "int32"};
constexpr int kTypes = static_cast<int>(ElementType::kOther);
static_assert(sizeof(kTypeNames) / sizeof(kTypeNames[0]) == kTypes, "every type has a name");

std::string device_string(const DeviceId& device) {
  return device.index < 0 ? device.type : device.type + (":" + str(device.index));
}

}  // namespace

ElementType element_type(const std::string& name) {
  int at = 0;
  while (at < kTypes && name != kTypeNames[at]) ++at;
  return static_cast<ElementType>(at);
}

DType dtype_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return DType::kFloat32;
    case ElementType::kFloat16:
      return DType::kFloat16;
    case ElementType::kBFloat16:
      return DType::kBFloat16;
    default:
      throw std::logic_error("lookaheadkv: a dtype that was not validated");
  }
}

std::string TensorInfo::label() const { return item < 0 ? name : name + ("[" + str(item) + "]"); }

std::string TensorInfo::dtype() const {
  return type == ElementType::kOther ? other : kTypeNames[static_cast<int>(type)];
}

std::string TensorInfo::typed() const { return dtype() + " " + shape_string(shape); }

std::string shape_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + str(shape[i]);
  }
  return text + "]";
}

void Validator::fail(const std::string& message) const {
  throw std::invalid_argument(std::string("lookaheadkv.") + op_ + ": " + message);
}

void Validator::float_dtype(const TensorInfo& tensor) const {
  if (tensor.type != ElementType::kFloat32 && tensor.type != ElementType::kFloat16 &&
      tensor.type != ElementType::kBFloat16) {
    fail(tensor.label() + " must be float32, float16 or bfloat16, got " + tensor.dtype());
  }
}

void Validator::aligned(const TensorInfo& tensor) const {
  if (!tensor.aligned) fail(tensor.label() + " must be aligned to its element size");
}

void Validator::same_device(const TensorInfo& tensor, const TensorInfo& owner) const {
  const DeviceId &device = tensor.device, &wanted = owner.device;
  if (device.index != wanted.index || std::strcmp(device.type, wanted.type) != 0) {
    fail(tensor.label() + " must be on " + owner.label() + "'s device " + device_string(wanted) +
         ", got " + device_string(device));
  }
}

void Validator::head_dim(int64_t head_dim) const {
  if (head_dim < 8 || head_dim > 256 || head_dim % 8 != 0) {
    fail("head_dim must be a multiple of 8 between 8 and 256, got " + str(head_dim));
  }
}

// Positions are int32.
void Validator::positions(const char* name, const char* letter, int64_t count) const {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (count > kMost) {
    fail(std::string(name) + " must have at most " + str(kMost) + " positions, got " + letter +
         "=" + str(count));
  }
}

void Validator::last_dim_contiguous(const TensorInfo& tensor) const {
  if (tensor.strides.back() != 1) {
    fail(tensor.label() + " must be contiguous in its last dimension, got stride " +
         str(tensor.strides.back()));
  }
  aligned(tensor);
}

void Validator::same_shape(const TensorInfo& key, const TensorInfo& value) const {
  if (value.shape != key.shape) {
    fail("value must have key's shape " + shape_string(key.shape) + ", got " +
         shape_string(value.shape));
  }
}

// The checks of a 4-D tensor against the one that comes first in the argument list.
void Validator::cache_tensor(const TensorInfo& tensor, const TensorInfo& reference) const {
  if (tensor.type != reference.type) {
    fail(tensor.label() + " must have " + reference.label() + "'s dtype " + reference.dtype() +
         ", got " + tensor.dtype());
  }
  same_device(tensor, reference);
}

void Validator::attention_inputs(const TensorInfo& query, const TensorInfo& key,
                                 const TensorInfo* value) const {
  for (const TensorInfo* tensor : {&query, &key, value}) {
    if (tensor && tensor->shape.size() != 4) {
      fail(tensor->label() + " must have 4 dimensions [B, H, S, D], got shape " +
           shape_string(tensor->shape));
    }
  }
  float_dtype(query);
  cache_tensor(key, query);
  if (value) cache_tensor(*value, query);
  if (key.shape[0] != query.shape[0]) {
    fail("key must have query's batch size " + str(query.shape[0]) + ", got " + str(key.shape[0]));
  }
  if (key.shape[3] != query.shape[3]) {
    fail("key must have query's head_dim " + str(query.shape[3]) + ", got " + str(key.shape[3]));
  }
  head_dim(query.shape[3]);
  if (value) same_shape(key, *value);
  if (query.shape[2] < 1) {
    fail("query must have at least one row, got L=" + str(query.shape[2]));
  }
  if (key.shape[1] < 1) {
    fail("key must have at least one head, got Hkv=" + str(key.shape[1]));
  }
  if (query.shape[1] < 1 || query.shape[1] % key.shape[1] != 0) {
    fail("query heads must be a positive multiple of KV heads, got Hq=" + str(query.shape[1]) +
         ", Hkv=" + str(key.shape[1]));
  }
  if (key.shape[2] < query.shape[2]) {
    fail("key must hold at least the L=" + str(query.shape[2]) +
         " observation keys, got S=" + str(key.shape[2]));
  }
  positions("key", "S", key.shape[2]);
  last_dim_contiguous(query);
  last_dim_contiguous(key);
  if (value) last_dim_contiguous(*value);
}

void Validator::prefill_inputs(const TensorInfo& query, const TensorInfo& key,
                               const TensorInfo& value, int64_t num_lookahead) const {
  attention_inputs(query, key, &value);
  if (key.shape[2] != query.shape[2]) {
    fail("key must have query's " + str(query.shape[2]) + " positions, got " + str(key.shape[2]));
  }
  if (num_lookahead < 1 || num_lookahead > query.shape[2]) {
    fail("num_lookahead must be in 1..S=" + str(query.shape[2]) + ", got " + str(num_lookahead));
  }
}

void Validator::gather_inputs(const TensorInfo& key, const TensorInfo& value,
                              const TensorInfo& indices) const {
  for (const TensorInfo* tensor : {&key, &value}) {
    if (tensor->shape.size() != 4) {
      fail(tensor->label() + " must have 4 dimensions [B, H, S, D], got shape " +
           shape_string(tensor->shape));
    }
  }
  float_dtype(key);
  cache_tensor(value, key);
  head_dim(key.shape[3]);
  same_shape(key, value);
  last_dim_contiguous(key);
  last_dim_contiguous(value);
  if (indices.type != ElementType::kInt32 || indices.shape.size() != 3 ||
      indices.shape[0] != key.shape[0] || indices.shape[1] != key.shape[1]) {
    fail("indices must be an int32 tensor of shape [B, Hkv, K] = [" + str(key.shape[0]) + ", " +
         str(key.shape[1]) + ", *], got " + indices.typed());
  }
  same_device(indices, key);
  aligned(indices);
}

void Validator::scores_input(const TensorInfo& scores) const {
  if (scores.type != ElementType::kFloat32 || scores.shape.size() != 3) {
    fail("scores must be a float32 tensor of shape [B, Hkv, N], got " + scores.typed());
  }
  positions("scores", "N", scores.shape[2]);
  aligned(scores);
}

void Validator::float_tensor(const TensorInfo& tensor, const std::vector<int64_t>& shape,
                             const TensorInfo& owner) const {
  if (tensor.type != ElementType::kFloat32 || tensor.shape != shape) {
    fail(tensor.label() + " must be a float32 tensor of shape " + shape_string(shape) + ", got " +
         tensor.typed());
  }
  same_device(tensor, owner);
  aligned(tensor);
}

void Validator::lengths(const TensorInfo& tensor, int64_t batch, const TensorInfo& owner) const {
  int32_tensor(tensor, {batch}, owner);
}

void Validator::int32_tensor(const TensorInfo& tensor, const std::vector<int64_t>& shape,
                             const TensorInfo& owner) const {
  if (tensor.type != ElementType::kInt32 || tensor.shape != shape) {
    fail(tensor.label() + " must be an int32 tensor of shape " + shape_string(shape) + ", got " +
         tensor.typed());
  }
  same_device(tensor, owner);
  aligned(tensor);
}

void Validator::scale(const std::optional<double>& scale) const {
  if (!scale) return;
  if (!std::isfinite(*scale)) {
    fail(std::string("scale must be finite, got ") +
         (std::isnan(*scale) ? "nan" : (*scale > 0 ? "inf" : "-inf")));
  }
  if (std::abs(*scale) > 1e30) {  // it becomes a float, multiplied by log2(e)
    char text[32];
    std::snprintf(text, sizeof(text), "%g", *scale);
    fail(std::string("scale must be at most 1e+30 in magnitude, got ") + text);
  }
}

void Validator::budget(int64_t budget, int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
                       std::optional<int64_t> observation_rows, const char* name_in) const {
  const std::string name = name_in;
  if (budget < 1) fail(name + " must be at least 1, got " + str(budget));
  if (pool_kernel < 1 || pool_kernel % 2 == 0) {
    fail("pool_kernel must be odd and positive, got " + str(pool_kernel));
  }
  if (num_sink < 0) fail("num_sink must not be negative, got " + str(num_sink));
  if (num_recent < 0) fail("num_recent must not be negative, got " + str(num_recent));
  const int64_t rows = observation_rows.value_or(0);
  // Subtract: the sum of the three could overflow.
  if (num_sink > budget || num_recent > budget - num_sink ||
      rows > budget - num_sink - num_recent) {
    const std::string pinned = sum_string({num_sink, num_recent, rows});
    fail(name + " must hold " +
         (observation_rows ? "L + num_sink + num_recent = " + pinned + " entries"
                           : "num_sink + num_recent = " + pinned + " pinned entries") +
         ", got " + str(budget));
  }
}

void Validator::length_values(const int32_t* leftpad_k, const int32_t* seqused_k, int64_t batch,
                              int64_t num_prompt) const {
  for (int64_t b = 0; seqused_k && b < batch; ++b) {
    if (seqused_k[b] < 0 || seqused_k[b] > num_prompt) {
      fail("seqused_k[" + str(b) + "] must be in 0..N=" + str(num_prompt) + ", got " +
           str(seqused_k[b]));
    }
  }
  for (int64_t b = 0; leftpad_k && b < batch; ++b) {
    const int64_t last = seqused_k ? seqused_k[b] : num_prompt;
    if (leftpad_k[b] < 0 || leftpad_k[b] > last) {
      fail("leftpad_k[" + str(b) + "] must be in 0.." +
           (seqused_k ? "seqused_k[" + str(b) + "]" : std::string("N")) + "=" + str(last) +
           ", got " + str(leftpad_k[b]));
    }
  }
}

void Validator::index_values(const int32_t* indices, int64_t batch, int64_t num_kv_heads,
                             int64_t num_kept, int64_t num_keys) const {
  const int64_t total = batch * num_kv_heads * num_kept;
  for (int64_t at = 0; at < total; ++at) {
    if (indices[at] < -1 || indices[at] >= num_keys) {
      const int64_t row = at / num_kept;
      fail("indices[" + str(row / num_kv_heads) + ", " + str(row % num_kv_heads) + ", " +
           str(at % num_kept) + "] must be -1 or in 0..S-1=" + str(num_keys - 1) + ", got " +
           str(indices[at]));
    }
  }
}

}  // namespace lookaheadkv
