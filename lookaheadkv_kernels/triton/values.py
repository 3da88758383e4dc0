"""Checks that need real tensors: addresses, and on the CPU alone (no host sync) their values."""

from __future__ import annotations

from torch import Tensor

from .._checks import Checks


def check_aligned(checks: Checks, **tensors: Tensor | None) -> None:
    """Every tensor begins at a multiple of its element size."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.data_ptr() % tensor.element_size():
            checks.fail(f"{name} must be aligned to its element size")


def check_lengths(
    checks: Checks,
    leftpad_k: Tensor | None,  # [B] int32
    seqused_k: Tensor | None,  # [B] int32
    num_prompt: int,
) -> None:
    """0 <= leftpad_k[b] <= seqused_k[b] <= N."""
    ends = None if seqused_k is None or seqused_k.device.type != "cpu" else seqused_k.tolist()
    if ends is not None:
        for b, end in enumerate(ends):
            if not 0 <= end <= num_prompt:
                checks.fail(f"seqused_k[{b}] must be in 0..N={num_prompt}, got {end}")
    if leftpad_k is None or leftpad_k.device.type != "cpu":
        return
    for b, first in enumerate(leftpad_k.tolist()):
        end = num_prompt if ends is None else ends[b]
        name = "N" if ends is None else f"seqused_k[{b}]"
        if not 0 <= first <= end:
            checks.fail(f"leftpad_k[{b}] must be in 0..{name}={end}, got {first}")


def check_indices(checks: Checks, indices: Tensor, num_keys: int) -> None:
    """-1 <= indices < S."""
    if indices.device.type != "cpu":
        return
    wrong = ((indices < -1) | (indices >= num_keys)).nonzero()
    if len(wrong):
        b, h, k = wrong[0].tolist()
        checks.fail(
            f"indices[{b}, {h}, {k}] must be -1 or in 0..S-1={num_keys - 1}, "
            f"got {int(indices[b, h, k])}"
        )
