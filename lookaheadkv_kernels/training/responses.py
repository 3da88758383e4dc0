"""The model's own responses to prompts from a file, for later training (paper section 4.1)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..integrations.transformers.cache import EvictableCache
from ..integrations.transformers.greedy import greedy_answer, next_logits
from .data import encode_record


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: str | Path,
    output: str | Path,
    *,
    max_response: int = 512,
    overwrite: bool = False,
) -> int:
    """Copy the records of ``prompts`` to ``output``, each with the model's greedy response.

    Every record is written as soon as it is done, and a later call with the same files goes on
    after the last one that was; a line cut off by a crash is done again.

    Args:
        model: a transformers model with our attention attached.
        tokenizer: its tokenizer.
        prompts: JSON lines with ``prompt`` or ``prompt_ids``.
        output: JSON lines with ``prompt_ids`` and ``response_ids``, and the prompt's other fields.
        max_response: most response tokens.
        overwrite: start again from the first record.

    Returns:
        How many records were written by this call.
    """
    output = Path(output)
    done = 0 if overwrite else _whole_records(output)
    records = list(_records(Path(prompts)))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a" if done else "w") as file:
        for record in tqdm(records[done:], initial=done, total=len(records), desc="responses"):
            prompt_ids, _ = encode_record(record, tokenizer)
            cache = EvictableCache()
            logits = next_logits(model, prompt_ids, cache)
            response = greedy_answer(model, cache, logits, max_response)
            rest = {k: v for k, v in record.items() if k not in ("prompt", "response")}
            line = {**rest, "prompt_ids": prompt_ids, "response_ids": response}
            file.write(json.dumps(line) + "\n")
            file.flush()
        os.fsync(file.fileno())
    return len(records) - done


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error


def _whole_records(path: Path) -> int:
    """Number of records that an earlier call left in the file; cuts off a last half line."""
    if not path.is_file():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.count(b"\n")
