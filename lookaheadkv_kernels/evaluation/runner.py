"""Runs model x policy x budget x task x length; any process may be killed at any moment.

A sample's prompt is read once for all policies and budgets, and their answers are decoded as one
batch: in 32 bits the same as one by one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..integrations.transformers import EvictableCache
from ..integrations.transformers.attention import attach
from ..integrations.transformers.eviction import check_supported
from ..integrations.transformers.shared import SharedPrefill
from ..integrations.transformers.together import decode_together
from ..lookahead.files import write_atomically
from ..policies.base import Policy, check_at_least, check_budget
from .measures import GroundTruth
from .records import Key, Shard, Writer, locked, merge, read_predictions
from .report import metrics_of, write_metrics, write_plot
from .task import Sample, Task

CONFIG = "config.json"
FULL = "full"
TOGETHER = 32

Setting = tuple[str, int | float | None]  # policy and budget


class Grid(NamedTuple):
    """What is evaluated. The full cache has no budget and is run once a sample."""

    tasks: Sequence[Task]
    lengths: Sequence[int]
    policies: Sequence[str]
    budgets: Sequence[int | float]
    samples: int  # of each task and length, or fewer where a task has fewer

    def places(self) -> Iterator[tuple[Task, int, int]]:
        """(task, length, index) of every sample; tasks without lengths have length 0."""
        for task in self.tasks:
            count = self.samples
            if task.num_samples is not None:
                count = min(count, task.num_samples)
            for length in self.lengths if task.lengths else [0]:
                for index in range(count):
                    yield task, length, index

    def settings(self) -> Iterator[Setting]:
        """(policy, budget) of every prediction of a sample."""
        for policy in self.policies:
            for budget in [None] if policy == FULL else self.budgets:
                yield policy, budget

    def keys(self) -> list[Key]:
        """Of all predictions."""
        settings = list(self.settings())
        return [
            Key(task.name, length, index, policy, budget)
            for task, length, index in self.places()
            for policy, budget in settings
        ]


class Evaluation:
    """A result folder and the model that fills it.

    Args:
        folder: made if need be; one that holds predictions is gone on with.
        model: a transformers model.
        tokenizer: its tokenizer.
        policies: by the names that the grid has.
        grid: what to run.
        facts: everything else that the predictions depend on; a folder is only gone on with under
            the same.
        environment: versions and machine, for the reader of the folder.
        shard: which of several processes this is.
        measures: compute the measures that need no labels, too.
        together: answers of a sample that are decoded as one batch.
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
        check_supported(model)
        attach(model)
        for budget in grid.budgets:
            check_budget(budget, model.config.num_hidden_layers)
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.grid, self.shard, self.measures = grid, shard, measures
        self._policies = {name: policies[name] for name in grid.policies}
        self._together, self._chunk = together, chunk
        self.facts = {**facts, "measures": measures, "chunk": chunk}
        self.environment = environment

    def run(self) -> dict[str, Any]:
        """Predict what is missing of this process's share; returns the folder's metrics."""
        with locked(self.folder):
            self._check_config()
            writer = Writer(self.folder, self.shard)
            done = set(read_predictions(self.folder))
        settings = list(self.grid.settings())
        mine = [
            (task, length, index, missing)
            for number, (task, length, index) in enumerate(self.grid.places())
            if number % self.shard.world == self.shard.rank
            and (
                missing := [
                    (policy, budget)
                    for policy, budget in settings
                    if Key(task.name, length, index, policy, budget) not in done
                ]
            )
        ]
        with tqdm(total=sum(len(entry[3]) for entry in mine), unit="answer") as bar:
            for task, length, index, missing in mine:
                bar.set_postfix_str(f"{task.name} {length} #{index}")
                writer.append(self._predictions(task, length, index, missing))
                bar.update(len(missing))
        writer.close()
        return finish(self.folder, self.grid)

    def _check_config(self) -> None:
        path = self.folder / CONFIG
        grid = {
            "tasks": [task.name for task in self.grid.tasks],
            "lengths": list(self.grid.lengths),
            "policies": list(self.grid.policies),
            "budgets": list(self.grid.budgets),
            "samples": self.grid.samples,
        }
        sources = {task.name: task.source() for task in self.grid.tasks}
        facts = json.loads(json.dumps(self.facts))  # as it will be read back
        if path.is_file():
            old = json.loads(path.read_text())
            # What only one of them has is of a policy that the other had no use for.
            differing = [
                name for name in facts if old["facts"].get(name, facts[name]) != facts[name]
            ]
            changes = [
                f"{name} is {old['facts'][name]!r} there and {facts[name]!r} here"
                for name in differing
            ]
            changes += [
                f"{name} is made from {old['sources'][name]} there and {source} here"
                for name, source in sources.items()
                if old["sources"].get(name, source) != source
            ]
            if changes:
                raise ValueError(f"{self.folder} is another run's: {'; '.join(changes)}")
            # A grid may grow: what was predicted stays, and counts.
            facts = {**old["facts"], **facts}
            sources = {**old["sources"], **sources}
        elif any(self.folder.glob("predictions*.jsonl")):
            raise ValueError(f"{self.folder} holds predictions but no {CONFIG}")
        config = {
            "facts": facts,
            "grid": grid,
            "sources": sources,
            "environment": self.environment,
        }
        write_atomically(path, (json.dumps(config, indent=1) + "\n").encode())

    def _predictions(
        self, task: Task, length: int, index: int, missing: list[Setting]
    ) -> list[dict[str, Any]]:
        """The missing predictions of one sample."""
        start = time.perf_counter()
        sample = task.sample(length, index)
        self._check_room(task, sample)
        truth = None
        if self.measures:
            truth = GroundTruth(self.model, sample.prompt_ids, sample.max_new_tokens)
        records = []
        shared = self._read(sample.prompt_ids, missing)
        for first in range(0, len(missing), self._together):
            part = missing[first : first + self._together]
            caches = [shared.cut(*self._cell(setting)) for setting in part]
            answers = self._answers(caches, sample.max_new_tokens)
            for setting, cache, answer in zip(part, caches, answers, strict=True):
                record = self._record(task, sample, setting, answer)
                record |= {"length": length, "sample": index}
                if truth is not None:
                    record["measures"] = truth.measure(cache, answer)
                records.append(record)
        # Most of the work was done once for all: each has an equal share of it.
        seconds = round((time.perf_counter() - start) / len(records), 3)
        return [{**record, "seconds": seconds} for record in records]

    def _record(
        self, task: Task, sample: Sample, setting: Setting, answer: list[int]
    ) -> dict[str, Any]:
        """What is told of one answer; in a conversation of all answers that follow it, too."""
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

    def _check_room(self, task: Task, sample: Sample) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        needed = len(sample.prompt_ids) + sample.max_new_tokens
        if most is not None and needed > most:
            raise ValueError(f"{task.name}: {needed} tokens, but the model has {most} positions")

    def _cell(self, setting: Setting) -> tuple[Policy, int | float]:
        policy, budget = setting
        return self._policies[policy], 1.0 if budget is None else budget

    def _read(self, ids: Sequence[int], settings: Sequence[Setting]) -> SharedPrefill:
        tokens = torch.tensor([list(ids)], device=self.model.device)
        cells = [self._cell(setting) for setting in settings]
        return SharedPrefill(self.model, tokens, cells, chunk=self._chunk, record=self.measures)

    def _answers(self, caches: Sequence[EvictableCache], max_new_tokens: int) -> list[list[int]]:
        logits = torch.cat([cache.logits for cache in caches if cache.logits is not None])
        return decode_together(self.model, caches, logits, max_new_tokens)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def finish(folder: Path, grid: Grid) -> dict[str, Any]:
    """Write the metrics of what is there; once all is there, one file of predictions and the plot.

    Any process may call it, at any time; the last one to end completes the folder.
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
