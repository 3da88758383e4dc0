"""Training data from files, the model's own responses, and the commands on top of them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from support.tiny_model import random_modules, save_tiny_model, tiny_llama

from lookaheadkv_kernels.cli import main
from lookaheadkv_kernels.lookahead import load_modules, save_modules, training_record
from lookaheadkv_kernels.training.data import JsonlSamples, TextSamples, WithoutResponses
from lookaheadkv_kernels.training.recipe import Draft, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk."""
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def words(first: int, count: int) -> str:
    return " ".join(f"w{(first + i) % 90}" for i in range(count))


def test_jsonl_records_of_every_form(tmp_path: Path, tokenizer: Any) -> None:
    records = [
        {"prompt": "w0 w1", "response": "w2 </s>"},
        {"prompt": [{"role": "user", "content": "w3"}], "response": None},
        {"prompt_ids": [9, 8], "response_ids": [7]},
    ]
    samples = JsonlSamples(write_records(tmp_path / "data.jsonl", records), tokenizer)
    found = sorted(samples[index] for index in range(3))
    assert found == [([4, 9, 2, 5], None), ([6, 7], [8, 2]), ([9, 8], [7])]


def test_epochs_hold_every_record_in_orders_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    records = [{"prompt_ids": [number]} for number in range(20)]
    path = write_records(tmp_path / "data.jsonl", records)
    samples = JsonlSamples(path, tokenizer, seed=3)
    epochs = [[samples[20 * e + i].prompt_ids[0] for i in range(20)] for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # Random access, in another process's order, gives the same samples.
    again = JsonlSamples(path, tokenizer, seed=3)
    assert [again[i].prompt_ids[0] for i in (45, 3, 20)] == [
        epochs[2][5],
        epochs[0][3],
        epochs[1][0],
    ]


BAD_RECORDS = {
    '{"prompt": ': "no JSON: Expecting value at column 12",
    '["w1"]': 'no JSON object, but ["w1"]',
    '{"response": "w1"}': "no 'prompt' and no 'prompt_ids'",
    '{"prompt": " "}': "'prompt' is empty",
    '{"prompt": 7}': "'prompt' must be a text or a list of chat messages, got 7",
    '{"prompt": []}': "'prompt' has no chat message",
    '{"prompt": ["w1"]}': "'prompt' message 0 is no object, but \"w1\"",
    '{"prompt": [{"role": "user"}]}': "'prompt' message 0: 'content' must be a text, got null",
    '{"prompt": [{"content": "w1"}]}': "'prompt' message 0: 'role' must be a text, got null",
    '{"prompt": "\\ud800"}': "'prompt' is no text: surrogates not allowed",
    '{"prompt": "w1", "response": ""}': "'response' is empty",
    '{"prompt": "w1", "response": ["w2"]}': "'response' must be a text, or null, got [\"w2\"]",
    '{"prompt_ids": []}': "'prompt_ids' is empty",
    '{"prompt_ids": "w1"}': "'prompt_ids' must be a list of whole numbers, got \"w1\"",
    '{"prompt_ids": [1, 2.5]}': "'prompt_ids' must be a list of whole numbers, got [1, 2.5]",
    '{"prompt_ids": [7, 96]}': "'prompt_ids': token 96 is not one of the 96 known ones",
    '{"prompt": "w1", "response_ids": [-1]}': "'response_ids': token -1 is not one",
}


@pytest.mark.parametrize("line", BAD_RECORDS)
def test_a_bad_record_is_named_by_file_line_and_reason(
    tmp_path: Path, tokenizer: Any, line: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": "w1"}}\n\n{line}\n{{"prompt": "w2"}}\n')
    message = re.escape(f"{path}, line 3: {BAD_RECORDS[line]}")
    with pytest.raises(ValueError, match=message):
        JsonlSamples(path, tokenizer)


def test_bytes_that_are_no_text_are_named(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "w1"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: not UTF-8"):
        JsonlSamples(path, tokenizer)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no records"):
        JsonlSamples(path, tokenizer)


def test_a_chat_that_the_template_refuses_is_named(tmp_path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = write_records(tmp_path / "data.jsonl", [{"prompt": [{"role": "x", "content": "w1"}]}])
    with pytest.raises(ValueError, match=r"line 1: 'prompt': the chat template .* must alternate"):
        JsonlSamples(path, tokenizer)


def test_texts_give_prompts_and_what_follows(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text(words(0, 3000))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    samples = TextSamples(tmp_path, tokenizer, 5, lengths=(32, 128), max_response=16)
    for index in range(20):
        prompt, response = samples[index]
        assert 32 <= len(prompt) <= 128 and response is not None and len(response) == 16
        # Apart from a word cut at the start, the text counts on across the cut.
        whole = [*prompt, *response][1:]
        assert all((a - 5) % 90 == b - 6 for a, b in pairwise(whole))
    again = TextSamples(tmp_path, tokenizer, 5, lengths=(32, 128), max_response=16)
    assert again[7] == samples[7] != samples[8]
    assert WithoutResponses(samples)[7] == (samples[7].prompt_ids, None)


def test_texts_that_are_none(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no text"):
        TextSamples(tmp_path, tokenizer)
    (tmp_path / "short.txt").write_text("w1 w2")
    with pytest.raises(ValueError, match="too short"):
        TextSamples(tmp_path, tokenizer)
    (tmp_path / "short.txt").write_text("")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match="no text"):
        TextSamples(tmp_path, tokenizer)


def test_responses_are_the_models_and_go_on_after_a_crash(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"prompt": words(5 * i, 12), "topic": i} for i in range(4)]
    prompts = write_records(tmp_path / "prompts.jsonl", records)
    output = tmp_path / "out" / "responses.jsonl"
    command = ["generate-responses", "--model", str(folder), "--dtype", "float32"]
    command += ["--max-response", "5", str(prompts), str(output)]
    assert main(command) == 0
    whole = output.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["topic"] for line in lines] == [0, 1, 2, 3]
    assert all(1 <= len(line["response_ids"]) <= 5 for line in lines)
    # A crash in the middle of the third record.
    output.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"prompt_ids": [1')
    assert main(command) == 0
    assert output.read_text() == whole
    assert "2 responses" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["jsonl", "texts"])
def test_the_train_command_trains(tmp_path: Path, folder: Path, kind: str) -> None:
    if kind == "jsonl":
        data = write_records(
            tmp_path / "data.jsonl",
            [{"prompt": words(7 * i, 30), "response": words(i, 4)} for i in range(6)],
        )
    else:
        data = tmp_path / "texts"
        data.mkdir()
        (data / "a.txt").write_text(words(0, 2000))
    output = tmp_path / "run"
    command = ["train", "--model", str(folder), "--dtype", "float32", "--data", str(data)]
    command += ["--output", str(output), "--steps", "2", "--batch-size", "2"]
    command += ["--max-prompt", "40", "--max-response", "4", "--num-lookahead", "4"]
    assert main(command) == 0
    modules = load_modules(output)
    assert modules.config.num_lookahead == 4
    assert modules.config.lora_linears == (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    trained = json.loads((output / "config.json").read_text())["training"]
    assert trained["steps"] == 2 and trained["data"] == str(data)
    assert any(parameter.abs().sum() > 0 for parameter in modules.layers[0].parameters())


def test_kinds_of_samples_can_be_chosen(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learned: list[str] = []
    draft = Recipe.draft

    def noted(recipe: Recipe, index: int) -> Draft:
        learned.append(draft(recipe, index).kind)
        return draft(recipe, index)

    monkeypatch.setattr(Recipe, "draft", noted)
    command = ["train", "--model", str(folder), "--dtype", "float32", "--data", "recipe"]
    command += ["--output", str(tmp_path / "run"), "--steps", "2", "--batch-size", "3"]
    command += ["--max-prompt", "256", "--max-response", "4", "--num-lookahead", "4"]
    assert main([*command, "--kinds", "prose=1", "code=3"]) == 0
    assert set(learned) == {"prose", "code"}
    assert training_record(tmp_path / "run")["kinds"] == {"prose": 1, "code": 3}
    for wrong in ("prose", "prose=", "=1", "prose=0", "prose=nan", "prose=inf"):
        with pytest.raises(SystemExit):
            main([*command, "--kinds", wrong])
        assert "need KIND=SHARE with a share above 0" in capsys.readouterr().err


def test_training_goes_on_from_other_modules(tmp_path: Path, folder: Path) -> None:
    data = write_records(tmp_path / "data.jsonl", [{"prompt": words(3, 30), "response": "w1 w2"}])
    model = tiny_llama()
    start = random_modules(model, num_lookahead=3, lora_rank=2)
    save_modules(start, tmp_path / "start", training={"seed": 2, "earlier": [{"seed": 1}]})
    command = ["train", "--model", str(folder), "--dtype", "float32", "--data", str(data)]
    command += ["--init", str(tmp_path / "start"), "--output", str(tmp_path / "run")]
    command += ["--steps", "1", "--batch-size", "1", "--learning-rate", "1e-6"]
    assert main(command) == 0
    trained = load_modules(tmp_path / "run")
    assert trained.config == start.config
    assert training_record(tmp_path / "run")["earlier"] == [{"seed": 1}, {"seed": 2}]
    for ours, theirs in zip(trained.parameters(), start.parameters(), strict=True):
        # Adam's first step is at most the rate.
        assert 0 < (ours - theirs).abs().max() <= 1.1e-6 + 1e-7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--steps", "0"], "steps must be >= 1, got 0"),
        (["--lora-linears", "w_proj"], "w_proj"),
        (["--eval-every", "1"], "held-out"),
        (["--data", "recipe", "--kinds", "prose=1", "poetry=1"], "poetry"),
    ],
)
def test_the_train_command_refuses(
    tmp_path: Path,
    folder: Path,
    wrong: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_records(tmp_path / "data.jsonl", [{"prompt": "w1 w2"}])
    command = ["train", "--model", str(folder), "--output", str(tmp_path / "run")]
    assert main([*command, "--data", str(data), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_params_prints_the_papers_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows.pop("smollm2-135m") == ["2.4M", "1.75"]
    assert rows == {
        "llama-3.2-1b": ["5.4M", "0.44"],
        "llama-3.2-3b": ["11.9M", "0.37"],
        "llama-3.1-8b": ["20.6M", "0.26"],
        "qwen3-1.7b": ["8.5M", "0.49"],
        "qwen3-4b": ["16.2M", "0.40"],
        "qwen3-8b": ["21.5M", "0.26"],
    }
    assert main(["params", "gpt-2"]) == 2
    assert "unknown model 'gpt-2'" in capsys.readouterr().err
