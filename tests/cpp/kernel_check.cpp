// The torch-free CPU kernels against straightforward double-precision code, on every instruction
// set this machine has (AMX emulated where the build says so). Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by tests/test_sanitizers.py; every tensor is allocated to its exact
// size.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa/compressed_probability.h"
#include "cpu/isa/convert.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/select_keys.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {
namespace {

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  (ok ? passed : failed) += 1;
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

// Ranges of three tasks each, in reverse: results must not depend on how tasks are handed out.
class ReverseExecutor final : public Executor {
 public:
  void run(int64_t tasks, int64_t,
           const std::function<void(int64_t, int64_t)>& body) const override {
    for (int64_t end = tasks; end > 0; end -= 3) body(std::max<int64_t>(0, end - 3), end);
  }
};
class SerialExecutor final : public Executor {
 public:
  void run(int64_t tasks, int64_t,
           const std::function<void(int64_t, int64_t)>& body) const override {
    if (tasks > 0) body(0, tasks);
  }
};

struct Shape {
  int64_t batch, num_kv_heads, group, num_rows, num_prompt, head_dim;
};

// [B, H, S, D] values rounded to dtype, stored in that dtype.
struct Tensor4 {
  DType dtype;
  int64_t heads, length, dim;
  std::vector<double> values;
  std::vector<char> bytes;

  Tensor4(DType dtype, int64_t batch, int64_t heads, int64_t length, int64_t dim,
          std::mt19937& random)
      : dtype(dtype), heads(heads), length(length), dim(dim) {
    std::normal_distribution<float> normal;
    const int64_t count = batch * heads * length * dim;
    values.resize(static_cast<size_t>(count));
    bytes.resize(static_cast<size_t>(count * element_size(dtype)));
    for (int64_t i = 0; i < count; ++i) {
      store_float(bytes.data(), i, dtype, normal(random));
      values[static_cast<size_t>(i)] = load(bytes.data(), i, dtype);
    }
  }

  static double load(const char* data, int64_t i, DType dtype) {
    if (dtype == DType::kFloat32) {
      float value;
      std::memcpy(&value, data + 4 * i, 4);
      return value;
    }
    uint16_t half;
    std::memcpy(&half, data + 2 * i, 2);
    return dtype == DType::kFloat16 ? float_from_fp16(half) : float_from_bf16(half);
  }
  TensorView view() const { return {bytes.data(), dtype, heads * length * dim, length * dim, dim}; }
  const double* row(int64_t b, int64_t h, int64_t s) const {
    return values.data() + ((b * heads + h) * length + s) * dim;
  }
};

struct Expected {
  std::vector<double> out, lse, scores, grad_query, grad_key;
};

Expected reference(const Problem& p, const Tensor4& q, const Tensor4& k, const Tensor4& v,
                   const std::vector<float>& grad) {
  const int64_t keys = p.num_keys(), d = p.head_dim, group = p.group();
  Expected e;
  e.out.resize(static_cast<size_t>(p.batch * p.num_heads * p.num_rows * d));
  e.lse.resize(static_cast<size_t>(p.batch * p.num_heads * p.num_rows));
  e.scores.resize(static_cast<size_t>(p.batch * p.num_kv_heads * p.num_prompt));
  e.grad_query.resize(e.out.size());
  e.grad_key.resize(k.values.size());
  const double weight = 1.0 / static_cast<double>(group * p.num_rows);
  for (int64_t b = 0; b < p.batch; ++b) {
    const KeyRange valid = valid_keys(p.leftpad_k, p.seqused_k, b, p.num_prompt);
    for (int64_t h = 0; h < p.num_heads; ++h) {
      const int64_t kv = b * p.num_kv_heads + h / group;
      for (int64_t i = 0; i < p.num_rows; ++i) {
        std::vector<double> prob(static_cast<size_t>(keys), 0.0);
        const auto sees = [&](int64_t j) {
          return j >= p.num_prompt ? j <= p.num_prompt + i : j >= valid.begin && j < valid.end;
        };
        double maximum = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < keys; ++j) {
          for (int64_t c = 0; c < d; ++c) {
            prob[j] += p.scale * q.row(b, h, i)[c] * k.row(b, h / group, j)[c];
          }
          if (sees(j)) maximum = std::max(maximum, prob[j]);
        }
        for (int64_t j = 0; j < keys; ++j) {
          prob[j] = sees(j) ? std::exp(prob[j] - maximum) : 0.0;
          sum += prob[j];
        }
        const int64_t row = (b * p.num_heads + h) * p.num_rows + i;
        e.lse[row] = maximum + std::log(sum);
        for (int64_t j = 0; j < keys; ++j) {
          prob[j] /= sum;
          if (j < p.num_prompt) {
            e.scores[kv * p.num_prompt + j] += weight * prob[j];
            delta += prob[j] * grad[kv * p.num_prompt + j];
          }
          for (int64_t c = 0; c < d; ++c) {
            e.out[row * d + c] += prob[j] * v.row(b, h / group, j)[c];
          }
        }
        for (int64_t j = 0; j < keys; ++j) {
          const double upstream = j < p.num_prompt ? grad[kv * p.num_prompt + j] : 0.0;
          const double ds = p.scale * weight * prob[j] * (upstream - delta);
          for (int64_t c = 0; c < d; ++c) {
            e.grad_query[row * d + c] += ds * k.row(b, h / group, j)[c];
            e.grad_key[(kv * keys + j) * d + c] += ds * q.row(b, h, i)[c];
          }
        }
      }
    }
  }
  return e;
}

template <class Get>
double relative_error(const std::vector<double>& expected, const Get& actual) {
  double error = 0, size = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    error = std::max(error, std::abs(actual(static_cast<int64_t>(i)) - expected[i]));
    size = std::max(size, std::abs(expected[i]));
    if (std::isnan(actual(static_cast<int64_t>(i)))) return INFINITY;
  }
  return error / size;
}

// Everything the kernels do for one shape, dtype and padding.
void check_shape(const Shape& s, DType dtype, bool padded, double scale, const std::string& name) {
  std::mt19937 random(1234);
  Problem p{s.batch,        s.num_kv_heads * s.group,
            s.num_kv_heads, s.num_rows,
            s.num_prompt,   s.head_dim,
            scale,          nullptr,
            nullptr};
  std::vector<int32_t> leftpad(static_cast<size_t>(s.batch)), seqused(leftpad.size());
  for (int64_t b = 0; b < s.batch; ++b) {
    leftpad[b] = static_cast<int32_t>(s.num_prompt * (b + 1) / 5);
    seqused[b] = static_cast<int32_t>(s.num_prompt - s.num_prompt / 7);
  }
  if (padded) {
    p.leftpad_k = leftpad.data();
    p.seqused_k = seqused.data();
  }
  const Tensor4 q(dtype, s.batch, p.num_heads, s.num_rows, s.head_dim, random);
  const Tensor4 k(dtype, s.batch, s.num_kv_heads, p.num_keys(), s.head_dim, random);
  const Tensor4 v(dtype, s.batch, s.num_kv_heads, p.num_keys(), s.head_dim, random);
  std::vector<float> grad(static_cast<size_t>(s.batch * s.num_kv_heads * s.num_prompt));
  std::normal_distribution<float> normal;
  for (float& g : grad) g = normal(random);
  const Expected expected = reference(p, q, k, v, grad);

  const double tolerance = dtype == DType::kFloat32 ? 1e-5 : 1.2e-2;
  std::vector<char> out(q.bytes.size()), grad_query(q.bytes.size()), grad_key(k.bytes.size());
  std::vector<float> lse(expected.lse.size()), scores(expected.scores.size());
  const SerialExecutor serial;
  const ReverseExecutor reverse;
  attention_and_scores(p, q.view(), k.view(), v.view(), out.data(), lse.data(), scores.data(),
                       serial);
  const auto tensor = [&](const std::vector<char>& bytes) {
    return [&bytes, dtype](int64_t i) { return Tensor4::load(bytes.data(), i, dtype); };
  };
  const auto floats = [](const std::vector<float>& values) {
    return [&values](int64_t i) { return static_cast<double>(values[static_cast<size_t>(i)]); };
  };
  check(relative_error(expected.out, tensor(out)) < tolerance, name + " attention");
  check(relative_error(expected.lse, floats(lse)) < 1e-5, name + " lse");
  check(relative_error(expected.scores, floats(scores)) < (dtype == DType::kFloat32 ? 1e-5 : 2e-3),
        name + " cached scores");

  std::vector<float> again(scores.size()), lse_alone(lse.size());
  attention_and_scores(p, q.view(), k.view(), {}, nullptr, lse_alone.data(), again.data(), reverse);
  check(relative_error(expected.scores, floats(again)) < (dtype == DType::kFloat32 ? 1e-5 : 2e-3),
        name + " scores without output");
  std::vector<float> serially(scores.size());
  attention_and_scores(p, q.view(), k.view(), {}, nullptr, lse_alone.data(), serially.data(),
                       serial);
  check(again == serially, name + " the order of tasks does not matter");
  column_scores(p, q.view(), k.view(), lse.data(), scores.data(), reverse);
  check(relative_error(expected.scores, floats(scores)) < 1e-5, name + " scores");

  column_scores_backward(p, q.view(), k.view(), lse.data(), grad.data(), grad_query.data(),
                         grad_key.data(), reverse);
  check(relative_error(expected.grad_query, tensor(grad_query)) < tolerance, name + " grad_query");
  check(relative_error(expected.grad_key, tensor(grad_key)) < tolerance, name + " grad_key");

  const int64_t budget = std::max<int64_t>(1, s.num_prompt / 3);
  const int64_t appended = s.num_rows;
  const int64_t kept = std::min(budget, s.num_prompt) + appended;
  std::vector<int32_t> indices(static_cast<size_t>(s.batch * s.num_kv_heads * kept));
  select(p, scores.data(), {budget, 7, 0, 0, appended}, indices.data(), reverse);
  std::vector<char> kept_key(
      static_cast<size_t>(s.batch * s.num_kv_heads * kept * s.head_dim * element_size(dtype)));
  std::vector<char> kept_value(kept_key.size());
  gather_kv(s.batch, s.num_kv_heads, s.head_dim, k.view(), v.view(), indices.data(), kept,
            kept_key.data(), kept_value.data(), reverse);
  bool copied = true;
  for (int64_t i = 0; i < static_cast<int64_t>(indices.size()); ++i) {
    const int64_t head = i / kept;
    for (int64_t c = 0; c < s.head_dim; ++c) {
      const bool empty = indices[i] < 0;
      const double want_k =
          empty ? 0.0 : k.row(head / s.num_kv_heads, head % s.num_kv_heads, indices[i])[c];
      const double want_v =
          empty ? 0.0 : v.row(head / s.num_kv_heads, head % s.num_kv_heads, indices[i])[c];
      copied = copied && Tensor4::load(kept_key.data(), i * s.head_dim + c, dtype) == want_k &&
               Tensor4::load(kept_value.data(), i * s.head_dim + c, dtype) == want_v;
    }
  }
  check(copied, name + " gather");
}

// The kept positions by sorting, straight from the definition.
std::vector<int32_t> select_by_sorting(const std::vector<float>& scores, int64_t budget,
                                       int64_t pool_kernel, int64_t sink, int64_t recent) {
  const int64_t n = static_cast<int64_t>(scores.size());
  std::vector<uint32_t> pooled(scores.size(), 0);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = std::max<int64_t>(0, i - pool_kernel / 2);
         j < std::min(n, i + pool_kernel / 2 + 1); ++j) {
      pooled[i] = std::max(pooled[i], rank_key(scores[j]));
    }
  }
  std::vector<int32_t> order(scores.size());
  for (int64_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>(i);
  const auto pinned = [&](int32_t i) { return i < sink || i >= n - recent; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    if (pinned(a) != pinned(b)) return pinned(a);
    return pooled[a] > pooled[b];
  });
  order.resize(static_cast<size_t>(std::min(budget, n)));
  std::sort(order.begin(), order.end());
  return order;
}

void check_select(const std::string& isa) {
  std::mt19937 random(7);
  std::uniform_int_distribution<int> few(0, 5);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (const int64_t n : {1, 2, 7, 63, 64, 65, 1023, 1024, 1025, 5000}) {
    std::vector<std::vector<float>> rows(6, std::vector<float>(static_cast<size_t>(n)));
    for (int64_t i = 0; i < n; ++i) {
      rows[0][i] = uniform(random);
      rows[1][i] = static_cast<float>(few(random));  // ties
      rows[2][i] = 0.25f;                            // all equal
      rows[3][i] = static_cast<float>(i);            // every position beats the ones before
      rows[4][i] = static_cast<float>(-i);
      const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f};
      rows[5][i] = special[few(random)];
    }
    for (const int64_t budget : {int64_t{1}, int64_t{5}, n / 2, n, n + 3}) {
      for (const int64_t pool_kernel : {1, 7, 31}) {
        for (const int64_t pins : {0, 2}) {
          if (budget < std::max<int64_t>(1, 2 * pins)) continue;
          for (size_t row = 0; row < rows.size(); ++row) {
            Problem p;
            p.batch = p.num_kv_heads = p.num_heads = 1;
            p.num_prompt = n;
            std::vector<int32_t> indices(static_cast<size_t>(std::min(budget, n)));
            select(p, rows[row].data(), {budget, pool_kernel, pins, pins, 0}, indices.data(),
                   SerialExecutor());
            check(indices == select_by_sorting(rows[row], budget, pool_kernel, pins, pins),
                  isa + " select n=" + std::to_string(n) + " budget=" + std::to_string(budget) +
                      " pool=" + std::to_string(pool_kernel) + " row " + std::to_string(row));
          }
        }
      }
    }
  }
}

void check_vector_ops(const Isa& isa) {
  const int count = 64;
  double worst = 0;
  for (float base = -125.0f; base < 127.0f; base += 0.37f) {
    std::vector<float> x(count), zero(count, 0.0f), y(count);
    for (int i = 0; i < count; ++i) x[i] = base + static_cast<float>(i) * 0.0057f;
    isa.vector.row_weights(x.data(), zero.data(), count, y.data());
    for (int i = 0; i < count; ++i) {
      const double exact = std::exp2(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(y[i] - exact) / exact);
    }
  }
  check(worst < 2.5e-7,
        std::string(isa.name) + " exp2 error " + std::to_string(worst * 1e7) + "e-7");

  const float edges[16] = {0, -1000, -INFINITY, NAN, 1, -1, 127, -126};
  std::vector<float> zero(16, 0.0f), y(16);
  isa.vector.row_weights(edges, zero.data(), 16, y.data());
  check(y[0] == 1 && y[1] == 0 && y[2] == 0 && std::isnan(y[3]) && y[4] == 2 && y[5] == 0.5f &&
            y[6] == 0x1p127f && y[7] == 0x1p-126f,
        std::string(isa.name) + " exp2 edges");

  // Compression: one row vector block, weight 1, read back through the column sum of one key.
  std::vector<float> p(16), weights(16, 0.0f), columns(kMaxLanes);
  std::vector<uint16_t> code(16);
  double error = 0;
  for (int exponent = -117; exponent < 8; ++exponent) {
    for (int i = 0; i < 16; ++i) {
      p[i] = std::ldexp(1.0f + static_cast<float>(i) / 15.5f, exponent);
    }
    isa.vector.compress(p.data(), 16, code.data());
    for (int i = 0; i < 16; ++i) {
      std::fill(weights.begin(), weights.end(), 0.0f);
      std::fill(columns.begin(), columns.end(), 0.0f);
      weights[i] = 1.0f;
      isa.vector.accumulate_compressed_columns(code.data(), 1, 16, weights.data(), columns.data());
      float back = 0;
      isa.vector.reduce_columns(columns.data(), 1, 1.0f, &back);
      error = std::max(error, static_cast<double>(std::abs(back - p[i]) / p[i]));
    }
  }
  check(error <= 0x1p-10, std::string(isa.name) + " compression error");
}

void check_splits() {
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{96}, int64_t{5000}, int64_t{1} << 20}) {
    for (int64_t units : {1, 8, 300}) {
      const int64_t chunk = keys_per_chunk(n, units, kWantedTasks);
      check(chunk > 0 && chunk % kKeyTile == 0, "a chunk is whole tiles");
      check(num_chunks(n, chunk) * chunk >= n, "chunks cover the prompt");
      check(units * num_chunks(n, chunk) <= kWantedTasks + units, "not more tasks than wanted");
    }
  }
  for (int64_t count : {1, 2, 5, 8}) {
    std::vector<int> seen(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) seen[folded(i, count)] += 1;
    check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "folding permutes");
  }
  check(grain(1) == 64 * 1024 && grain(int64_t{1} << 40) == 1, "grain");
  check(queries_per_block(4, 32, 256) == 32 && queries_per_block(300, 32, 256) == 1 &&
            queries_per_block(1, 5000, 256) == 256,
        "queries per block");
}

void check_halves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float a = float_from_fp16(half), b = float_from_bf16(half);
    if (!(a != a ? fp16_from_float(a) != fp16_from_float(0.0f) : fp16_from_float(a) == half) ||
        !(b != b ? float_from_bf16(bf16_from_float(b)) != b : bf16_from_float(b) == half)) {
      check(false, "half " + std::to_string(bits) + " survives a round trip");
      return;
    }
  }
  check(fp16_from_float(65519.0f) == 0x7bff && fp16_from_float(65520.0f) == 0x7c00 &&
            fp16_from_float(0x1p-25f) == 0 && fp16_from_float(0x1.8p-25f) == 1,
        "fp16 rounding at the edges");
  check(bf16_from_float(1.00390625f) == 0x3f80 && bf16_from_float(1.01171875f) == 0x3f82,
        "bf16 ties to even");
}

int run() {
  check_splits();
  check_halves();
  const std::vector<Shape> shapes = {{1, 2, 4, 32, 200, 64}, {2, 3, 1, 5, 97, 8},
                                     {1, 1, 7, 3, 96, 24},   {1, 1, 2, 33, 1700, 40},
                                     {1, 1, 8, 33, 95, 80},  {1, 2, 5, 1, 1, 256},
                                     {2, 1, 3, 16, 0, 128},  {1, 1, 1, 1, 0, 16},
                                     {1, 1, 4, 150, 10, 72}, {1, 1, 1, 17, 1537, 96}};
  for (const char* name : supported_isas()) {
    setenv("LOOKAHEADKV_CPU_ISA", name, 1);
    check(std::string(active_isa()) == name, std::string(name) + " can be chosen");
    check_vector_ops(active());
    check_select(name);
    for (const Shape& s : shapes) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        for (const bool padded : {false, true}) {
          const double scale = padded ? -0.2 : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
          check_shape(s, dtype, padded, scale,
                      std::string(name) + " dtype " + std::to_string(static_cast<int>(dtype)) +
                          " N=" + std::to_string(s.num_prompt) +
                          " L=" + std::to_string(s.num_rows) + " G=" + std::to_string(s.group) +
                          " D=" + std::to_string(s.head_dim) + (padded ? " padded" : ""));
        }
      }
    }
    std::printf("%s done\n", name);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lookaheadkv::cpu

int main() { return lookaheadkv::cpu::run(); }
