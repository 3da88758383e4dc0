"""Latency of each room and of the whole op, each beside what others run in its place.

`pytest bench/` is the short set; `--full` walks all shapes, lengths and budgets, `--prompt 32768`
(repeatable) chooses lengths. `--record FILE` keeps the figures for `python -m bench.report`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import lookaheadkv_kernels as lkv
from bench import work
from bench.cases import Point
from bench.conftest import Measure, compiles
from bench.peers.column_parallel import column_parallel_evict, column_parallel_scores
from bench.peers.compiled import compiled_score_and_evict
from bench.peers.eager import eager_score_and_evict, eager_scores
from bench.peers.pool_topk import pool_topk_sorted, torch_gather
from bench.peers.row_parallel import row_parallel_evict, row_parallel_scores
from bench.peers.sdpa import sdpa, sdpa_and_eager_scores
from bench.peers.snapkv import snapkv_compress

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs_of(point: Point, seeds: list[int], device: str) -> list[Inputs]:
    return [point.case.inputs(seed, device) for seed in seeds]


def test_attention(measure: Measure, point: Point, device: str, seeds: list[int]) -> None:
    sets = inputs_of(point, seeds, device)
    measure(
        "attention",
        [partial(lkv.lookahead_attention, *one) for one in sets],
        {
            "sdpa + eager scores": [partial(sdpa_and_eager_scores, *one) for one in sets],
            "sdpa alone": [partial(sdpa, *one) for one in sets],
        },
        work.attention_work(point.case),
    )


def test_scores(measure: Measure, point: Point, device: str, seeds: list[int]) -> None:
    sets = [
        (query, key, lkv.lookahead_attention(query, key, value).lse)
        for query, key, value in inputs_of(point, seeds, device)
    ]
    measure(
        "scores",
        [partial(lkv.column_scores, *one) for one in sets],
        {
            "eager": [partial(eager_scores, *one[:2]) for one in sets],
            "row-parallel": [partial(row_parallel_scores, *one[:2]) for one in sets],
            "column-parallel": [partial(column_parallel_scores, *one) for one in sets],
        },
        work.scores_work(point.case),
    )


def test_select(measure: Measure, point: Point, budget: int, device: str, seeds: list[int]) -> None:
    generator = torch.Generator().manual_seed(seeds[0])
    shape = (len(seeds), 1, point.case.num_kv_heads, point.num_prompt)
    sets = torch.rand(shape, generator=generator).to(device)
    measure(
        "select",
        [partial(lkv.select, scores, budget) for scores in sets],
        {"max_pool1d + topk + sort": [partial(pool_topk_sorted, one, budget) for one in sets]},
        work.select_work(point.case, budget),
        budget,
    )


def test_gather(measure: Measure, point: Point, budget: int, device: str, seeds: list[int]) -> None:
    generator = torch.Generator().manual_seed(seeds[0])
    sets = []
    for _, key, value in inputs_of(point, seeds, device):
        scores = torch.rand(key.shape[:3], generator=generator).to(device)
        sets.append((key, value, lkv.select(scores, budget)))
    measure(
        "gather",
        [partial(lkv.gather_kv, *one) for one in sets],
        {"torch.gather": [partial(torch_gather, *one[:2], one[2].long()) for one in sets]},
        work.gather_work(point.case, budget),
        budget,
    )


def test_score_and_evict(
    request: pytest.FixtureRequest,
    measure: Measure,
    point: Point,
    budget: int,
    device: str,
    seeds: list[int],
) -> None:
    sets = inputs_of(point, seeds, device)
    peers = {
        "eager": [partial(eager_score_and_evict, *one, budget) for one in sets],
        "kvpress SnapKV": [partial(snapkv_compress, *one, budget) for one in sets],
        "row-parallel + topk": [partial(row_parallel_evict, *one, budget) for one in sets],
    }
    case = point.case
    if compiles(request.config, point):
        peers["torch.compile"] = [partial(compiled_score_and_evict, *one, budget) for one in sets]
    measure(
        "score_and_evict",
        [partial(lkv.score_and_evict, *one, budget) for one in sets],
        peers,
        work.evict_work(case, budget),
        budget,
    )


def test_score_and_evict_with_lse(
    measure: Measure, point: Point, budget: int, device: str, seeds: list[int]
) -> None:
    sets = [(*one, lkv.lookahead_attention(*one).lse) for one in inputs_of(point, seeds, device)]
    measure(
        "score_and_evict, lse given",
        [partial(lkv.score_and_evict, *one[:3], budget, lse=one[3]) for one in sets],
        {
            "eager": [partial(eager_score_and_evict, *one[:3], budget) for one in sets],
            "column-parallel + topk": [
                partial(column_parallel_evict, *one, budget) for one in sets
            ],
        },
        work.evict_work(point.case, budget),
        budget,
    )
