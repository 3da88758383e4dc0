"""The model's own responses to prompts from a file, for later training (paper section 4.1)."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .._differences import differences
from .._interrupts import Interrupted, held_back, number_of
from ..integrations.transformers.cache import EvictableCache
from ..integrations.transformers.greedy import greedy_answer, next_logits
from ..lookahead.files import write_atomically
from ..policies.budget import check_at_least
from .records import Checked, check_file, encode_record, records_of


class ResponsesFile:
    """A file of prompts, and the file that grows by a record with the response to each of them.

    What the responses depend on is kept beside the output, in ``<output>.run.json``: an interrupted
    run goes on only with the same. Everything is checked here, before there is a model.

    Args:
        prompts: JSON lines with ``prompt`` or ``prompt_ids``.
        output: JSON lines with ``prompt_ids``, ``response_ids``, their texts ``prompt`` and
            ``response``, and the prompt's other fields.
        tokenizer: of the model.
        max_response: most response tokens.
        facts: what else responses depend on: the model's name, its dtype.
        vocabulary: token ids that the model knows; None: those of the tokenizer.
        overwrite: start again from the first record.

    Raises:
        FileNotFoundError: there are no prompts.
        ValueError: a bad record; an output that is the prompts' file, that another program wrote,
            or that was begun with other arguments.
    """

    def __init__(
        self,
        prompts: str | Path,
        output: str | Path,
        tokenizer: Any,
        *,
        max_response: int = 512,
        facts: Mapping[str, Any] | None = None,
        vocabulary: int | None = None,
        overwrite: bool = False,
    ) -> None:
        check_at_least("max_response", max_response, 1)
        self.prompts, self.output = Path(prompts), Path(output)
        self._tokenizer, self._max_response, self._overwrite = tokenizer, max_response, overwrite
        if self.output.is_dir():
            raise ValueError(f"output must be a file, got the folder {output}")
        if self.output.exists() and self.output.samefile(self.prompts):
            raise ValueError(f"output must be another file than the prompts, got {output}")
        self._checked: Checked = check_file(self.prompts, tokenizer, vocabulary)
        self._facts = {
            **(facts or {}),
            "max_response": max_response,
            "prompts_sha256": self._checked.sha256,
        }
        self.done = 0 if overwrite else self._whole_records()

    @property
    def total(self) -> int:
        """Number of prompts."""
        return len(self._checked.places)

    @property
    def _facts_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.run.json")

    def _whole_records(self) -> int:
        """Number of records that an earlier run left in the output."""
        if not self.output.is_file() or not self.output.stat().st_size:
            return 0
        if not self._facts_path.is_file():
            raise ValueError(
                f"{self.output} is there, but not {self._facts_path.name} beside it: another "
                "program wrote it; choose another output, or --overwrite to write it anew"
            )
        try:
            old = json.loads(self._facts_path.read_text())
        except ValueError as error:
            raise ValueError(f"{self._facts_path} is damaged: {error}") from error
        if changes := differences(old, self._facts):
            raise ValueError(
                f"{self.output} was begun with other arguments: {'; '.join(changes)}; run it with "
                "the old ones to go on, choose another output, or --overwrite to write it anew"
            )
        return self.output.read_bytes().count(b"\n")

    def write(self, model: Any) -> int:
        """Let the model answer what is missing; returns the number of records that were written.

        Every record is on the disk before the next one is begun; a line that a crash has cut off
        is made again.

        Args:
            model: a transformers model with our attention attached.

        Raises:
            Interrupted: by a signal; the records before it are there.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if not self.done:
            if self._overwrite:  # first, so that no old record is ever beside new facts
                self.output.unlink(missing_ok=True)
            write_atomically(self._facts_path, (json.dumps(self._facts, indent=1) + "\n").encode())
        before = self.done
        with (
            self.output.open("ab") as file,
            tqdm(initial=self.done, total=self.total, desc="responses") as bar,
        ):
            self._cut_half_line()
            try:
                for record in itertools.islice(records_of(self.prompts), before, None):
                    line = self._answered(record, model, bar)
                    with held_back():
                        _append(file, line)
                        self.done += 1
                    bar.update()
            except KeyboardInterrupt as interrupt:
                saved = f"{self.done} of {self.total} responses are in {self.output}"
                raise Interrupted(saved, number_of(interrupt)) from interrupt
        return self.done - before

    def _cut_half_line(self) -> None:
        content = self.output.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.output, whole)

    def _answered(self, record: dict[str, Any], model: Any, bar: Any) -> dict[str, Any]:
        """A record with its prompt and response, as tokens and as text."""
        prompt_ids, _ = encode_record(record, self._tokenizer)
        cache = EvictableCache()
        logits = next_logits(model, prompt_ids, cache)
        response = greedy_answer(model, cache, logits, self._max_response)
        bar.set_postfix_str(f"{len(prompt_ids)} tokens read, {len(response)} written")
        prompt = record.get("prompt")
        return {
            **record,
            "prompt": self._tokenizer.decode(prompt_ids) if prompt is None else prompt,
            "prompt_ids": prompt_ids,
            "response": self._tokenizer.decode(response, skip_special_tokens=True),
            "response_ids": response,
        }


def _append(file: Any, record: dict[str, Any]) -> None:
    """One line in one write, on the disk when this returns."""
    file.write(json.dumps(record).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
