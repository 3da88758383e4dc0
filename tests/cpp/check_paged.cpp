// The kernels on paged caches: scores and choices of each request are those of the dense kernels on
// a copy of its keys, bit by bit; compaction moves exactly the bytes it should. Every cache is
// allocated to its exact size, and what no request owns is NaN.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <stdexcept>

#include "check.h"
#include "core/validate_paged.h"
#include "cpu/isa/convert.h"

namespace lookaheadkv::cpu {

namespace {

using Random = std::mt19937;

int64_t below(int64_t count, Random& random) {
  return std::uniform_int_distribution<int64_t>(0, count - 1)(random);
}

// The value of a stored byte, computed in another way than by the kernels: E5M2 is the upper half
// of an fp16.
float value_of(Quantised kind, uint8_t bits) {
  if (kind == Quantised::kInt8) return static_cast<float>(static_cast<int8_t>(bits));
  if (kind == Quantised::kFloat8E5M2) {
    const uint16_t half = static_cast<uint16_t>(bits << 8);
    return static_cast<float>(decode(reinterpret_cast<const char*>(&half), DType::kFloat16));
  }
  const double mantissa = bits % 8 / 8.0, exponent = bits % 128 / 8;
  const double magnitude =
      exponent == 0 ? mantissa * std::pow(2.0, -6) : (1 + mantissa) * std::pow(2.0, exponent - 7);
  return static_cast<float>(bits < 128 ? magnitude : -magnitude);
}

// R requests over a paged cache, and a dense copy of each one's keys in the query's dtype.
struct PagedInputs {
  DType dtype;
  Quantised kind;
  int64_t requests, kv_heads, heads, dim, page_size, num_rows, max_seq_len, max_blocks, num_blocks;
  int64_t stride_slot, stride_h;
  std::vector<int32_t> starts, lengths, table;
  std::vector<char> query, cache;
  std::vector<std::vector<char>> dense;  // per request [Hkv, S, D]

  PagedInputs(DType dtype, Quantised kind, int64_t longest, Random& random)
      : dtype(dtype),
        kind(kind),
        requests(1 + below(3, random)),
        kv_heads(1 + below(3, random)),
        heads(kv_heads * (1 + below(3, random))),
        dim(8 * (1 + below(5, random))),
        page_size(std::vector<int64_t>{1, 2, 5, 16, 100, 256}[below(6, random)]),
        num_rows(1 + below(6, random)),
        starts(1, 0) {
    for (int64_t r = 0; r < requests; ++r) {
      const int64_t queries = below(num_rows + 3, random);
      starts.push_back(starts.back() + static_cast<int32_t>(queries));
      lengths.push_back(static_cast<int32_t>(queries + below(longest, random)));
    }
    max_seq_len = *std::max_element(lengths.begin(), lengths.end()) + 1;
    max_blocks = (max_seq_len + page_size - 1) / page_size;
    num_blocks = requests * max_blocks + 2;
    table.resize(static_cast<size_t>(num_blocks));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), random);
    table.resize(static_cast<size_t>(requests * max_blocks));

    const int64_t size = kind == Quantised::kNone ? element_size(dtype) : 1;
    const bool heads_first = below(2, random) == 0;
    const int64_t pitch = dim + below(2, random) * 3;  // odd: rows at every alignment
    stride_slot = heads_first ? pitch : kv_heads * pitch;
    stride_h = heads_first ? page_size * pitch : pitch;
    cache.assign(
        static_cast<size_t>((num_blocks * page_size * kv_heads * pitch - pitch + dim) * size),
        '\xff');
    std::normal_distribution<float> normal;
    query.resize(static_cast<size_t>(starts.back() * heads * dim * element_size(dtype)));
    for (int64_t i = 0; i < starts.back() * heads * dim; ++i) {
      store_float(query.data(), i, dtype, normal(random));
    }
    for (int64_t r = 0; r < requests; ++r) {
      std::vector<char> keys(
          static_cast<size_t>(kv_heads * lengths[r] * dim * element_size(dtype)));
      for (int64_t row = 0; row < kv_heads * lengths[r]; ++row) {
        char* to = cache.data() + offset(r, row % lengths[r], row / lengths[r]) * size;
        for (int64_t c = 0; c < dim; ++c) {
          float value = normal(random);
          if (kind == Quantised::kNone) {
            store_float(to, c, dtype, value);
          } else {
            const uint8_t bits = static_cast<uint8_t>(below(64, random) | below(2, random) << 7);
            to[c] = static_cast<char>(bits);
            value = value_of(kind, bits);
          }
          store_float(keys.data(), row * dim + c, dtype, value);
        }
      }
      dense.push_back(std::move(keys));
    }
  }

  int64_t offset(int64_t r, int64_t position, int64_t h) const {
    const int64_t block = table[r * max_blocks + position / page_size];
    const int64_t slots = std::max(stride_h * kv_heads, stride_slot * page_size);
    return block * slots + position % page_size * stride_slot + h * stride_h;
  }
  PagedProblem problem() const {
    PagedProblem paged;
    paged.batch = {requests, num_rows, max_seq_len, starts.data(), lengths.data()};
    paged.cache = view();
    paged.table = {table.data(), max_blocks};
    paged.query = {query.data(), dtype, 0, dim, heads * dim};
    paged.num_heads = heads;
    paged.num_kv_heads = kv_heads;
    paged.head_dim = dim;
    paged.scale = 0.3;
    return paged;
  }
  PagedView view() const {
    const int64_t stride_block = std::max(stride_h * kv_heads, stride_slot * page_size);
    return {cache.data(), dtype,       kind,     num_blocks, page_size,
            stride_block, stride_slot, stride_h, {}};
  }
};

struct PagedResult {
  std::vector<float> scores;
  std::vector<int32_t> indices, kept_lens;

  PagedResult(const PagedInputs& in, const PagedSelection& selection, const Executor& executor)
      : scores(static_cast<size_t>(in.requests * in.kv_heads * in.max_seq_len), NAN),
        indices(static_cast<size_t>(in.requests * in.kv_heads * selection.max_budget), -7),
        kept_lens(static_cast<size_t>(in.requests), -7) {
    paged_column_scores(in.problem(), nullptr, scores.data(), executor);
    paged_select(in.problem().batch, in.kv_heads, scores.data(), selection, indices.data(),
                 kept_lens.data(), executor);
  }
};

// Compares with the dense kernels, request by request.
void check_scores(const PagedInputs& in, const std::string& name) {
  const SerialExecutor serial;
  PagedSelection selection;
  selection.max_budget = 9;
  const PagedResult result(in, selection, serial);
  const PagedResult threaded(in, selection, ThreadsExecutor());
  check(same_bits(result.scores, threaded.scores) && result.indices == threaded.indices,
        name + " three threads give the same");
  for (int64_t r = 0; r < in.requests; ++r) {
    const Request request = request_of(in.problem().batch, r);
    std::vector<float> expected(static_cast<size_t>(in.kv_heads * in.max_seq_len), 0.0f);
    Problem p;
    p.batch = 1;
    p.num_heads = in.heads;
    p.num_kv_heads = in.kv_heads;
    p.num_rows = request.rows;
    p.num_prompt = request.prompt;
    p.head_dim = in.dim;
    p.scale = 0.3;
    p.score_columns = in.max_seq_len;
    if (request.rows > 0) {
      TensorView query = in.problem().query;
      query.data = query.row(0, 0, request.first_row);
      const TensorView key = {in.dense[r].data(), in.dtype, 0, in.lengths[r] * in.dim, in.dim};
      std::vector<float> lse(static_cast<size_t>(in.heads * request.rows));
      attention_and_scores(p, query, key, {}, nullptr, lse.data(), expected.data(), serial);
    }
    const int64_t size = in.kv_heads * in.max_seq_len;
    const std::vector<float> actual(result.scores.begin() + r * size,
                                    result.scores.begin() + (r + 1) * size);
    check(same_bits(actual, expected), name + " scores");

    const bool evicts = request.rows > 0 && request.prompt > selection.max_budget;
    check(result.kept_lens[r] == (evicts ? selection.max_budget : request.prompt),
          name + " kept_lens");
    if (!evicts) continue;
    for (int64_t h = 0; h < in.kv_heads; ++h) {
      Problem row;
      row.batch = row.num_heads = row.num_kv_heads = 1;
      row.num_prompt = request.prompt;
      std::vector<int32_t> kept(static_cast<size_t>(selection.max_budget));
      select(row, actual.data() + h * in.max_seq_len, {selection.max_budget, 7, 0, 0, 0},
             kept.data(), serial);
      check(std::equal(kept.begin(), kept.end(),
                       result.indices.begin() + (r * in.kv_heads + h) * selection.max_budget),
            name + " indices");
    }
  }
}

// Random moves within one request's pages; compares the whole memory afterwards.
void check_compaction(const PagedInputs& in, Random& random, const std::string& name) {
  const int64_t size = in.view().bytes_per_element();
  const int64_t slots = 1 + below(40, random);
  std::vector<int32_t> indices, kept_lens, starts, dst_table = in.table;
  for (int64_t r = 0; r < in.requests; ++r) {
    const int64_t count = std::min<int64_t>(in.lengths[r], below(slots + 1, random));
    kept_lens.push_back(static_cast<int32_t>(count));
    starts.push_back(static_cast<int32_t>(below(in.max_blocks * in.page_size - count + 1, random)));
    for (int64_t h = 0; h < in.kv_heads; ++h) {
      std::vector<int32_t> all(static_cast<size_t>(in.lengths[r]));
      std::iota(all.begin(), all.end(), 0);
      std::vector<int32_t> row;
      std::sample(all.begin(), all.end(), std::back_inserter(row), count, random);
      row.resize(static_cast<size_t>(slots), -1);
      indices.insert(indices.end(), row.begin(), row.end());
    }
  }
  std::vector<char> memory = in.cache, expected = in.cache;
  const PagedView view = in.view();
  const CacheBytes bytes = {memory.data(), in.dim * size, view.stride_block * size,
                            view.stride_slot * size, view.stride_h * size};
  Compaction c;
  c.num_layers = c.parts = 1;
  c.num_requests = in.requests;
  c.num_kv_heads = c.index_heads = in.kv_heads;
  c.num_slots = slots;
  c.num_blocks = in.num_blocks;
  c.page_size = in.page_size;
  c.indices = indices.data();
  c.kept_lens = kept_lens.data();
  c.dst_start = starts.data();
  c.src = {in.table.data(), in.max_blocks};
  c.dst = {dst_table.data(), in.max_blocks};
  for (int64_t r = 0; r < in.requests; ++r) {
    for (int64_t h = 0; h < in.kv_heads; ++h) {
      for (int64_t j = 0; j < kept_lens[r]; ++j) {
        const int64_t from = indices[(r * in.kv_heads + h) * slots + j];
        std::copy_n(in.cache.data() + in.offset(r, from, h) * size, in.dim * size,
                    expected.data() + in.offset(r, starts[r] + j, h) * size);
      }
    }
  }
  bool refused = false;
  try {
    PagedValidator("compact_kv_cache").compaction_values(c);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  check(!refused, name + " valid compaction is accepted");
  compact_kv_cache(c, &bytes, ThreadsExecutor());
  check(memory == expected, name + " compaction");
}

}  // namespace

void check_paged() {
  const Quantised kinds[] = {Quantised::kNone, Quantised::kFloat8E4M3, Quantised::kFloat8E5M2,
                             Quantised::kInt8};
  for (const char* isa : checked_isas()) {
    use_isa(isa);
    Random random(11);
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const Quantised kind : kinds) {
        for (const int64_t longest : {1, 30, 30, 400}) {
          const PagedInputs in(dtype, kind, longest, random);
          const std::string name = std::string(isa) + " dtype " +
                                   std::to_string(static_cast<int>(dtype)) + " quantised " +
                                   std::to_string(static_cast<int>(kind)) + " longest " +
                                   std::to_string(longest);
          check_scores(in, name);
          check_compaction(in, random, name);
        }
      }
    }
  }
}

}  // namespace lookaheadkv::cpu
