"""score_and_evict: its options, padded batches, and what must not matter (poison, NaN, layout)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.accuracy import check_evicted
from support.calls import results_of_all_ops
from support.helpers import DTYPES, Inputs, assert_bitwise, assert_fp32_close, lengths, make_inputs

import lookaheadkv_kernels as lk
from bench.peers.eager import eager_score_and_evict
from lookaheadkv_kernels import python_ref

OPTIONS: list[dict[str, Any]] = [
    {},
    {"pool_kernel": 1},
    {"pool_kernel": 13, "num_sink": 4},
    {"num_sink": 3, "num_recent": 6},
    {"scale": 0.3},
]


def evict(inputs: Inputs, budget: int, **options: Any) -> lk.Evicted:
    """The op's result, checked against the reference's scores and choice."""
    result = lk.score_and_evict(*inputs, budget, **options)
    scoring = {k: options.pop(k) for k in ("scale",) if k in options}
    padding = {k: options[k] for k in ("leftpad_k", "seqused_k") if k in options}
    if inputs.query.dtype == torch.float32:
        query, key, _ = inputs.double()
        exact = python_ref.column_scores(query, key, **scoring, **padding)
        assert_fp32_close(result.scores, exact)
    check_evicted(inputs, result, budget, **options)
    return result


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("keep_observation", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(dtype, keep_observation, options, device):
    inputs = make_inputs(batch=2, heads=6, prompt=211, rows=7, dtype=dtype, device=device)
    evict(inputs, 40, keep_observation=keep_observation, **options)


@pytest.mark.parametrize("keep_observation", [False, True])
@pytest.mark.parametrize("prompt", [0, 1, 3, 50])
def test_budget_around_the_prompt(prompt, keep_observation, device):
    inputs = make_inputs(prompt=prompt, rows=4, device=device)
    for budget in (prompt - 1, prompt, prompt + 1, prompt + 4, prompt + 5, 10**9):
        if budget < (4 if keep_observation else 1):
            continue
        result = evict(inputs, budget, keep_observation=keep_observation)
        kept = min(budget - 4, prompt) + 4 if keep_observation else min(budget, prompt)
        assert result.indices.shape == (1, 2, kept)


def test_observation_rows_alone(device):
    """A budget of exactly L keeps the observation rows and nothing of the prompt."""
    inputs = make_inputs(prompt=30, rows=4, device=device)
    result = evict(inputs, 4, keep_observation=True)
    assert result.indices.tolist() == [[[30, 31, 32, 33]] * 2]
    assert_bitwise(result.key, inputs.key[:, :, 30:])


FIRST = (0, 5, 0, 130, 60, 200)
LAST = (200, 200, 90, 133, 60, 200)


@pytest.mark.parametrize("given", ["leftpad_k", "seqused_k", "both"])
@pytest.mark.parametrize("keep_observation", [False, True])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_padded_batch(layout, keep_observation, given, device):
    inputs = make_inputs(batch=6, prompt=200, dim=32, layout=layout, device=device)
    padding = {"leftpad_k": lengths(*FIRST, device=device)}
    if given != "leftpad_k":
        padding["seqused_k"] = lengths(*LAST, device=device)
    if given == "seqused_k":
        del padding["leftpad_k"]
    for budget in (20, 150, 300):
        evict(inputs, budget, keep_observation=keep_observation, num_sink=2, **padding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_is_never_read_into_a_result(dtype, device):
    """NaN, infinity and huge values in the padding change no bit of any result."""
    inputs = make_inputs(batch=6, prompt=200, dtype=dtype, device=device)
    padding = {
        "leftpad_k": lengths(*FIRST, device=device),
        "seqused_k": lengths(*LAST, device=device),
    }
    expected = [
        *lk.lookahead_attention(*inputs, **padding),
        *lk.score_and_evict(*inputs, 64, **padding),
    ]
    for poison in (math.nan, math.inf, -1e4):
        for b in range(6):
            for tensor in (inputs.key, inputs.value):
                tensor[b, :, : FIRST[b]] = poison
                tensor[b, :, LAST[b] : 200] = poison
        again = [
            *lk.lookahead_attention(*inputs, **padding),
            *lk.score_and_evict(*inputs, 64, **padding),
        ]
        assert_bitwise(again, expected)


def test_padded_row_equals_the_row_alone(device):
    inputs = make_inputs(batch=6, prompt=200, device=device)
    padding = {
        "leftpad_k": lengths(*FIRST, device=device),
        "seqused_k": lengths(*LAST, device=device),
    }
    scores = lk.score_and_evict(*inputs, 30, **padding).scores
    for b in range(6):
        real = [*range(FIRST[b], LAST[b]), *range(200, 205)]
        alone = lk.column_scores(inputs.query[b : b + 1], inputs.key[b : b + 1, :, real])
        torch.testing.assert_close(scores[b, :, FIRST[b] : LAST[b]], alone[0])
        outside = torch.cat([scores[b, :, : FIRST[b]], scores[b, :, LAST[b] :]], -1)
        assert (outside == 0).all()


def test_nan_keys_are_never_preferred(device):
    """A NaN key makes its whole row NaN; the choice is still the reference's, and in range."""
    inputs = make_inputs(batch=2, prompt=120, device=device)
    inputs.key[0, 1, 17] = math.nan
    result = lk.score_and_evict(*inputs, 12)
    assert result.scores[0, 1].isnan().all()
    assert not result.scores[0, 0].isnan().any() and not result.scores[1].isnan().any()
    assert_bitwise(result.indices, python_ref.select(result.scores, 12))
    assert result.indices[0, 1].tolist() == list(range(12))


def test_same_choice_as_eager_code(device):
    """Where float32 scores are far apart the paper-style code keeps the same positions."""
    inputs = make_inputs(prompt=400, dim=32, device=device)
    ours = lk.score_and_evict(*inputs, 40, pool_kernel=1)
    eager = eager_score_and_evict(*inputs, 40, pool_kernel=1)
    assert torch.equal(ours.indices.long(), eager[2].sort().values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim, rows", [(24, 5), (64, 32)])
def test_poisoned_memory(dim, rows, dtype, device, seed):
    """Every output element and every scratch element is written before it is read."""
    inputs = make_inputs(heads=6, prompt=333, rows=rows, dim=dim, dtype=dtype, device=device)
    torch.manual_seed(seed)
    first = results_of_all_ops(inputs)
    sizes = {tensor.numel() for tensor in first} | {2**n for n in range(4, 19)}
    for _ in range(2):
        poison = [torch.full((size,), math.nan, device=device) for size in sizes for _ in range(3)]
        del poison
        torch.manual_seed(seed)
        second = results_of_all_ops(inputs)
        assert_bitwise(second, first)
    assert not any(tensor.isnan().any() for tensor in first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [8, 24, 40, 64, 72, 128, 256])
@pytest.mark.parametrize("layout", ["bshd", "packed", "expanded", "misaligned"])
def test_storage_does_not_matter(layout, dim, dtype, device):
    """The same numbers stored otherwise give the same bits."""
    inputs = make_inputs(
        batch=2,
        heads=6,
        kv_heads=3,
        prompt=150,
        dim=dim,
        dtype=dtype,
        layout=layout,
        device=device,
    )
    contiguous = Inputs(*(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs))
    assert not inputs.key.is_contiguous() and contiguous.key.is_contiguous()
    assert_bitwise(lk.lookahead_attention(*inputs), lk.lookahead_attention(*contiguous))
    assert_bitwise(
        lk.score_and_evict(*inputs, 30, keep_observation=True),
        lk.score_and_evict(*contiguous, 30, keep_observation=True),
    )


def test_lse_of_any_strides(device):
    inputs = make_inputs(batch=2, prompt=90, device=device)
    lse = lk.lookahead_attention(*inputs).lse
    expected = lk.score_and_evict(*inputs, 30, lse=lse)
    transposed = lse.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not transposed.is_contiguous()
    assert_bitwise(lk.score_and_evict(*inputs, 30, lse=transposed), expected)


def test_lengths_of_any_strides(device):
    inputs = make_inputs(batch=3, prompt=90, device=device)
    pairs = torch.tensor([[3, 80], [0, 90], [10, 10]], dtype=torch.int32, device=device)
    strided = lk.score_and_evict(*inputs, 9, leftpad_k=pairs[:, 0], seqused_k=pairs[:, 1])
    packed = lk.score_and_evict(
        *inputs,
        9,
        leftpad_k=lengths(3, 0, 10, device=device),
        seqused_k=lengths(80, 90, 10, device=device),
    )
    assert_bitwise(strided, packed)
