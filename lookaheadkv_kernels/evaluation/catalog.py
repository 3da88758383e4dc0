"""Tasks and groups of tasks, by the names used on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hub import data_folder
from .judge import Judge
from .longbench import TASK_NAMES as LONGBENCH_TASKS
from .longbench import LongBenchTask
from .longproc import TASK_NAMES as LONGPROC_TASKS
from .longproc import HtmlToTsv
from .mtbench import TASK_NAME as MTBENCH_TASK
from .mtbench import MtBench
from .ruler import SYNTHETIC_TASKS, RulerTask, builtin_words, essay_file, wonderwords
from .ruler import TASK_NAMES as RULER_TASKS
from .ruler.qa import read_hotpotqa, read_squad
from .task import Task

GROUPS: dict[str, tuple[str, ...]] = {
    "ruler": SYNTHETIC_TASKS,
    "longbench": LONGBENCH_TASKS,
    "longproc": LONGPROC_TASKS,
}
TASK_NAMES = (*RULER_TASKS, *LONGBENCH_TASKS, *LONGPROC_TASKS, MTBENCH_TASK)
WORD_LISTS = {"builtin": builtin_words, "wonderwords": wonderwords}


@dataclass(frozen=True)
class Sources:
    """Where tasks find their data.

    Attributes:
        haystack: a text file for RULER's essays; this machine's own texts when None.
        words: whose words RULER's keys are.
        squad: SQuAD v2's JSON, for ``qa_1``.
        hotpotqa: HotpotQA's JSON, for ``qa_2``.
        longbench: folder of LongBench's JSONL files or their archive, or a dataset on the hub.
        longproc: LongProc's data folder, or a dataset on the hub.
        mtbench: folder of MT-Bench's ``question.jsonl``, or a dataset on the hub.
        judge: rates MT-Bench's answers.
    """

    haystack: Path | None = None
    words: str = "builtin"
    squad: Path | None = None
    hotpotqa: Path | None = None
    longbench: Path | None = None
    longproc: Path | None = None
    mtbench: Path | None = None
    judge: Judge | None = None


def expanded(names: Sequence[str]) -> list[str]:
    """Task names, each once, with groups replaced by their members.

    Raises:
        ValueError: an unknown name.
    """
    found: dict[str, None] = {}
    for name in names:
        members = GROUPS.get(name, (name,))
        if unknown := [member for member in members if member not in TASK_NAMES]:
            raise ValueError(
                f"unknown task {unknown[0]!r}; there are {', '.join((*GROUPS, *TASK_NAMES))}"
            )
        found |= dict.fromkeys(members)
    return list(found)


def make_tasks(names: Sequence[str], tokenizer: Any, seed: int, sources: Sources) -> list[Task]:
    """Tasks by their names.

    Raises:
        FileNotFoundError: a file of a task is not there.
        ValueError: an unknown name, no file given for a task that needs one, or a bad file.
    """
    return [_make(name, tokenizer, seed, sources) for name in expanded(names)]


def _make(name: str, tokenizer: Any, seed: int, sources: Sources) -> Task:
    if name in LONGBENCH_TASKS:
        folder = data_folder(_given(name, "--longbench", sources.longbench))
        return LongBenchTask(name, tokenizer, folder)
    if name in LONGPROC_TASKS:
        folder = data_folder(_given(name, "--longproc", sources.longproc))
        return HtmlToTsv(name, tokenizer, folder)
    if name == MTBENCH_TASK:
        folder = data_folder(_given(name, "--mtbench", sources.mtbench))
        if sources.judge is None:
            raise ValueError(
                f"task {name} needs a judge: --judge-url with --judge-model, or --judge-model alone"
            )
        return MtBench(tokenizer, folder, sources.judge)
    corpus = None
    if name == "qa_1":
        corpus = read_squad(_given(name, "--squad", sources.squad))
    if name == "qa_2":
        corpus = read_hotpotqa(_given(name, "--hotpotqa", sources.hotpotqa))
    essay = None if sources.haystack is None else essay_file(sources.haystack)
    return RulerTask(
        name,
        tokenizer,
        seed=seed,
        essay=essay,
        words=WORD_LISTS[sources.words](),
        corpus=corpus,
    )


def _given(task: str, option: str, path: Path | None) -> Path:
    if path is None:
        raise ValueError(f"task {task} needs {option}")
    return path
