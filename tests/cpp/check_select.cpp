// select() against sorting, straight from the definition: the pooled score of a position is the
// largest number in its window of valid positions (NaN where there is none); larger scores come
// first, NaN last, ties by position; the first num_sink and last num_recent valid positions are
// kept whatever their score.
#include <algorithm>
#include <cmath>
#include <iterator>

#include "check.h"

namespace lookaheadkv::cpu {

namespace {

// Positions, best first.
std::vector<int64_t> ranking(const std::vector<float>& scores, int64_t pool_kernel) {
  const int64_t n = static_cast<int64_t>(scores.size());
  std::vector<float> pooled(scores.size(), NAN);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t last = std::min(n - 1, i + pool_kernel / 2);
    for (int64_t j = std::max<int64_t>(0, i - pool_kernel / 2); j <= last; ++j) {
      if (!std::isnan(scores[j]) && !(pooled[i] >= scores[j])) pooled[i] = scores[j];
    }
  }
  std::vector<int64_t> order(scores.size());
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    if (std::isnan(pooled[a])) return false;
    return std::isnan(pooled[b]) || pooled[a] > pooled[b];
  });
  return order;
}

// The kept ones of a row's ranked positions, ascending.
std::vector<int64_t> keep(const std::vector<int64_t>& ranked, const SelectOptions& options) {
  const int64_t n = static_cast<int64_t>(ranked.size());
  if (n <= options.budget) {
    std::vector<int64_t> all(ranked);
    std::sort(all.begin(), all.end());
    return all;
  }
  std::vector<int64_t> kept;
  const auto pinned = [&](int64_t i) {
    return i < options.num_sink || i >= n - options.num_recent;
  };
  std::copy_if(ranked.begin(), ranked.end(), std::back_inserter(kept), pinned);
  for (const int64_t i : ranked) {
    if (static_cast<int64_t>(kept.size()) == options.budget) break;
    if (!pinned(i)) kept.push_back(i);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

constexpr int64_t kBatch = 3, kHeads = 2, kKinds = 6;

// One score row of each kind, [kKinds][n].
std::vector<std::vector<float>> score_rows(int64_t n, std::mt19937& random) {
  std::uniform_int_distribution<int> few(0, 5);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f};
  std::vector<std::vector<float>> rows(kKinds, std::vector<float>(static_cast<size_t>(n)));
  for (int64_t i = 0; i < n; ++i) {
    rows[0][i] = uniform(random);
    rows[1][i] = static_cast<float>(few(random));  // ties
    rows[2][i] = i % 17 < 13 ? NAN : -0.25f;       // windows of NaN only, and others
    rows[3][i] = static_cast<float>(i);            // every position beats the ones before
    rows[4][i] = static_cast<float>(-i);
    rows[5][i] = special[few(random)];
  }
  return rows;
}

enum Padding { kNone, kLeft, kRight, kBoth };

void check_length(int64_t n, Padding padding, std::mt19937& random) {
  // The last batch row has nothing valid where both sides are padded.
  std::vector<int32_t> leftpad(kBatch, 0), seqused(kBatch, static_cast<int32_t>(n));
  if (padding == kLeft || padding == kBoth) {
    leftpad = {static_cast<int32_t>(n / 9), static_cast<int32_t>(n / 3),
               static_cast<int32_t>(n / 2)};
  }
  if (padding == kRight || padding == kBoth) {
    seqused = {static_cast<int32_t>(n - n / 11), static_cast<int32_t>(n - n / 4),
               static_cast<int32_t>(n / 2)};
  }
  Problem p;
  p.batch = kBatch;
  p.num_kv_heads = p.num_heads = kHeads;
  p.num_prompt = n;
  p.leftpad_k = padding == kLeft || padding == kBoth ? leftpad.data() : nullptr;
  p.seqused_k = padding == kRight || padding == kBoth ? seqused.data() : nullptr;

  // Padding scores best: it may neither be kept nor win a window.
  const std::vector<std::vector<float>> rows = score_rows(n, random);
  std::vector<float> scores(static_cast<size_t>(kBatch * kHeads * n), INFINITY);
  std::vector<std::vector<float>> valid;
  for (int64_t row = 0; row < kBatch * kHeads; ++row) {
    const std::vector<float>& from = rows[(row + padding) % kKinds];
    const int64_t begin = leftpad[row / kHeads], end = seqused[row / kHeads];
    valid.emplace_back(from.begin() + begin, from.begin() + end);
    std::copy(valid.back().begin(), valid.back().end(), scores.begin() + row * n + begin);
  }

  const SerialExecutor serial;
  const ThreadsExecutor threads;
  const GreedyExecutor greedy;
  const Executor* const executors[] = {&serial, &threads, &greedy, &serial};
  const std::pair<int64_t, int64_t> pins[] = {{0, 0}, {2, 2}, {4, 0}, {0, 3}, {1, 5}};
  size_t turn = 0;
  for (const int64_t pool_kernel : {1, 7, 31}) {
    std::vector<std::vector<int64_t>> ranked;
    for (const std::vector<float>& row : valid) ranked.push_back(ranking(row, pool_kernel));
    for (const auto& [sink, recent] : pins) {
      for (const int64_t budget :
           {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{6}, n / 16, n / 2, n, n + 3}) {
        if (budget < sink + recent) continue;
        const int64_t append_rows = budget % 3 == 0 ? 0 : 4;
        const SelectOptions options = {budget, pool_kernel, sink, recent, append_rows};
        const int64_t slots = std::min(budget, n) + append_rows;
        std::vector<int32_t> expected;
        for (int64_t row = 0; row < kBatch * kHeads; ++row) {
          const size_t end = expected.size() + static_cast<size_t>(slots);
          for (const int64_t i : keep(ranked[row], options)) {
            expected.push_back(static_cast<int32_t>(leftpad[row / kHeads] + i));
          }
          for (int64_t i = 0; i < append_rows; ++i) {
            expected.push_back(static_cast<int32_t>(n + i));
          }
          expected.resize(end, -1);
        }
        for (const char* isa : checked_isas()) {
          use_isa(isa);
          std::vector<int32_t> indices(expected.size(), -7);
          select(p, scores.data(), options, indices.data(), *executors[turn++ % 4]);
          check(indices == expected,
                std::string(isa) + " select n=" + std::to_string(n) +
                    " budget=" + std::to_string(budget) + " pool=" + std::to_string(pool_kernel) +
                    " sink=" + std::to_string(sink) + " recent=" + std::to_string(recent) +
                    " appended=" + std::to_string(append_rows) + " padding " +
                    std::to_string(padding));
        }
      }
    }
  }
}

// Scores out of integers alone, the same ones on every processor: random bits, among them NaN,
// infinities and subnormals; few values, both zeros among them; and the ordinary.
std::vector<float> fixed_scores(int64_t n) {
  std::vector<float> scores(static_cast<size_t>(n));
  uint32_t state = 1;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t bits = state ^ state >> 15;
    if (i < n / 3) {
      std::memcpy(&scores[i], &bits, sizeof(bits));
    } else if (i < 2 * n / 3) {
      scores[i] = static_cast<float>(bits % 5) * (bits % 2 == 0 ? 0.25f : -0.25f);
    } else {
      scores[i] = static_cast<float>(bits >> 8) * 0x1p-24f;
    }
  }
  return scores;
}

// What is chosen of fixed_scores(), as one number (FNV-1a) that every instruction set of every
// processor has to give.
void check_fixed_indices(const std::string& isa) {
  constexpr uint64_t kExpected = 11587847453410190619u;
  constexpr int64_t kLength = 6000;
  const std::vector<float> scores = fixed_scores(2 * kLength);
  Problem p;
  p.batch = 1;
  p.num_kv_heads = p.num_heads = 2;
  p.num_prompt = kLength;
  uint64_t hash = 14695981039346656037u;
  for (const int64_t pool_kernel : {1, 7, 31}) {
    for (const int64_t budget : {int64_t{8}, int64_t{256}, kLength / 2, kLength - 1}) {
      std::vector<int32_t> indices(static_cast<size_t>(2 * budget), -7);
      select(p, scores.data(), {budget, pool_kernel, 1, 3, 0}, indices.data(), SerialExecutor());
      for (const int32_t index : indices) {
        hash = (hash ^ static_cast<uint32_t>(index)) * 1099511628211u;
      }
    }
  }
  check(hash == kExpected, isa + " indices of fixed scores " + std::to_string(hash));
}

}  // namespace

void check_select() {
  std::mt19937 random(7);
  for (const int64_t n : {0, 1, 2, 7, 63, 64, 65, 1023, 1024, 1025, 5000}) {
    for (const Padding padding : {kNone, kLeft, kRight, kBoth}) check_length(n, padding, random);
  }
  for (const char* isa : checked_isas()) {
    use_isa(isa);
    check_fixed_indices(isa);
    Problem p;  // B = 0
    p.num_kv_heads = p.num_heads = 2;
    p.num_prompt = 100;
    select(p, nullptr, {10, 7, 1, 1, 3}, nullptr, ThreadsExecutor());
  }
}

}  // namespace lookaheadkv::cpu
