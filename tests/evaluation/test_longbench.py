"""LongBench and LongProc: metrics by hand, prompts, truncation, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.eval_texts import PieceTokenizer, prose

from lookaheadkv_kernels.evaluation.longbench import TASK_NAMES, LongBenchTask
from lookaheadkv_kernels.evaluation.longbench.metrics import (
    METRICS,
    classification,
    code_similarity,
    count,
    qa_f1,
    retrieval,
    rouge_l,
)
from lookaheadkv_kernels.evaluation.longbench.prompts import MAX_NEW_TOKENS, PROMPTS
from lookaheadkv_kernels.evaluation.longproc import HtmlToTsv, row_f1

ANSWERS = {
    "passage_retrieval_en": "Paragraph 17",
    "passage_count": "17",
    "trec": "Human",
}


def write_records(folder: Path, name: str, words: int = 300) -> Path:
    """Two records as the published files have them."""
    records = [
        {
            "input": f"What is it, {number}?",
            "context": f"START {prose(words, number)} END",
            "answers": [ANSWERS.get(name, "The blue door"), ANSWERS.get(name, "door")],
            "length": words,
            "dataset": name,
            "language": "en",
            "all_classes": ["Human", "Location"] if name == "trec" else None,
            "_id": f"id{number}",
        }
        for number in range(2)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_all_sixteen_english_tasks_are_there() -> None:
    assert len(TASK_NAMES) == 16
    assert set(TASK_NAMES) == set(PROMPTS) == set(MAX_NEW_TOKENS) == set(METRICS)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_task_reads_its_file_and_scores_a_right_answer(tmp_path: Path, name: str) -> None:
    write_records(tmp_path, name)
    tokenizer = PieceTokenizer()
    task = LongBenchTask(name, tokenizer, tmp_path)
    assert task.num_samples == 2
    sample = task.sample(4096, 1)
    text = tokenizer.decode(sample.prompt_ids)
    chat = name not in ("trec", "triviaqa", "samsum", "lcc", "repobench-p")
    assert text.startswith("[user]") == chat == text.endswith("[assistant]")
    assert "START" in text and "END" in text
    shown = "{input}" in PROMPTS[name]
    assert ("What is it, 1?" in text) == shown
    assert task.score([sample.references[1]], sample) == pytest.approx(1, abs=1e-6)
    assert task.score([f"{sample.references[1]}\nHuman Location 3"], sample) == pytest.approx(
        {
            "passage_retrieval_en": 0.5,
            "passage_count": 0.5,
            "trec": 1,
            "triviaqa": 1,
            "samsum": 1,
            "lcc": 1,
            "repobench-p": 1,
        }.get(name, task.score([f"{sample.references[1]} human location 3"], sample)),
        abs=1e-6,
    )


@pytest.mark.parametrize("name", ["qasper", "lcc"])
def test_long_prompts_lose_their_middle(tmp_path: Path, name: str) -> None:
    write_records(tmp_path, name, words=3000)
    tokenizer = PieceTokenizer()
    task = LongBenchTask(name, tokenizer, tmp_path)
    sample = task.sample(1000, 0)
    assert 990 <= len(sample.prompt_ids) + sample.max_new_tokens <= 1001
    text = tokenizer.decode(sample.prompt_ids)
    assert "START" in text and "END" in text
    assert sample.facts["tokens_published"] > 3000
    with pytest.raises(ValueError, match=f"{name}: length must be at least"):
        task.sample(MAX_NEW_TOKENS[name] + 1, 0)


def test_qa_f1_by_hand() -> None:
    assert qa_f1("The blue door.", "a blue door") == 1
    # told: blue, wooden, door; true: blue, door -> precision 2/3, recall 1
    assert qa_f1("blue wooden door", "the Blue Door") == pytest.approx(0.8)
    assert qa_f1("nothing", "blue door") == 0
    assert qa_f1("", "blue door") == 0


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat", "the cat sat") == pytest.approx(1, abs=1e-7)
    # common subsequence "the sat" of 3 and 4 different words
    assert rouge_l("the dog sat", "the cat sat down") == pytest.approx(4 / 7, abs=1e-7)
    # Sentence by sentence: {a, b} and {c} are common, of 4 and 3 different words.
    assert rouge_l("a b x. c", "c. a b") == pytest.approx(2 * (3 / 4) / (7 / 4), abs=1e-7)
    # A word that is found twice counts once.
    assert rouge_l("a a a", "a a a b") == pytest.approx(2 / 3, abs=1e-7)
    assert rouge_l("", "a") == rouge_l("a", "...") == 0


def test_rouge_l_is_that_of_the_rouge_package() -> None:
    rouge = pytest.importorskip("rouge")
    import random

    rng, scorer = random.Random(0), rouge.Rouge()
    for _ in range(300):
        texts = [
            " ".join(
                rng.choice(["a", "b", "c", "d", "e", "the", "of"]) + rng.choice(["", "", ".", ". "])
                for _ in range(rng.randint(1, 25))
            )
            for _ in range(2)
        ]
        found = scorer.get_scores(*texts, avg=True)["rouge-l"]["f"]
        assert rouge_l(*texts) == pytest.approx(found, abs=1e-12)


def test_classification_by_hand() -> None:
    classes = ["Human", "Human group", "Location", "Entity"]
    assert classification("It is Location", "Location", classes) == 1
    assert classification("Location or Entity", "Location", classes) == 0.5
    assert classification("Location", "Entity", classes) == 0
    # "Human" is part of the right class and does not count against it.
    assert classification("Human group", "Human group", classes) == 1
    # It is named in its own right here: two classes are told.
    assert classification("Human group", "Human", classes) == 0.5


def test_numbers_by_hand() -> None:
    assert retrieval("Paragraph 3, or 4, or 3", "Paragraph 3") == pytest.approx(2 / 3)
    assert retrieval("none", "Paragraph 3") == 0
    assert count("There are 12", "12") == 1
    assert count("12 or 13", "12") == 0.5


def test_code_similarity_by_hand() -> None:
    assert code_similarity("```python\n# so\n    return x\nmore", "    return x") == 1
    # difflib: 2 * 3 / (4 + 3) = 0.857
    assert code_similarity("abcd", "abc") == 0.86
    assert code_similarity("# only a comment", "x") == 0


def test_bad_files_are_named_with_the_line(tmp_path: Path) -> None:
    path = write_records(tmp_path, "qasper")
    path.write_text(path.read_text() + "\n{broken\n")
    with pytest.raises(ValueError, match=r"qasper\.jsonl, line 4: "):
        LongBenchTask("qasper", PieceTokenizer(), tmp_path)
    path.write_text('{"input": "x", "context": "y"}\n')
    with pytest.raises(ValueError, match=r"qasper\.jsonl, line 1: no list 'answers'"):
        LongBenchTask("qasper", PieceTokenizer(), tmp_path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no records"):
        LongBenchTask("qasper", PieceTokenizer(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no lcc\.jsonl in"):
        LongBenchTask("lcc", PieceTokenizer(), tmp_path)
    with pytest.raises(ValueError, match="unknown LongBench task 'lsht'"):
        LongBenchTask("lsht", PieceTokenizer(), tmp_path)


TABLE = "name\tprice\nThe Lamp\t$5.00\nA chair\t7\nTable\t9"


def test_row_f1_by_hand() -> None:
    assert row_f1(f"```tsv\n{TABLE}\n```", TABLE) == 1
    # Order, case, articles, spaces and punctuation do not matter; the header is not looked at.
    assert row_f1("Name\tPrice\ntable\t9\nlamp\t$500\nCHAIR\t7", TABLE) == 1
    # 2 of 2 told rows are right, 2 of 3 were found
    assert row_f1("name\tprice\nLamp\t5.00\nchair\t7", TABLE) == pytest.approx(0.8)
    # A last line of other width is talk; another one in between is a wrong row.
    assert row_f1(f"{TABLE}\nThat is all.", TABLE) == 1
    assert row_f1("name\tprice\nLamp\t5.00\nchair\nTable\t9", TABLE) == pytest.approx(2 / 3)
    assert row_f1("I cannot do this.", TABLE) == 0
    assert row_f1("name\nlamp\nchair", TABLE) == 0


def write_longproc(folder: Path, **changes: Any) -> Path:
    """One page and its table."""
    (folder / "html_to_tsv" / "pages").mkdir(parents=True)
    (folder / "html_to_tsv" / "pages" / "a.html").write_text("<p>Lamp {5}</p>")
    record = {
        "task_id": "t1",
        "website_id": "w",
        "task_topic": "lamps",
        "task_description": "all of them",
        "gt": TABLE,
        "tsv_header": "name\tprice",
        "filtering_instruction": "",
        "html_path": "pages/a.html",
        **changes,
    }
    data = [{key: value for key, value in record.items() if value is not None}]
    (folder / "html_to_tsv" / "html_to_tsv_0.5k.json").write_text(json.dumps(data))
    (folder / "html_to_tsv" / "prompts.yaml").write_text(
        "USER_PROMPT: |\n  Tables of {task_topic}:\n  {html_str}\n  Header {tsv_header}.\n"
    )
    return folder


def test_longproc_reads_pages_and_prompts(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    tokenizer = PieceTokenizer()
    task = HtmlToTsv("html_to_tsv_0.5k", tokenizer, write_longproc(tmp_path))
    sample = task.sample(0, 0)
    text = tokenizer.decode(sample.prompt_ids)
    assert "Tables of lamps:\n<p>Lamp {5}</p>" in text
    assert sample.max_new_tokens == 1024 and task.num_samples == 1 and not task.lengths
    assert task.score([f"Here:\n```tsv\n{TABLE}\n```"], sample) == 1


def test_bad_longproc_files_are_named(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(ValueError, match=r"0\.5k\.json: record 0 has no text 'gt'"):
        HtmlToTsv("html_to_tsv_0.5k", PieceTokenizer(), write_longproc(tmp_path / "a", gt=None))
    gone = write_longproc(tmp_path / "b", html_path="no.html")
    with pytest.raises(FileNotFoundError, match=r"record 0: no page no\.html"):
        HtmlToTsv("html_to_tsv_0.5k", PieceTokenizer(), gone)
    lacking = write_longproc(tmp_path / "d", task_topic=None)
    with pytest.raises(ValueError, match=r"record 0 does not fill USER_PROMPT: .*task_topic"):
        HtmlToTsv("html_to_tsv_0.5k", PieceTokenizer(), lacking)
    folder = write_longproc(tmp_path / "c")
    (folder / "html_to_tsv" / "prompts.yaml").write_text("OTHER: x\n")
    with pytest.raises(ValueError, match=r"prompts\.yaml: no USER_PROMPT"):
        HtmlToTsv("html_to_tsv_0.5k", PieceTokenizer(), folder)
    (folder / "html_to_tsv" / "html_to_tsv_0.5k.json").write_text("[\n{\n")
    with pytest.raises(ValueError, match=r"0\.5k\.json, line 3"):
        HtmlToTsv("html_to_tsv_0.5k", PieceTokenizer(), folder)
