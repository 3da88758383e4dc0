#include "numpy/ops.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cpu/kernels.h"
#include "numpy/thread_executor.h"

namespace lookaheadkv::numpy {

namespace {

py::dtype float32() { return py::dtype::of<float>(); }
py::dtype int32() { return py::dtype::of<int32_t>(); }

float* floats(py::array& array) { return static_cast<float*>(array.mutable_data()); }
int32_t* ints(py::array& array) { return static_cast<int32_t*>(array.mutable_data()); }

ThreadExecutor executor(const char* op, OptionalThreads num_threads) {
  if (num_threads && *num_threads < 1) {
    throw std::invalid_argument(std::string("lookaheadkv.") + op +
                                ": num_threads must be at least 1, got " +
                                std::to_string(*num_threads));
  }
  return ThreadExecutor(num_threads ? *num_threads : usable_cpus());
}

// Checked leftpad_k and seqused_k, as contiguous memory.
class Lengths {
 public:
  // Their length is the batch size of `owner`.
  Lengths(const Validator& validator, const OptionalArray& leftpad_k,
          const OptionalArray& seqused_k, const TensorInfo& owner)
      : validator_(validator), batch_(owner.shape[0]) {
    if (leftpad_k) validator.lengths(describe("leftpad_k", *leftpad_k), batch_, owner);
    if (seqused_k) validator.lengths(describe("seqused_k", *seqused_k), batch_, owner);
    if (leftpad_k) leftpad_k_ = Contiguous<int32_t>(*leftpad_k);
    if (seqused_k) seqused_k_ = Contiguous<int32_t>(*seqused_k);
  }

  // To be called when all types are checked: checks the values.
  void put_into(Problem& problem) const {
    problem.leftpad_k = leftpad_k_ ? leftpad_k_->data() : nullptr;
    problem.seqused_k = seqused_k_ ? seqused_k_->data() : nullptr;
    validator_.length_values(problem.leftpad_k, problem.seqused_k, batch_, problem.num_prompt);
  }

 private:
  const Validator& validator_;
  int64_t batch_;
  std::optional<Contiguous<int32_t>> leftpad_k_;
  std::optional<Contiguous<int32_t>> seqused_k_;
};

// Sizes of inputs that passed validation.
Problem problem_of(const py::array& query, const py::array& key, OptionalScale scale) {
  Problem problem;
  problem.batch = query.shape(0);
  problem.num_heads = query.shape(1);
  problem.num_kv_heads = key.shape(1);
  problem.num_rows = query.shape(2);
  problem.num_prompt = key.shape(2) - query.shape(2);
  problem.head_dim = query.shape(3);
  problem.scale = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(problem.head_dim));
  return problem;
}

std::vector<int64_t> query_shape(const Problem& problem) {
  return {problem.batch, problem.num_heads, problem.num_rows, problem.head_dim};
}

py::array empty_lse(const Problem& problem) {
  return empty(float32(), {problem.batch, problem.num_heads, problem.num_rows});
}

py::array empty_scores(const Problem& problem) {
  return empty(float32(), {problem.batch, problem.num_kv_heads, problem.num_prompt});
}

void check_lse(const Validator& validator, const OptionalArray& lse, const TensorInfo& query) {
  if (!lse) return;
  validator.float_tensor(describe("lse", *lse), {query.shape[0], query.shape[1], query.shape[2]},
                         query);
}

// The scores, with the given log-sum-exp if there is one.
py::array scores_of(const Problem& problem, const TensorView& query, const TensorView& key,
                    const OptionalArray& lse, const ThreadExecutor& threads) {
  py::array scores = empty_scores(problem);
  float* data = floats(scores);
  if (lse) {
    const Contiguous<float> given(*lse);
    const float* sums = given.data();
    py::gil_scoped_release unlocked;
    cpu::column_scores(problem, query, key, sums, data, threads);
  } else {
    py::array own = empty_lse(problem);
    float* sums = floats(own);
    py::gil_scoped_release unlocked;
    cpu::attention_and_scores(problem, query, key, {}, nullptr, sums, data, threads);
  }
  return scores;
}

py::array indices_of(const Problem& problem, const float* scores, const SelectOptions& options,
                     const ThreadExecutor& threads) {
  const int64_t kept = std::min(options.budget, problem.num_prompt) + options.append_rows;
  py::array indices = empty(int32(), {problem.batch, problem.num_kv_heads, kept});
  int32_t* data = ints(indices);
  py::gil_scoped_release unlocked;
  cpu::select(problem, scores, options, data, threads);
  return indices;
}

KeyValue rows_of(const py::array& key, const py::array& value, const int32_t* indices,
                 int64_t num_kept, const ThreadExecutor& threads) {
  const int64_t batch = key.shape(0), heads = key.shape(1), dim = key.shape(3);
  KeyValue kept{empty(key.dtype(), {batch, heads, num_kept, dim}),
                empty(key.dtype(), {batch, heads, num_kept, dim})};
  void* kept_key = kept.key.mutable_data();
  void* kept_value = kept.value.mutable_data();
  const TensorView key_view = view(key), value_view = view(value);
  py::gil_scoped_release unlocked;
  cpu::gather_kv(batch, heads, dim, key_view, value_view, indices, num_kept, kept_key, kept_value,
                 threads);
  return kept;
}

}  // namespace

Attention lookahead_attention(const py::array& query, const py::array& key, const py::array& value,
                              OptionalScale scale, const OptionalArray& leftpad_k,
                              const OptionalArray& seqused_k, OptionalThreads num_threads) {
  const char* const op = "lookahead_attention";
  const Validator validator(op);
  const TensorInfo value_info = describe("value", value);
  const TensorInfo query_info = describe("query", query);
  validator.attention_inputs(query_info, describe("key", key), &value_info);
  const Lengths lengths(validator, leftpad_k, seqused_k, query_info);
  Problem problem = problem_of(query, key, scale);
  lengths.put_into(problem);
  validator.scale(scale);
  const ThreadExecutor threads = executor(op, num_threads);

  const TensorView query_view = view(query), key_view = view(key), value_view = view(value);
  Attention result{empty(query.dtype(), query_shape(problem)), empty_lse(problem),
                   empty_scores(problem)};
  void* out = result.out.mutable_data();
  float* lse = floats(result.lse);
  float* scores = floats(result.scores);
  {
    py::gil_scoped_release unlocked;
    cpu::attention_and_scores(problem, query_view, key_view, value_view, out, lse, scores, threads);
  }
  return result;
}

py::array column_scores(const py::array& query, const py::array& key, const OptionalArray& lse,
                        OptionalScale scale, const OptionalArray& leftpad_k,
                        const OptionalArray& seqused_k, OptionalThreads num_threads) {
  const char* const op = "column_scores";
  const Validator validator(op);
  const TensorInfo query_info = describe("query", query);
  validator.attention_inputs(query_info, describe("key", key), nullptr);
  check_lse(validator, lse, query_info);
  const Lengths lengths(validator, leftpad_k, seqused_k, query_info);
  Problem problem = problem_of(query, key, scale);
  lengths.put_into(problem);
  validator.scale(scale);
  const ThreadExecutor threads = executor(op, num_threads);

  return scores_of(problem, view(query), view(key), lse, threads);
}

Attention prefill_attention(const py::array& query, const py::array& key, const py::array& value,
                            int64_t num_lookahead, OptionalScale scale,
                            OptionalThreads num_threads) {
  const char* const op = "prefill_attention";
  const Validator validator(op);
  validator.prefill_inputs(describe("query", query), describe("key", key), describe("value", value),
                           num_lookahead);
  validator.scale(scale);
  const ThreadExecutor threads = executor(op, num_threads);

  const Problem all = problem_of(query, key, scale);
  Problem tail = all;
  tail.num_rows = num_lookahead;
  tail.num_prompt = all.num_rows - num_lookahead;
  const TensorView query_view = view(query), key_view = view(key), value_view = view(value);
  Attention result{empty(query.dtype(), query_shape(all)), empty_lse(all), empty_scores(tail)};
  void* out = result.out.mutable_data();
  float* lse = floats(result.lse);
  float* scores = floats(result.scores);
  {
    py::gil_scoped_release unlocked;
    cpu::prefill_attention(tail, query_view, key_view, value_view, out, lse, scores, threads);
  }
  return result;
}

py::array select(const py::array& scores, int64_t budget, int64_t pool_kernel, int64_t num_sink,
                 int64_t num_recent, const OptionalArray& leftpad_k, const OptionalArray& seqused_k,
                 OptionalThreads num_threads) {
  const char* const op = "select";
  const Validator validator(op);
  const TensorInfo scores_info = describe("scores", scores);
  validator.scores_input(scores_info);
  const Lengths lengths(validator, leftpad_k, seqused_k, scores_info);
  Problem problem;
  problem.batch = scores.shape(0);
  problem.num_heads = problem.num_kv_heads = scores.shape(1);
  problem.num_prompt = scores.shape(2);
  lengths.put_into(problem);
  validator.budget(budget, pool_kernel, num_sink, num_recent, std::nullopt);
  const ThreadExecutor threads = executor(op, num_threads);

  const Contiguous<float> ordered(scores);
  return indices_of(problem, ordered.data(), {budget, pool_kernel, num_sink, num_recent, 0},
                    threads);
}

KeyValue gather_kv(const py::array& key, const py::array& value, const py::array& indices,
                   OptionalThreads num_threads) {
  const char* const op = "gather_kv";
  const Validator validator(op);
  validator.gather_inputs(describe("key", key), describe("value", value),
                          describe("indices", indices));
  const Contiguous<int32_t> ordered(indices);
  validator.index_values(ordered.data(), key.shape(0), key.shape(1), indices.shape(2),
                         key.shape(2));
  return rows_of(key, value, ordered.data(), indices.shape(2), executor(op, num_threads));
}

Evicted score_and_evict(const py::array& query, const py::array& key, const py::array& value,
                        int64_t budget, const OptionalArray& lse, OptionalScale scale,
                        int64_t pool_kernel, int64_t num_sink, int64_t num_recent,
                        bool keep_observation, const OptionalArray& leftpad_k,
                        const OptionalArray& seqused_k, OptionalThreads num_threads) {
  const char* const op = "score_and_evict";
  const Validator validator(op);
  const TensorInfo value_info = describe("value", value);
  const TensorInfo query_info = describe("query", query);
  validator.attention_inputs(query_info, describe("key", key), &value_info);
  check_lse(validator, lse, query_info);
  const Lengths lengths(validator, leftpad_k, seqused_k, query_info);
  Problem problem = problem_of(query, key, scale);
  lengths.put_into(problem);
  validator.scale(scale);
  const int64_t appended = keep_observation ? problem.num_rows : 0;
  validator.budget(budget, pool_kernel, num_sink, num_recent,
                   keep_observation ? std::optional(appended) : std::nullopt);
  const ThreadExecutor threads = executor(op, num_threads);

  const py::array scores = scores_of(problem, view(query), view(key), lse, threads);
  const py::array indices =
      indices_of(problem, static_cast<const float*>(scores.data()),
                 {budget - appended, pool_kernel, num_sink, num_recent, appended}, threads);
  const KeyValue kept =
      rows_of(key, value, static_cast<const int32_t*>(indices.data()), indices.shape(2), threads);
  return {kept.key, kept.value, indices, scores};
}

}  // namespace lookaheadkv::numpy
