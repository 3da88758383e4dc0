"""Splits a batch's cache into caches of one row each, without padding, and joins them again."""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import EvictableCache, EvictableLayer


def split_rows(cache: EvictableCache) -> list[EvictableCache]:
    """One cache per row, without padding or empty slots."""
    lengths = cache.row_lengths()
    rows = []
    for row in range(0 if lengths is None else len(lengths)):
        one = cache.fork()
        for layer in one.layers:
            layer.batch_select_indices(torch.tensor([row]))
            _close_holes(layer)
        rows.append(one)
    return rows


def _close_holes(layer: EvictableLayer) -> None:
    """Drop the invalid slots of a layer of one row."""
    if layer.valid is None:
        return
    real = layer.valid[0]
    layer.keys, layer.values = layer.keys[:, :, real], layer.values[:, :, real]
    if layer.kept_positions is not None:
        layer.kept_positions = layer.kept_positions[:, :, real[: layer.kept_positions.shape[2]]]
    layer.valid = None


def join_rows(rows: list[EvictableCache], logical_length: int) -> EvictableCache:
    """One batch of freshly cut rows; shorter ones get empty slots at the end.

    Args:
        rows: caches of one row, every layer just evicted.
        logical_length: tokens seen, padding included.
    """
    joined = EvictableCache()
    for parts in zip(*(cache.layers for cache in rows), strict=True):
        layer = EvictableLayer()
        most = max(part.stored_length for part in parts)
        layer.lazy_initialization(parts[0].keys, parts[0].values)
        layer.keys = torch.cat([padded(part.keys, most, 0) for part in parts])
        layer.values = torch.cat([padded(part.values, most, 0) for part in parts])
        layer.kept_positions = torch.cat([padded(part.kept_positions, most, -1) for part in parts])
        layer.kept_seen = torch.cat([part.kept_seen for part in parts])
        real = layer.kept_positions[:, 0] >= 0
        layer.valid = None if bool(real.all()) else real
        layer.cumulative_length = logical_length
        joined.layers.append(layer)
    return joined


def padded(tensor: Tensor, length: int, fill: float) -> Tensor:
    """[B, H, K, ...] with ``fill`` behind its K entries, up to ``length``."""
    missing = length - tensor.shape[2]
    if missing == 0:
        return tensor
    shape = [*tensor.shape[:2], missing, *tensor.shape[3:]]
    return torch.cat([tensor, tensor.new_full(shape, fill)], dim=2)
