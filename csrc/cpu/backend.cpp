// The ops of csrc/torch on the CPU.
#include "cpu/kernels.h"
#include "cpu/torch_executor.h"
#include "torch/op_library.h"
#include "torch/ops.h"
#include "torch/paged_ops.h"

namespace lookaheadkv::cpu {

namespace {

const TorchExecutor kExecutor;

class Backend {
 public:
  explicit Backend(const Tensor& on) : on_(on) {}

  void attention_and_scores(const Problem& p, const TensorView& query, const TensorView& key,
                            const TensorView& value, void* out, float* lse, float* scores) const {
    cpu::attention_and_scores(p, query, key, value, out, lse, scores, kExecutor);
  }

  void column_scores(const Problem& p, const TensorView& query, const TensorView& key,
                     const float* lse, float* scores) const {
    if (lse) return cpu::column_scores(p, query, key, lse, scores, kExecutor);
    Tensor own_lse = empty_lse(p, on_);
    attention_and_scores(p, query, key, {}, nullptr, own_lse.mutable_data_ptr<float>(), scores);
  }

  void column_scores_backward(const Problem& p, const TensorView& query, const TensorView& key,
                              float* missing_lse, const float* lse, const float* grad_scores,
                              void* grad_query, void* grad_key) const {
    if (missing_lse) attention(p, query, key, {}, nullptr, missing_lse, kExecutor);
    cpu::column_scores_backward(p, query, key, lse, grad_scores, grad_query, grad_key, kExecutor);
  }

  void prefill_attention(const Problem& p, const TensorView& query, const TensorView& key,
                         const TensorView& value, void* out, float* lse, float* scores) const {
    cpu::prefill_attention(p, query, key, value, out, lse, scores, kExecutor);
  }

  void select(const Problem& p, const float* scores, const SelectOptions& options,
              int32_t* indices) const {
    cpu::select(p, scores, options, indices, kExecutor);
  }

  void gather_kv(const Problem& p, const TensorView& key, const TensorView& value,
                 const int32_t* indices, int64_t num_kept, void* out_key, void* out_value) const {
    cpu::gather_kv(p.batch, p.num_kv_heads, p.head_dim, key, value, indices, num_kept, out_key,
                   out_value, kExecutor);
  }

  void score_and_evict(const Problem& p, const TensorView& query, const TensorView& key,
                       const TensorView& value, const float* lse, const SelectOptions& options,
                       const Eviction& out) const {
    column_scores(p, query, key, lse, out.scores);
    select(p, out.scores, options, out.indices);
    gather_kv(p, key, value, out.indices, num_slots(p, options), out.key, out.value);
  }

  void paged_column_scores(const PagedProblem& p, float* scores) const {
    cpu::paged_column_scores(p, nullptr, scores, kExecutor);
  }

  void paged_select(const PagedBatch& batch, int64_t num_kv_heads, const float* scores,
                    const PagedSelection& selection, int32_t* indices, int32_t* kept_lens) const {
    cpu::paged_select(batch, num_kv_heads, scores, selection, indices, kept_lens, kExecutor);
  }

  void paged_score_and_select(const PagedProblem& p, const PagedSelection& selection,
                              int32_t* indices, int32_t* kept_lens, float* scores) const {
    cpu::paged_column_scores(p, &selection, scores, kExecutor);
    paged_select(p.batch, p.num_kv_heads, scores, selection, indices, kept_lens);
  }

  void compact_kv_cache(const Compaction& compaction, const CacheBytes* caches) const {
    cpu::compact_kv_cache(compaction, caches, kExecutor);
  }

 private:
  const Tensor& on_;
};

}  // namespace

LOOKAHEADKV_LIBRARY_IMPL(CPU, m) {
  implement_ops<Backend>(m);
  implement_paged_ops<Backend>(m);
}

}  // namespace lookaheadkv::cpu
