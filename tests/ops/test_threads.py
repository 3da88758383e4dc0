"""Results do not depend on the number of threads, nor on who else is calling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.calls import results_of_all_ops
from support.helpers import DTYPES, assert_bitwise, lengths, make_inputs

import lookaheadkv_kernels as lk


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "heads, kv_heads, prompt, rows", [(4, 2, 3000, 32), (1, 1, 5000, 1), (6, 3, 97, 5)]
)
def test_number_of_threads(heads, kv_heads, prompt, rows, dtype, seed, restore_threads):
    inputs = make_inputs(
        heads=heads, kv_heads=kv_heads, prompt=prompt, rows=rows, dim=40, dtype=dtype
    )
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        torch.manual_seed(seed)
        results.append(results_of_all_ops(inputs))
    assert_bitwise(results[1], results[0])
    assert_bitwise(results[2], results[0])


def test_padded_batch_and_number_of_threads(restore_threads):
    inputs = make_inputs(batch=3, prompt=2000)
    padding = {"leftpad_k": lengths(0, 900, 0), "seqused_k": lengths(2000, 2000, 1100)}
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(lk.score_and_evict(*inputs, 300, num_sink=4, num_recent=9, **padding))
    assert_bitwise(results[1], results[0])


def test_concurrent_callers():
    """Calls from several Python threads at once (the kernels run without shared state)."""
    problems = [make_inputs(prompt=prompt, dim=32) for prompt in (500, 900, 1300, 100)]
    expected = [lk.score_and_evict(*inputs, 60) for inputs in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = pool.map(lambda inputs: lk.score_and_evict(*inputs, 60), problems)
            for actual, wanted in zip(results, expected, strict=True):
                assert_bitwise(actual, wanted)
