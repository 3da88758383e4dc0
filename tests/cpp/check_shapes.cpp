// attention, column_scores, both together with tile caches of several sizes, the backward and
// gather_kv against double-precision code, for shapes x dtypes x paddings x memory layouts; then
// prefill_attention.
#include <algorithm>
#include <cmath>

#include "cpu/isa/tile_ops.h"
#include "reference.h"

namespace lookaheadkv::cpu {

namespace {

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

// Everything the kernels do for one call, on one instruction set; `less` leaves out what does not
// depend on the instruction set.
void check_call(const Inputs& in, const Expected& e, bool less, const std::string& name) {
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
  if (!less) check(separate.same(Separate(in, e, greedy)), name + " a late thread gives the same");

  // A chunk has at least 8 tiles: nothing kept, one chunk of one head at a time, of the longest
  // shape 4 of 6 heads at a time, everything.
  const int64_t rows = round_up(in.p.num_heads / in.p.num_kv_heads * in.p.num_rows, kRowAlign);
  const int64_t tile = rows * (4 + kKeyTile * element_size(in.dtype));
  for (const int64_t bytes : {int64_t{0}, tile, 12 * tile, 70 * tile, kTileCacheBytes}) {
    if (less && bytes <= tile) continue;
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
    if (!less) {
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
  for (const char* isa : checked_isas()) {
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
        const int at = turn++;
        // A sample has every shape in every dtype, padded or not.
        if (brief() && padded == (at / 2 % 2 == 0)) continue;
        std::mt19937 random(1234);
        const double scale = padded ? -0.2 : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
        const Inputs inputs(s, dtype, padded, scale, at, random);
        const Expected expected = reference(inputs);
        for (const char* isa : checked_isas()) {
          use_isa(isa);
          const bool less = brief() || std::string(isa) == "amx";  // most of the time, emulated
          check_call(inputs, expected, less,
                     std::string(isa) + " dtype " + std::to_string(static_cast<int>(dtype)) +
                         " layout " + std::to_string(at % kLayouts) +
                         " B=" + std::to_string(s.batch) + " N=" + std::to_string(s.num_prompt) +
                         " L=" + std::to_string(s.num_rows) + " G=" + std::to_string(s.group) +
                         " D=" + std::to_string(s.head_dim) + (padded ? " padded" : ""));
        }
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
