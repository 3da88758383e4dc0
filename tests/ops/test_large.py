"""Tensors whose element offsets pass 2^31. Only the pages that are touched take memory."""

from __future__ import annotations

import pytest
import torch
from support.helpers import assert_bitwise, make_inputs
from torch import Tensor

import lookaheadkv_kernels as lk

FAR = 2**31 + 2**20  # elements; 16-bit ones, so that byte offsets pass 2^32


def spread(tensor: Tensor, dim: int) -> Tensor:
    """The same numbers, with the last entry along ``dim`` more than 2^31 elements away."""
    strides = [0] * tensor.dim()
    dense = 1
    for other in reversed(range(tensor.dim())):
        if other != dim:
            strides[other] = dense
            dense *= tensor.shape[other]
    strides[dim] = FAR // (tensor.shape[dim] - 1) + 1
    assert strides[dim] >= dense
    storage = torch.empty(FAR + tensor.shape[dim] + dense, dtype=tensor.dtype)
    far = storage.as_strided(tensor.shape, strides)
    assert (tensor.shape[dim] - 1) * far.stride(dim) > 2**31
    return far.copy_(tensor)


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batch", "head", "key"])
def test_far_cache(dim):
    """Key and value side by side in one storage, spread over batches, heads or positions."""
    query, key, value = make_inputs(batch=2, prompt=300, dim=16, dtype=torch.bfloat16)
    far_key, far_value = spread(torch.stack([key, value]), dim + 1)
    assert_bitwise(
        lk.score_and_evict(query, far_key, far_value, 40, keep_observation=True),
        lk.score_and_evict(query, key, value, 40, keep_observation=True),
    )
    assert_bitwise(
        lk.lookahead_attention(query, far_key, far_value), lk.lookahead_attention(query, key, value)
    )
    grad = torch.randn(2, 2, 300)
    backward = torch.ops.lookaheadkv.column_scores_backward
    assert_bitwise(backward(grad, query, far_key), backward(grad, query, key))
    indices = torch.tensor([304, 0, -1, 304], dtype=torch.int32).expand(2, 2, 4)
    assert_bitwise(lk.gather_kv(far_key, far_value, indices), lk.gather_kv(key, value, indices))


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batch", "head", "row"])
def test_far_query(dim):
    query, key, value = make_inputs(batch=2, prompt=90, dim=16, dtype=torch.bfloat16)
    far = spread(query, dim)
    assert_bitwise(
        lk.lookahead_attention(far, key, value), lk.lookahead_attention(query, key, value)
    )
    assert_bitwise(lk.score_and_evict(far, key, value, 9), lk.score_and_evict(query, key, value, 9))
