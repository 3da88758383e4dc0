// score_and_evict: the same bits as scores, select and gather one by one, in at most three
// launches.
#include "check_cuda.h"
#include "cuda/launch.cuh"

namespace lookaheadkv::cuda {

using namespace cpu;  // the inputs

namespace {

constexpr int kSms = 32;  // more than rows: long ones are cut into pieces

struct Kept {
  std::vector<char> key, value;
  std::vector<int32_t> indices;
  std::vector<float> scores;

  Kept(const Inputs& in, int64_t slots)
      : key(static_cast<size_t>(in.p.batch * in.p.num_kv_heads * slots * in.k.row_size()), '\xff'),
        value(key),
        indices(static_cast<size_t>(in.p.batch * in.p.num_kv_heads * slots), -7),
        scores(static_cast<size_t>(in.p.batch * in.p.num_kv_heads * in.p.num_prompt), NAN) {}
  bool operator==(const Kept& other) const {
    return same_bits(key, other.key) && same_bits(value, other.value) && indices == other.indices &&
           same_bits(scores, other.scores);
  }
};

void check_call(const Inputs& in, const SelectOptions& options, const float* lse,
                const std::string& name) {
  const Problem& p = in.p;
  const TensorView q = in.q.view(), k = in.k.view(), v = in.v.view();
  const int64_t slots = std::min(options.budget, p.num_prompt) + options.append_rows;
  Kept actual(in, slots), expected(in, slots);
  const size_t before = emulated_launches.size();
  with_workspace([&](Workspace& workspace) {
    score_and_evict(
        p, q, k, v, lse, options,
        {actual.key.data(), actual.value.data(), actual.indices.data(), actual.scores.data()},
        workspace, chip(kSms));
  });
  const size_t launches = emulated_launches.size() - before;
  const bool first_follows = launches > 0 && emulated_launches[before];
  with_workspace([&](Workspace& workspace) {
    const RowLse rows = lse != nullptr
                            ? RowLse{lse, p.num_rows, nullptr, 0}
                            : attention(p, q, k, k, nullptr, nullptr, workspace, chip(kSms));
    if (!workspace.counting()) {
      column_scores(p, q, k, rows, expected.scores.data(), false, chip(kSms));
    }
    select(p, expected.scores.data(), options, expected.indices.data(), workspace, true,
           chip(kSms));
  });
  gather_kv(p.batch, p.num_kv_heads, p.num_keys(), p.head_dim, k, v, expected.indices.data(), slots,
            expected.key.data(), expected.value.data(), true, chip(kSms));
  check(actual == expected, name + ": as the rooms one by one");
  check(!first_follows, name + ": the first launch follows none");
  if (options.pool_kernel <= 63 && p.num_prompt <= 32768) {
    check(launches <= (lse == nullptr ? 3u : 2u),
          name + ": " + std::to_string(launches) + " launches");
  }
}

}  // namespace

void check_evict() {
  std::mt19937 random(12);
  const Shape shapes[] = {{1, 2, 2, 5, 0, 64},    {2, 3, 2, 7, 61, 40},   {1, 2, 4, 32, 400, 128},
                          {2, 1, 1, 3, 2500, 16}, {1, 1, 2, 9, 200, 256}, {1, 1, 1, 1, 1, 8},
                          {2, 1, 1, 3, 17000, 8}};
  // A budget whose candidates no block holds.
  const Inputs long_row({1, 1, 1, 1, 33000, 8}, DType::kFloat32, false, 1.0, 0, random);
  check_call(long_row, {17000, 7, 1, 1, 1}, nullptr, "evict N=33000");
  int turn = 0;
  for (const Shape& shape : shapes) {
    const int64_t n = shape.num_prompt;
    if (brief && n > 60 && n < 17000) continue;
    std::vector<float> lse(
        static_cast<size_t>(shape.batch * shape.num_kv_heads * shape.group * shape.num_rows), 1.0f);
    const SelectOptions all[] = {{n / 3 + 1, 7, 0, 0, 0},
                                 {n / 70 + 1, 7, 1, 2, 0},
                                 {n / 2 + 5, 1, 2, 3, shape.num_rows},
                                 {0, 7, 0, 0, shape.num_rows},
                                 {n / 4 + 5, 65, 0, 1, 0}};
    // Rows of scores that are all equal are of one digit, and every key is at the threshold.
    for (const bool equal : {false, true}) {
      if (equal && n < 100) continue;
      const double scale = equal ? 0.0 : 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
      const Inputs in(shape, static_cast<DType>(turn % 3), n > 8 && turn % 2 == 1, scale, turn,
                      random);
      const std::string name = "evict N=" + std::to_string(n) + (equal ? " equal" : "");
      for (const SelectOptions& options : all) {
        // In pieces, and, as their candidates would be too many, by one block with more sweeps than
        // it has stages for.
        const bool in_pieces = options.budget == n / 70 + 1;
        if (equal && !in_pieces) continue;
        if (brief && n > 10000 && !in_pieces && options.budget != n / 3 + 1) continue;
        check_call(in, options, nullptr, name);
        check_call(in, options, lse.data(), name + " with lse");
      }
    }
    ++turn;
  }
}

}  // namespace lookaheadkv::cuda
