// lookaheadkv_numpy: the CPU kernels for NumPy arrays. Importing it does not import torch.
#include <pybind11/stl.h>

#include "cpu/kernels.h"
#include "numpy/ops.h"
#include "numpy/thread_executor.h"

namespace py = pybind11;
using namespace pybind11::literals;
namespace ops = lookaheadkv::numpy;

namespace {

constexpr char kModuleDoc[] =
    R"(LookaheadKV's CPU kernels for NumPy arrays, without torch.

Functions, argument names, defaults and results are those of torch.ops.lookaheadkv; only
num_threads is new (None: one thread per usable CPU), and it never changes a result. Letters: B
batch, Hq query heads, Hkv KV heads (Hq is a multiple), L observation rows, N prompt keys,
S = N + L, D head dimension (a multiple of 8 up to 256). query, key and value are float32, float16
or ml_dtypes.bfloat16 with any strides, contiguous in their last dimension. leftpad_k and seqused_k,
int32 [B], make prompt keys leftpad_k[b] <= j < seqused_k[b] the valid ones. Every function raises
ValueError with a message that names the argument and its value.)";

constexpr char kLookaheadAttentionDoc[] =
    R"(Attention of the L observation rows, its log-sum-exp and the column scores (paper eq. 4).

query [B, Hq, L, D], key and value [B, Hkv, N + L, D]; row i sees keys 0 .. N + i.
Returns Attention(out [B, Hq, L, D], lse [B, Hq, L] float32, scores [B, Hkv, N] float32).)";

constexpr char kColumnScoresDoc[] =
    R"(Mean attention probability that each prompt key receives from the rows of its KV head.

query [B, Hq, L, D], key [B, Hkv, N + L, D], lse float32 [B, Hq, L] or None (paper section 3.1).
Returns float32 [B, Hkv, N].)";

constexpr char kPrefillAttentionDoc[] =
    R"(Causal attention of a whole prompt with its lookahead rows, and the last rows' scores.

query [B, Hq, S, D], key and value [B, Hkv, S, D]; the last num_lookahead = L rows give the scores
(paper algorithm 2, the appended form).
Returns Attention(out [B, Hq, S, D], lse [B, Hq, S] float32, scores [B, Hkv, S - L] float32).)";

constexpr char kSelectDoc[] =
    R"(Max-pool the scores, then keep the budget best positions of each row (paper section F).

scores float32 [B, Hkv, N]. Larger first, ties to the smaller position, NaN below every number; the
first num_sink and last num_recent valid positions are kept whatever their score.
Returns int32 [B, Hkv, min(budget, N)], ascending, -1 in slots that a padded row cannot fill.)";

constexpr char kGatherDoc[] =
    R"(Copy the kept rows of key and value, bit for bit (paper algorithm 2, the pruned cache).

key and value [B, Hkv, S, D], indices int32 [B, Hkv, K]; -1 gives a row of zeros.
Returns KeyValue(key [B, Hkv, K, D], value [B, Hkv, K, D]).)";

constexpr char kScoreAndEvictDoc[] =
    R"(Keep the budget cache entries per KV head that the observation rows attend to most.

column_scores, select and gather_kv in one call (paper algorithm 2). With keep_observation the L
rows are the end of the prompt and are kept too, inside the budget; without it they are dropped.
Returns Evicted(key [B, Hkv, K, D], value [B, Hkv, K, D], indices int32 [B, Hkv, K], scores float32
[B, Hkv, N]) with K = min(budget, N), or min(budget - L, N) + L with keep_observation.)";

// A collections.namedtuple class that belongs to this module, so that results can be pickled.
py::object named_tuple(py::module_& module, const char* name, const char* fields) {
  py::object type = py::module_::import("collections")
                        .attr("namedtuple")(name, fields, "module"_a = module.attr("__name__"));
  module.attr(name) = type;
  return type;
}

}  // namespace

PYBIND11_MODULE(lookaheadkv_numpy, module) {
  module.doc() = kModuleDoc;
  module.attr("__version__") = LOOKAHEADKV_VERSION;
  const py::object attention = named_tuple(module, "Attention", "out lse scores");
  const py::object key_value = named_tuple(module, "KeyValue", "key value");
  const py::object evicted = named_tuple(module, "Evicted", "key value indices scores");

  module.def(
      "lookahead_attention",
      [attention](const py::array& query, const py::array& key, const py::array& value,
                  ops::OptionalScale scale, const ops::OptionalArray& leftpad_k,
                  const ops::OptionalArray& seqused_k, ops::OptionalThreads num_threads) {
        const ops::Attention result =
            ops::lookahead_attention(query, key, value, scale, leftpad_k, seqused_k, num_threads);
        return attention(result.out, result.lse, result.scores);
      },
      kLookaheadAttentionDoc, "query"_a, "key"_a, "value"_a, py::kw_only(), "scale"_a = py::none(),
      "leftpad_k"_a = py::none(), "seqused_k"_a = py::none(), "num_threads"_a = py::none());

  module.def("column_scores", &ops::column_scores, kColumnScoresDoc, "query"_a, "key"_a,
             "lse"_a = py::none(), py::kw_only(), "scale"_a = py::none(),
             "leftpad_k"_a = py::none(), "seqused_k"_a = py::none(), "num_threads"_a = py::none());

  module.def(
      "prefill_attention",
      [attention](const py::array& query, const py::array& key, const py::array& value,
                  int64_t num_lookahead, ops::OptionalScale scale,
                  ops::OptionalThreads num_threads) {
        const ops::Attention result =
            ops::prefill_attention(query, key, value, num_lookahead, scale, num_threads);
        return attention(result.out, result.lse, result.scores);
      },
      kPrefillAttentionDoc, "query"_a, "key"_a, "value"_a, "num_lookahead"_a, py::kw_only(),
      "scale"_a = py::none(), "num_threads"_a = py::none());

  module.def("select", &ops::select, kSelectDoc, "scores"_a, "budget"_a, py::kw_only(),
             "pool_kernel"_a = 7, "num_sink"_a = 0, "num_recent"_a = 0, "leftpad_k"_a = py::none(),
             "seqused_k"_a = py::none(), "num_threads"_a = py::none());

  module.def(
      "gather_kv",
      [key_value](const py::array& key, const py::array& value, const py::array& indices,
                  ops::OptionalThreads num_threads) {
        const ops::KeyValue result = ops::gather_kv(key, value, indices, num_threads);
        return key_value(result.key, result.value);
      },
      kGatherDoc, "key"_a, "value"_a, "indices"_a, py::kw_only(), "num_threads"_a = py::none());

  module.def(
      "score_and_evict",
      [evicted](const py::array& query, const py::array& key, const py::array& value,
                int64_t budget, const ops::OptionalArray& lse, ops::OptionalScale scale,
                int64_t pool_kernel, int64_t num_sink, int64_t num_recent, bool keep_observation,
                const ops::OptionalArray& leftpad_k, const ops::OptionalArray& seqused_k,
                ops::OptionalThreads num_threads) {
        const ops::Evicted result =
            ops::score_and_evict(query, key, value, budget, lse, scale, pool_kernel, num_sink,
                                 num_recent, keep_observation, leftpad_k, seqused_k, num_threads);
        return evicted(result.key, result.value, result.indices, result.scores);
      },
      kScoreAndEvictDoc, "query"_a, "key"_a, "value"_a, "budget"_a, py::kw_only(),
      "lse"_a = py::none(), "scale"_a = py::none(), "pool_kernel"_a = 7, "num_sink"_a = 0,
      "num_recent"_a = 0, "keep_observation"_a = false, "leftpad_k"_a = py::none(),
      "seqused_k"_a = py::none(), "num_threads"_a = py::none());

  module.def("active_isa", &lookaheadkv::cpu::active_isa,
             "Instruction set in use: LOOKAHEADKV_CPU_ISA if set, else the best supported.");
  module.def(
      "supported_isas",
      [] {
        const std::vector<const char*> names = lookaheadkv::cpu::supported_isas();
        return std::vector<std::string>(names.begin(), names.end());
      },
      "Instruction sets that this machine can run, best first.");
  module.def("usable_cpus", &ops::usable_cpus, "Threads used when num_threads is None.");
}
