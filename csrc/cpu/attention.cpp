// Room 1. FlashAttention forward for a few rows over many keys: the keys are split into chunks, each
// chunk gives partial (maximum, sum, output) per row, and a small combine adds them up in order.
// Many rows over as many keys (prefill) is the same with one chunk per row block.
#include <cmath>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/isa/convert.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/row_block.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

constexpr float kLn2 = 0.693147180559945309f;
constexpr float kMinusInf = -__builtin_huge_valf();

// Rows of a block when the keys are split (few rows, many keys) and when they are not (prefill: a
// smaller block wastes less above the diagonal).
constexpr int64_t kSplitRows = 256;
constexpr int64_t kPrefillRows = 128;

// The shape of the work: row blocks x key chunks.
struct Plan {
  int64_t group;
  int64_t queries;  // per block
  int64_t blocks;   // per (b, h)
  int64_t chunk;    // prompt keys
  int64_t chunks;
  int64_t padded_rows;  // of the largest block
  int64_t partial;      // floats of one partial result: m, l and, with output, acc

  Plan(const Problem& p, bool with_output) {
    group = p.group();
    queries = queries_per_block(group, p.num_rows, p.num_prompt > 0 ? kSplitRows : kPrefillRows);
    blocks = (p.num_rows + queries - 1) / queries;
    // Partial outputs are D times larger than partial sums: fewer of them.
    chunk = keys_per_chunk(p.num_prompt, p.batch * p.num_kv_heads * blocks,
                           with_output ? kWantedTasks / 4 : kWantedTasks);
    chunks = num_chunks(p.num_prompt, chunk);
    padded_rows = RowBlock{0, 0, 0, queries, group}.padded_rows();
    partial = padded_rows * (2 + (with_output ? round_up(p.head_dim, kDimAlign) : 0));
  }

  RowBlock block(const Problem& p, int64_t index) const {
    const int64_t head = index / blocks;
    const int64_t begin = folded(index % blocks, blocks) * queries;
    return {head / p.num_kv_heads, head % p.num_kv_heads, begin,
            std::min(begin + queries, p.num_rows), group};
  }
};

// One partial result: m [padded_rows], l [padded_rows], acc: per group [round_up(D)][group rows].
struct Partial {
  float* m;
  float* l;
  float* acc;

  Partial(float* base, const Plan& plan)
      : m(base), l(base + plan.padded_rows), acc(base + 2 * plan.padded_rows) {}
};

class Sweep {
 public:
  Sweep(const Problem& problem, const TensorView& query, const TensorView& key,
        const TensorView& value, const Plan& plan, bool with_output)
      : problem_(problem),
        query_(query),
        key_(key),
        value_(value),
        isa_(active()),
        ops_(isa_.tile_ops(query.dtype)),
        with_output_(with_output),
        factor_(exp2_factor(problem)),
        padded_dim_(round_up(problem.head_dim, kDimAlign)),
        packed_(plan.padded_rows * padded_dim_),
        logits_(kKeyTile * kRowGroup),
        key_scratch_(kKeyTile * padded_dim_),
        value_scratch_(kKeyTile * padded_dim_),
        prob_scratch_(kKeyTile * kRowGroup) {}

  void run(const RowBlock& block, const KeyRange& prompt, bool with_tail, const Partial& out) {
    std::fill(out.m, out.m + block.padded_rows(), kMinusInf);
    std::fill(out.l, out.l + block.padded_rows(), 0.0f);
    if (with_output_) std::fill(out.acc, out.acc + block.padded_rows() * padded_dim_, 0.0f);
    pack_rows(block, query_, ops_, problem_.head_dim, packed_.get());
    keys(block, prompt.begin, prompt.end, out);
    if (with_tail) keys(block, problem_.num_prompt, problem_.num_prompt + block.end, out);
  }

 private:
  void keys(const RowBlock& block, int64_t begin, int64_t end, const Partial& out) {
    for (int64_t key = begin; key < end; key += kKeyTile) {
      const int64_t next = std::min<int64_t>(key + kKeyTile, end);
      prefetch_rows(key_, block.b, block.h, next, std::min<int64_t>(next + kKeyTile, end),
                    problem_.head_dim);
      tile(block, key, static_cast<int>(next - key), out);
    }
  }

  void tile(const RowBlock& block, int64_t key, int n, const Partial& out) {
    const int d = static_cast<int>(problem_.head_dim);
    const Operand k = ops_.prepare_key(key_.row(block.b, block.h, key), key_.stride_s, n, d,
                                       key_scratch_.get());
    const Operand v = with_output_
                          ? ops_.prepare_value(value_.row(block.b, block.h, key), value_.stride_s,
                                               n, d, value_scratch_.get())
                          : Operand{};
    float* s = logits_.get();
    for (int64_t g = 0; g < block.groups(); ++g) {
      const int rows = block.group_rows(g);
      float* m = out.m + g * kRowGroup;
      float* l = out.l + g * kRowGroup;
      ops_.gemm(k, packed_ + packed_offset(g, d), s, n, rows, d, false);
      const float factor = mask_causal(block, g, problem_.num_prompt, key, n, factor_, s);
      if (with_output_) {
        float* acc = out.acc + packed_offset(g, d);
        isa_.vector.accumulate_softmax(s, n, rows, factor, m, l, acc, d);
        ops_.gemm(v, ops_.prepare_probs(s, n, rows, prob_scratch_.get()), acc, d, rows, n, true);
      } else {
        isa_.vector.accumulate_lse(s, n, rows, factor, m, l);
      }
    }
  }

  const Problem& problem_;
  const TensorView& query_;
  const TensorView& key_;
  const TensorView& value_;
  const Isa& isa_;
  const TileOps& ops_;
  const bool with_output_;
  const float factor_;
  const int64_t padded_dim_;
  Buffer<float> packed_;
  Buffer<float> logits_;
  Buffer<float> key_scratch_;
  Buffer<float> value_scratch_;
  Buffer<float> prob_scratch_;
};

// Adds up the chunks of one row block in order and writes output and log-sum-exp.
void combine(const Problem& problem, const Plan& plan, const RowBlock& block, float* partials,
             DType dtype, void* out, float* lse) {
  const int64_t d = problem.head_dim;
  Buffer<float> weights(plan.chunks);
  for (int64_t r = 0; r < block.rows(); ++r) {
    const int64_t row = block.head(r) * problem.num_rows + block.query(r) +
                        block.b * problem.num_heads * problem.num_rows;
    float m = kMinusInf;
    for (int64_t c = 0; c < plan.chunks; ++c) {
      m = std::max(m, Partial(partials + c * plan.partial, plan).m[r]);
    }
    float l = 0.0f;
    const float base = m == kMinusInf ? 0.0f : m;
    for (int64_t c = 0; c < plan.chunks; ++c) {
      const Partial part(partials + c * plan.partial, plan);
      weights[c] = std::exp2(part.m[r] - base);
      l += weights[c] * part.l[r];
    }
    lse[row] = (m + std::log2(l)) * kLn2;
    if (out == nullptr) continue;
    const int64_t g = r / kRowGroup;
    const int64_t pitch = block.group_rows(g);
    const int64_t first = packed_offset(g, d) + r % kRowGroup;
    for (int64_t k = 0; k < d; ++k) {
      float sum = 0.0f;
      for (int64_t c = 0; c < plan.chunks; ++c) {
        sum += weights[c] * Partial(partials + c * plan.partial, plan).acc[first + k * pitch];
      }
      store_float(out, row * d + k, dtype, sum / l);
    }
  }
}

}  // namespace

void attention(const Problem& problem, const TensorView& query, const TensorView& key,
               const TensorView& value, void* out, float* lse, const Executor& executor) {
  const Plan plan(problem, out != nullptr);
  const int64_t blocks = problem.batch * problem.num_kv_heads * plan.blocks;
  const auto sweep_chunk = [&](Sweep& sweep, int64_t index, int64_t c, float* partial) {
    const RowBlock block = plan.block(problem, index);
    const KeyRange valid =
        valid_keys(problem.leftpad_k, problem.seqused_k, block.b, problem.num_prompt);
    const KeyRange chunk = {std::max(valid.begin, c * plan.chunk),
                            std::min(valid.end, (c + 1) * plan.chunk)};
    sweep.run(block, chunk, c + 1 == plan.chunks, Partial(partial, plan));
  };
  if (plan.chunks == 1) {
    executor.run(blocks, [&](int64_t begin, int64_t end) {
      Sweep sweep(problem, query, key, value, plan, out != nullptr);
      Buffer<float> partial(plan.partial);
      for (int64_t i = begin; i < end; ++i) {
        sweep_chunk(sweep, i, 0, partial.get());
        combine(problem, plan, plan.block(problem, i), partial.get(), query.dtype, out, lse);
      }
    });
    return;
  }
  Buffer<float> partials(blocks * plan.chunks * plan.partial);
  executor.run(blocks * plan.chunks, [&](int64_t begin, int64_t end) {
    Sweep sweep(problem, query, key, value, plan, out != nullptr);
    for (int64_t i = begin; i < end; ++i) {
      sweep_chunk(sweep, i / plan.chunks, i % plan.chunks, partials + i * plan.partial);
    }
  });
  executor.run(blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      combine(problem, plan, plan.block(problem, i), partials + i * plan.chunks * plan.partial,
              query.dtype, out, lse);
    }
  });
}

}  // namespace lookaheadkv::cpu
