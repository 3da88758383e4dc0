"""What an evaluation is going to do, and the record of it; all that is known without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .._differences import differences
from .records import Key
from .task import Sample, Task

CONFIG = "config.json"
FULL = "full"

Setting = tuple[str, int | float | None]  # policy and budget


class Grid(NamedTuple):
    """What is evaluated. The full cache has no budget and runs once per sample."""

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
        """The keys of all predictions."""
        settings = list(self.settings())
        return [
            Key(task.name, length, index, policy, budget)
            for task, length, index in self.places()
            for policy, budget in settings
        ]

    def check_samples(self, positions: int | None) -> list[tuple[Task, Sample]]:
        """Make the samples that might not work, the first of each task and length among them.

        Samples of a task that has lengths are as long as the length at most; others have a length
        of their own, so all of them are made.

        Args:
            positions: tokens that the model was made for; None: it does not say.

        Returns:
            The first sample of every task and length.

        Raises:
            ValueError: a sample that cannot be made, or has no room in the model.
        """
        firsts = []
        for task, length, index in self.places():
            fits = task.lengths and (positions is None or length <= positions)
            if index and fits:
                continue
            sample = task.sample(length, index)
            check_room(task.name, sample, positions)
            if not index:
                firsts.append((task, sample))
        return firsts


def check_room(name: str, sample: Sample, positions: int | None) -> None:
    """Refuse a sample that the model has no room for.

    Raises:
        ValueError: says how many tokens that would be.
    """
    needed = len(sample.prompt_ids) + sample.max_new_tokens
    if positions is not None and needed > positions:
        raise ValueError(f"{name}: {needed} tokens, but the model has {positions} positions")


def config_of(
    folder: Path, grid: Grid, facts: Mapping[str, Any], environment: Mapping[str, Any]
) -> bytes:
    """What a result folder's ``config.json`` is to hold from now on.

    Args:
        folder: of the results, which may have been begun by an earlier run.
        grid: what to run; it may be larger than the earlier run's.
        facts: everything else that the predictions depend on.
        environment: versions and machine, for the reader of the folder.

    Raises:
        ValueError: the folder is another run's; the message says what differs.
    """
    path = folder / CONFIG
    sources: dict[str, Any] = {task.name: task.source() for task in grid.tasks}
    facts = dict(facts)
    if path.is_file():
        try:
            old = json.loads(path.read_text())
            old_facts, old_sources = dict(old["facts"]), dict(old["sources"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        # What only one of them has concerns a policy or a task that the other did not use.
        changes = differences(old_facts, facts, free=set(old_facts) ^ set(facts))
        changes += [
            f"{name}: {change}"
            for name in sources
            if name in old_sources
            for change in differences(old_sources[name], sources[name])
        ]
        if changes:
            raise ValueError(
                f"{folder} is another run's: {'; '.join(changes)}; run it with the old arguments "
                "to go on, or choose another --output"
            )
        # A grid may grow: earlier predictions stay and count.
        facts = {**old_facts, **facts}
        sources = {**old_sources, **sources}
    elif any(folder.glob("predictions*.jsonl")):
        raise ValueError(f"{folder} holds predictions but no {CONFIG}")
    config = {
        "facts": facts,
        "grid": {
            "tasks": [task.name for task in grid.tasks],
            "lengths": list(grid.lengths),
            "policies": list(grid.policies),
            "budgets": list(grid.budgets),
            "samples": grid.samples,
        },
        "sources": sources,
        "environment": environment,
    }
    return (json.dumps(config, indent=1) + "\n").encode()
