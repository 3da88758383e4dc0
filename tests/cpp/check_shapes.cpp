// attention, column_scores, both together with tile caches of several sizes, the backward and
// gather_kv against double-precision code, for shapes x dtypes x paddings x memory layouts; then
// prefill_attention.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "cpu/isa/tile_ops.h"

namespace lookaheadkv::cpu {

namespace {

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

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += a[c] * b[c];
  return sum;
}

void add(double weight, const double* from, double* to, int64_t n) {
  for (int64_t c = 0; c < n; ++c) to[c] += weight * from[c];
}

// One query row; `seen` are the keys it sees.
void add_row(const Inputs& in, int64_t b, int64_t h, int64_t i, const std::vector<int64_t>& seen,
             Expected& e) {
  const Problem& p = in.p;
  const int64_t d = p.head_dim, n = p.num_prompt, group = p.num_heads / p.num_kv_heads;
  const int64_t kv = h / group, kv_row = b * p.num_kv_heads + kv;
  const int64_t row = (b * p.num_heads + h) * p.num_rows + i;
  const double weight = 1.0 / static_cast<double>(group * p.num_rows);
  std::vector<double> prob;
  for (const int64_t j : seen)
    prob.push_back(p.scale * dot(in.q.row(b, h, i), in.k.row(b, kv, j), d));
  const double maximum = *std::max_element(prob.begin(), prob.end());
  double sum = 0, delta = 0;
  for (double& x : prob) sum += x = std::exp(x - maximum);
  e.lse[row] = maximum + std::log(sum);
  const auto upstream = [&](int64_t j) { return j < n ? in.grad[kv_row * n + j] : 0.0; };
  for (size_t at = 0; at < seen.size(); ++at) {
    const int64_t j = seen[at];
    prob[at] /= sum;
    if (j < n) e.scores[kv_row * n + j] += weight * prob[at];
    delta += prob[at] * upstream(j);
    add(prob[at], in.v.row(b, kv, j), &e.out[row * d], d);
  }
  for (size_t at = 0; at < seen.size(); ++at) {
    const int64_t j = seen[at];
    const double ds = p.scale * weight * prob[at] * (upstream(j) - delta);
    add(ds, in.k.row(b, kv, j), &e.grad_query[row * d], d);
    add(ds, in.q.row(b, h, i), &e.grad_key[(kv_row * (n + p.num_rows) + j) * d], d);
  }
}

Expected reference(const Inputs& in) {
  const Problem& p = in.p;
  const int64_t keys = p.num_prompt + p.num_rows;
  const auto size = [](int64_t a, int64_t b, int64_t c, int64_t d) {
    return static_cast<size_t>(a * b * c * d);
  };
  Expected e;
  e.out.resize(size(p.batch, p.num_heads, p.num_rows, p.head_dim));
  e.lse.resize(size(p.batch, p.num_heads, p.num_rows, 1));
  e.scores.resize(size(p.batch, p.num_kv_heads, p.num_prompt, 1));
  e.grad_query.resize(e.out.size());
  e.grad_key.resize(size(p.batch, p.num_kv_heads, keys, p.head_dim));
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t i = 0; i < p.num_rows; ++i) {
      std::vector<int64_t> seen;
      for (int64_t j = in.leftpad[b]; j < in.seqused[b]; ++j) seen.push_back(j);
      for (int64_t j = 0; j <= i; ++j) seen.push_back(p.num_prompt + j);
      for (int64_t h = 0; h < p.num_heads; ++h) add_row(in, b, h, i, seen, e);
    }
  }
  for (size_t at = 0; at < in.indices.size(); ++at) {
    const int64_t head = static_cast<int64_t>(at) / in.kept;
    const int64_t b = head / p.num_kv_heads, h = head % p.num_kv_heads;
    for (const auto& [tensor, out] :
         {std::pair{&in.k, &e.kept_key}, std::pair{&in.v, &e.kept_value}}) {
      if (in.indices[at] < 0) {
        out->insert(out->end(), static_cast<size_t>(tensor->row_size()), '\0');
      } else {
        const char* row = tensor->row_bytes(b, h, in.indices[at]);
        out->insert(out->end(), row, row + tensor->row_size());
      }
    }
  }
  return e;
}

// What the kernels write; at first all NaN.
struct Fused {
  std::vector<char> out;
  std::vector<float> lse, scores, lse_alone, scores_alone;

  Fused(const Inputs& in, const Expected& e, const Executor& executor, int64_t bytes)
      : out(e.out.size() * static_cast<size_t>(element_size(in.dtype)), '\xff'),
        lse(e.lse.size(), NAN),
        scores(e.scores.size(), NAN),
        lse_alone(lse),
        scores_alone(scores) {
    attention_and_scores(in.p, in.q.view(), in.k.view(), in.v.view(), out.data(), lse.data(),
                         scores.data(), executor, bytes);
    attention_and_scores(in.p, in.q.view(), in.k.view(), {}, nullptr, lse_alone.data(),
                         scores_alone.data(), executor, bytes);
  }
  bool same(const Fused& other) const {
    return same_bits(out, other.out) && same_bits(lse, other.lse) &&
           same_bits(scores, other.scores) && same_bits(lse_alone, other.lse_alone) &&
           same_bits(scores_alone, other.scores_alone);
  }
};

struct Separate {
  std::vector<char> out, grad_query, grad_key, kept_key, kept_value;
  std::vector<float> lse, lse_alone, scores;

  Separate(const Inputs& in, const Expected& e, const Executor& executor)
      : out(e.out.size() * static_cast<size_t>(element_size(in.dtype)), '\xff'),
        grad_query(out),
        grad_key(e.grad_key.size() * static_cast<size_t>(element_size(in.dtype)), '\xff'),
        kept_key(e.kept_key.size(), '\xff'),
        kept_value(kept_key),
        lse(e.lse.size(), NAN),
        lse_alone(lse),
        scores(e.scores.size(), NAN) {
    const Problem& p = in.p;
    const TensorView q = in.q.view(), k = in.k.view(), v = in.v.view();
    attention(p, q, k, v, out.data(), lse.data(), executor);
    attention(p, q, k, {}, nullptr, lse_alone.data(), executor);
    column_scores(p, q, k, lse.data(), scores.data(), executor);
    column_scores_backward(p, q, k, lse.data(), in.grad.data(), grad_query.data(), grad_key.data(),
                           executor);
    gather_kv(p.batch, p.num_kv_heads, p.head_dim, k, v, in.indices.data(), in.kept,
              kept_key.data(), kept_value.data(), executor);
  }
  bool same(const Separate& other) const {
    return same_bits(out, other.out) && same_bits(lse, other.lse) &&
           same_bits(lse_alone, other.lse_alone) && same_bits(scores, other.scores) &&
           same_bits(grad_query, other.grad_query) && same_bits(grad_key, other.grad_key) &&
           same_bits(kept_key, other.kept_key) && same_bits(kept_value, other.kept_value);
  }
};

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

double error_of(const std::vector<double>& expected, const std::vector<float>& actual) {
  return relative_error(expected, [&](size_t i) { return static_cast<double>(actual[i]); });
}

double error_of(const std::vector<double>& expected, const std::vector<char>& actual, DType dtype) {
  const size_t size = static_cast<size_t>(element_size(dtype));
  return relative_error(expected,
                        [&](size_t i) { return decode(actual.data() + i * size, dtype); });
}

// Everything the kernels do for one call, on one instruction set. Emulated AMX takes most of the
// time of all: `brief` leaves out what does not depend on the instruction set.
void check_call(const Inputs& in, const Expected& e, bool brief, const std::string& name) {
  const bool exact = in.dtype == DType::kFloat32;
  const double tolerance = exact ? 1e-5 : 1.2e-2;       // of results in the inputs' dtype
  const double cached_tolerance = exact ? 1e-5 : 2e-3;  // of sums of compressed probabilities
  const SerialExecutor serial;
  const ThreadsExecutor threads;
  const GreedyExecutor greedy;

  const Separate separate(in, e, serial);
  check(error_of(e.out, separate.out, in.dtype) < tolerance, name + " attention");
  check(error_of(e.lse, separate.lse) < 1e-5, name + " lse");
  check(error_of(e.lse, separate.lse_alone) < 1e-5, name + " lse without output");
  check(error_of(e.scores, separate.scores) < 1e-5, name + " scores");
  check(error_of(e.grad_query, separate.grad_query, in.dtype) < tolerance, name + " grad_query");
  check(error_of(e.grad_key, separate.grad_key, in.dtype) < tolerance, name + " grad_key");
  check(same_bits(e.kept_key, separate.kept_key), name + " gathered keys");
  check(same_bits(e.kept_value, separate.kept_value), name + " gathered values");
  check(separate.same(Separate(in, e, threads)), name + " three threads give the same");
  if (!brief) check(separate.same(Separate(in, e, greedy)), name + " a late thread gives the same");

  // A chunk has at least 8 tiles: nothing kept, one chunk of one head at a time, of the longest
  // shape 4 of 6 heads at a time, everything.
  const int64_t rows = round_up(in.p.num_heads / in.p.num_kv_heads * in.p.num_rows, kRowAlign);
  const int64_t tile = rows * (4 + kKeyTile * element_size(in.dtype));
  for (const int64_t bytes : {int64_t{0}, tile, 12 * tile, 70 * tile, kTileCacheBytes}) {
    if (brief && bytes <= tile) continue;
    const std::string cache = name + " cache of " + std::to_string(bytes) + " bytes:";
    const Fused fused(in, e, threads, bytes);
    check(error_of(e.out, fused.out, in.dtype) < tolerance, cache + " attention");
    check(error_of(e.lse, fused.lse) < 1e-5, cache + " lse");
    check(error_of(e.lse, fused.lse_alone) < 1e-5, cache + " lse without output");
    check(error_of(e.scores, fused.scores) < cached_tolerance, cache + " scores");
    check(error_of(e.scores, fused.scores_alone) < cached_tolerance,
          cache + " scores without output");
    if (bytes != 70 * tile) continue;
    check(fused.same(Fused(in, e, serial, bytes)), cache + " three threads give the same");
    if (!brief) {
      check(fused.same(Fused(in, e, greedy, bytes)), cache + " a late thread gives the same");
    }
  }
}

struct Prefill {
  std::vector<char> out;
  std::vector<float> lse, scores;

  bool same(const Prefill& other) const {
    return same_bits(out, other.out) && same_bits(lse, other.lse) &&
           same_bits(scores, other.scores);
  }
};

// The reference is that of S = N + L rows without a prompt, and of L rows with one.
void check_prefill(const Shape& s, DType dtype, int turn) {
  std::mt19937 random(99);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  const int64_t length = s.num_prompt + s.num_rows;
  const Shape all = {s.batch, s.num_kv_heads, s.group, length, 0, s.head_dim};
  const Inputs in(all, dtype, false, scale, turn, random);
  const Expected e = reference(in);
  const int64_t heads = s.num_kv_heads * s.group;
  std::vector<double> scores(static_cast<size_t>(s.batch * s.num_kv_heads * s.num_prompt));
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = s.num_prompt; i < length; ++i) {
        for (int64_t j = 0; j < s.num_prompt; ++j) {
          const double logit =
              scale * dot(in.q.row(b, h, i), in.k.row(b, h / s.group, j), s.head_dim);
          scores[(b * s.num_kv_heads + h / s.group) * s.num_prompt + j] +=
              std::exp(logit - e.lse[(b * heads + h) * length + i]) /
              static_cast<double>(s.group * s.num_rows);
        }
      }
    }
  }
  Problem p = in.p;
  p.num_rows = s.num_rows;
  p.num_prompt = s.num_prompt;
  for (const char* isa : supported_isas()) {
    use_isa(isa);
    const auto run = [&](const Executor& executor) {
      Prefill result{
          std::vector<char>(e.out.size() * static_cast<size_t>(element_size(dtype)), '\xff'),
          std::vector<float>(e.lse.size(), NAN), std::vector<float>(scores.size(), NAN)};
      prefill_attention(p, in.q.view(), in.k.view(), in.v.view(), result.out.data(),
                        result.lse.data(), result.scores.data(), executor);
      return result;
    };
    const std::string name = std::string(isa) + " dtype " +
                             std::to_string(static_cast<int>(dtype)) + " layout " +
                             std::to_string(turn % kLayouts) + " B=" + std::to_string(s.batch) +
                             " N=" + std::to_string(s.num_prompt) + " prefill";
    const Prefill result = run(SerialExecutor());
    check(error_of(e.out, result.out, dtype) < (dtype == DType::kFloat32 ? 1e-5 : 1.2e-2),
          name + " attention");
    check(error_of(e.lse, result.lse) < 1e-5, name + " lse");
    check(error_of(scores, result.scores) < 1e-5, name + " scores");
    check(result.same(run(ThreadsExecutor())), name + " three threads give the same");
    check(result.same(run(GreedyExecutor())), name + " a late thread gives the same");
  }
}

}  // namespace

void check_shapes() {
  // A batch of 0 among them; KV heads that take several rounds of a small cache (N = 1500, and with
  // a single chunk, N = 700); more rows than one attention block.
  const std::vector<Shape> shapes = {
      {1, 2, 4, 32, 200, 64},  {2, 3, 1, 5, 97, 8},    {1, 1, 7, 3, 96, 24},
      {1, 1, 2, 33, 900, 40},  {1, 1, 8, 33, 95, 40},  {1, 2, 5, 1, 1, 256},
      {2, 1, 3, 16, 0, 64},    {1, 1, 1, 1, 0, 16},    {1, 2, 3, 90, 10, 72},
      {1, 1, 1, 17, 1537, 96}, {2, 3, 2, 8, 1500, 24}, {1, 3, 2, 8, 700, 16},
      {0, 2, 3, 4, 50, 16}};
  int turn = 0;
  for (const Shape& s : shapes) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const bool padded : {false, true}) {
        std::mt19937 random(1234);
        const double scale = padded ? -0.2 : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
        const Inputs inputs(s, dtype, padded, scale, turn, random);
        const Expected expected = reference(inputs);
        for (const char* isa : supported_isas()) {
          use_isa(isa);
          check_call(inputs, expected, std::string(isa) == "amx",
                     std::string(isa) + " dtype " + std::to_string(static_cast<int>(dtype)) +
                         " layout " + std::to_string(turn % kLayouts) +
                         " B=" + std::to_string(s.batch) + " N=" + std::to_string(s.num_prompt) +
                         " L=" + std::to_string(s.num_rows) + " G=" + std::to_string(s.group) +
                         " D=" + std::to_string(s.head_dim) + (padded ? " padded" : ""));
        }
        ++turn;
      }
    }
  }
  for (const Shape& s :
       std::vector<Shape>{{2, 2, 3, 5, 150, 24}, {1, 1, 1, 7, 0, 16}, {0, 2, 3, 4, 50, 16}}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      check_prefill(s, dtype, turn++);
    }
  }
}

}  // namespace lookaheadkv::cpu
