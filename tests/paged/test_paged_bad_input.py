"""Bad input to the ops on paged caches: exact messages, the same from op and fake kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bad_calls import Case, compiled_cpu, expand, to_meta
from support.calls import OPS
from support.helpers import lengths
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

# One good call of each op: R = 2, T = 8, Hq = 4, Hkv = 2, D = 16, 10 pages of 4, N = 13 and 8.
QUERY = torch.zeros(8, 4, 16)
CACHE = torch.zeros(10, 4, 2, 16)
TABLE = torch.arange(10, dtype=torch.int32).view(2, 5)
SCORES = torch.zeros(2, 2, 20)
BATCH = {"cu_seqlens_q": lengths(0, 4, 8), "seq_lens": lengths(17, 12), "num_rows": 4}
PAGES = {"query": QUERY, "key_cache": CACHE, "block_table": TABLE, **BATCH}
OUT = {
    "indices": torch.zeros(2, 2, 6, dtype=torch.int32),
    "kept_lens": lengths(0, 0),
    "scores": SCORES,
}
GOOD: dict[str, dict[str, Any]] = {
    "paged_column_scores": {**PAGES, "max_seq_len": 20},
    "paged_select": {"scores": SCORES, **BATCH, "max_budget": 6},
    "paged_score_and_select": {**PAGES, "max_seq_len": 20, "max_budget": 6},
    "paged_score_and_select_out": {**PAGES, "max_budget": 6, **OUT},
    "compact_kv_cache": {
        "caches": [CACHE, CACHE.clone(), torch.zeros(10, 4, 2), torch.zeros(10, 4, 2)],
        "indices": torch.tensor([2, 7, 9], dtype=torch.int32).expand(2, 2, 1, 3),
        "kept_lens": lengths(3, 3).expand(2, 2),
        "src_block_table": TABLE,
    },
}
SCORING = ("paged_column_scores", "paged_score_and_select", "paged_score_and_select_out")
SELECTING = ("paged_select", "paged_score_and_select", "paged_score_and_select_out")
ALL = ("paged_column_scores", *SELECTING)
MOVING = ("compact_kv_cache",)
OUT_OP = ("paged_score_and_select_out",)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


BYTES = CACHE.to(torch.int8)

STATIC_CASES = [
    Case(SCORING, {"query": QUERY[None]},
         "query must have 3 dimensions [T, Hq, D], got shape [1, 8, 4, 16]"),
    Case(SCORING, {"key_cache": CACHE[0]},
         "key_cache must have 4 dimensions [num_blocks, page_size, Hkv, D], got shape [4, 2, 16]"),
    Case(SCORING, {"query": QUERY.double()},
         "query must be float32, float16 or bfloat16, got float64"),
    Case(SCORING, {"key_cache": CACHE.half()},
         "key_cache must have query's dtype float32 or be float8_e4m3fn, float8_e5m2 or int8, "
         "got float16"),
    Case(SCORING, {"key_cache": CACHE.to(torch.float8_e4m3fnuz)},
         "key_cache must have query's dtype float32 or be float8_e4m3fn, float8_e5m2 or int8, "
         "got float8_e4m3fnuz"),
    Case(SCORING, {"key_cache": zeros(10, 4, 2, 24)},
         "key_cache must have query's head_dim 16, got 24"),
    Case(SCORING, {"query": QUERY[..., :12], "key_cache": CACHE[..., :12]},
         "head_dim must be a multiple of 8 between 8 and 256, got 12"),
    Case(SCORING, {"key_cache": CACHE[:, :0]},
         "key_cache must have a page_size of at least 1, got 0"),
    Case(SCORING, {"key_cache": CACHE[:, :, :0]},
         "key_cache must have at least one head, got Hkv=0"),
    Case(SCORING, {"query": QUERY[:, :3]},
         "query heads must be a positive multiple of KV heads, got Hq=3, Hkv=2"),
    Case(SCORING, {"query": zeros(8, 4, 32)[..., ::2]},
         "query must be contiguous in its last dimension, got stride 2"),
    Case(SCORING, {"key_cache": zeros(10, 4, 2, 48)[..., ::3]},
         "key_cache must be contiguous in its last dimension, got stride 3"),
    Case(SCORING, {"block_table": TABLE.long()},
         "block_table must be an int32 tensor of shape [R, max_blocks], got int64 [2, 5]"),
    Case(SCORING, {"block_table": TABLE[0]},
         "block_table must be an int32 tensor of shape [R, max_blocks], got int32 [5]"),
    Case(ALL, {"cu_seqlens_q": lengths(0, 8)},
         "cu_seqlens_q must be an int32 tensor of shape [3], got int32 [2]"),
    Case(ALL, {"seq_lens": lengths(17, 12).long()},
         "seq_lens must be an int32 tensor of shape [2], got int64 [2]"),
    Case(ALL, {"num_rows": 0}, "num_rows must be at least 1, got 0"),
    Case(("paged_column_scores", "paged_score_and_select"), {"max_seq_len": -1},
         "max_seq_len must be in 0..2147483647, got -1"),
    Case(SCORING, {"lse": zeros(4, 8)},
         "lse must be a float32 tensor of shape [8, 4], got float32 [4, 8]"),
    Case(SCORING, {"scale": float("nan")}, "scale must be finite, got nan"),
    Case(SCORING, {"k_scale": zeros(1)},
         "k_scale is for a key_cache of float8_e4m3fn, float8_e5m2 or int8, got float32"),
    Case(SCORING, {"key_cache": BYTES, "k_scale": zeros(4)},
         "k_scale must be a float32 tensor of shape [], [1], [2] or [10, 4, 2], got float32 [4]"),
    Case(SCORING, {"key_cache": BYTES, "k_scale": zeros(1, dtype=torch.float16)},
         "k_scale must be a float32 tensor of shape [], [1], [2] or [10, 4, 2], got float16 [1]"),
    Case(("paged_select",), {"scores": SCORES[0]},
         "scores must be a float32 tensor of shape [R, Hkv, max_seq_len], got float32 [2, 20]"),
    Case(("paged_select",), {"scores": SCORES[:, :0]},
         "scores must have at least one head, got Hkv=0"),
    Case(SELECTING, {"max_budget": 0}, "max_budget must be at least 1, got 0"),
    Case(SELECTING, {"pool_kernel": 2}, "pool_kernel must be odd and positive, got 2"),
    Case(SELECTING, {"num_sink": 4, "num_recent": 3},
         "max_budget must hold num_sink + num_recent = 7 pinned entries, got 6"),
    Case(SELECTING, {"num_sink": 3, "keep_observation": True},
         "max_budget must hold L + num_sink + num_recent = 7 entries, got 6"),
    Case(SELECTING, {"max_budget": 2**31}, "max_budget must be at most 2147483647, got 2147483648"),
    Case(SELECTING, {"head_reduction": "sum"},
         'head_reduction must be "none", "mean" or "max", got "sum"'),
    Case(SELECTING, {"budgets": lengths(3)},
         "budgets must be an int32 tensor of shape [2], got int32 [1]"),
    Case(OUT_OP, {"indices": zeros(2, 2, 5, dtype=torch.int32)},
         "indices must be an int32 tensor of shape [2, 2, 6], got int32 [2, 2, 5]"),
    Case(OUT_OP, {"head_reduction": "max"},
         "indices must be an int32 tensor of shape [2, 1, 6], got int32 [2, 2, 6]"),
    Case(OUT_OP, {"kept_lens": lengths(0)},
         "kept_lens must be an int32 tensor of shape [2], got int32 [1]"),
    Case(OUT_OP, {"scores": zeros(2, 20)},
         "scores must be a float32 tensor of shape [2, 2, 0], got float32 [2, 20]"),
    Case(OUT_OP, {"scores": zeros(2, 2, 40)[..., ::2]}, "scores must be contiguous"),
    Case(MOVING, {"caches": []}, "caches must hold at least one tensor"),
    Case(MOVING, {"caches": [CACHE[0, 0]]},
         "caches[0] must have the dimensions [num_blocks, page_size, Hkv, D] or "
         "[num_blocks, page_size, Hkv], got shape [2, 16]"),
    Case(MOVING, {"caches": [CACHE[:, :0]]},
         "caches[0] must have at least one slot a page and one head, got shape [10, 0, 2, 16]"),
    Case(MOVING, {"caches": [CACHE, CACHE[1:]]},
         "caches[1] must have caches[0]'s sizes [10, 4, 2], got shape [9, 4, 2, 16]"),
    Case(MOVING, {"caches": [CACHE, CACHE[:, :, :1].expand(10, 4, 2, 16)]},
         "caches[1] must not be expanded: its entries would share memory"),
    Case(MOVING, {"caches": [zeros(10, 4, 2, 32)[..., ::2]]},
         "caches[0] must be contiguous in its last dimension, got stride 2"),
    Case(MOVING, {"indices": zeros(2, 2, 3, 3, dtype=torch.int32)},
         "indices must be an int32 tensor of shape [num_layers, R, Hkv or 1, K] = "
         "[*, *, 2 or 1, *], got int32 [2, 2, 3, 3]"),
    Case(MOVING, {"caches": [CACHE] * 3},
         "caches must hold the same number of tensors for each of num_layers=2 layers, got 3"),
    Case(MOVING, {"kept_lens": lengths(3, 3)},
         "kept_lens must be an int32 tensor of shape [2, 2], got int32 [2]"),
    Case(MOVING, {"src_block_table": TABLE[:1]},
         "src_block_table must be an int32 tensor of shape [2, max_blocks], got int32 [1, 5]"),
    Case(MOVING, {"dst_block_table": TABLE.long()},
         "dst_block_table must be an int32 tensor of shape [2, max_blocks], got int64 [2, 5]"),
    Case(MOVING, {"dst_start": lengths(0, 0)},
         "dst_start must be an int32 tensor of shape [2, 2], got int32 [2]"),
]  # fmt: skip


def moves(*rows: list[int]) -> Tensor:
    """indices [2, 2, 1, 3] of both layers."""
    return torch.tensor(rows, dtype=torch.int32)[None, :, None].expand(2, 2, 1, 3)


def table(first: list[int], second: list[int]) -> Tensor:
    return torch.tensor([first, second], dtype=torch.int32)


# Values inside tensors: looked at by the CPU ops alone.
VALUE_CASES = [
    Case(("paged_select",), {"cu_seqlens_q": lengths(0, -1, 8)},
         "cu_seqlens_q[1] must be at least 0, got -1"),
    Case(SCORING, {"cu_seqlens_q": lengths(0, -1, 8)}, "cu_seqlens_q[1] must be in 0..T=8, got -1"),
    Case(SCORING, {"cu_seqlens_q": lengths(0, 4, 9)},
         "cu_seqlens_q[2] must be in 4..T=8, got 9"),
    Case(SCORING, {"cu_seqlens_q": lengths(2, 1, 8)},
         "cu_seqlens_q[1] must be in 2..T=8, got 1"),
    Case(ALL, {"seq_lens": lengths(17, 3)},
         "seq_lens[1] must be in 4 (its observation rows)..max_seq_len=20, got 3"),
    Case(ALL, {"seq_lens": lengths(21, 12)},
         "seq_lens[0] must be in 4 (its observation rows)..max_seq_len=20, got 21"),
    Case(SCORING, {"block_table": TABLE[:, :4]},
         "seq_lens[0] must be at most max_blocks * page_size = 16, got 17"),
    Case(SCORING, {"block_table": table([0, 1, 2, 3, 4], [5, 6, 10, 8, 9])},
         "block_table[1, 2] must be in 0..num_blocks-1=9, got 10"),
    Case(SCORING, {"block_table": table([0, -1, 2, 3, 4], [5, 6, 7, 8, 9])},
         "block_table[0, 1] must be in 0..num_blocks-1=9, got -1"),
    Case(SELECTING, {"budgets": lengths(0, 7)}, "budgets[1] must be at most max_budget=6, got 7"),
    Case(SELECTING, {"budgets": lengths(4, 0), "num_sink": 3, "num_recent": 2},
         "budgets[0] must be 0 or hold num_sink + num_recent = 5 entries, got 4"),
    Case(SELECTING, {"budgets": lengths(0, 4), "num_sink": 1, "keep_observation": True},
         "budgets[1] must be 0 or hold L + num_sink + num_recent = 5 entries, got 4"),
    Case(MOVING, {"indices": moves([2, 7, 9], [2, 9, 9])},
         "indices[0, 1, 0, 2] must be above 9 (kept positions ascend), got 9"),
    Case(MOVING, {"indices": moves([2, 7, -1], [2, 7, 9])},
         "indices[0, 0, 0, 2] must be above 7 (kept positions ascend), got -1"),
    Case(MOVING, {"indices": moves([2, 7, 20], [2, 7, 9])},
         "indices[0, 0, 0, 2] must be in 0..src_block_table's max_blocks * page_size - 1 = 19, "
         "got 20"),
    Case(MOVING, {"dst_start": lengths(0, 18).expand(2, 2)},
         "dst_start[0, 1] + 2 must be in 0..dst_block_table's max_blocks * page_size - 1 = 19, "
         "got 20"),
    Case(MOVING, {"dst_start": lengths(0, -1).expand(2, 2)},
         "dst_start[0, 1] must be in 0..dst_block_table's max_blocks * page_size - 1 = 19, got -1"),
    Case(MOVING, {"src_block_table": table([0, 11, 2, 3, 4], [5, 6, 7, 8, 9])},
         "src_block_table[0, 1] must be in 0..num_blocks-1=9, got 11"),
    Case(MOVING, {"dst_block_table": table([0, 1, 2, 3, 4], [-7, 6, 7, 8, 9])},
         "dst_block_table[1, 0] must be in 0..num_blocks-1=9, got -7"),
    # hazards: a shared prefix, a destination that is someone's source, one written twice
    Case(MOVING, {"src_block_table": table([0, 1, 2, 3, 4], [0, 6, 7, 8, 9])},
         "block 0 would be written for request 0 and written for request 1 at another place: "
         "give request 0 blocks of its own in dst_block_table"),
    Case(MOVING, {"src_block_table": table([0, 1, 2, 3, 4], [0, 6, 7, 8, 9]),
                  "dst_block_table": table([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])},
         "block 0 would be written for request 0 and read for request 1 at another place: "
         "give request 0 blocks of its own in dst_block_table"),
    Case(MOVING, {"src_block_table": table([0, 1, 2, 3, 4], [5, 6, 0, 8, 9]),
                  "indices": moves([2, 7, 9], [-1, -1, -1]),
                  "kept_lens": lengths(3, 9).expand(2, 2)},
         "block 0 would be written for request 0 and read for request 1 at another place: "
         "give request 0 blocks of its own in dst_block_table"),
    Case(MOVING, {"dst_block_table": table([1, 0, 2, 3, 4], [5, 6, 7, 8, 9])},
         "block 1 would be written for request 0 and read for request 0 at another place: "
         "give request 0 blocks of its own in dst_block_table"),
]  # fmt: skip


def fails(op: str, change: dict[str, Any], message: str, move: Any = lambda tensor: tensor) -> None:
    """The changed call raises exactly this error, on tensors that ``move`` puts elsewhere."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return move(value) if isinstance(value, Tensor) else value

    arguments = {name: moved(value) for name, value in {**GOOD[op], **change}.items()}
    with pytest.raises(RuntimeError) as caught:
        getattr(OPS, op)(**arguments)
    assert str(caught.value) == f"lookaheadkv.{op}: {message}"


@pytest.mark.parametrize("op", GOOD)
def test_the_unchanged_call_is_good(op):
    getattr(OPS, op)(**GOOD[op])


@pytest.mark.parametrize("op, change, message", expand(STATIC_CASES))
def test_every_front_end(op, change, message):
    """The compiled op, meta tensors and fake tensors."""
    fails(op, change, message)
    fails(op, change, message, to_meta)
    with FakeTensorMode() as mode:
        fails(op, change, message, mode.from_tensor)


@compiled_cpu
@pytest.mark.parametrize("op, change, message", expand(VALUE_CASES))
def test_values(op, change, message):
    fails(op, change, message)


@pytest.mark.parametrize("op", GOOD)
def test_other_device(op):
    """Every tensor must be where the first one is."""
    owner = {"paged_select": "scores", "compact_kv_cache": "caches[0]"}.get(op, "query")
    for name, value in GOOD[op].items():
        if isinstance(value, Tensor) and name != owner:
            message = f"{name} must be on {owner}'s device cpu, got meta"
            fails(op, {name: value.to("meta")}, message)
