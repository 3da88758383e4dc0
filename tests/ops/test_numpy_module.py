"""The NumPy module: the same bits as the torch ops, without torch."""

from __future__ import annotations

import sys
from pathlib import Path

import lookaheadkv_numpy
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.build_tools import checked
from torch import Tensor

Array = NDArray[np.generic]

DTYPES = {
    "float32": (torch.float32, np.dtype(np.float32)),
    "float16": (torch.float16, np.dtype(np.float16)),
    "bfloat16": (torch.bfloat16, np.dtype(ml_dtypes.bfloat16)),
}
OPS = torch.ops.lookaheadkv


def as_array(tensor: Tensor) -> Array:
    """The same memory, shape and strides as a NumPy array."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def assert_same_bits(arrays: object, tensors: object) -> None:
    arrays, tensors = (x if isinstance(x, tuple) else (x,) for x in (arrays, tensors))
    assert len(arrays) == len(tensors)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert array.flags.c_contiguous
        assert array.dtype == as_array(tensor).dtype
        np.testing.assert_array_equal(array.view(np.uint8), as_array(tensor).view(np.uint8))


@pytest.fixture(params=list(DTYPES))
def inputs(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """query [2, 6, 5, 24]; key, value [2, 2, 205, 24] stored as [B, S, H, D]."""
    dtype, _ = DTYPES[request.param]
    torch.manual_seed(0)
    query = torch.randn(2, 6, 5, 24).to(dtype)
    key, value = (torch.randn(2, 205, 2, 24).to(dtype).transpose(1, 2) for _ in range(2))
    return query, key, value


LENGTHS = {
    "leftpad_k": torch.tensor([0, 30], dtype=torch.int32),
    "seqused_k": torch.tensor([200, 41], dtype=torch.int32),
}
OPTIONS = [{}, {"scale": 0.3}, LENGTHS]


def to_numpy(options: dict[str, object]) -> dict[str, object]:
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "scale", "padded"])
def test_lookahead_attention(
    inputs: tuple[Tensor, Tensor, Tensor], options: dict[str, object]
) -> None:
    result = lookaheadkv_numpy.lookahead_attention(*map(as_array, inputs), **to_numpy(options))
    assert_same_bits(tuple(result), OPS.lookahead_attention(*inputs, **options))
    assert result._fields == ("out", "lse", "scores")


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "scale", "padded"])
def test_column_scores(inputs: tuple[Tensor, Tensor, Tensor], options: dict[str, object]) -> None:
    query, key, value = inputs
    arrays = as_array(query), as_array(key)
    expected = OPS.column_scores(query, key, **options)
    assert_same_bits(lookaheadkv_numpy.column_scores(*arrays, **to_numpy(options)), expected)
    lse = OPS.lookahead_attention(query, key, value, **options)[1]
    strided = np.repeat(lse.numpy(), 2, axis=-1)[..., ::2]
    given = lookaheadkv_numpy.column_scores(*arrays, strided, **to_numpy(options))
    assert_same_bits(given, OPS.column_scores(query, key, lse, **options))


@pytest.mark.parametrize("num_lookahead", [1, 32, 205])
def test_prefill_attention(inputs: tuple[Tensor, Tensor, Tensor], num_lookahead: int) -> None:
    _, key, value = inputs
    query = key.repeat_interleave(3, dim=1)
    result = lookaheadkv_numpy.prefill_attention(*map(as_array, (query, key, value)), num_lookahead)
    assert_same_bits(tuple(result), OPS.prefill_attention(query, key, value, num_lookahead))


@pytest.mark.parametrize(
    "options",
    [{}, {"pool_kernel": 1}, {"num_sink": 4, "num_recent": 8}, LENGTHS],
    ids=["default", "no pool", "pinned", "padded"],
)
@pytest.mark.parametrize("budget", [12, 64, 1000])
def test_select(budget: int, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 200, 3).transpose(1, 2)
    result = lookaheadkv_numpy.select(scores.numpy(), budget, **to_numpy(options))
    assert_same_bits(result, OPS.select(scores, budget, **options))


def test_gather_kv(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    _, key, value = inputs
    indices = torch.randint(-1, 205, (2, 2, 77), dtype=torch.int32)
    result = lookaheadkv_numpy.gather_kv(as_array(key), as_array(value), indices.numpy())
    assert_same_bits(tuple(result), OPS.gather_kv(key, value, indices))
    assert result._fields == ("key", "value")


@pytest.mark.parametrize(
    "options",
    [*OPTIONS, {"keep_observation": True, "num_sink": 2, "num_recent": 3, "pool_kernel": 5}],
    ids=["default", "scale", "padded", "observation"],
)
def test_score_and_evict(inputs: tuple[Tensor, Tensor, Tensor], options: dict[str, object]) -> None:
    result = lookaheadkv_numpy.score_and_evict(*map(as_array, inputs), 20, **to_numpy(options))
    assert_same_bits(tuple(result), OPS.score_and_evict(*inputs, 20, **options))
    assert result._fields == ("key", "value", "indices", "scores")


@pytest.mark.parametrize("num_threads", [1, 2, 3, 64, None])
def test_number_of_threads_changes_nothing(
    inputs: tuple[Tensor, Tensor, Tensor], num_threads: int | None
) -> None:
    arrays = [as_array(tensor) for tensor in inputs]
    result = lookaheadkv_numpy.score_and_evict(*arrays, 20, num_threads=num_threads)
    assert_same_bits(tuple(result), OPS.score_and_evict(*inputs, 20))


def test_empty_sizes() -> None:
    query, key = np.zeros((1, 2, 4, 8), np.float32), np.zeros((1, 1, 4, 8), np.float32)
    result = lookaheadkv_numpy.score_and_evict(query, key, key, 3)
    assert [array.shape for array in result] == [(1, 1, 0, 8), (1, 1, 0, 8), (1, 1, 0), (1, 1, 0)]
    result = lookaheadkv_numpy.score_and_evict(query[:0], key[:0], key[:0], 3)
    assert [array.shape for array in result] == [(0, 1, 0, 8), (0, 1, 0, 8), (0, 1, 0), (0, 1, 0)]


def test_reversed_positions() -> None:
    """NumPy has negative strides, which torch has not."""
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((1, 2, s, 8)).astype(np.float32) for s in (4, 300))
    backwards = lookaheadkv_numpy.score_and_evict(query, key[:, :, ::-1], key[:, :, ::-1], 16)
    copied = np.ascontiguousarray(key[:, :, ::-1])
    for left, right in zip(
        backwards, lookaheadkv_numpy.score_and_evict(query, copied, copied, 16), strict=True
    ):
        np.testing.assert_array_equal(left, right)


Q, K = np.ones((2, 4, 3, 16), np.float32), np.ones((2, 2, 10, 16), np.float32)
MISALIGNED = np.frombuffer(bytes(K.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(K.shape)
UNEVEN = np.zeros(K.shape, np.dtype([("x", np.float32), ("y", np.int8)]))["x"]
BAD_CALLS = [
    ("score_and_evict", (Q, K, K, 0), {}, "budget must be at least 1, got 0"),
    ("score_and_evict", (Q, K, K[..., :8], 4), {}, "value must have key's shape"),
    ("score_and_evict", (Q[0], K, K, 4), {}, "query must have 4 dimensions [B, H, S, D], got"),
    ("column_scores", (Q.astype(np.int64), K), {}, "query must be float32, float16 or bfloat16"),
    ("column_scores", (Q.astype(">f4"), K), {}, "float16 or bfloat16, got >f4"),
    ("column_scores", (Q, K.astype(np.float16)), {}, "key must have query's dtype float32, got"),
    ("column_scores", (Q, K), {"lse": Q}, "lse must be a float32 tensor of shape [2, 4, 3], got"),
    ("column_scores", (Q, K), {"scale": float("nan")}, "scale must be finite, got nan"),
    ("column_scores", (Q, K), {"num_threads": 0}, "num_threads must be at least 1, got 0"),
    ("column_scores", (Q, K.repeat(2, -1)[..., ::2]), {}, "last dimension, got stride 2"),
    ("column_scores", (Q, MISALIGNED), {}, "key must be aligned to its element size"),
    ("column_scores", (Q, UNEVEN), {}, "key must be aligned to its element size"),
    ("prefill_attention", (Q, K, K, 3), {}, "key must have query's 3 positions, got 10"),
    ("lookahead_attention", (Q[:, :3], K, K), {}, "positive multiple of KV heads, got Hq=3, Hkv=2"),
    ("select", (Q[0], 2), {"pool_kernel": 4}, "pool_kernel must be odd and positive, got 4"),
    ("select", (Q, 2), {}, "scores must be a float32 tensor of shape [B, Hkv, N], got float32"),
    (
        "select",
        (Q[0], 2),
        {"seqused_k": np.array([1, 2, 99, 0], np.int32)},
        "seqused_k[2] must be in 0..N=16, got 99",
    ),
    (
        "gather_kv",
        (K, K, np.full((2, 2, 3), 10, np.int32)),
        {},
        "indices[0, 0, 0] must be -1 or in 0..S-1=9, got 10",
    ),
]


@pytest.mark.parametrize(
    ("op", "arguments", "options", "message"),
    BAD_CALLS,
    ids=[f"{op}-{number}" for number, (op, *_) in enumerate(BAD_CALLS)],
)
def test_bad_input(
    op: str, arguments: tuple[object, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        getattr(lookaheadkv_numpy, op)(*arguments, **options)
    assert str(error.value).startswith(f"lookaheadkv.{op}: ")
    assert message in str(error.value)


def test_unknown_isa_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKAHEADKV_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"LOOKAHEADKV_CPU_ISA must be one of .* got mmx"):
        lookaheadkv_numpy.column_scores(Q, K)


def test_torch_is_never_imported(tmp_path: Path) -> None:
    script = """
import sys
import lookaheadkv_numpy, numpy
x = numpy.ones((1, 1, 20, 8), numpy.float32)
assert lookaheadkv_numpy.score_and_evict(x[:, :, -2:], x, x, 3).key.shape == (1, 1, 3, 8)
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(sorted(name for name in sys.modules if name.partition(".")[0] == "torch"), "torch" in maps)
"""
    assert checked([sys.executable, "-c", script], cwd=tmp_path) == "[] False\n"
