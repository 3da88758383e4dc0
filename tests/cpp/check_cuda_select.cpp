// select against the CPU's: lengths around every edge, ties, NaN, padding, pins, wide pools.
#include "check_cuda.h"
#include "cpu/kernels.h"

namespace lookaheadkv::cuda {

using cpu::check;

namespace {

constexpr int64_t kBatch = 2, kHeads = 3;

// One row of each kind: random, few values, mostly NaN, ascending, all equal, special values.
std::vector<float> score_rows(int64_t n, std::mt19937& random) {
  std::uniform_int_distribution<int> few(0, 5);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, -NAN};
  std::vector<float> scores;
  for (int64_t row = 0; row < kBatch * kHeads; ++row) {
    for (int64_t i = 0; i < n; ++i) {
      switch (row) {
        case 0:
          scores.push_back(uniform(random));
          break;
        case 1:
          scores.push_back(static_cast<float>(few(random)));
          break;
        case 2:
          scores.push_back(i % 17 < 13 ? NAN : -0.25f);
          break;
        case 3:
          scores.push_back(static_cast<float>(i));
          break;
        case 4:
          scores.push_back(0.125f);
          break;
        default:
          scores.push_back(special[few(random)]);
      }
    }
  }
  return scores;
}

// On a chip that the rows fill, and on one that they do not fill, so that they are cut.
void check_options(const Problem& p, const std::vector<float>& scores, const SelectOptions& o,
                   int num_sms, const std::string& name) {
  const int64_t slots = std::min(o.budget, p.num_prompt) + o.append_rows;
  std::vector<int32_t> expected(static_cast<size_t>(kBatch * kHeads * slots), -7);
  std::vector<int32_t> actual = expected;
  cpu::select(p, scores.data(), o, expected.data(), cpu::SerialExecutor());
  with_workspace([&](Workspace& workspace) {
    select(p, scores.data(), o, actual.data(), workspace, false, chip(num_sms));
  });
  check(actual == expected,
        name + " chip=" + std::to_string(num_sms) + " budget=" + std::to_string(o.budget) +
            " pool=" + std::to_string(o.pool_kernel) + " sink=" + std::to_string(o.num_sink) +
            " recent=" + std::to_string(o.num_recent) +
            " appended=" + std::to_string(o.append_rows));
}

}  // namespace

void check_select() {
  std::mt19937 random(11);
  int turn = 0;
  for (const int64_t n :
       {0, 1, 2, 5, 31, 700, 4095, 4096, 4097, 9000, 20000, 32768, 32769, 41000}) {
    const std::vector<float> scores = score_rows(n, random);
    const bool large = n > 1000;
    if (brief && n != 5 && n != 700 && n != 4097) continue;
    for (const bool padded : {false, true}) {
      const auto at = [n](int64_t part) { return static_cast<int32_t>(n * part / 16); };
      // The last row of the batch has nothing valid.
      const std::vector<int32_t> leftpad = {at(3), at(9)}, seqused = {at(15), at(9)};
      Problem p;
      p.batch = kBatch;
      p.num_kv_heads = p.num_heads = kHeads;
      p.num_prompt = n;
      p.leftpad_k = padded ? leftpad.data() : nullptr;
      p.seqused_k = padded ? seqused.data() : nullptr;
      const std::string name = "select n=" + std::to_string(n) + (padded ? " padded" : "");
      for (const int64_t pool : {int64_t{1}, int64_t{7}, int64_t{63}, int64_t{65}, 2 * n + 101}) {
        for (const int64_t budget : {int64_t{0}, int64_t{6}, n / 40, n / 3, n, n + 3}) {
          // Large lengths take turns, so that every combination occurs at one of them.
          const bool in_turn =
              brief ? !padded && pool == 7 && (budget == 6 || budget == n / 3) : ++turn % 13 == 0;
          if (large && !in_turn) continue;
          for (const auto& [sink, recent] : {std::pair{0, 0}, std::pair{2, 3}}) {
            if (budget < sink + recent) continue;
            const SelectOptions options = {budget, pool, sink, recent, budget % 3};
            check_options(p, scores, options, 4, name);
            if (n > 10000) check_options(p, scores, options, 264, name);
          }
        }
      }
    }
  }
  // Lengths out of range are clamped.
  const std::vector<float> scores = score_rows(500, random);
  const std::vector<int32_t> wild_left = {-5, 90}, wild_used = {9999, 80}, left = {0, 80},
                             used = {500, 80};
  Problem p;
  p.batch = kBatch;
  p.num_kv_heads = p.num_heads = kHeads;
  p.num_prompt = 500;
  std::vector<int32_t> results[2];
  for (const bool wild : {false, true}) {
    p.leftpad_k = wild ? wild_left.data() : left.data();
    p.seqused_k = wild ? wild_used.data() : used.data();
    results[wild].assign(kBatch * kHeads * 40, -7);
    with_workspace([&](Workspace& workspace) {
      select(p, scores.data(), {40, 7, 0, 0, 0}, results[wild].data(), workspace, false, chip(4));
    });
  }
  check(results[0] == results[1], "select clamps lengths");
}

}  // namespace lookaheadkv::cuda
