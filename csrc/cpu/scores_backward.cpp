// Room 2, backward. With p the probabilities, g the upstream gradient (0 on observation keys) and
// delta_r = sum_j g_j p_rj, the softmax Jacobian gives ds_rj = p_rj (g_j - delta_r) / (G L), and
// dq = scale * ds k, dk = scale * ds^T q. Two sweeps over K, both recomputing p from the
// log-sum-exp; everything in fp32 whatever the dtype, since gradients of means are small.
#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/isa/convert.h"
#include "cpu/isa/tile_ops.h"
#include "cpu/kernels.h"
#include "cpu/key_range.h"
#include "cpu/packed_queries.h"
#include "cpu/row_block.h"
#include "cpu/splits.h"

namespace lookaheadkv::cpu {

namespace {

// Every task keeps a partial dq: fewer tasks where that is large.
int64_t wanted_tasks(int64_t acc_size) {
  constexpr int64_t kMaxPartialFloats = 16 << 20;
  return std::clamp<int64_t>(kMaxPartialFloats / acc_size, 1, kWantedOutputTasks);
}

// The query as contiguous fp32 [B, Hq, L, D].
class FloatQuery {
 public:
  FloatQuery(const Problem& p, const TensorView& query, const Isa& isa)
      : data_(p.batch * p.num_heads * p.num_rows * p.head_dim) {
    const int64_t rows = p.num_rows, d = p.head_dim;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t h = 0; h < p.num_heads; ++h) {
        isa.vector.to_float(query.row(b, h, 0), query.dtype, query.stride_s, static_cast<int>(rows),
                            static_cast<int>(d), data_ + (b * p.num_heads + h) * rows * d, d);
      }
    }
    view_ = {data_.get(), DType::kFloat32, p.num_heads * rows * d, rows * d, d};
  }
  const TensorView& view() const { return view_; }

 private:
  Buffer<float> data_;
  TensorView view_;
};

// One row group as gemm's right side over its rows, for dk = ds^T q: blocks of up to kRowGroup head
// dims, each [group rows][width]; padded rows and dims are 0.
class RowsOverDims {
 public:
  explicit RowsOverDims(int64_t head_dim)
      : head_dim_(head_dim), data_(kRowGroup * round_up(head_dim, kRowAlign)) {}

  void fill(const RowBlock& block, int64_t g, const TensorView& query) {
    const int64_t rows = block.group_rows(g);
    std::fill(data_.get(), data_ + rows * round_up(head_dim_, kRowAlign), 0.0f);
    for (int64_t c = 0; c < blocks(); ++c) {
      for (int64_t r = 0; r < block.real_rows(g); ++r) {
        const int64_t row = g * kRowGroup + r;
        const auto* from =
            static_cast<const float*>(query.row(block.b, block.head(row), block.query(row)));
        std::memcpy(data_ + c * kRowGroup * rows + r * width(c), from + c * kRowGroup,
                    static_cast<size_t>(dims(c)) * sizeof(float));
      }
    }
  }

  int64_t blocks() const { return (head_dim_ + kRowGroup - 1) / kRowGroup; }
  int64_t dims(int64_t c) const { return std::min<int64_t>(kRowGroup, head_dim_ - c * kRowGroup); }
  int width(int64_t c) const { return static_cast<int>(round_up(dims(c), kRowAlign)); }
  const float* at(int64_t c, int rows) const { return data_ + c * kRowGroup * rows; }

 private:
  int64_t head_dim_;
  Buffer<float> data_;
};

class Backward {
 public:
  Backward(const Problem& problem, const TensorView& key, const float* lse,
           const float* grad_scores, const PackedQueries& queries, const TensorView& query,
           const Isa& isa)
      : problem_(problem),
        key_(key),
        lse_(lse),
        grad_scores_(grad_scores),
        queries_(queries),
        query_(query),
        isa_(isa),
        factor_(exp2_factor(problem)),
        key_tile_(kKeyTile * problem.head_dim),
        tile_(kKeyTile * kRowGroup),
        grad_key_(kKeyTile * round_up(problem.head_dim, kRowAlign)),
        block_grad_(kKeyTile * kRowGroup),
        lse2_(queries.padded_rows()),
        rows_over_dims_(problem.head_dim) {}

  // delta [padded rows] of the keys [first, last) of one head.
  void delta(int64_t head, int64_t first, int64_t last, float* delta) {
    const RowBlock block = queries_.block(head);
    fill_lse2(problem_, block, lse_, lse2_.get());
    std::fill(delta, delta + block.padded_rows(), 0.0f);
    for_tiles(head, first, last, [&](int64_t at, int n, const float* grad) {
      for (int64_t g = 0; g < block.groups(); ++g) {
        probabilities(head, block, g, at, n);
        isa_.vector.accumulate_delta(tile_.get(), n, block.group_rows(g), grad,
                                     delta + g * kRowGroup);
      }
    });
  }

  // Adds up dq^T (acc: per group [round_up(D)][group rows]) and writes dk of the keys [first,
  // last).
  void gradients(int64_t head, int64_t first, int64_t last, const float* delta, float* acc,
                 void* grad_key) {
    const RowBlock block = queries_.block(head);
    fill_lse2(problem_, block, lse_, lse2_.get());
    const int d = static_cast<int>(problem_.head_dim);
    const float weight = static_cast<float>(problem_.scale / static_cast<double>(block.rows()));
    const auto& gemm = isa_.float32.gemm;
    for_tiles(head, first, last, [&](int64_t at, int n, const float* grad) {
      std::fill(grad_key_.get(), grad_key_ + static_cast<int64_t>(n) * d, 0.0f);
      for (int64_t g = 0; g < block.groups(); ++g) {
        const int rows = block.group_rows(g);
        probabilities(head, block, g, at, n);
        isa_.vector.softmax_jacobian(tile_.get(), n, rows, grad, delta + g * kRowGroup, weight);
        gemm({key_tile_.get(), 1, d}, tile_.get(), acc + packed_offset(g, d), d, rows, n, true);
        rows_over_dims_.fill(block, g, query_);
        for (int64_t c = 0; c < rows_over_dims_.blocks(); ++c) {
          const int width = rows_over_dims_.width(c);
          gemm({tile_.get(), rows, 1}, rows_over_dims_.at(c, rows), block_grad_.get(), n, width,
               rows, false);
          for (int64_t j = 0; j < n; ++j) {
            for (int64_t k = 0; k < rows_over_dims_.dims(c); ++k) {
              grad_key_[j * d + c * kRowGroup + k] += block_grad_[j * width + k];
            }
          }
        }
      }
      for (int64_t i = 0; i < static_cast<int64_t>(n) * d; ++i) {
        store_float(grad_key, (head * problem_.num_keys() + at) * d + i, key_.dtype, grad_key_[i]);
      }
    });
  }

 private:
  // body(first key, n, upstream gradient of the n keys) for the tiles of the valid keys in
  // [first, last), which may hold prompt and observation keys; key_tile_ holds the tile as fp32.
  template <class Body>
  void for_tiles(int64_t head, int64_t first, int64_t last, const Body& body) {
    const RowBlock block = queries_.block(head);
    const float zeros[kKeyTile] = {};
    for (const bool prompt : {true, false}) {
      const KeyRange range = prompt ? valid_keys_between(problem_, block.b, first, last)
                                    : KeyRange{std::max(first, problem_.num_prompt), last};
      for (int64_t at = range.begin; at < range.end; at += kKeyTile) {
        const int n = static_cast<int>(std::min<int64_t>(kKeyTile, range.end - at));
        isa_.vector.to_float(key_.row(block.b, block.h, at), key_.dtype, key_.stride_s, n,
                             static_cast<int>(problem_.head_dim), key_tile_.get(),
                             problem_.head_dim);
        body(at, n, prompt ? grad_scores_ + head * problem_.num_prompt + at : zeros);
      }
    }
  }

  // tile_ [n][rows] = the probabilities of keys at .. at + n - 1 for row group g.
  void probabilities(int64_t head, const RowBlock& block, int64_t g, int64_t at, int n) {
    const int rows = block.group_rows(g);
    const int d = static_cast<int>(problem_.head_dim);
    isa_.float32.gemm({key_tile_.get(), d, 1}, queries_.packed(head, g), tile_.get(), n, rows, d,
                      false);
    const float factor = mask_causal(block, g, problem_.num_prompt, at, n, factor_, tile_.get());
    isa_.vector.probabilities(tile_.get(), n, rows, factor, lse2_ + g * kRowGroup);
  }

  const Problem& problem_;
  const TensorView& key_;
  const float* lse_;
  const float* grad_scores_;
  const PackedQueries& queries_;
  const TensorView& query_;
  const Isa& isa_;
  const float factor_;
  Buffer<float> key_tile_;
  Buffer<float> tile_;
  Buffer<float> grad_key_;
  Buffer<float> block_grad_;
  Buffer<float> lse2_;
  RowsOverDims rows_over_dims_;
};

}  // namespace

void column_scores_backward(const Problem& problem, const TensorView& query, const TensorView& key,
                            const float* lse, const float* grad_scores, void* grad_query,
                            void* grad_key, const Executor& executor) {
  const int64_t heads = problem.batch * problem.num_kv_heads;
  if (heads == 0) return;
  const Isa& isa = active();
  const FloatQuery float_query(problem, query, isa);
  const PackedQueries queries(problem, float_query.view(), problem.num_rows, isa.float32, executor);
  const int64_t keys = problem.num_keys(), d = problem.head_dim;
  const int64_t rows = queries.padded_rows();
  const int64_t acc_size = rows * round_up(d, kDimAlign);
  const int64_t chunk = keys_per_chunk(keys, heads, wanted_tasks(acc_size));
  const int64_t chunks = num_chunks(keys, chunk);
  Buffer<float> deltas(heads * chunks * rows);
  Buffer<float> accs(heads * chunks * acc_size);

  // Padded prompt keys are visited by nobody: their gradient is this zero.
  std::memset(grad_key, 0, static_cast<size_t>(heads * keys * d * element_size(key.dtype)));
  executor.run(heads * chunks, 1, [&](Tasks& tasks) {
    Backward backward(problem, key, lse, grad_scores, queries, float_query.view(), isa);
    for (int64_t i = 0; tasks.take(i);) {
      const int64_t first = i % chunks * chunk;
      backward.delta(i / chunks, first, std::min(first + chunk, keys), deltas + i * rows);
    }
  });
  executor.run(heads, grain(chunks * rows), [&](Tasks& tasks) {
    for (int64_t head = 0; tasks.take(head);) {
      float* total = deltas + head * chunks * rows;
      for (int64_t c = 1; c < chunks; ++c) {
        for (int64_t r = 0; r < rows; ++r) total[r] += total[c * rows + r];
      }
    }
  });
  executor.run(heads * chunks, 1, [&](Tasks& tasks) {
    Backward backward(problem, key, lse, grad_scores, queries, float_query.view(), isa);
    for (int64_t i = 0; tasks.take(i);) {
      const int64_t head = i / chunks, first = i % chunks * chunk;
      float* acc = accs + i * acc_size;
      std::fill(acc, acc + acc_size, 0.0f);
      backward.gradients(head, first, std::min(first + chunk, keys), deltas + head * chunks * rows,
                         acc, grad_key);
    }
  });
  executor.run(heads, grain(chunks * acc_size), [&](Tasks& tasks) {
    for (int64_t head = 0; tasks.take(head);) {
      const RowBlock block = queries.block(head);
      for (int64_t r = 0; r < block.rows(); ++r) {
        const int64_t g = r / kRowGroup;
        for (int64_t k = 0; k < d; ++k) {
          const int64_t at = packed_offset(g, d) + k * block.group_rows(g) + r % kRowGroup;
          float sum = 0.0f;
          for (int64_t c = 0; c < chunks; ++c) sum += accs[(head * chunks + c) * acc_size + at];
          store_float(grad_query, block.flat(problem, r) * d + k, query.dtype, sum);
        }
      }
    }
  });
}

}  // namespace lookaheadkv::cpu
