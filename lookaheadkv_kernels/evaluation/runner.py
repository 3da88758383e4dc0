"""Runs model x policy x budget x task x length; any process may be killed at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..integrations.transformers import EvictableCache, Eviction
from ..lookahead.files import write_atomically
from ..policies.base import Policy, check_budget
from ..training.step import greedy_response
from .measures import GroundTruth
from .records import Key, Shard, Writer, locked, merge, read_predictions
from .report import metrics_of, write_metrics, write_plot
from .task import Sample, Task

CONFIG = "config.json"
FULL = "full"


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

    def settings(self) -> Iterator[tuple[str, int | float | None]]:
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
        chunk: see :class:`~lookaheadkv_kernels.integrations.transformers.Eviction`.

    Raises:
        ValueError: a budget that makes no sense, or a folder of another run.
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
        chunk: int | None = None,
    ) -> None:
        for budget in grid.budgets:
            check_budget(budget, model.config.num_hidden_layers)
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.grid, self.shard, self.measures = grid, shard, measures
        self._evictions = {
            name: Eviction(model, policies[name], chunk=chunk) for name in grid.policies
        }
        for eviction in self._evictions.values():
            eviction.runner.record = measures
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
                for record in self._predictions(task, length, index, missing):
                    writer.append(record)
                    bar.update()
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
        self, task: Task, length: int, index: int, missing: list[tuple[str, int | float | None]]
    ) -> Iterator[dict[str, Any]]:
        """The missing predictions of one sample."""
        sample = task.sample(length, index)
        self._check_room(task, sample)
        truth = None
        if self.measures:
            truth = GroundTruth(self.model, sample.prompt_ids, sample.max_new_tokens)
        for policy, budget in missing:
            start = time.perf_counter()
            cache = self._prefill(policy, sample.prompt_ids, budget)
            answers = [self._answer(cache, sample.max_new_tokens)]
            texts = [self._text(answers[0])]
            while (prompt := task.follow_up(sample, texts)) is not None:
                later = self._prefill(policy, prompt, budget)
                answers.append(self._answer(later, sample.max_new_tokens))
                texts.append(self._text(answers[-1]))
            record: dict[str, Any] = {
                "task": task.name,
                "length": length,
                "sample": index,
                "policy": policy,
                "budget": budget,
                "score": task.score(texts, sample),
                "answers": texts,
                "references": list(sample.references),
                "prompt_tokens": len(sample.prompt_ids),
                "answer_tokens": [len(answer) for answer in answers],
                "facts": sample.facts,
                "seconds": round(time.perf_counter() - start, 3),
            }
            if truth is not None:
                record["measures"] = truth.measure(cache, answers[0])
            yield record

    def _check_room(self, task: Task, sample: Sample) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        needed = len(sample.prompt_ids) + sample.max_new_tokens
        if most is not None and needed > most:
            raise ValueError(f"{task.name}: {needed} tokens, but the model has {most} positions")

    def _prefill(
        self, policy: str, ids: Sequence[int], budget: int | float | None
    ) -> EvictableCache:
        tokens = torch.tensor([list(ids)], device=self.model.device)
        return self._evictions[policy].prefill(tokens, budget=1.0 if budget is None else budget)

    def _answer(self, cache: EvictableCache, max_new_tokens: int) -> list[int]:
        assert cache.logits is not None
        return greedy_response(self.model, cache, cache.logits[0], max_new_tokens)

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
