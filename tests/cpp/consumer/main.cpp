// Loads the op library, calls lookaheadkv::score_and_evict through the dispatcher, and compares the
// result with plain loops. Usage: consumer PATH_OF_LIBRARY
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

namespace {

using ScoreAndEvict = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, int64_t budget,
    const std::optional<at::Tensor>& lse, std::optional<double> scale, int64_t pool_kernel,
    int64_t num_sink, int64_t num_recent, bool keep_observation,
    const std::optional<at::Tensor>& leftpad_k, const std::optional<at::Tensor>& seqused_k);

constexpr int64_t kBatch = 2, kHeads = 6, kKvHeads = 2, kRows = 5, kPrompt = 217, kDim = 40;
constexpr int64_t kBudget = 32, kPool = 7;

int failures = 0;

void check(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "FAILED: %s\n", what);
    ++failures;
  }
}

// Mean probability of every prompt key over the rows of one KV head, in double.
std::vector<double> plain_scores(const at::TensorAccessor<float, 4>& query,
                                 const at::TensorAccessor<float, 4>& key, int64_t b, int64_t h) {
  const int64_t group = kHeads / kKvHeads;
  std::vector<double> scores(kPrompt, 0.0);
  for (int64_t row = 0; row < group * kRows; ++row) {
    const int64_t head = h * group + row / kRows, i = row % kRows;
    std::vector<double> p(kPrompt + i + 1);
    for (size_t j = 0; j < p.size(); ++j) {
      double dot = 0;
      for (int64_t d = 0; d < kDim; ++d) {
        dot += static_cast<double>(query[b][head][i][d]) * key[b][h][static_cast<int64_t>(j)][d];
      }
      p[j] = std::exp(dot / std::sqrt(static_cast<double>(kDim)));
    }
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (int64_t j = 0; j < kPrompt; ++j) {
      scores[j] += p[j] / sum / static_cast<double>(group * kRows);
    }
  }
  return scores;
}

// Max-pool, the best positions (ties to the smaller one), in ascending order.
std::vector<int32_t> plain_selection(const at::TensorAccessor<float, 1>& scores) {
  std::vector<float> pooled(kPrompt);
  for (int64_t j = 0; j < kPrompt; ++j) {
    pooled[j] = scores[j];
    for (int64_t at = std::max<int64_t>(0, j - kPool / 2);
         at <= std::min(kPrompt - 1, j + kPool / 2); ++at) {
      pooled[j] = std::max(pooled[j], scores[at]);
    }
  }
  std::vector<int32_t> positions(kPrompt);
  std::iota(positions.begin(), positions.end(), 0);
  std::stable_sort(positions.begin(), positions.end(),
                   [&](int32_t a, int32_t b) { return pooled[a] > pooled[b]; });
  positions.resize(kBudget);
  std::sort(positions.begin(), positions.end());
  return positions;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s PATH_OF_LIBRARY\n", argv[0]);
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("lookaheadkv::score_and_evict", "")
                      .typed<ScoreAndEvict>();

  at::manual_seed(0);
  const at::Tensor query = at::randn({kBatch, kHeads, kRows, kDim});
  const at::Tensor key = at::randn({kBatch, kKvHeads, kPrompt + kRows, kDim});
  const at::Tensor value = at::randn({kBatch, kKvHeads, kPrompt + kRows, kDim});
  const auto [kept_key, kept_value, indices, scores] =
      op.call(query, key, value, kBudget, std::nullopt, std::nullopt, kPool, 0, 0, false,
              std::nullopt, std::nullopt);

  check(kept_key.sizes() == at::IntArrayRef({kBatch, kKvHeads, kBudget, kDim}), "shape of key");
  check(kept_value.sizes() == kept_key.sizes(), "shape of value");
  check(indices.scalar_type() == at::kInt, "dtype of indices");
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t h = 0; h < kKvHeads; ++h) {
      const at::Tensor row = scores[b][h];
      const std::vector<double> expected =
          plain_scores(query.accessor<float, 4>(), key.accessor<float, 4>(), b, h);
      const double largest = *std::max_element(expected.begin(), expected.end());
      for (int64_t j = 0; j < kPrompt; ++j) {
        check(std::abs(row.accessor<float, 1>()[j] - expected[j]) < 1e-5 * largest, "a score");
      }
      const std::vector<int32_t> kept = plain_selection(row.accessor<float, 1>());
      const at::Tensor positions = indices[b][h].to(at::kLong);
      for (int64_t slot = 0; slot < kBudget; ++slot) {
        check(positions[slot].item<int64_t>() == kept[slot], "an index");
      }
      check(at::equal(kept_key[b][h], key[b][h].index_select(0, positions)), "kept keys");
      check(at::equal(kept_value[b][h], value[b][h].index_select(0, positions)), "kept values");
    }
  }

  try {
    op.call(query, key, value, 0, std::nullopt, std::nullopt, kPool, 0, 0, false, std::nullopt,
            std::nullopt);
    check(false, "budget 0 must throw");
  } catch (const std::exception& error) {
    check(std::string(error.what()).find("budget must be at least 1, got 0") != std::string::npos,
          error.what());
  }
  if (failures == 0) std::puts("score_and_evict agrees with plain loops");
  return failures == 0 ? 0 : 1;
}
