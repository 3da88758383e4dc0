"""RULER: lengths, needles, reproducibility, metrics, files."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.eval_texts import PieceTokenizer, prose, write_hotpotqa, write_squad

from lookaheadkv_kernels.evaluation.ruler import (
    SYNTHETIC_TASKS,
    TASK_NAMES,
    Essay,
    RulerTask,
    essay_file,
    string_match_all,
    string_match_part,
)
from lookaheadkv_kernels.evaluation.ruler.draft import largest_fitting
from lookaheadkv_kernels.evaluation.ruler.qa import read_hotpotqa, read_squad
from lookaheadkv_kernels.evaluation.ruler.tracking import FweDraft
from lookaheadkv_kernels.evaluation.task import Sample

LENGTH = 1024
ESSAY = Essay("made up", prose(4000))


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., RulerTask]:
    """A task by name; all share a tokenizer."""
    tokenizer = PieceTokenizer()

    def make(name: str, seed: int = 3) -> RulerTask:
        corpus = None
        if name == "qa_1":
            corpus = read_squad(write_squad(tmp_path / "squad.json", articles=40))
        if name == "qa_2":
            corpus = read_hotpotqa(write_hotpotqa(tmp_path / "hotpot.json", questions=110))
        made = RulerTask(name, tokenizer, seed=seed, essay=ESSAY, corpus=corpus)
        made.decode = tokenizer.decode  # type: ignore[attr-defined]
        return made

    return make


def text_of(task: RulerTask, sample: Sample) -> str:
    return task.decode(sample.prompt_ids)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_hundred_samples_hit_their_length_and_can_be_answered(
    task: Callable[..., RulerTask], name: str
) -> None:
    made = task(name)
    for index in range(100):
        sample = made.sample(LENGTH, index)
        total = len(sample.prompt_ids) + sample.max_new_tokens
        assert 0.98 * LENGTH <= total <= LENGTH
        assert made.score([" ".join(sample.references)], sample) == 1.0
        assert made.score(["I do not know."], sample) == 0.0
        context = text_of(made, sample)
        assert name.startswith("qa") or all(word in context for word in sample.references)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_sample_depends_on_task_seed_length_and_number_alone(
    task: Callable[..., RulerTask], name: str
) -> None:
    made, again = task(name), task(name)
    third = made.sample(LENGTH, 3)
    again.sample(LENGTH, 0)
    assert text_of(again, again.sample(LENGTH, 3)) == text_of(made, third)
    others = [
        text_of(made, made.sample(LENGTH, 4)),
        text_of(again, task(name, seed=4).sample(LENGTH, 3)),
        text_of(made, made.sample(LENGTH + 200, 3)),
    ]
    assert text_of(made, third) not in others


@pytest.mark.parametrize("name", [n for n in SYNTHETIC_TASKS if n.startswith("niah")])
def test_needles_stand_at_their_depths(task: Callable[..., RulerTask], name: str) -> None:
    made = task(name)
    for index in range(5):
        sample = made.sample(2048, index)
        text = text_of(made, sample)
        context = text[text.index("afterwards.\n") : text.rindex("\nWhat ")]
        kinds = "uuids" if name in ("niah_single_3", "niah_multikey_3") else "numbers"
        found = list(re.finditer(f"One of the special magic {kinds} for ([^ ]+) is: ", context))
        asked = {key for key in re.split(r",? and |, ", sample.facts["query"])}
        of_asked = [m for m in found if m[1] in asked]
        assert len(of_asked) == len(sample.references)
        if name in ("niah_multikey_2", "niah_multikey_3"):
            assert len(found) > 10
            assert len({m[1] for m in found} - asked) > 5
        else:
            wanted = 4 if name.startswith("niah_multi") else 1
            assert len(found) == wanted
            places = [m.start() / len(context) for m in found]
            assert places == pytest.approx(sample.facts["depths"], abs=0.12)
        single = len(sample.references) == 1
        assert ("What is the special magic" in text) == single
        assert text.endswith("in the provided text " + ("is" if single else "are"))


def test_a_chain_is_assigned_in_order(task: Callable[..., RulerTask]) -> None:
    made = task("vt")
    sample = made.sample(LENGTH, 0)
    names = sample.references
    text = text_of(made, sample)
    places = [text.index(f"VAR {names[0]} = {sample.facts['value']}")]
    for before, name in itertools.pairwise(names):
        places.append(text.index(f"VAR {name} = VAR {before}"))
    assert places == sorted(places)
    assert text.count("Question: Find all variables") == 2  # the worked example, and the question
    assert all(len(name) == 5 for name in names)


@pytest.mark.parametrize(("length", "repeats"), [(1024, (6, 1)), (6000, (30, 3))])
def test_common_words_are_the_most_common(
    task: Callable[..., RulerTask], length: int, repeats: tuple[int, int]
) -> None:
    made = task("cwe")
    sample = made.sample(length, 1)
    listed = text_of(made, sample).rsplit("Below is", 1)[1]
    counts = Counter(re.findall(r"\d+\. ([a-z]+)", listed))
    assert {counts[word] for word in sample.references} == {repeats[0]}
    assert {n for word, n in counts.items() if word not in sample.references} == {repeats[1]}


def test_frequent_words_follow_the_zeta_distribution() -> None:
    import random

    draft = FweDraft(random.Random(0), LENGTH)
    counts = Counter(draft.text(500).user.split("coded words. ")[1].split("\n")[0].split())
    # 500 / (k^2 * pi^2 / 6), rounded down
    assert [n for _, n in counts.most_common(4)] == [303, 75, 33, 18]
    assert [word for word, _ in counts.most_common(4)] == ["...", *draft.references]


@pytest.mark.parametrize("steep", [1, 3, 40])
def test_the_largest_size_that_fits_is_found_in_few_steps(steep: int) -> None:
    calls = 0

    def count(size: int) -> int:
        nonlocal calls
        calls += 1
        return 50 + steep * size + size % 3

    for limit in (51 + steep, 1000, 30_000):
        calls = 0
        size = largest_fitting(count, limit, 0, None, 7)
        assert calls <= 12
        assert count(size) <= limit < count(size + 1)
    assert largest_fitting(count, 30_000, 0, 5, 7) == 5
    with pytest.raises(ValueError, match="50"):
        largest_fitting(count, 40, 0, None, 7)


def test_metrics_by_hand() -> None:
    references = ["AbC", "1234567"]
    assert string_match_all("abc and 7654321", references) == 0.5
    assert string_match_part("abc and 7654321", references) == 1.0
    assert string_match_part("nothing", references) == 0.0
    assert string_match_all("x\x00ABC\x001234567", references) == 1.0


def test_too_short_a_length_is_named(task: Callable[..., RulerTask]) -> None:
    with pytest.raises(ValueError, match=r"vt: sample 0 takes \d+ tokens"):
        task("vt").sample(100, 0)
    with pytest.raises(ValueError, match="haystack are all there are"):
        RulerTask("cwe", PieceTokenizer(), seed=0, essay=Essay("tiny", prose(1000))).sample(
            200_000, 0
        )
    with pytest.raises(ValueError, match="unknown RULER task 'niah'"):
        RulerTask("niah", PieceTokenizer(), seed=0)
    with pytest.raises(ValueError, match="qa_1: questions are missing"):
        RulerTask("qa_1", PieceTokenizer(), seed=0)
    with pytest.raises(IndexError, match="qa_1 has 120 samples"):
        task("qa_1").sample(LENGTH, 120)


def test_bad_files_are_named_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text('{"data": [\n{"paragraphs": [}]}')
    with pytest.raises(ValueError, match=r"squad\.json, line 2"):
        read_squad(path)
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "c"}]}]}))
    with pytest.raises(ValueError, match=r"data\[0\]\.paragraphs\[0\] has no list 'qas'"):
        read_squad(path)
    path.write_text('{"data": []}')
    with pytest.raises(ValueError, match="holds no question"):
        read_squad(path)
    hotpot = tmp_path / "hotpot.json"
    hotpot.write_text(json.dumps([{"question": "q", "answer": "a", "context": [["t"]]}]))
    with pytest.raises(ValueError, match=r"hotpot\.json: \[0\]\.context"):
        read_hotpotqa(hotpot)
    essay = tmp_path / "essay.txt"
    essay.write_bytes(b"One.\nTwo \xff")
    with pytest.raises(ValueError, match=r"essay\.txt, line 2: not UTF-8"):
        essay_file(essay)
    essay.write_text("Too short.")
    with pytest.raises(ValueError, match="is no haystack: 2 words"):
        essay_file(essay)
    with pytest.raises(FileNotFoundError):
        read_squad(tmp_path / "none.json")
