"""Properties that hold for every input, on inputs that hypothesis makes up."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.helpers import HALF_DTYPES, LAYOUTS, Inputs, assert_bitwise, make_inputs
from torch import Tensor

import lookaheadkv_kernels as lk
from lookaheadkv_kernels import python_ref

bounded = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> Inputs:
    """A problem of any shape and layout."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    kv_heads = draw(st.integers(1, 4))
    return make_inputs(
        batch=draw(st.integers(1, 3)),
        heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        prompt=draw(st.integers(1, 250)),
        rows=draw(st.integers(1, 40)),
        dim=draw(st.integers(1, 12)) * 8,
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(LAYOUTS)),
    )


@st.composite
def score_rows(draw: st.DrawFn) -> Tensor:
    """Scores [1, 1, N] with ties, infinities and NaN."""
    values = st.one_of(
        st.floats(width=32, allow_nan=True), st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0])
    )
    return torch.tensor(draw(st.lists(values, min_size=1, max_size=80)))[None, None]


pools = st.sampled_from([1, 3, 5, 7, 11, 31])
budgets = st.integers(1, 90)


@bounded
@given(score_rows(), budgets, pools, st.integers(0, 9), st.integers(0, 9))
def test_select_is_the_references(scores, budget, pool, num_sink, num_recent):
    budget += num_sink + num_recent
    options = {"pool_kernel": pool, "num_sink": num_sink, "num_recent": num_recent}
    assert_bitwise(
        lk.select(scores, budget, **options), python_ref.select(scores, budget, **options)
    )


@bounded
@given(score_rows(), budgets, pools)
def test_a_larger_budget_only_adds(scores, budget, pool):
    smaller = lk.select(scores, budget, pool_kernel=pool).flatten().tolist()
    larger = lk.select(scores, budget + 1, pool_kernel=pool).flatten().tolist()
    assert set(smaller) <= set(larger)
    assert len(larger) == min(len(smaller) + 1, scores.shape[2])


@bounded
@given(score_rows(), budgets, pools)
def test_indices_ascend_and_beat_what_is_left(scores, budget, pool):
    indices = lk.select(scores, budget, pool_kernel=pool)[0, 0].long()
    assert (indices.diff() > 0).all()
    assert int(indices.min()) >= 0 and int(indices.max()) < scores.shape[2]
    pooled = python_ref.max_pool(scores[0, 0], pool)
    pooled = torch.where(pooled.isnan(), -torch.inf, pooled)
    left = torch.ones(len(pooled), dtype=torch.bool)
    left[indices] = False
    if left.any():
        assert pooled[indices].min() >= pooled[left].max()


@bounded
@given(score_rows(), budgets, pools, st.integers(-60, 60))
def test_select_depends_on_the_order_alone(scores, budget, pool, exponent):
    """A monotone map of the scores (their ranks) keeps the same positions."""
    ranks = torch.unique(scores.nan_to_num(nan=0.0), return_inverse=True)[1].float()
    ranks = torch.where(scores.isnan(), torch.nan, ranks - 30) * 2.0**exponent
    assert_bitwise(
        lk.select(ranks, budget, pool_kernel=pool), lk.select(scores, budget, pool_kernel=pool)
    )


@bounded
@given(problems((torch.float32, *HALF_DTYPES)), budgets, st.booleans())
def test_evicted_is_the_references_choice(inputs, budget, keep_observation):
    rows = inputs.query.shape[2]
    budget += rows if keep_observation else 0
    result = lk.score_and_evict(*inputs, budget, keep_observation=keep_observation)
    indices = python_ref.select(result.scores, budget - rows if keep_observation else budget)
    if keep_observation:
        indices = python_ref.evict.append_observation(indices, inputs.num_prompt, rows)
    assert_bitwise(result.indices, indices)
    assert_bitwise(result[:2], python_ref.gather_kv(inputs.key, inputs.value, indices))


@bounded
@given(problems((torch.float32, *HALF_DTYPES)))
def test_scores_are_probabilities(inputs):
    """Between 0 and 1, and a row's mass over the prompt is at most 1."""
    scores = lk.column_scores(inputs.query, inputs.key)
    assert (scores >= 0).all() and (scores <= 1 + 1e-5).all()
    assert (scores.sum(-1) <= 1 + 1e-5).all()


@bounded
@given(problems((torch.float32, torch.bfloat16)), st.randoms(use_true_random=False))
def test_kv_heads_are_independent(inputs, random):
    """Permuting the KV heads with their query heads permutes the results."""
    query, key, value = inputs
    kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    order = torch.tensor(random.sample(range(kv_heads), kv_heads))
    query_order = (order[:, None] * group + torch.arange(group)).flatten()
    result = lk.score_and_evict(query, key, value, 20)
    permuted = lk.score_and_evict(query[:, query_order], key[:, order], value[:, order], 20)
    assert_bitwise(permuted, [tensor[:, order] for tensor in result])


@bounded
@given(problems(), st.randoms(use_true_random=False))
def test_batch_rows_are_independent(inputs, random):
    order = torch.tensor(random.sample(range(len(inputs.query)), len(inputs.query)))
    result = lk.lookahead_attention(*inputs)
    permuted = lk.lookahead_attention(*(tensor[order] for tensor in inputs))
    assert_bitwise(permuted, [tensor[order] for tensor in result])


@bounded
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_query_heads_in_a_group(inputs, random):
    """A mean does not know the order of what it averages."""
    query, key, _ = inputs
    batch, heads, rows, dim = query.shape
    group = heads // key.shape[1]
    order = torch.tensor(random.sample(range(group), group))
    shuffled = query.reshape(batch, -1, group, rows, dim)[:, :, order].reshape(query.shape)
    torch.testing.assert_close(
        lk.column_scores(shuffled, key), lk.column_scores(query, key), rtol=1e-5, atol=1e-8
    )


@bounded
@given(problems(), st.integers(-6, 6))
def test_scale_is_a_factor_of_the_query(inputs, exponent):
    """softmax(s q k) = softmax((s / f) (f q) k), exactly where f is a power of two."""
    query, key, value = inputs
    factor = 2.0**exponent
    assert_bitwise(
        lk.lookahead_attention(query * factor, key, value, scale=0.25 / factor),
        lk.lookahead_attention(query, key, value, scale=0.25),
    )


@bounded
@given(problems())
def test_scores_ignore_what_all_keys_share(inputs):
    """A vector added to every key shifts each row of logits as a whole."""
    query, key, _ = inputs
    shifted = key + torch.randn(key.shape[-1])
    torch.testing.assert_close(
        lk.column_scores(query, shifted), lk.column_scores(query, key), rtol=1e-4, atol=1e-7
    )


@bounded
@given(problems())
def test_given_lse_changes_nothing(inputs):
    query, key, _ = inputs
    lse = lk.lookahead_attention(*inputs).lse
    torch.testing.assert_close(
        lk.column_scores(query, key, lse), lk.column_scores(query, key), rtol=1e-5, atol=1e-8
    )


@bounded
@given(problems(), st.integers(0, 40), st.integers(0, 40), budgets)
def test_padding_is_as_if_it_were_not_there(inputs, before, after, budget):
    """Junk in front and behind, declared as padding, only shifts the positions."""
    query, key, value = inputs
    batch, prompt = len(query), inputs.num_prompt

    def padded(tensor: Tensor) -> Tensor:
        junk = torch.randn(*tensor.shape[:2], before + after, tensor.shape[3])
        parts = (junk[:, :, :before], tensor[:, :, :prompt], junk[:, :, before:])
        return torch.cat([*parts, tensor[:, :, prompt:]], dim=2)

    first = torch.full((batch,), before, dtype=torch.int32)
    alone = lk.score_and_evict(query, key, value, budget, pool_kernel=1)
    result = lk.score_and_evict(
        query,
        padded(key),
        padded(value),
        budget,
        pool_kernel=1,
        leftpad_k=first,
        seqused_k=first + prompt,
    )
    scores = result.scores[..., before : before + prompt]
    torch.testing.assert_close(scores, alone.scores, rtol=1e-5, atol=1e-8)
    kept = python_ref.select(scores, budget, pool_kernel=1)
    assert torch.equal(result.indices[..., : kept.shape[2]], kept + before)
    assert (result.indices[..., kept.shape[2] :] == -1).all()
