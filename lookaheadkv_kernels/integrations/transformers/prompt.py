"""A batch of prompts as the model will run it: left-padded, with explicit positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cache import EvictableCache
from .positions import counted_positions


@dataclass(frozen=True)
class Prompt:
    """New tokens of every row, real ones last.

    Attributes:
        input_ids: int64 [B, N]; None if embeddings are given.
        inputs_embeds: [B, N, hidden]; None if ids are given.
        mask: bool [B, N], true at real tokens; None if all are real.
        position_ids: int64 [B, N].
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    mask: Tensor | None
    position_ids: Tensor

    @property
    def num_tokens(self) -> int:
        """N, padding included."""
        return int(self.position_ids.shape[1])

    @property
    def batch(self) -> int:
        """B."""
        return int(self.position_ids.shape[0])

    def part(self, start: int, stop: int) -> Prompt:
        """Tokens ``start`` to ``stop`` of every row."""
        parts = (self.input_ids, self.inputs_embeds, self.mask, self.position_ids)
        return Prompt(*(None if t is None else t[:, start:stop] for t in parts))  # type: ignore[arg-type]

    def row(self, row: int) -> Prompt:
        """One row, without its padding."""
        padding = 0 if self.mask is None else int((~self.mask[row]).sum())
        parts = (self.input_ids, self.inputs_embeds, None, self.position_ids)
        return Prompt(*(None if t is None else t[row : row + 1, padding:] for t in parts))  # type: ignore[arg-type]

    def row_counts(self) -> list[int]:
        """Real tokens of every row, on the host."""
        if self.mask is None:
            return [self.num_tokens] * self.batch
        return [int(count) for count in self.mask.sum(dim=1).tolist()]


def make_prompt(
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    *,
    inputs_embeds: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: EvictableCache | None = None,
) -> Prompt:
    """Check a batch and bring it into left-padded form.

    Args:
        input_ids: int64 [B, N], padded left, right, or not at all.
        attention_mask: [B, N] for the new tokens, or [B, past + N]; 0 is padding.
        inputs_embeds: [B, N, hidden] in place of ``input_ids``.
        position_ids: int64 [B, N]; counted from the mask and the cache when None.
        cache: where the tokens will go; the mask's first ``past`` columns are applied to it.

    Raises:
        ValueError: both or neither of ids and embeddings; a mask of another shape; padding between
            real tokens of a first turn; a row without any token.
    """
    tokens = input_ids if input_ids is not None else inputs_embeds
    if tokens is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    name, dims = ("inputs_embeds", "B, N, hidden") if input_ids is None else ("input_ids", "B, N")
    if tokens.ndim != dims.count(",") + 1:
        raise ValueError(f"{name} must be [{dims}], got {list(tokens.shape)}")
    batch, length = tokens.shape[:2]
    if batch == 0 or length == 0:
        raise ValueError(f"the prompt is empty: {name} {list(tokens.shape)}")
    past = 0 if cache is None else cache.get_seq_length()
    mask = _new_mask(attention_mask, batch, length, past)
    if cache is not None and attention_mask is not None and attention_mask.shape[1] > length:
        cache.hide(attention_mask[:, :past].bool())
    seen = None if cache is None else cache.row_lengths()
    if seen is not None and len(seen) != batch:
        raise ValueError(f"{name} has {batch} rows, the cache {len(seen)}")
    if position_ids is None:
        position_ids = counted_positions(mask, batch, length, seen, tokens.device)
    if position_ids.shape not in ((length,), (1, length), (batch, length)):
        raise ValueError(
            f"position_ids must be [{batch}, {length}], got {list(position_ids.shape)}"
        )
    position_ids = position_ids.expand(batch, length)
    prompt = Prompt(input_ids, inputs_embeds, mask, position_ids)
    return prompt if mask is None else _left_padded(prompt, mask, holes=seen is not None)


def _new_mask(attention_mask: Tensor | None, batch: int, length: int, past: int) -> Tensor | None:
    if attention_mask is None:
        return None
    # A mask of any other length is for tokens that the cache has not seen.
    if attention_mask.shape not in ((batch, length), (batch, past + length)):
        longer = f" or [{batch}, {past} + {length}]" if past else ""
        raise ValueError(
            f"attention_mask must be [{batch}, {length}]{longer}, got {list(attention_mask.shape)}"
        )
    mask = attention_mask[:, -length:].bool()
    return None if bool(mask.all()) else mask


def _left_padded(prompt: Prompt, mask: Tensor, *, holes: bool) -> Prompt:
    """The same with the real tokens last; a later turn may begin with an answer's last token."""
    counts = mask.sum(dim=1)
    if bool((counts == 0).any()):
        raise ValueError(f"attention_mask: a row without any token, counts {counts.tolist()}")
    changes = (mask[:, 1:] != mask[:, :-1]).sum(dim=1)
    if not holes and bool((changes > 1).any()):
        raise ValueError("attention_mask: padding must be at one end of a row")
    if not bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        return prompt
    # Real tokens move to the right; stable, so that real tokens keep their order.
    order = mask.to(torch.int8).argsort(dim=1, stable=True)
    ids, embeds = prompt.input_ids, prompt.inputs_embeds
    return replace(
        prompt,
        input_ids=None if ids is None else ids.gather(1, order),
        inputs_embeds=(
            None if embeds is None else embeds.gather(1, order[..., None].expand_as(embeds))
        ),
        mask=mask.gather(1, order),
        position_ids=prompt.position_ids.gather(1, order),
    )
