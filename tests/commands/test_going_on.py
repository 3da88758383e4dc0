"""Going on with what an earlier run left: what differs is named, and what is ahead is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from support.tiny_model import random_modules, save_tiny_model, save_tiny_modules, tiny_llama

from lookaheadkv_kernels import cli
from lookaheadkv_kernels._differences import differences
from lookaheadkv_kernels.commands.train import forecast
from lookaheadkv_kernels.lookahead import save_modules
from lookaheadkv_kernels.training.config import TrainingConfig
from lookaheadkv_kernels.training.data import JsonlSamples, WithoutResponses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    save_tiny_modules(folder / "modules")
    save_modules(random_modules(tiny_llama(), 5, num_lookahead=4, lora_rank=2), folder / "others")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def write_data(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


RECORDS: list[dict[str, Any]] = [
    {"prompt": "w1 w2 w3 w4 w5 w6", "response": "w7"},
    {"prompt": [{"role": "user", "content": "w8 w9"}]},
    {"prompt_ids": [9, 8, 7], "topic": "numbers"},
]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a run that has been made; its data and output are in its folder."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_data(folder / "data.jsonl", RECORDS)
    command = ["train", "--model", str(tiny), "--dtype", "float32", "--data", str(data)]
    command += ["--output", str(folder / "run"), "--steps", "2", "--batch-size", "2"]
    command += ["--max-response", "4", "--init", str(tiny / "modules")]
    assert cli.main(command) == 0
    return command


CHANGES = {
    "--steps": ("3", "steps was 2 and is 3 now"),
    "--batch-size": ("4", "batch_size was 2 and is 4 now"),
    "--learning-rate": ("0.5", "learning_rate was 0.001 and is 0.5 now"),
    "--warmup": ("0.5", "warmup was 0.02 and is 0.5 now"),
    "--clip": ("2", "clip was 1.0 and is 2.0 now"),
    "--max-prompt": ("40", "max_prompt was 16384 and is 40 now"),
    "--max-response": ("5", "max_response was 4 and is 5 now"),
    "--seed": ("1", "seed was 0 and is 1 now"),
    "--checkpointing": (None, "checkpointing was False and is True now"),
    "--responses": ("model", "responses was 'data' and is 'model' now"),
    "--dtype": ("bfloat16", "dtype was 'float32' and is 'bfloat16' now"),
    "--data": ("MORE", "data_sha256 was '"),
    "--init": ("OTHERS", "init_sha256 was '"),
}


@pytest.mark.parametrize("option", CHANGES)
def test_a_changed_argument_of_train_is_named_with_a_way_out(
    option: str, tiny: Path, trained: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    value, message = CHANGES[option]
    if value == "MORE":
        value = str(write_data(tmp_path / "more.jsonl", [*RECORDS, *RECORDS]))
    if value == "OTHERS":
        value = str(tiny / "others")
    assert cli.main([*trained, option, *([] if value is None else [value])]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    run = Path(trained[trained.index("--output") + 1])
    assert f"--init {run / 'step-000002'} and another --output" in errors
    assert "1000" not in errors  # of what did not change, nothing is said


def test_the_way_out_leads_on_and_when_to_save_may_change(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*trained, "--checkpoint-every", "1", "--checkpoint-minutes", "3"]) == 0
    assert "going on from" in capsys.readouterr().err
    run = Path(trained[trained.index("--output") + 1])
    more = ["--init", str(run / "step-000002"), "--output", str(tmp_path), "--steps", "1"]
    assert cli.main([*trained, *more]) == 0
    record = json.loads((tmp_path / "config.json").read_text())["training"]
    assert [earlier.get("steps") for earlier in record["earlier"]] == [None, 2]


def test_sizes_of_modules_are_named_too(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data.jsonl", RECORDS)
    command = ["train", "--model", str(tiny), "--dtype", "float32", "--data", str(data)]
    command += ["--output", str(tmp_path / "run"), "--steps", "1", "--batch-size", "1"]
    command += ["--max-response", "4", "--lora-rank", "2"]
    assert cli.main(command) == 0
    changed = ["--lora-rank", "3", "--num-lookahead", "5", "--lora-linears", "q_proj"]
    assert cli.main([*command, *changed]) == 2
    errors = capsys.readouterr().err
    assert "num_lookahead was 32 and is 5 now; lora_rank was 2 and is 3 now" in errors
    assert "lora_linears was ['q_proj', " in errors and "hidden_size" not in errors


def test_a_damaged_checkpoint_is_named_before_the_model_is_loaded(
    tiny: Path, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(trained[trained.index("--output") + 1])
    for name in ("state.json", "config.json"):
        copy = tmp_path / name / "step-000002"
        copy.mkdir(parents=True)
        for path in (run / "step-000002").iterdir():
            content = path.read_bytes()
            (copy / path.name).write_bytes(content[:9] if path.name == name else content)
        assert cli.main([*trained, "--output", str(copy.parent)]) == 2
        assert f"{copy / name} is damaged" in capsys.readouterr().err


def answer(tiny: Path, prompts: Path, output: Path, *more: str) -> list[str]:
    command = ["generate-responses", "--model", str(tiny), "--dtype", "float32"]
    return [*command, "--max-response", "4", str(prompts), str(output), *more]


def test_responses_are_there_as_text_and_as_tokens(
    tiny: Path, tokenizer: Any, tmp_path: Path
) -> None:
    prompts, output = write_data(tmp_path / "prompts.jsonl", RECORDS), tmp_path / "out.jsonl"
    assert cli.main(answer(tiny, prompts, output)) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line, record in zip(lines, RECORDS, strict=True):
        assert line["response"] == tokenizer.decode(line["response_ids"], skip_special_tokens=True)
        assert line["prompt"] == record.get("prompt", "w3 w2 w1")
        assert line["response_ids"] and line["prompt_ids"]
    assert lines[2]["topic"] == "numbers" and lines[2]["prompt_ids"] == [9, 8, 7]
    samples = JsonlSamples(output, tokenizer)  # what `train` reads: the tokens, as they were
    assert samples.unanswered == 0
    found = sorted((samples[i].prompt_ids, samples[i].response_ids) for i in range(3))
    assert found == sorted((line["prompt_ids"], line["response_ids"]) for line in lines)


def test_changed_arguments_of_generate_responses_are_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, output = write_data(tmp_path / "prompts.jsonl", RECORDS), tmp_path / "out.jsonl"
    assert cli.main(answer(tiny, prompts, output)) == 0
    before = output.read_bytes()
    assert cli.main(answer(tiny, prompts, output)) == 0  # all is there: nothing to do
    assert "0 responses written" in capsys.readouterr().out
    for more, message in (
        (["--max-response", "3"], "max_response was 4 and is 3 now"),
        (["--dtype", "bfloat16"], "dtype was 'float32' and is 'bfloat16' now"),
    ):
        assert cli.main(answer(tiny, prompts, output, *more)) == 2
        errors = capsys.readouterr().err
        assert message in errors and "--overwrite" in errors
    write_data(prompts, RECORDS[:2])
    assert cli.main(answer(tiny, prompts, output)) == 2
    assert "prompts_sha256 was '" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert cli.main(answer(tiny, prompts, output, "--overwrite")) == 0
    assert output.read_bytes() == b"".join(before.splitlines(keepends=True)[:2])


def test_what_the_data_mean_is_told_before_the_run(tokenizer: Any, tmp_path: Path) -> None:
    path = write_data(tmp_path / "data.jsonl", RECORDS)
    samples = JsonlSamples(path, tokenizer)
    config = TrainingConfig(steps=30, batch_size=4, max_prompt=400, max_response=8)
    first, batch, missing = forecast(samples, config, 512)
    assert first == "steps: 30, of 4 samples; 120 in all, 40 times the 3 records"
    assert batch.startswith("a batch of 4 is larger than the data: every step sees some of the 3")
    assert missing.startswith("2 of 3 responses are missing")
    assert "about 80 of up to 8 tokens in this run" in missing
    assert "`lookaheadkv generate-responses` writes each of them once" in missing
    answered = JsonlSamples(write_data(tmp_path / "one.jsonl", RECORDS[:1]), tokenizer)
    small = TrainingConfig(steps=30, batch_size=1, max_prompt=400, max_response=8)
    assert len(forecast(answered, small, 512)) == 1
    (_, all_missing) = forecast(WithoutResponses(answered), small, None)
    assert all_missing.startswith("1 of 1 responses are missing")
    (_, room) = forecast(answered, small, 300)
    assert "allow 408 tokens, but the model was made for 300" in room


def test_the_forecast_is_printed_and_the_logger_is_left_as_it_was(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("lookaheadkv_kernels")
    before = (list(logger.handlers), logger.level)
    assert cli.main(trained) == 0
    assert "2 of 3 responses are missing" in capsys.readouterr().err
    assert (list(logger.handlers), logger.level) == before


def test_differences_by_hand() -> None:
    old = {"a": 1, "b": [1, 2], "c": None, "gone": "x", "free": 3}
    new = {"a": 2, "b": (1, 2), "d": 0.5, "free": 4}
    assert differences(old, new, free=["free"]) == [
        "a was 1 and is 2 now",
        "gone was 'x' and is not given now",
        "d was not given and is 0.5 now",
    ]
