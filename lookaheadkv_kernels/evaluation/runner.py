"""Runs model x policy x budget x task x length; any process may be killed at any moment.

A sample's prompt is read once for all policies and budgets, and their answers are decoded as one
batch, with those of other samples where there is room: in 32 bits the same as one by one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from .._interrupts import Interrupted, held_back, number_of
from ..integrations.transformers import EvictableCache
from ..integrations.transformers.attention import attach
from ..integrations.transformers.batched_decoding import decode_together
from ..integrations.transformers.devices import input_device
from ..integrations.transformers.shared_prefill import SharedPrefill
from ..integrations.transformers.structure import decoder_of
from ..lookahead.files import write_atomically
from ..policies.base import Policy
from ..policies.budget import check_at_least, check_budget
from .measures import GroundTruth
from .plan import CONFIG, Grid, Setting, check_room, config_of
from .records import Key, Shard, Writer, locked, merge, read_predictions
from .report import metrics_of, write_metrics, write_plot
from .task import Sample, Task

TOGETHER = 32


class Batch(NamedTuple):
    """Samples of a task and length that are decoded and written together."""

    task: Task
    length: int
    missing: list[tuple[int, list[Setting]]]  # sample and what is to be predicted of it

    @property
    def size(self) -> int:
        """Number of predictions."""
        return sum(len(settings) for _, settings in self.missing)


class _Reading(NamedTuple):
    """A sample whose prompt was read."""

    number: int  # of the sample
    settings: list[Setting]
    sample: Sample
    shared: SharedPrefill
    truth: GroundTruth | None


class Evaluation:
    """A result folder and the model that fills it.

    Args:
        folder: created if missing; if it holds predictions, the run continues from them.
        model: a transformers model.
        tokenizer: its tokenizer.
        policies: by the names used in the grid.
        grid: what to run.
        facts: everything else that the predictions depend on; a folder of other facts is refused.
        environment: versions and machine, recorded for the reader of the folder.
        shard: this process's share of the samples.
        measures: also compute the measures that need no labels.
        together: answers that are decoded as one batch at most; the prompts of all of its samples
            are in memory at the same time.
        chunk: see :class:`~lookaheadkv_kernels.integrations.transformers.Eviction`.

    Raises:
        ValueError: a budget or batch that makes no sense, or a folder of another run.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        tokenizer: Any,
        policies: Mapping[str, Policy],
        grid: Grid,
        *,
        facts: dict[str, Any],
        environment: dict[str, Any],
        shard: Shard = Shard(),  # noqa: B008 (a tuple)
        measures: bool = False,
        together: int = TOGETHER,
        chunk: int | None = None,
    ) -> None:
        check_at_least("together", together, 1)
        attach(model)
        for budget in grid.budgets:
            check_budget(budget, decoder_of(model).config.num_hidden_layers)
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.grid, self.shard, self.measures = grid, shard, measures
        self._policies = {name: policies[name] for name in grid.policies}
        self._together, self._chunk = together, chunk
        self.facts = {**facts, "measures": measures, "chunk": chunk}
        self.environment = environment
        self._bar = tqdm(disable=True)

    def run(self) -> dict[str, Any]:
        """Predict what is missing of this process's share; returns the folder's metrics."""
        with locked(self.folder):
            content = config_of(self.folder, self.grid, self.facts, self.environment)
            write_atomically(self.folder / CONFIG, content)
            writer = Writer(self.folder, self.shard)
        with contextlib.closing(writer):
            batches = self._batches(set(read_predictions(self.folder)))
            total = sum(batch.size for batch in batches)
            with tqdm(total=total, unit="answer") as self._bar:
                written = 0
                try:
                    for batch in batches:
                        records = self._predictions(batch)
                        with held_back():
                            writer.append(records)
                            written += batch.size
                        self._bar.update(batch.size)
                except KeyboardInterrupt as interrupt:
                    saved = f"{written} of {total} missing answers are in {self.folder}"
                    raise Interrupted(saved, number_of(interrupt)) from interrupt
        return finish(self.folder, self.grid)

    def _tell(self, batch: Batch, text: str) -> None:
        """A word of progress within a batch."""
        self._bar.set_postfix_str(f"{batch.task.name} {batch.length} {text}")

    def _batches(self, done: set[Key]) -> list[Batch]:
        """The batches that this process still has to predict.

        Which samples share a batch does not depend on what is done already: a killed run repeats
        its unfinished batch exactly.
        """
        settings = list(self.grid.settings())
        places = list(self.grid.places())[self.shard.rank :: self.shard.world]
        width = max(1, self._together // len(settings))
        batches = []
        for _, group in groupby(places, key=lambda place: (place[0].name, place[1])):
            samples = list(group)
            task, length, _ = samples[0]
            for first in range(0, len(samples), width):
                missing = []
                for _, _, index in samples[first : first + width]:
                    wanted = [
                        setting
                        for setting in settings
                        if Key(task.name, length, index, *setting) not in done
                    ]
                    if wanted:
                        missing.append((index, wanted))
                if missing:
                    batches.append(Batch(task, length, missing))
        return batches

    def _predictions(self, batch: Batch) -> list[dict[str, Any]]:
        """The missing predictions of a batch."""
        start = time.perf_counter()
        readings = [self._reading(batch, *sample) for sample in batch.missing]
        jobs = [(reading, setting) for reading in readings for setting in reading.settings]
        records = []
        for first in range(0, len(jobs), self._together):
            part = jobs[first : first + self._together]
            caches = [reading.shared.cut(*self._cell(setting)) for reading, setting in part]
            longest = max(reading.sample.max_new_tokens for reading, _ in part)
            self._tell(batch, f"writing answers {first + 1} to {first + len(part)} of {len(jobs)}")
            answers = self._answers(caches, longest)
            for (reading, setting), cache, answer in zip(part, caches, answers, strict=True):
                answer = answer[: reading.sample.max_new_tokens]
                record = self._record(batch.task, reading.sample, setting, answer)
                record |= {"length": batch.length, "sample": reading.number}
                if reading.truth is not None:
                    record["measures"] = reading.truth.measure(cache, answer)
                records.append(record)
        # Most of the work was done once for all records: each gets an equal share of the time.
        seconds = round((time.perf_counter() - start) / len(records), 3)
        return [{**record, "seconds": seconds} for record in records]

    def _reading(self, batch: Batch, index: int, settings: list[Setting]) -> _Reading:
        self._tell(batch, f"reading sample {index}")
        sample = batch.task.sample(batch.length, index)
        check_room(
            batch.task.name, sample, getattr(self.model.config, "max_position_embeddings", None)
        )
        truth = None
        if self.measures:
            truth = GroundTruth(self.model, sample.prompt_ids, sample.max_new_tokens)
        shared = self._read(sample.prompt_ids, settings)
        return _Reading(index, settings, sample, shared, truth)

    def _record(
        self, task: Task, sample: Sample, setting: Setting, answer: list[int]
    ) -> dict[str, Any]:
        """The record of one answer, or of a whole conversation that begins with it."""
        answers, texts = [answer], [self._text(answer)]
        while (prompt := task.follow_up(sample, texts)) is not None:
            shared = self._read(prompt, [setting])
            answers += self._answers([shared.cut(*self._cell(setting))], sample.max_new_tokens)
            texts.append(self._text(answers[-1]))
        policy, budget = setting
        return {
            "task": task.name,
            "policy": policy,
            "budget": budget,
            "score": task.score(texts, sample),
            "answers": texts,
            "references": list(sample.references),
            "prompt_tokens": len(sample.prompt_ids),
            "answer_tokens": [len(answer) for answer in answers],
            "facts": sample.facts,
        }

    def _cell(self, setting: Setting) -> tuple[Policy, int | float]:
        policy, budget = setting
        return self._policies[policy], 1.0 if budget is None else budget

    def _read(self, ids: Sequence[int], settings: Sequence[Setting]) -> SharedPrefill:
        tokens = torch.tensor([list(ids)], device=input_device(self.model))
        cells = [self._cell(setting) for setting in settings]
        return SharedPrefill(self.model, tokens, cells, chunk=self._chunk, record=self.measures)

    def _answers(self, caches: Sequence[EvictableCache], max_new_tokens: int) -> list[list[int]]:
        logits = torch.cat([cache.logits for cache in caches if cache.logits is not None])
        return decode_together(self.model, caches, logits, max_new_tokens)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def finish(folder: Path, grid: Grid) -> dict[str, Any]:
    """Write the metrics so far; once all predictions are there, merge them and draw the plot.

    Any process may call it at any time; the last one to end completes the folder.
    """
    keys = grid.keys()
    with locked(folder):
        records = read_predictions(folder)
        missing = sum(key not in records for key in keys)
        metrics = metrics_of(records, len(records) + missing)
        write_metrics(folder, metrics)
        if metrics["complete"]:
            merge(folder, records)
            write_plot(folder, metrics)
    return metrics
