// attention, column_scores with the log-sum-exp given and in parts, the backward, gather_kv and
// prefill_attention against double-precision code, for shapes x dtypes x paddings x memory layouts.
#include "check_cuda.h"

namespace lookaheadkv::cuda {

using namespace cpu;  // the references

namespace {

// What the kernels write; at first all NaN.
struct Results {
  std::vector<char> out, grad_query, grad_key, kept_key, kept_value;
  std::vector<float> lse, scores, scores_given, scores_alone;

  Results(const Inputs& in, const Expected& e, int num_sms)
      : out(e.out.size() * static_cast<size_t>(element_size(in.dtype)), '\xff'),
        grad_query(out),
        grad_key(e.grad_key.size() * static_cast<size_t>(element_size(in.dtype)), '\xff'),
        kept_key(e.kept_key.size(), '\xff'),
        kept_value(kept_key),
        lse(e.lse.size(), NAN),
        scores(e.scores.size(), NAN),
        scores_given(scores),
        scores_alone(scores) {
    const Problem& p = in.p;
    const TensorView q = in.q.view(), k = in.k.view(), v = in.v.view();
    const Device device = chip(num_sms);
    with_workspace([&](Workspace& workspace) {
      const RowLse parts = cuda::attention(p, q, k, v, out.data(), lse.data(), workspace, device);
      if (!workspace.counting()) {
        cuda::column_scores(p, q, k, parts, scores.data(), true, device);
      }
    });
    with_workspace([&](Workspace& workspace) {
      const RowLse parts = cuda::attention(p, q, k, k, nullptr, nullptr, workspace, device);
      if (!workspace.counting()) {
        cuda::column_scores(p, q, k, parts, scores_alone.data(), true, device);
      }
    });
    cuda::column_scores(p, q, k, {lse.data(), p.num_rows, nullptr, 0}, scores_given.data(), false,
                        device);
    with_workspace([&](Workspace& workspace) {
      std::vector<float> own(lse.size(), NAN);  // the log-sum-exp without the output
      cuda::attention(p, q, k, k, nullptr, own.data(), workspace, device);
      cuda::column_scores_backward(p, q, k, own.data(), in.grad.data(), grad_query.data(),
                                   grad_key.data(), workspace, device);
    });
    cuda::gather_kv(p.batch, p.num_kv_heads, p.num_keys(), p.head_dim, k, v, in.indices.data(),
                    in.kept, kept_key.data(), kept_value.data(), false, device);
  }
  bool same(const Results& other) const {
    return same_bits(out, other.out) && same_bits(lse, other.lse) &&
           same_bits(scores, other.scores) && same_bits(scores_given, other.scores_given) &&
           same_bits(scores_alone, other.scores_alone) && same_bits(grad_query, other.grad_query) &&
           same_bits(grad_key, other.grad_key);
  }
};

void check_call(const Inputs& in, int num_sms, bool twice, const std::string& name) {
  const Expected e = reference(in);
  const Results actual(in, e, num_sms);
  const double tolerance = in.dtype == DType::kFloat32 ? 1e-5 : 1.2e-2;
  check(error_of(e.out, actual.out, in.dtype) < tolerance, name + " attention");
  check(error_of(e.lse, actual.lse) < 1e-5, name + " lse");
  check(error_of(e.scores, actual.scores) < 1e-5, name + " scores");
  check(error_of(e.scores, actual.scores_given) < 1e-5, name + " scores with lse");
  check(error_of(e.scores, actual.scores_alone) < 1e-5, name + " scores alone");
  check(error_of(e.grad_query, actual.grad_query, in.dtype) < tolerance, name + " grad_query");
  check(error_of(e.grad_key, actual.grad_key, in.dtype) < tolerance, name + " grad_key");
  check(same_bits(e.kept_key, actual.kept_key), name + " gathered keys");
  check(same_bits(e.kept_value, actual.kept_value), name + " gathered values");
  if (twice) check(actual.same(Results(in, e, num_sms)), name + " the same bits again");
}

constexpr DType kDTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat32};
constexpr const char* kNames[] = {"fp32", "fp16", "bf16"};

std::string describe(const Shape& s, DType dtype) {
  std::string name = kNames[static_cast<int>(dtype)];
  const std::pair<const char*, int64_t> sizes[] = {{" B=", s.batch},      {" Hkv=", s.num_kv_heads},
                                                   {" G=", s.group},      {" L=", s.num_rows},
                                                   {" N=", s.num_prompt}, {" D=", s.head_dim}};
  for (const auto& [letter, size] : sizes) name += letter + std::to_string(size);
  return name;
}

// A key of minus infinity has no weight for the real rows, and the rows that fill up their tile
// must not turn it into NaN (0 * infinity).
template <class Bits>
void check_infinite_key(DType dtype, Bits one, Bits minus_infinity) {
  constexpr int64_t kPrompt = 70, kAt = 41;
  for (const int64_t dim : {64, 72, 256}) {
    for (const int64_t rows : {1, 33, 130}) {
      std::vector<Bits> query(static_cast<size_t>(rows * dim)), key((kPrompt + rows) * dim);
      for (int64_t r = 0; r < rows; ++r) query[r * dim] = one;
      key[kAt * dim] = minus_infinity;
      const Problem p = {1, 1, 1, rows, kPrompt, dim, 1.0, nullptr, nullptr};
      const TensorView q = {query.data(), dtype, rows * dim, rows * dim, dim};
      const TensorView k = {key.data(), dtype, (kPrompt + rows) * dim, (kPrompt + rows) * dim, dim};
      const std::vector<float> lse(static_cast<size_t>(rows), 0.0f);
      std::vector<float> scores(kPrompt, NAN), expected(kPrompt, 1.0f);
      expected[kAt] = 0.0f;
      cuda::column_scores(p, q, k, {lse.data(), rows, nullptr, 0}, scores.data(), false, chip(4));
      check(scores == expected,
            describe({1, 1, 1, rows, kPrompt, dim}, dtype) + " an infinite key");
    }
  }
}

}  // namespace

void check_shapes() {
  check_infinite_key<uint16_t>(DType::kBFloat16, 0x3f80, 0xff80);
  check_infinite_key<uint16_t>(DType::kFloat16, 0x3c00, 0xfc00);
  check_infinite_key<uint32_t>(DType::kFloat32, 0x3f800000, 0xff800000);
  const Shape shapes[] = {
      {1, 1, 1, 1, 0, 64},
      {2, 1, 1, 3, 1, 8},
      {1, 2, 2, 5, 63, 64},
      {2, 1, 3, 7, 64, 40},
      {1, 1, 4, 32, 65, 64},
      {1, 1, 5, 13, 127, 96},
      {1, 1, 7, 9, 128, 72},
      {1, 1, 8, 32, 129, 128},
      {1, 2, 2, 16, 200, 256},
      {2, 1, 1, 33, 31, 160},
      {1, 1, 4, 32, 300, 128},
      {1, 1, 1, 2, 513, 24},
      {1, 2, 1, 32, 257, 128},
      {1, 1, 6, 11, 95, 256},
      // Several row tiles, and a split that is padding alone.
      {1, 1, 3, 44, 1300, 8},
  };
  std::mt19937 random(5);
  int turn = 0;
  for (const Shape& shape : shapes) {
    for (const DType dtype : kDTypes) {
      const bool padded = shape.num_prompt > 8 && turn % 2 == 1;
      const double scale = turn % 7 == 3 ? -0.3 : 1.0 / std::sqrt(double(shape.head_dim));
      if (brief && shape.head_dim % 40 != 0 && shape.head_dim != 8) continue;
      const Inputs in(shape, dtype, padded, scale, turn, random);
      // 64 multiprocessors: as many splits as there may be; 1: one.
      check_call(in, turn % 3 == 0 ? 1 : 64, turn % 6 == 0,
                 describe(shape, dtype) + (padded ? " padded" : "") + " layout " +
                     std::to_string(turn % kLayouts));
      ++turn;
    }
  }
}

void check_prefill() {
  std::mt19937 random(6);
  for (const auto& [keys, rows, dim] :
       {std::tuple{1, 1, 64}, std::tuple{70, 6, 64}, std::tuple{150, 32, 128}}) {
    for (const DType dtype : kDTypes) {
      // All rows, without a prompt; the scores are those of the last rows over the others.
      const Shape all = {1, 1, 2, keys, 0, dim}, last = {1, 1, 2, rows, keys - rows, dim};
      const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
      Inputs in(all, dtype, false, scale, keys, random);
      const Expected e = reference(in);
      std::vector<char> out(e.out.size() * static_cast<size_t>(element_size(dtype)), '\xff');
      std::vector<float> lse(e.lse.size(), NAN);
      std::vector<float> scores(static_cast<size_t>(keys - rows), NAN);
      Problem p = in.p;
      p.num_rows = rows;
      p.num_prompt = keys - rows;
      TensorView queries = in.q.view();
      with_workspace([&](Workspace& workspace) {
        const RowLse of_rows = cuda::prefill_attention(p, queries, in.k.view(), in.v.view(),
                                                       out.data(), lse.data(), workspace, chip(8));
        if (workspace.counting()) return;
        TensorView tail = queries;
        tail.data = queries.row(0, 0, p.num_prompt);
        cuda::column_scores(p, tail, in.k.view(), of_rows, scores.data(), true, chip(8));
      });
      std::vector<double> expected(scores.size(), 0.0);
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t i = p.num_prompt; i < keys; ++i) {
          for (size_t j = 0; j < expected.size(); ++j) {
            double logit = 0;
            for (int64_t c = 0; c < dim; ++c) {
              logit += in.q.row(0, h, i)[c] * in.k.row(0, 0, static_cast<int64_t>(j))[c];
            }
            expected[j] += std::exp(scale * logit - e.lse[h * keys + i]) / (2.0 * rows);
          }
        }
      }
      const double tolerance = dtype == DType::kFloat32 ? 1e-5 : 1.2e-2;
      const std::string name = "prefill " + describe(last, dtype);
      check(error_of(e.out, out, dtype) < tolerance, name + " attention");
      check(error_of(e.lse, lse) < 1e-5, name + " lse");
      check(error_of(expected, scores) < 1e-5, name + " scores");
    }
  }
}

}  // namespace lookaheadkv::cuda
