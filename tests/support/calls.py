"""Sample calls of every op, for the tests that treat all ops alike."""

from __future__ import annotations

from typing import Any

import torch
from support.helpers import Inputs, lengths, make_inputs
from torch import Tensor

import lookaheadkv_kernels  # noqa: F401  (registers the ops)

OPS = torch.ops.lookaheadkv

Call = tuple[torch._ops.OpOverload, tuple[Any, ...], dict[str, Any]]


def sample_calls(dtype: torch.dtype, device: torch.device | str) -> dict[str, Call]:
    """Every op, without and with its optional arguments."""
    inputs = make_inputs(batch=2, prompt=40, dim=16, dtype=dtype, device=device)
    query, key, value = inputs
    strided = make_inputs(
        batch=2, heads=6, kv_heads=3, prompt=33, dim=24, dtype=dtype, layout="packed", device=device
    )
    padding = {
        "leftpad_k": lengths(0, 3, device=device),
        "seqused_k": lengths(40, 9, device=device),
    }
    lse = OPS.lookahead_attention(*inputs)[1]
    grad = torch.randn(2, 2, 40, device=device)
    scores = torch.randn(2, 2, 40, device=device)
    indices = OPS.select(scores, 12, **padding)
    whole = make_inputs(prompt=0, rows=30, dim=16, dtype=dtype, device=device)
    pins = {"pool_kernel": 3, "num_sink": 1, "num_recent": 2}
    paged = paged_arguments(dtype, device)
    pages = tuple(paged[name] for name in ("query", "cache", "table", "starts", "lengths"))
    lengths_only = (paged["scores"], paged["starts"], paged["lengths"], 5)
    quantised = (pages[0], paged["int8"], *pages[2:], 5, 45)
    budgets = {"budgets": lengths(9, 0, 12, device=device)}
    return {
        "lookahead_attention": (OPS.lookahead_attention.default, tuple(inputs), {}),
        "lookahead_attention strided": (OPS.lookahead_attention.default, tuple(strided), {}),
        "lookahead_attention padded": (
            OPS.lookahead_attention.default,
            tuple(inputs),
            {"scale": 0.3, **padding},
        ),
        "column_scores": (OPS.column_scores.default, (query, key), {}),
        "column_scores lse": (OPS.column_scores.default, (query, key, lse), {}),
        "column_scores strided": (OPS.column_scores.default, tuple(strided)[:2], {}),
        "column_scores padded": (
            OPS.column_scores.default,
            (query, key),
            {"scale": 0.3, **padding},
        ),
        "column_scores_backward": (OPS.column_scores_backward.default, (grad, query, key), {}),
        "column_scores_backward lse": (
            OPS.column_scores_backward.default,
            (grad, query, key, lse),
            {"scale": None, **padding},
        ),
        "prefill_attention": (OPS.prefill_attention.default, (*whole, 7), {}),
        "prefill_attention scaled": (OPS.prefill_attention.default, (*whole, 30), {"scale": 0.1}),
        "select": (OPS.select.default, (scores, 12), {}),
        "select padded": (OPS.select.default, (scores, 60), {**pins, **padding}),
        "gather_kv": (OPS.gather_kv.default, (key, value, indices), {}),
        "score_and_evict": (OPS.score_and_evict.default, (*inputs, 12), {}),
        "score_and_evict all": (OPS.score_and_evict.default, (*inputs, 60), {}),
        "score_and_evict strided": (
            OPS.score_and_evict.default,
            (*strided, 20),
            {"keep_observation": True},
        ),
        "score_and_evict padded": (
            OPS.score_and_evict.default,
            (*inputs, 20),
            {"lse": lse, "keep_observation": True, "scale": 0.3, **pins, **padding},
        ),
        "paged_column_scores": (OPS.paged_column_scores.default, (*pages, 5, 45), {}),
        "paged_column_scores quantised": (
            OPS.paged_column_scores.default,
            quantised,
            {"lse": paged["lse"], "scale": 0.3, "k_scale": paged["k_scale"]},
        ),
        "paged_select": (OPS.paged_select.default, (*lengths_only, 12), {}),
        "paged_select budgets": (
            OPS.paged_select.default,
            (*lengths_only, 12),
            {"keep_observation": True, "head_reduction": "mean", **budgets},
        ),
        "paged_score_and_select": (OPS.paged_score_and_select.default, (*pages, 5, 45, 12), {}),
        "paged_score_and_select quantised": (
            OPS.paged_score_and_select.default,
            (*quantised, 12),
            {"k_scale": paged["k_scale"], "head_reduction": "max", **pins, **budgets},
        ),
    }


def paged_arguments(dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Three requests in pages of 8: one with few queries, one that is a row of a captured graph."""
    cache = torch.randn(20, 2, 8, 32, device=device).to(dtype)[..., :16].transpose(1, 2)
    return {
        "query": torch.randn(11, 4, 16, device=device).to(dtype),
        "cache": cache,
        "int8": torch.randint(-128, 128, (20, 8, 2, 16), device=device, dtype=torch.int8),
        "k_scale": torch.rand(20, 8, 2, device=device),
        "table": torch.arange(18, device=device, dtype=torch.int32).flip(0).view(3, 6),
        "starts": lengths(0, 7, 10, 10, device=device),
        "lengths": lengths(40, 17, 0, device=device),
        "lse": torch.rand(11, 4, device=device) + 4,
        "scores": torch.rand(3, 2, 45, device=device),
    }


CALL_NAMES = tuple(sample_calls(torch.float32, "cpu"))


def tensors_of(call: Call) -> list[Tensor]:
    """The tensors a call passes."""
    _, args, kwargs = call
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def results_of_all_ops(inputs: Inputs) -> list[Tensor]:
    """What every op returns, with its optional ways through: one flat list to compare."""
    query, key, _ = inputs
    attention = OPS.lookahead_attention(*inputs)
    lse, grad = attention[1], attention[2].flip(-1)
    prefill = make_inputs(prompt=0, rows=70, dim=24, dtype=query.dtype, device=query.device)
    return [
        *attention,
        OPS.column_scores(query, key),
        OPS.column_scores(query, key, lse),
        *OPS.column_scores_backward(grad, query, key),
        *OPS.column_scores_backward(grad, query, key, lse),
        *OPS.prefill_attention(*prefill, 9),
        *OPS.score_and_evict(*inputs, 60, keep_observation=True),
        *OPS.score_and_evict(*inputs, 60, lse=lse),
    ]
