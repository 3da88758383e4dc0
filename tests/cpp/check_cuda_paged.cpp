// The kernels on paged caches: random layouts, lengths and budgets against double-precision code,
// the CPU's select and plain copies.
#include <algorithm>
#include <numeric>

#include "check_cuda.h"
#include "cuda/keys.cuh"
#include "cuda/paged_kernels.h"

namespace lookaheadkv::cuda {

using namespace cpu;  // strided tensors, decode

namespace {

int pick(std::mt19937& random, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(random);
}

// The value of a byte of a quantised cache, written out from the formats' definitions.
double decode_byte(uint8_t byte, Quantised quantised) {
  if (quantised == Quantised::kInt8) return static_cast<int8_t>(byte);
  const int mantissa_bits = quantised == Quantised::kFloat8E4M3 ? 3 : 2;
  const int bias = quantised == Quantised::kFloat8E4M3 ? 7 : 15;
  const int exponent = (byte & 0x7f) >> mantissa_bits;
  const int mantissa = byte & ((1 << mantissa_bits) - 1);
  const double value =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                    : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return byte & 0x80 ? -value : value;
}

// Requests whose pages are scattered over a cache. Entries of no request are NaN, and the block
// table is out of range after a request's pages.
struct Pages {
  int64_t requests, page_size, num_blocks = 0, max_blocks = 1;
  std::vector<int32_t> lengths, queries, starts{0}, table;

  Pages(std::mt19937& random, int64_t num_rows, int longest)
      : requests(pick(random, 1, 3)), page_size(std::vector{1, 3, 16}[pick(random, 0, 2)]) {
    for (int64_t r = 0; r < requests; ++r) {
      lengths.push_back(pick(random, 0, 4) == 0 ? 0 : pick(random, 1, longest));
      const int asked = pick(random, 0, static_cast<int>(num_rows) + 2);
      queries.push_back(std::min(lengths.back(), asked));
      starts.push_back(starts.back() + queries.back());
      const int64_t pages = (lengths.back() + page_size - 1) / page_size;
      num_blocks += pages;
      max_blocks = std::max(max_blocks, pages);
    }
    num_blocks += 2;
    std::vector<int32_t> blocks(static_cast<size_t>(num_blocks));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random);
    size_t next = 0;
    for (int64_t r = 0; r < requests; ++r) {
      for (int64_t page = 0; page < max_blocks; ++page) {
        const bool there = page * page_size < lengths[r];
        table.push_back(there ? blocks[next++] : page % 2 ? -5 : 0x7fffffff);
      }
    }
  }
  int64_t block(int64_t r, int64_t j) const { return table[r * max_blocks + j / page_size]; }
  int64_t slot(int64_t j) const { return j % page_size; }
};

struct PagedInputs {
  Pages pages;
  int64_t heads, group, num_rows, dim, num_queries, max_seq_len;
  DType dtype;
  Quantised quantised;
  StridedTensor q, k;
  std::vector<uint8_t> bytes;  // [num_blocks, page_size, Hkv, D]
  std::vector<float> scales;
  KeyScale key_scale;
  double scale;

  PagedInputs(std::mt19937& random, int turn, int64_t rows, int longest)
      : pages(random, rows, longest),
        heads(pick(random, 1, 2)),
        group(pick(random, 1, 4)),
        num_rows(rows),
        dim(std::vector{8, 64, 72, 128, 256}[turn % 5]),
        num_queries(pages.starts.back() + pick(random, 0, 1)),
        max_seq_len(*std::max_element(pages.lengths.begin(), pages.lengths.end()) +
                    pick(random, 0, 200)),
        dtype(static_cast<DType>(turn % 3)),
        quantised(static_cast<Quantised>(turn / 2 % 4)),
        q(dtype, static_cast<Layout>(turn % 2), 1, heads * group, num_queries, dim, random),
        k(dtype, static_cast<Layout>(turn % kLayouts), pages.num_blocks, heads, pages.page_size,
          dim, random),
        scale(1.0 / std::sqrt(static_cast<double>(dim))) {
    std::vector<char> used(static_cast<size_t>(pages.num_blocks * pages.page_size), 0);
    for (int64_t r = 0; r < pages.requests; ++r) {
      for (int64_t j = 0; j < pages.lengths[r]; ++j) {
        used[static_cast<size_t>(pages.block(r, j) * pages.page_size + pages.slot(j))] = 1;
      }
    }
    for (size_t at = 0; at < used.size(); ++at) {
      const auto block = static_cast<int64_t>(at) / pages.page_size;
      const auto slot = static_cast<int64_t>(at) % pages.page_size;
      if (!used[at]) k.fill_with_nan(block, slot, slot + 1);
    }
    if (quantised == Quantised::kNone) return;
    for (size_t i = 0; i < used.size() * static_cast<size_t>(heads * dim); ++i) {
      const bool there = used[i / static_cast<size_t>(heads * dim)] != 0;
      bytes.push_back(there ? small_byte(random) : uint8_t{0x7f});  // NaN in float8
    }
    const int kind = turn / 3 % 5;  // of scale: none, one, one per head, per entry, per block
    if (kind == 0) return;
    const int64_t slots = kind == 3 ? pages.page_size : 1;
    for (int64_t i = 0; i < heads * pages.num_blocks * slots; ++i) {
      scales.push_back(0.01f * float(pick(random, 1, 50)));
    }
    key_scale.data = scales.data();
    if (kind >= 2) key_scale.stride_h = 1;
    if (kind >= 3) key_scale.stride_block = heads * slots;
    if (kind == 3) key_scale.stride_slot = heads;
  }

  // The byte of a number so small that no logit is too large for a float's log-sum-exp.
  uint8_t small_byte(std::mt19937& random) const {
    if (quantised == Quantised::kInt8) return static_cast<uint8_t>(pick(random, -8, 8));
    const int most = quantised == Quantised::kFloat8E5M2 ? 0x43 : 0x4f;
    return static_cast<uint8_t>(pick(random, 0, most) | pick(random, 0, 1) << 7);
  }

  double key(int64_t r, int64_t h, int64_t j, int64_t c) const {
    const int64_t block = pages.block(r, j), slot = pages.slot(j);
    if (quantised == Quantised::kNone) return k.row(block, h, slot)[c];
    const int64_t at = ((block * pages.page_size + slot) * heads + h) * dim + c;
    const double number = decode_byte(bytes[static_cast<size_t>(at)], quantised);
    return key_scale.data != nullptr ? number * key_scale.at(block, slot, h) : number;
  }

  PagedProblem problem() const {
    PagedProblem paged;
    paged.batch = {pages.requests, num_rows, max_seq_len, pages.starts.data(),
                   pages.lengths.data()};
    const TensorView view = k.view();
    const int64_t slots = heads * pages.page_size;
    const bool plain = quantised == Quantised::kNone;
    paged.cache = {plain ? view.data : bytes.data(),
                   dtype,
                   quantised,
                   pages.num_blocks,
                   pages.page_size,
                   plain ? view.stride_b : slots * dim,
                   plain ? view.stride_s : heads * dim,
                   plain ? view.stride_h : dim,
                   key_scale};
    paged.table = {pages.table.data(), pages.max_blocks};
    paged.query = q.view();
    paged.query.stride_b = 0;
    paged.num_heads = heads * group;
    paged.num_kv_heads = heads;
    paged.head_dim = dim;
    paged.scale = scale;
    paged.lse_stride_h = 1;
    paged.lse_stride_row = heads * group;
    return paged;
  }
};

// Scores [R, Hkv, max_seq_len], and the log-sum-exp of the observation rows in lse [T, Hq].
std::vector<double> expected_scores(const PagedInputs& in, std::vector<float>& lse) {
  std::vector<double> scores(static_cast<size_t>(in.pages.requests * in.heads * in.max_seq_len),
                             0.0);
  lse.assign(static_cast<size_t>(in.num_queries * in.heads * in.group), NAN);
  for (int64_t r = 0; r < in.pages.requests; ++r) {
    const int64_t rows = std::min<int64_t>(in.num_rows, in.pages.queries[r]);
    const int64_t prompt = in.pages.lengths[r] - rows;
    for (int64_t h = 0; h < in.heads * in.group; ++h) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t query = in.pages.starts[r + 1] - rows + i;
        std::vector<double> logits;
        for (int64_t j = 0; j <= prompt + i; ++j) {
          double dot = 0;
          for (int64_t c = 0; c < in.dim; ++c) {
            dot += in.q.row(0, h, query)[c] * in.key(r, h / in.group, j, c);
          }
          logits.push_back(in.scale * dot);
        }
        const double peak = *std::max_element(logits.begin(), logits.end());
        double sum = 0;
        for (const double logit : logits) sum += std::exp(logit - peak);
        lse[query * in.heads * in.group + h] = static_cast<float>(peak + std::log(sum));
        double* const out = &scores[(r * in.heads + h / in.group) * in.max_seq_len];
        for (int64_t j = 0; j < prompt; ++j) {
          out[j] += std::exp(logits[j] - peak) / sum / static_cast<double>(rows * in.group);
        }
      }
    }
  }
  return scores;
}

void check_scores(const PagedInputs& in, const std::string& name) {
  std::vector<float> lse;
  const std::vector<double> expected = expected_scores(in, lse);
  for (const bool given : {false, true}) {
    std::vector<float> actual(expected.size(), NAN);
    with_workspace([&](Workspace& workspace) {
      PagedProblem paged = in.problem();
      if (given) paged.lse = lse.data();
      const PlanOptions options = {in.num_queries, in.max_seq_len, true};
      const BatchPlan plan = plan_batch(paged.batch, {}, options, nullptr, workspace, chip(16));
      paged_column_scores(paged, plan, actual.data(), workspace, chip(16));
    });
    check(error_of(expected, actual) < 2e-5, name + (given ? " with lse" : ""));
  }
}

// As the CPU selects, request by request.
void check_selection(const PagedInputs& in, int turn, std::mt19937& random,
                     const std::string& name) {
  const int64_t pitch = in.max_seq_len;
  std::vector<float> scores;
  for (int64_t i = 0; i < in.pages.requests * in.heads * pitch; ++i) {
    scores.push_back(pick(random, 0, 9) == 0 ? NAN : static_cast<float>(pick(random, 0, 5)));
  }
  PagedSelection selection;
  selection.num_sink = turn % 3;
  selection.num_recent = turn % 2;
  selection.pool_kernel = turn % 4 == 0 ? 1 : turn % 4 == 1 ? 65 : 7;
  selection.keep_observation = turn % 2 == 1;
  selection.head_reduction = static_cast<HeadReduction>(turn % 3);
  const int64_t pinned = selection.num_sink + selection.num_recent;
  const int64_t needed = std::max<int64_t>(1, pinned + (turn % 2 == 1 ? in.num_rows : 0));
  selection.max_budget = needed + pick(random, 0, 20);
  std::vector<int32_t> budgets;
  for (int64_t r = 0; r < in.pages.requests; ++r) {
    budgets.push_back(pick(random, 0, 3) == 0 ? pick(random, -1, 0)
                                              : pick(random, static_cast<int>(needed),
                                                     static_cast<int>(selection.max_budget)));
  }
  selection.budgets = budgets.data();
  const bool reduced = selection.head_reduction != HeadReduction::kNone;
  const int64_t heads = reduced ? 1 : in.heads;
  std::vector<int32_t> expected(
      static_cast<size_t>(in.pages.requests * heads * selection.max_budget), -1);
  std::vector<int32_t> expected_lens;
  for (int64_t r = 0; r < in.pages.requests; ++r) {
    const int64_t rows = std::min<int64_t>(in.num_rows, in.pages.queries[r]);
    const int64_t prompt = in.pages.lengths[r] - rows;
    const int64_t appended = selection.keep_observation ? rows : 0;
    const int64_t entries = prompt + appended, budget = budgets[r];
    const bool chosen = entries > budget && budget > 0 && rows > 0;
    const bool all = entries <= budget && budget > 0;
    expected_lens.push_back(static_cast<int32_t>(chosen ? budget
                                                 : all  ? entries
                                                        : in.pages.lengths[r]));
    if (!all && !chosen) continue;
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<float> row(scores.begin() + (r * in.heads + h) * pitch,
                             scores.begin() + (r * in.heads + h) * pitch + prompt);
      for (int64_t other = 1; reduced && other < in.heads; ++other) {
        for (int64_t j = 0; j < prompt; ++j) {
          const float score = scores[(r * in.heads + other) * pitch + j];
          row[j] = selection.head_reduction == HeadReduction::kMax ? std::fmax(row[j], score)
                                                                   : row[j] + score;
        }
      }
      Problem p;
      p.batch = p.num_heads = p.num_kv_heads = 1;
      p.num_prompt = prompt;
      SelectOptions options;
      options.budget = chosen ? budget - appended : prompt;
      options.pool_kernel = selection.pool_kernel;
      options.num_sink = selection.num_sink;
      options.num_recent = selection.num_recent;
      options.append_rows = appended;
      cpu::select(p, row.data(), options, &expected[(r * heads + h) * selection.max_budget],
                  SerialExecutor());
    }
  }
  std::vector<int32_t> actual(expected.size(), -7), actual_lens(expected_lens.size(), -7);
  with_workspace([&](Workspace& workspace) {
    const PagedBatch batch = in.problem().batch;
    const PlanOptions options = {in.num_queries, in.max_seq_len, false};
    const BatchPlan plan =
        plan_batch(batch, selection, options, actual_lens.data(), workspace, chip(4));
    paged_select(batch, in.heads, scores.data(), selection, plan, actual.data(), workspace,
                 chip(4));
  });
  check(actual == expected, name + " indices");
  check(actual_lens == expected_lens, name + " lengths");
}

// One cache for each width of words; expects plain copies of the former contents.
void check_compaction(std::mt19937& random, int turn) {
  const int64_t layers = 2, heads = 2, index_heads = turn % 2 + 1, slots = pick(random, 1, 700);
  const Pages pages(random, 1, 900);
  Compaction c;
  const std::vector<int64_t> row_bytes = {16, 48, 8, 2, 1, 6, 4, 20};
  c.num_layers = layers;
  c.parts = static_cast<int64_t>(row_bytes.size()) / layers;
  c.num_requests = pages.requests;
  c.num_kv_heads = heads;
  c.index_heads = index_heads;
  c.num_slots = slots;
  c.num_blocks = pages.num_blocks;
  c.page_size = pages.page_size;
  c.src = c.dst = {pages.table.data(), pages.max_blocks};
  std::vector<int32_t> indices, kept_lens, starts;
  for (int64_t row = 0; row < layers * pages.requests; ++row) {
    const int64_t length = pages.lengths[row % pages.requests];
    const auto kept =
        static_cast<int32_t>(pick(random, 0, static_cast<int>(std::min(length, slots))));
    // A length beyond the slots, as of a request that takes no part, ends at the slots that are -1.
    kept_lens.push_back(kept == 0 ? static_cast<int32_t>(length) : kept);
    starts.push_back(pick(random, 0, static_cast<int>(length) - kept));
    for (int64_t h = 0; h < index_heads; ++h) {
      std::vector<int32_t> all(static_cast<size_t>(length));
      std::iota(all.begin(), all.end(), 0);
      std::vector<int32_t> chosen;
      std::sample(all.begin(), all.end(), std::back_inserter(chosen), kept, random);
      chosen.resize(static_cast<size_t>(slots), -1);
      indices.insert(indices.end(), chosen.begin(), chosen.end());
    }
  }
  c.indices = indices.data();
  c.kept_lens = kept_lens.data();
  c.dst_start = turn % 3 == 0 ? nullptr : starts.data();
  std::vector<std::vector<char>> memory;
  std::vector<CacheBytes> caches;
  for (const int64_t bytes : row_bytes) {
    const int64_t pitch = bytes * heads + (turn % 2 == 0 ? 0 : 16);  // packed, or with a gap
    memory.emplace_back(static_cast<size_t>(pages.num_blocks * pages.page_size * pitch));
    for (char& byte : memory.back()) byte = static_cast<char>(pick(random, 0, 255));
  }
  const std::vector<std::vector<char>> before = memory;
  std::vector<std::vector<char>> expected = memory;
  for (size_t i = 0; i < row_bytes.size(); ++i) {
    const int64_t pitch = row_bytes[i] * heads + (turn % 2 == 0 ? 0 : 16);
    caches.push_back(
        {memory[i].data(), row_bytes[i], pitch * pages.page_size, pitch, row_bytes[i]});
    const int64_t layer = static_cast<int64_t>(i) / c.parts;
    for (int64_t r = 0; r < pages.requests; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t row = layer * pages.requests + r;
        const int32_t* const of_head = &indices[(row * index_heads + h % index_heads) * slots];
        for (int64_t j = 0; j < std::min<int64_t>(kept_lens[row], slots) && of_head[j] >= 0; ++j) {
          const int64_t to = (c.dst_start != nullptr ? starts[row] : 0) + j;
          const auto place = [&](int64_t position) {
            return (pages.block(r, position) * pages.page_size + pages.slot(position)) * pitch +
                   h * row_bytes[i];
          };
          std::memcpy(&expected[i][static_cast<size_t>(place(to))],
                      &before[i][static_cast<size_t>(place(of_head[j]))],
                      static_cast<size_t>(row_bytes[i]));
        }
      }
    }
  }
  compact_kv_cache(c, caches.data(), chip(4));
  for (size_t i = 0; i < memory.size(); ++i) {
    check(memory[i] == expected[i], "compaction of entries of " + std::to_string(row_bytes[i]) +
                                        " bytes, turn " + std::to_string(turn));
  }
}

void check_bytes() {
  for (const Quantised quantised :
       {Quantised::kFloat8E4M3, Quantised::kFloat8E5M2, Quantised::kInt8}) {
    bool right = true;
    for (int byte = 0; byte < 256; ++byte) {
      const float number = number_of(static_cast<uint32_t>(byte), static_cast<int>(quantised));
      const bool e4m3_nan = quantised == Quantised::kFloat8E4M3 && (byte & 0x7f) == 0x7f;
      const bool e5m2_special = quantised == Quantised::kFloat8E5M2 && (byte & 0x7c) == 0x7c;
      if (e4m3_nan || (e5m2_special && (byte & 3) != 0)) {
        right = right && std::isnan(number);
      } else if (e5m2_special) {
        right = right && std::isinf(number) && (number < 0) == (byte > 127);
      } else {
        right = right && number == decode_byte(static_cast<uint8_t>(byte), quantised);
      }
    }
    check(right, "the bytes of quantised type " + std::to_string(static_cast<int>(quantised)));
  }
}

}  // namespace

void check_paged() {
  check_bytes();
  std::mt19937 random(21);
  for (int turn = 0; turn < (brief ? 12 : 120); ++turn) {
    const int64_t rows = turn % 6 == 5 ? 33 : pick(random, 1, 5);
    const PagedInputs in(random, turn, rows, turn % 8 == 7 ? 400 : 90);
    const std::string name = "paged turn " + std::to_string(turn);
    if (in.max_seq_len > 0) check_scores(in, name + " scores");
    check_selection(in, turn, random, name);
  }
  for (int turn = 0; turn < (brief ? 4 : 12); ++turn) check_compaction(random, turn);
}

}  // namespace lookaheadkv::cuda
