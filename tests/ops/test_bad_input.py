"""Bad input: exact messages, the same from the compiled op and from its fake kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bad_calls import Case, compiled_cpu, expand, to_meta
from support.calls import OPS
from support.helpers import lengths
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

# One good call of each op: B = 2, Hq = 4, Hkv = 2, N = 100, L = 32, D = 64.
QUERY = torch.zeros(2, 4, 32, 64)
CACHE = torch.zeros(2, 2, 132, 64)
SCORES = torch.zeros(2, 2, 100)
GOOD: dict[str, dict[str, Any]] = {
    "lookahead_attention": {"query": QUERY, "key": CACHE, "value": CACHE},
    "column_scores": {"query": QUERY, "key": CACHE},
    "column_scores_backward": {"grad_scores": SCORES, "query": QUERY, "key": CACHE},
    "prefill_attention": {
        "query": torch.zeros(2, 4, 132, 64),
        "key": CACHE,
        "value": CACHE,
        "num_lookahead": 32,
    },
    "select": {"scores": SCORES, "budget": 16},
    "gather_kv": {
        "key": CACHE,
        "value": CACHE,
        "indices": torch.zeros(2, 2, 7, dtype=torch.int32),
    },
    "score_and_evict": {"query": QUERY, "key": CACHE, "value": CACHE, "budget": 64},
}
ATTENTION = ("lookahead_attention", "column_scores", "column_scores_backward", "score_and_evict")
TAKE_VALUE = ("lookahead_attention", "prefill_attention", "score_and_evict")
TAKE_LSE = ("column_scores", "column_scores_backward", "score_and_evict")
SELECTING = ("select", "score_and_evict")
PADDED = (*ATTENTION, "select")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


HALF = torch.zeros_like(CACHE, dtype=torch.float16)
LONG = torch.zeros_like(QUERY, dtype=torch.int64)
STRIDED_QUERY = torch.zeros(2, 4, 32, 128)[..., ::2]
STRIDED_CACHE = torch.zeros(2, 2, 132, 192)[..., ::3]

MISALIGNED = torch.frombuffer(bytearray(CACHE.nbytes + 1), dtype=torch.float32, offset=1).view(
    CACHE.shape
)

# Checked from shapes, dtypes and options: compiled ops, fake kernels and meta tensors agree.
STATIC_CASES = [
    # shapes
    Case(ATTENTION, {"query": zeros(2, 3)},
         "query must have 4 dimensions [B, H, S, D], got shape [2, 3]"),
    Case((*ATTENTION, "gather_kv"), {"key": zeros(2, 2, 132)},
         "key must have 4 dimensions [B, H, S, D], got shape [2, 2, 132]"),
    Case((*TAKE_VALUE, "gather_kv"), {"value": zeros(1, 2, 2, 132, 64)},
         "value must have 4 dimensions [B, H, S, D], got shape [1, 2, 2, 132, 64]"),
    Case(ATTENTION, {"key": zeros(3, 2, 132, 64)},
         "key must have query's batch size 2, got 3"),
    Case(ATTENTION, {"key": zeros(2, 2, 132, 32)}, "key must have query's head_dim 64, got 32"),
    Case(ATTENTION, {"query": zeros(2, 4, 32, 12), "key": zeros(2, 2, 132, 12)},
         "head_dim must be a multiple of 8 between 8 and 256, got 12"),
    Case(ATTENTION, {"query": zeros(2, 4, 32, 264), "key": zeros(2, 2, 132, 264)},
         "head_dim must be a multiple of 8 between 8 and 256, got 264"),
    Case(ATTENTION, {"query": zeros(2, 4, 32, 0), "key": zeros(2, 2, 132, 0)},
         "head_dim must be a multiple of 8 between 8 and 256, got 0"),
    Case((*TAKE_VALUE, "gather_kv"), {"value": zeros(2, 2, 131, 64)},
         "value must have key's shape [2, 2, 132, 64], got [2, 2, 131, 64]"),
    Case((*TAKE_VALUE, "gather_kv"), {"value": zeros(2, 1, 132, 64)},
         "value must have key's shape [2, 2, 132, 64], got [2, 1, 132, 64]"),
    Case(ATTENTION, {"query": zeros(2, 4, 0, 64)}, "query must have at least one row, got L=0"),
    Case(("column_scores",), {"key": zeros(2, 0, 132, 64)},
         "key must have at least one head, got Hkv=0"),
    Case(("column_scores",), {"query": zeros(2, 6, 32, 64), "key": zeros(2, 4, 132, 64)},
         "query heads must be a positive multiple of KV heads, got Hq=6, Hkv=4"),
    Case(ATTENTION, {"query": zeros(2, 3, 32, 64)},
         "query heads must be a positive multiple of KV heads, got Hq=3, Hkv=2"),
    Case(ATTENTION, {"query": zeros(2, 0, 32, 64)},
         "query heads must be a positive multiple of KV heads, got Hq=0, Hkv=2"),
    Case(("column_scores", "column_scores_backward"), {"key": zeros(2, 2, 16, 64)},
         "key must hold at least the L=32 observation keys, got S=16"),
    Case(("column_scores", "column_scores_backward"),
         {"key": torch.zeros(64).expand(2, 2, 2**31, 64)},
         "key must have at most 2147483647 positions, got S=2147483648"),
    Case(("select",), {"scores": torch.zeros(()).expand(2, 2, 2**31)},
         "scores must have at most 2147483647 positions, got N=2147483648"),
    Case(("prefill_attention",), {"query": zeros(2, 4, 100, 64)},
         "key must have query's 100 positions, got 132"),
    Case(("prefill_attention",), {"num_lookahead": 0}, "num_lookahead must be in 1..S=132, got 0"),
    Case(("prefill_attention",), {"num_lookahead": 133},
         "num_lookahead must be in 1..S=132, got 133"),
    # dtypes
    Case(ATTENTION, {"query": LONG}, "query must be float32, float16 or bfloat16, got int64"),
    Case(ATTENTION, {"query": QUERY.double()},
         "query must be float32, float16 or bfloat16, got float64"),
    Case(("gather_kv",), {"key": CACHE.bool()},
         "key must be float32, float16 or bfloat16, got bool"),
    Case(ATTENTION, {"key": HALF}, "key must have query's dtype float32, got float16"),
    Case(ATTENTION, {"query": QUERY.bfloat16()},
         "key must have query's dtype bfloat16, got float32"),
    Case(TAKE_VALUE, {"value": HALF}, "value must have query's dtype float32, got float16"),
    Case(("gather_kv",), {"value": HALF}, "value must have key's dtype float32, got float16"),
    # strides
    Case(ATTENTION, {"query": STRIDED_QUERY},
         "query must be contiguous in its last dimension, got stride 2"),
    Case((*ATTENTION, "gather_kv"), {"key": STRIDED_CACHE},
         "key must be contiguous in its last dimension, got stride 3"),
    Case((*TAKE_VALUE, "gather_kv"), {"value": STRIDED_CACHE},
         "value must be contiguous in its last dimension, got stride 3"),
    # the small tensors
    Case(TAKE_LSE, {"lse": zeros(2, 4, 33)},
         "lse must be a float32 tensor of shape [2, 4, 32], got float32 [2, 4, 33]"),
    Case(TAKE_LSE, {"lse": zeros(2, 4, 32, dtype=torch.float16)},
         "lse must be a float32 tensor of shape [2, 4, 32], got float16 [2, 4, 32]"),
    Case(("column_scores_backward",), {"grad_scores": zeros(2, 2, 132)},
         "grad_scores must be a float32 tensor of shape [2, 2, 100], got float32 [2, 2, 132]"),
    Case(("column_scores_backward",), {"grad_scores": SCORES.double()},
         "grad_scores must be a float32 tensor of shape [2, 2, 100], got float64 [2, 2, 100]"),
    Case(PADDED, {"leftpad_k": torch.zeros(2, dtype=torch.int64)},
         "leftpad_k must be an int32 tensor of shape [2], got int64 [2]"),
    Case(PADDED, {"leftpad_k": lengths(0)},
         "leftpad_k must be an int32 tensor of shape [2], got int32 [1]"),
    Case(PADDED, {"seqused_k": lengths(1, 1)[None]},
         "seqused_k must be an int32 tensor of shape [2], got int32 [1, 2]"),
    Case(("select",), {"scores": SCORES.half()},
         "scores must be a float32 tensor of shape [B, Hkv, N], got float16 [2, 2, 100]"),
    Case(("select",), {"scores": SCORES[0]},
         "scores must be a float32 tensor of shape [B, Hkv, N], got float32 [2, 100]"),
    Case(("gather_kv",), {"indices": zeros(2, 2, 7, dtype=torch.int64)},
         "indices must be an int32 tensor of shape [B, Hkv, K] = [2, 2, *], got int64 [2, 2, 7]"),
    Case(("gather_kv",), {"indices": zeros(2, 4, 7, dtype=torch.int32)},
         "indices must be an int32 tensor of shape [B, Hkv, K] = [2, 2, *], got int32 [2, 4, 7]"),
    Case(("gather_kv",), {"indices": zeros(2, 2, dtype=torch.int32)},
         "indices must be an int32 tensor of shape [B, Hkv, K] = [2, 2, *], got int32 [2, 2]"),
    # options
    Case((*ATTENTION, "prefill_attention"), {"scale": math.nan}, "scale must be finite, got nan"),
    Case((*ATTENTION, "prefill_attention"), {"scale": -math.inf}, "scale must be finite, got -inf"),
    Case((*ATTENTION, "prefill_attention"), {"scale": 1e300},
         "scale must be at most 1e+30 in magnitude, got 1e+300"),
    Case(SELECTING, {"budget": 0}, "budget must be at least 1, got 0"),
    Case(SELECTING, {"budget": -3}, "budget must be at least 1, got -3"),
    Case(SELECTING, {"pool_kernel": 4}, "pool_kernel must be odd and positive, got 4"),
    Case(SELECTING, {"pool_kernel": -7}, "pool_kernel must be odd and positive, got -7"),
    Case(SELECTING, {"pool_kernel": 0}, "pool_kernel must be odd and positive, got 0"),
    Case(SELECTING, {"num_sink": -1}, "num_sink must not be negative, got -1"),
    Case(SELECTING, {"num_recent": -2}, "num_recent must not be negative, got -2"),
    Case(SELECTING, {"budget": 16, "num_sink": 2**63 - 1, "num_recent": 2**63 - 1},
         "budget must hold num_sink + num_recent = 18446744073709551614 pinned entries, got 16"),
    Case(SELECTING, {"budget": 16, "num_sink": 4, "num_recent": 32},
         "budget must hold num_sink + num_recent = 36 pinned entries, got 16"),
    Case(("score_and_evict",),
         {"budget": 16, "num_sink": 4, "num_recent": 32, "keep_observation": True},
         "budget must hold L + num_sink + num_recent = 68 entries, got 16"),
    Case(("score_and_evict",), {"budget": 31, "keep_observation": True},
         "budget must hold L + num_sink + num_recent = 32 entries, got 31"),
    # the first of two faults is the one that is named
    Case(ATTENTION, {"query": zeros(2, 3), "key": HALF},
         "query must have 4 dimensions [B, H, S, D], got shape [2, 3]"),
    Case(("score_and_evict",), {"value": HALF, "lse": zeros(1), "budget": 0},
         "value must have query's dtype float32, got float16"),
    Case(("score_and_evict",), {"lse": zeros(1), "leftpad_k": lengths(0), "budget": 0},
         "lse must be a float32 tensor of shape [2, 4, 32], got float32 [1]"),
    Case(("score_and_evict",), {"scale": math.nan, "budget": 0}, "scale must be finite, got nan"),
]  # fmt: skip

# Checked from addresses, wherever there is memory.
ADDRESS_CASES = [
    Case(("column_scores",), {"key": MISALIGNED}, "key must be aligned to its element size"),
    Case(("column_scores",), {"lse": MISALIGNED[:, :1, 0, :32].expand(2, 4, 32)},
         "lse must be aligned to its element size"),
]  # fmt: skip

# Values inside tensors: checked by the compiled CPU ops alone.
VALUE_CASES = [
    Case(PADDED, {"seqused_k": lengths(101, 0)}, "seqused_k[0] must be in 0..N=100, got 101"),
    Case(PADDED, {"seqused_k": lengths(100, -1)}, "seqused_k[1] must be in 0..N=100, got -1"),
    Case(PADDED, {"seqused_k": lengths(100, 5), "leftpad_k": lengths(100, 7)},
         "leftpad_k[1] must be in 0..seqused_k[1]=5, got 7"),
    Case(PADDED, {"leftpad_k": lengths(0, 107)}, "leftpad_k[1] must be in 0..N=100, got 107"),
    Case(PADDED, {"leftpad_k": lengths(-2, 0)}, "leftpad_k[0] must be in 0..N=100, got -2"),
    Case(("gather_kv",), {"indices": torch.full((2, 2, 3), 132, dtype=torch.int32)},
         "indices[0, 0, 0] must be -1 or in 0..S-1=131, got 132"),
    Case(("gather_kv",), {"indices": torch.tensor([[[0, -1]] * 2, [[1, 2], [3, -2]]]).int()},
         "indices[1, 1, 1] must be -1 or in 0..S-1=131, got -2"),
    Case(("gather_kv",), {"key": CACHE[:, :, :0], "value": CACHE[:, :, :0]},
         "indices[0, 0, 0] must be -1 or in 0..S-1=-1, got 0"),
]  # fmt: skip


def fails(
    op: str, change: dict[str, Any], message: str, move: Callable[[Tensor], Tensor] | None = None
) -> None:
    """The changed call raises exactly this error, on tensors that ``move`` puts elsewhere."""
    arguments = {**GOOD[op], **change}
    if move is not None:
        arguments = {
            name: move(value) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
    with pytest.raises(RuntimeError) as caught:
        getattr(OPS, op)(**arguments)
    assert str(caught.value) == f"lookaheadkv.{op}: {message}"


@pytest.mark.parametrize("op", GOOD)
def test_the_unchanged_call_is_good(op, device):
    getattr(OPS, op)(
        **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in GOOD[op].items()}
    )


@pytest.mark.parametrize("op, change, message", expand(STATIC_CASES))
def test_compiled_op(op, change, message, device):
    fails(op, change, message, lambda tensor: tensor.to(device))


@pytest.mark.parametrize("op, change, message", expand(STATIC_CASES))
def test_meta_tensors(op, change, message):
    fails(op, change, message, to_meta)


@pytest.mark.parametrize("op, change, message", expand(STATIC_CASES))
def test_fake_tensors(op, change, message):
    with FakeTensorMode() as mode:
        fails(op, change, message, mode.from_tensor)


@pytest.mark.parametrize("op, change, message", expand(ADDRESS_CASES))
def test_addresses(op, change, message):
    fails(op, change, message)


@compiled_cpu
@pytest.mark.parametrize("op, change, message", expand(VALUE_CASES))
def test_values(op, change, message):
    fails(op, change, message)


DEVICE_CASES = [
    (op, name)
    for op, names in {
        "lookahead_attention": ("key", "value", "leftpad_k", "seqused_k"),
        "column_scores": ("key", "lse", "leftpad_k", "seqused_k"),
        "column_scores_backward": ("grad_scores", "key", "lse", "leftpad_k", "seqused_k"),
        "prefill_attention": ("key", "value"),
        "select": ("leftpad_k", "seqused_k"),
        "gather_kv": ("value", "indices"),
        "score_and_evict": ("key", "value", "lse", "leftpad_k", "seqused_k"),
    }.items()
    for name in names
]


@pytest.mark.parametrize("op, name", DEVICE_CASES)
def test_other_device(op, name):
    """Every tensor must be where the first one is."""
    optional = {"lse": zeros(2, 4, 32), "leftpad_k": lengths(0, 0), "seqused_k": lengths(9, 9)}
    owner = {"select": "scores", "gather_kv": "key"}.get(op, "query")
    tensor = GOOD[op].get(name, optional.get(name))
    message = f"{name} must be on {owner}'s device cpu, got meta"
    fails(op, {name: tensor.to("meta")}, message)


def test_compile_reports_the_same_error():
    """While tracing the message is part of the compiler's own."""

    def call(query: Tensor, key: Tensor) -> Tensor:
        return OPS.column_scores(query, key)

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    message = "lookaheadkv.column_scores: key must have query's head_dim 64, got 32"
    with pytest.raises(RuntimeError) as caught:
        compiled(QUERY, zeros(2, 2, 132, 32))
    assert message in str(caught.value)


@compiled_cpu
def test_compiled_program_checks_again():
    """What tracing could not know fails when the program runs, with the op's message."""

    def call(scores: Tensor, first: Tensor) -> Tensor:
        return OPS.select(scores, 4, leftpad_k=first)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(SCORES, lengths(0, 3))
    with pytest.raises(RuntimeError) as caught:
        compiled(SCORES, lengths(0, 101))
    assert str(caught.value) == ("lookaheadkv.select: leftpad_k[1] must be in 0..N=100, got 101")
