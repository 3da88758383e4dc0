// The ops of csrc/torch on CUDA.
//
// Everything runs on the current stream of the tensors' device, takes its memory from torch's
// caching allocator, and waits for nothing: no op can report a value that only the device knows.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/paged_kernels.h"
#include "torch/op_library.h"
#include "torch/ops.h"
#include "torch/paged_ops.h"

namespace lookaheadkv::cuda {

namespace {

PlanOptions plan_options(const PagedProblem& p, bool score_all) {
  const int64_t length = p.batch.max_seq_len, page_size = p.cache.page_size;
  if (p.cache.num_blocks == 0) return {p.num_queries, 0, score_all};
  // A request reaches as far as its row of the table.
  const bool fits = length <= 0 || (length - 1) / page_size < p.table.max_blocks;
  return {p.num_queries, fits ? length : p.table.max_blocks * page_size, score_all};
}

class Backend {
 public:
  // Makes the tensor's device the current one.
  explicit Backend(const Tensor& on) : on_(on), guard_(on.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(on.get_device_index(), &device_.stream));
    device_.num_sms = multiprocessors_of_current_device();
  }

  void attention_and_scores(const Problem& p, const TensorView& query, const TensorView& key,
                            const TensorView& value, void* out, float* lse, float* scores) const {
    with_workspace([&](Workspace& workspace) {
      const RowLse rows = attention(p, query, key, value, out, lse, workspace, device_);
      if (workspace.counting()) return;
      cuda::column_scores(p, query, key, rows, scores, true, device_);
    });
  }

  void column_scores(const Problem& p, const TensorView& query, const TensorView& key,
                     const float* lse, float* scores) const {
    with_workspace([&](Workspace& workspace) {
      const RowLse rows = lse ? RowLse{lse, p.num_rows, nullptr, 0}
                              : attention(p, query, key, key, nullptr, nullptr, workspace, device_);
      if (workspace.counting()) return;
      cuda::column_scores(p, query, key, rows, scores, lse == nullptr, device_);
    });
  }

  void column_scores_backward(const Problem& p, const TensorView& query, const TensorView& key,
                              float* missing_lse, const float* lse, const float* grad_scores,
                              void* grad_query, void* grad_key) const {
    with_workspace([&](Workspace& workspace) {
      if (missing_lse) attention(p, query, key, key, nullptr, missing_lse, workspace, device_);
      cuda::column_scores_backward(p, query, key, lse, grad_scores, grad_query, grad_key, workspace,
                                   device_);
    });
  }

  void prefill_attention(const Problem& p, const TensorView& query, const TensorView& key,
                         const TensorView& value, void* out, float* lse, float* scores) const {
    with_workspace([&](Workspace& workspace) {
      const RowLse rows =
          cuda::prefill_attention(p, query, key, value, out, lse, workspace, device_);
      if (workspace.counting()) return;
      TensorView last = query;
      last.data = query.row(0, 0, p.num_prompt);
      cuda::column_scores(p, last, key, rows, scores, true, device_);
    });
  }

  void select(const Problem& p, const float* scores, const SelectOptions& options,
              int32_t* indices) const {
    with_workspace([&](Workspace& workspace) {
      cuda::select(p, scores, options, indices, workspace, false, device_);
    });
  }

  void gather_kv(const Problem& p, const TensorView& key, const TensorView& value,
                 const int32_t* indices, int64_t num_kept, void* out_key, void* out_value) const {
    cuda::gather_kv(p.batch, p.num_kv_heads, p.num_prompt, p.head_dim, key, value, indices,
                    num_kept, out_key, out_value, false, device_);
  }

  void score_and_evict(const Problem& p, const TensorView& query, const TensorView& key,
                       const TensorView& value, const float* lse, const SelectOptions& options,
                       const Eviction& out) const {
    with_workspace([&](Workspace& workspace) {
      cuda::score_and_evict(p, query, key, value, lse, options, out, workspace, device_);
    });
  }

  void paged_column_scores(const PagedProblem& p, float* scores) const {
    with_workspace([&](Workspace& workspace) {
      const BatchPlan plan =
          plan_batch(p.batch, {}, plan_options(p, true), nullptr, workspace, device_);
      cuda::paged_column_scores(p, plan, scores, workspace, device_);
    });
  }

  void paged_select(const PagedBatch& batch, int64_t num_kv_heads, const float* scores,
                    const PagedSelection& selection, int32_t* indices, int32_t* kept_lens) const {
    const PlanOptions options = {0x7fffffff, batch.max_seq_len, false};
    with_workspace([&](Workspace& workspace) {
      const BatchPlan plan = plan_batch(batch, selection, options, kept_lens, workspace, device_);
      cuda::paged_select(batch, num_kv_heads, scores, selection, plan, indices, workspace, device_);
    });
  }

  void paged_score_and_select(const PagedProblem& p, const PagedSelection& selection,
                              int32_t* indices, int32_t* kept_lens, float* scores) const {
    with_workspace([&](Workspace& workspace) {
      const BatchPlan plan =
          plan_batch(p.batch, selection, plan_options(p, false), kept_lens, workspace, device_);
      cuda::paged_column_scores(p, plan, scores, workspace, device_);
      cuda::paged_select(p.batch, p.num_kv_heads, scores, selection, plan, indices, workspace,
                         device_);
    });
  }

  void compact_kv_cache(const Compaction& compaction, const CacheBytes* caches) const {
    cuda::compact_kv_cache(compaction, caches, device_);
  }

 private:
  // Calls body(workspace) to learn how much memory it takes, and again with that memory.
  template <class Body>
  void with_workspace(const Body& body) const {
    Workspace counted;
    body(counted);
    Tensor memory = empty_like_device(on_, {counted.size()}, ScalarType::Byte);
    Workspace workspace(memory.mutable_data_ptr());
    body(workspace);
  }

  const Tensor& on_;
  torch::stable::accelerator::DeviceGuard guard_;
  Device device_ = {};
};

}  // namespace

LOOKAHEADKV_LIBRARY_IMPL(CUDA, m) {
  implement_ops<Backend>(m);
  implement_paged_ops<Backend>(m);
}

}  // namespace lookaheadkv::cuda
