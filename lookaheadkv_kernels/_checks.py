"""Argument checks of the ops, from shapes and dtypes alone.

The same checks, in the same order and words, as csrc/core/validate.h: fake kernels and Triton's ops
run these, the compiled backends those, and tests/ops/test_bad_input.py holds the two together.
Values of ``leftpad_k``, ``seqused_k`` and ``indices`` are not read here: no host sync.

Sizes may be symbolic. A size that is not known while tracing passes: it puts no guard on the
traced program, and the kernel checks it when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

Size = int | torch.SymInt

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_POSITIONS = 2**31 - 1


class Inputs(NamedTuple):
    """What the ops that compute logits take; None also where an op has no such argument."""

    query: Tensor
    """[B, Hq, L, D]; all of the prompt's rows in prefill_attention."""
    key: Tensor
    """[B, Hkv, N + L, D]."""
    value: Tensor | None = None
    """Like key."""
    lse: Tensor | None = None
    """[B, Hq, L] float32."""
    scale: float | None = None
    leftpad_k: Tensor | None = None
    """[B] int32, as the next."""
    seqused_k: Tensor | None = None


class Options(NamedTuple):
    """What the ops that select take."""

    budget: int
    pool_kernel: int
    num_sink: int
    num_recent: int
    keep_observation: bool = False


def _known(condition: bool | torch.SymBool) -> bool:
    """Whether the condition certainly holds, without guarding on symbolic sizes."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def _differ(left: Sequence[Size], right: Sequence[Size]) -> bool:
    """Whether two shapes certainly differ."""
    return len(left) != len(right) or any(_known(a != b) for a, b in zip(left, right, strict=True))


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def _shape(sizes: Sequence[Size]) -> str:
    return str(list(sizes))


def _typed(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {_shape(tensor.shape)}"


class Checks:
    """The checks of one op; every failure is a RuntimeError that begins ``lookaheadkv.<op>:``."""

    def __init__(self, op: str) -> None:
        self._op = op

    def fail(self, message: str) -> NoReturn:
        """Raise the op's error."""
        raise RuntimeError(f"lookaheadkv.{self._op}: {message}")

    def aligned(self, arguments: Mapping[str, object]) -> None:
        """Every tensor, in lists as well, begins at a multiple of its element size.

        The one check here that needs tensors with memory.
        """
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                if value.data_ptr() % value.element_size():
                    self.fail(f"{name} must be aligned to its element size")
            elif isinstance(value, list | tuple):
                self.aligned({f"{name}[{i}]": item for i, item in enumerate(value)})

    def scoring(self, inputs: Inputs) -> None:
        """What the ops take that score the last L rows."""
        query = inputs.query
        self.attention_inputs(query, inputs.key, inputs.value)
        self.float_tensor("lse", inputs.lse, query.shape[:3], query)
        self.lengths(inputs.leftpad_k, inputs.seqused_k, "query", query)
        self.scale(inputs.scale)

    def attention_inputs(
        self,
        query: Tensor,  # [B, Hq, L, D]
        key: Tensor,  # [B, Hkv, N + L, D]
        value: Tensor | None = None,  # like key
    ) -> None:
        """Query, key and, if given, value of one attention call."""
        cache = {"key": key} if value is None else {"key": key, "value": value}
        self._four_dimensions({"query": query, **cache})
        self._float_dtype("query", query)
        for name, tensor in cache.items():
            self._like(name, tensor, "query", query)
        batch, heads, rows, head_dim = query.shape
        if _known(key.shape[0] != batch):
            self.fail(f"key must have query's batch size {batch}, got {key.shape[0]}")
        if _known(key.shape[3] != head_dim):
            self.fail(f"key must have query's head_dim {head_dim}, got {key.shape[3]}")
        self._head_dim(head_dim)
        if value is not None:
            self._same_shape(key, value)
        kv_heads = key.shape[1]
        if _known(rows < 1):
            self.fail(f"query must have at least one row, got L={rows}")
        if _known(kv_heads < 1):
            self.fail(f"key must have at least one head, got Hkv={kv_heads}")
        self._head_groups(heads, kv_heads)
        if _known(key.shape[2] < rows):
            self.fail(f"key must hold at least the L={rows} observation keys, got S={key.shape[2]}")
        self._positions("key", "S", key.shape[2])
        self._last_dim_contiguous({"query": query, **cache})

    def prefill_inputs(
        self,
        query: Tensor,  # [B, Hq, S, D]
        key: Tensor,  # [B, Hkv, S, D]
        value: Tensor,  # [B, Hkv, S, D]
        num_lookahead: int,
    ) -> None:
        """Inputs of prefill_attention: one sequence length S for all three."""
        self.attention_inputs(query, key, value)
        positions = query.shape[2]
        if _known(key.shape[2] != positions):
            self.fail(f"key must have query's {positions} positions, got {key.shape[2]}")
        if num_lookahead < 1 or _known(positions < num_lookahead):
            self.fail(f"num_lookahead must be in 1..S={positions}, got {num_lookahead}")

    def gather_inputs(
        self,
        key: Tensor,  # [B, Hkv, S, D]
        value: Tensor,  # [B, Hkv, S, D]
        indices: Tensor,  # [B, Hkv, K] int32
    ) -> None:
        """Inputs of gather_kv."""
        self._four_dimensions({"key": key, "value": value})
        self._float_dtype("key", key)
        self._like("value", value, "key", key)
        self._head_dim(key.shape[3])
        self._same_shape(key, value)
        self._last_dim_contiguous({"key": key, "value": value})
        if (
            indices.dtype != torch.int32
            or indices.dim() != 3
            or _differ(indices.shape[:2], key.shape[:2])
        ):
            self.fail(
                "indices must be an int32 tensor of shape [B, Hkv, K] = "
                f"[{key.shape[0]}, {key.shape[1]}, *], got {_typed(indices)}"
            )
        self._same_device("indices", indices, "key", key.device)

    def scores_input(self, scores: Tensor) -> None:
        """Scores [B, Hkv, N] float32, any strides."""
        if scores.dtype != torch.float32 or scores.dim() != 3:
            self.fail(f"scores must be a float32 tensor of shape [B, Hkv, N], got {_typed(scores)}")
        self._positions("scores", "N", scores.shape[2])

    def float_tensor(
        self, name: str, tensor: Tensor | None, shape: Sequence[Size], query: Tensor
    ) -> None:
        """An optional float32 tensor of exactly this shape, on the query's device."""
        if tensor is None:
            return
        if tensor.dtype != torch.float32 or _differ(tensor.shape, shape):
            self.fail(
                f"{name} must be a float32 tensor of shape {_shape(shape)}, got {_typed(tensor)}"
            )
        self._same_device(name, tensor, "query", query.device)

    def lengths(
        self, leftpad_k: Tensor | None, seqused_k: Tensor | None, owner: str, like: Tensor
    ) -> None:
        """``leftpad_k`` and ``seqused_k``: int32 [B] on the device of the owner's tensor."""
        batch = like.shape[0]
        for name, tensor in {"leftpad_k": leftpad_k, "seqused_k": seqused_k}.items():
            if tensor is None:
                continue
            if tensor.dtype != torch.int32 or _differ(tensor.shape, [batch]):
                self.fail(
                    f"{name} must be an int32 tensor of shape [{batch}], got {_typed(tensor)}"
                )
            self._same_device(name, tensor, owner, like.device)

    def scale(self, scale: float | None) -> None:
        """A finite scale that stays one as a float32 times log2(e)."""
        if scale is None:
            return
        if not math.isfinite(scale):
            self.fail(f"scale must be finite, got {scale}")
        if abs(scale) > 1e30:
            self.fail(f"scale must be at most 1e+30 in magnitude, got {scale:g}")

    def budget(self, options: Options, num_rows: Size | None = None, name: str = "budget") -> None:
        """Selection options; ``num_rows`` is L, which counts where these rows are kept."""
        budget, pool_kernel, num_sink, num_recent, keep_observation = options
        if budget < 1:
            self.fail(f"{name} must be at least 1, got {budget}")
        if pool_kernel < 1 or pool_kernel % 2 == 0:
            self.fail(f"pool_kernel must be odd and positive, got {pool_kernel}")
        if num_sink < 0:
            self.fail(f"num_sink must not be negative, got {num_sink}")
        if num_recent < 0:
            self.fail(f"num_recent must not be negative, got {num_recent}")
        pinned = num_sink + num_recent
        if not keep_observation:
            if budget < pinned:
                self.fail(
                    f"{name} must hold num_sink + num_recent = {pinned} pinned entries, "
                    f"got {budget}"
                )
        elif num_rows is not None and _known(budget < num_rows + pinned):
            self.fail(
                f"{name} must hold L + num_sink + num_recent = "
                f"{num_rows + pinned} entries, got {budget}"
            )

    def _four_dimensions(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.dim() != 4:
                self.fail(
                    f"{name} must have 4 dimensions [B, H, S, D], got shape {_shape(tensor.shape)}"
                )

    def _float_dtype(self, name: str, tensor: Tensor) -> None:
        if tensor.dtype not in FLOAT_DTYPES:
            self.fail(
                f"{name} must be float32, float16 or bfloat16, got {dtype_name(tensor.dtype)}"
            )

    def _like(self, name: str, tensor: Tensor, owner: str, reference: Tensor) -> None:
        if tensor.dtype != reference.dtype:
            self.fail(
                f"{name} must have {owner}'s dtype {dtype_name(reference.dtype)}, "
                f"got {dtype_name(tensor.dtype)}"
            )
        self._same_device(name, tensor, owner, reference.device)

    def _same_device(self, name: str, tensor: Tensor, owner: str, device: torch.device) -> None:
        if tensor.device != device:
            self.fail(f"{name} must be on {owner}'s device {device}, got {tensor.device}")

    def _positions(self, name: str, letter: str, count: Size) -> None:
        # Positions travel as int32.
        if _known(count > MAX_POSITIONS):
            self.fail(f"{name} must have at most {MAX_POSITIONS} positions, got {letter}={count}")

    def _head_groups(self, heads: int, kv_heads: int) -> None:
        if _known(heads < 1) or _known(heads % kv_heads != 0):
            self.fail(
                "query heads must be a positive multiple of KV heads, "
                f"got Hq={heads}, Hkv={kv_heads}"
            )

    def _head_dim(self, head_dim: Size) -> None:
        if _known(head_dim < 8) or _known(head_dim > 256) or _known(head_dim % 8 != 0):
            self.fail(f"head_dim must be a multiple of 8 between 8 and 256, got {head_dim}")

    def _same_shape(self, key: Tensor, value: Tensor) -> None:
        if _differ(key.shape, value.shape):
            self.fail(f"value must have key's shape {_shape(key.shape)}, got {_shape(value.shape)}")

    def _last_dim_contiguous(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            stride = tensor.stride(-1)
            if _known(stride != 1):
                self.fail(f"{name} must be contiguous in its last dimension, got stride {stride}")
