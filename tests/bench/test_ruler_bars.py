"""The check of RULER's generators finds nothing in good samples, and what is wrong in others."""

from __future__ import annotations

import pytest
from support.eval_texts import PieceTokenizer, prose

pytest.importorskip("transformers")
pytest.importorskip("tqdm")

from bench.bars.ruler import check, faults
from lookaheadkv_kernels.evaluation.ruler import SYNTHETIC_TASKS, Essay, RulerTask

LENGTH = 1024


def make(name: str, tokenizer: PieceTokenizer, seed: int = 0) -> RulerTask:
    return RulerTask(name, tokenizer, seed=seed, essay=Essay("made up", prose(4000)))


@pytest.mark.parametrize("name", SYNTHETIC_TASKS)
def test_samples_of_every_task_pass(name: str) -> None:
    tokenizer = PieceTokenizer()
    task = make(name, tokenizer)
    bar = check(task, make(name, tokenizer), tokenizer, LENGTH, samples=11)
    assert bar.met and bar.value == 0
    assert "11 samples of " in str(bar)


def test_what_is_wrong_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = PieceTokenizer()
    task = make("niah_multivalue", tokenizer)
    good = task.sample(LENGTH, 0)
    assert not list(faults(task, tokenizer, good, LENGTH))
    (found,) = faults(task, tokenizer, good, LENGTH + 40)
    assert found.endswith(" tokens")
    moved = [min(1.0, good.facts["depths"][0] + 0.2), *good.facts["depths"][1:]]
    (found,) = faults(task, tokenizer, good._replace(facts={**good.facts, "depths": moved}), LENGTH)
    assert found.startswith("needles behind")
    (found,) = faults(task, tokenizer, good._replace(references=("none",)), LENGTH)
    assert found == "not in the prompt: none"
    other = make("niah_multivalue", tokenizer, seed=1)
    assert check(task, other, tokenizer, LENGTH, samples=1).value == 1
    assert check(task, task, tokenizer, 64, samples=2).value == 2  # no room: an error is a failure
    told = capsys.readouterr()
    assert "another one when made again" in told.out + told.err
    assert "ValueError" in told.out + told.err
