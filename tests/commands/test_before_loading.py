"""What cannot work is said before the model is loaded, in one line, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import huggingface_hub.constants
from support.tiny_model import random_modules, save_tiny_model, save_tiny_modules, tiny_llama

from lookaheadkv_kernels import cli
from lookaheadkv_kernels.integrations.transformers import loading
from lookaheadkv_kernels.lookahead import save_modules


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder)
    save_tiny_modules(folder / "modules")
    other = tiny_llama(num_hidden_layers=2)
    save_modules(random_modules(other, num_lookahead=4, lora_rank=2), folder / "other")
    (folder / "other" / "notes.txt").write_text("w1")
    (folder / "damaged").mkdir()
    for path in (folder / "modules").iterdir():
        content = path.read_bytes()
        (folder / "damaged" / path.name).write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with data of all kinds."""
    good = {"prompt": "w1 w2", "response": "w3"}
    lines = {
        "good": [good, {"prompt": "w1 w2 w3"}],
        "bad": [good, {"prompt": ""}],
        "long": [{"input": "w1", "context": "w2 " * 600, "answers": ["w3"]}],
        "question": [{"turns": ["w1 " * 600]}],
    }
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "hotpotqa.jsonl").write_text((tmp_path / "long.jsonl").read_text())
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text(" ".join(f"w{n % 90}" for n in range(80)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models whose weights were read: none may be."""
    names: list[str] = []

    def load(name: str, **options: Any) -> Any:
        names.append(name)
        raise AssertionError(f"{name} is loaded before all is checked")

    monkeypatch.setattr(loading, "load", load)
    return names


TRAIN = "train --output run"
ANSWER = "generate-responses"
EVAL = "eval --output run --task fwe --length 300 --policy snapkv"
INSPECT = "inspect --output page.html --policy snapkv --budget 40"
# Two models, and what they lack.
MODEL, OTHER = "--model MODEL", "--model other"
WRONG = {
    f"{TRAIN} --data good.jsonl --model nowhere/at-all": "nowhere/at-all",
    f"{TRAIN} --data good.jsonl {MODEL} --device gpu": "got 'gpu'",
    f"{TRAIN} --data good.jsonl {MODEL} --device cuda:77": "device 'cuda:77' is not there",
    f"{TRAIN} --data none.jsonl {MODEL}": "none.jsonl",
    f"{TRAIN} --data bad.jsonl {MODEL}": "bad.jsonl, line 2: 'prompt' is empty",
    f"{TRAIN} --data empty {MODEL}": "empty holds no text",
    f"{TRAIN} --data MODEL/other {MODEL}": "too short",
    f"{TRAIN} --data good.jsonl {MODEL} --kinds prose=1": "--kinds needs --data recipe",
    f"{TRAIN} --data recipe {MODEL} --skew 0": "skew must be > 0, got 0.0",
    f"{TRAIN} --data recipe {MODEL} --max-prompt 60": "min_tokens <= max_tokens",
    f"{TRAIN} --data good.jsonl {MODEL} --init none": "no lookahead modules 'none'",
    f"{TRAIN} --data good.jsonl {MODEL} --init MODEL/other": "is for another model",
    f"{TRAIN} --data good.jsonl {MODEL} --init MODEL/damaged": "damaged",
    f"{TRAIN} --data good.jsonl {MODEL} --init MODEL/modules --lora-rank 3": (
        "--lora-rank 3 with --init MODEL/modules, whose modules have 2"
    ),
    f"{TRAIN} --data good.jsonl {MODEL} --lora-rank 0": "lora_rank must be a whole number >= 1",
    f"{TRAIN} --data good.jsonl {MODEL} --lora-linears w_proj": "got 'w_proj'",
    f"{TRAIN} --data good.jsonl {MODEL} --learning-rate nan": "learning_rate must be > 0, got nan",
    f"{TRAIN} --data good.jsonl {MODEL} --clip 0": "clip must be > 0, got 0.0",
    f"{TRAIN} --data good.jsonl {MODEL} --checkpoint-minutes -1": "checkpoint_minutes must be >= 0",
    f"{TRAIN} --data good.jsonl {MODEL} --eval-every -2": "eval_every must be >= 0, got -2",
    f"{TRAIN} --data recipe {MODEL} --eval-every 1 --eval-samples 0": "eval_samples must be >= 1",
    f"{TRAIN} --data good.jsonl {MODEL} --threads -1": "threads must be >= 0, got -1",
    f"train --output text.txt --data good.jsonl {MODEL}": "output must be a folder",
    f"{ANSWER} none.jsonl out.jsonl {MODEL}": "none.jsonl",
    f"{ANSWER} bad.jsonl out.jsonl {MODEL}": "bad.jsonl, line 2: 'prompt' is empty",
    f"{ANSWER} good.jsonl good.jsonl {MODEL}": "output must be another file than the prompts",
    f"{ANSWER} good.jsonl good.jsonl {MODEL} --overwrite": "output must be another file",
    f"{ANSWER} good.jsonl empty {MODEL}": "output must be a file, got the folder empty",
    f"{ANSWER} good.jsonl text.txt {MODEL}": "another program wrote it",
    f"{ANSWER} good.jsonl out.jsonl {MODEL} --max-response 0": "max_response must be >= 1, got 0",
    f"{EVAL} {MODEL} --task nih": "unknown task 'nih'",
    f"{EVAL} {MODEL} --task qa_1": "task qa_1 needs --squad",
    f"{EVAL} {MODEL} --task qa_2 --hotpotqa none.json": "none.json",
    f"{EVAL} {MODEL} --task qasper --longbench empty": "no qasper.jsonl",
    f"{EVAL} {MODEL} --haystack none.txt": "none.txt",
    f"{EVAL} {MODEL} --haystack text.txt": "is no haystack",
    f"{EVAL} {MODEL} --length 20": "length must be larger than 20",
    f"{EVAL} {MODEL} --length 600": "the model has 512 positions",
    f"{EVAL} {MODEL} --length 0": "length must be >= 1, got 0",
    f"{EVAL} {MODEL} --task hotpotqa --longbench . --length 700": "the model has 512 positions",
    f"{EVAL} {MODEL} --samples 0": "samples must be >= 1",
    f"{EVAL} {MODEL} --together 0": "together must be >= 1",
    f"{EVAL} {MODEL} --chunk 0": "chunk must be >= 1",
    f"{EVAL} {MODEL} --threads -1": "threads must be >= 0",
    f"{EVAL} {MODEL} --budget 1.5": "budget as a ratio must be in",
    f"{EVAL} {MODEL} --budget 16": "budget 16 keeps 16",
    f"{EVAL} {MODEL} --budget 0.05": "but policy snapkv keeps 32 in any case",
    f"{EVAL} {MODEL} --policy h2o --budget 8": "but policy h2o keeps 32 in any case",
    f"{EVAL} {MODEL} --policy laq --budget 8": "but policy laq keeps 32 in any case",
    f"{EVAL} {MODEL} --shard 2/2": "shard must be i/n with 0 <= i < n",
    f"{EVAL} {MODEL} --policy lookahead --weights none": "no lookahead modules 'none'",
    f"{EVAL} {MODEL} --policy lookahead --weights MODEL/other": "the model is",
    f"{EVAL} {MODEL} --policy speckv": "needs --draft-model",
    f"{EVAL} {MODEL} --policy speckv --draft-model nowhere/at-all": "nowhere/at-all",
    f"{EVAL} {MODEL} --task mtbench --mtbench .": "mtbench needs a judge",
    f"{EVAL} {MODEL} --judge-url http://127.0.0.1:9/v1": "--judge-url needs --judge-model",
    f"{EVAL} {MODEL} --judge-model nowhere/at-all": "nowhere/at-all",
    f"{EVAL} {MODEL} --budget 64 --judge-url http://127.0.0.1:9/v1 --judge-model j": "127.0.0.1:9",
    f"{EVAL} {MODEL} --task mtbench --mtbench . --budget 64 --judge-model MODEL": "512 positions",
    f"{INSPECT} {MODEL} --prompt-file none.txt": "none.txt",
    f"{INSPECT} {MODEL} --task ruler": "task ruler is a group",
    f"{INSPECT} {MODEL} --task fwe --sample -1": "sample must be >= 0, got -1",
    f"{INSPECT} {MODEL} --task fwe --length 20": "length must be larger than 20",
    f"{INSPECT} {MODEL} --task fwe --length 900": "the model has 512 positions",
    f"{INSPECT} {MODEL} --prompt-file text.txt --budget 8": "but policy snapkv keeps 32",
    f"{INSPECT} {MODEL} --prompt-file text.txt --mark w99": "does not contain 'w99'",
    f"{INSPECT} {MODEL} --prompt-file text.txt --policy lookahead --weights none": "'none'",
    f"{INSPECT} {MODEL} --prompt-file text.txt --chunk 0": "chunk must be >= 1",
    f"{INSPECT} {MODEL} --prompt-file text.txt --png empty": "got the folder empty",
    f"inspect --output empty {MODEL} --prompt w1": "got the folder empty",
    "params llama-3.1-8b gpt-2": "unknown model 'gpt-2'",
    "params --lora-rank 0": "lora_rank must be a whole number >= 1, got 0",
    "ttft --plot figure.pdf": "plot must end in .png or .svg, got 'figure.pdf'",
    "ttft --model nowhere/at-all": "nowhere/at-all",
    "ttft --context 0": "0",
    "ttft --hardware abacus": "abacus",
}


@pytest.mark.parametrize("command", WRONG)
def test_what_cannot_work_is_said_first(
    command: str,
    tiny: Path,
    files: Path,
    loaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    words = [word.replace("MODEL", str(tiny)) for word in command.split()]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert f"lookaheadkv {words[0]}: " in captured.err
    assert WRONG[command].replace("MODEL", str(tiny)) in captured.err
    assert "Traceback" not in captured.err and not captured.out and not loaded
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command", [f"{TRAIN} --data good.jsonl", f"{EVAL} --budget 64", "ttft --plot figure.png"]
)
def test_a_package_that_is_needed_at_the_end_is_asked_for_first(
    command: str,
    tiny: Path,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    model = [] if command.startswith("ttft") else ["--model", str(tiny)]
    assert cli.main([*command.split(), *model]) == 2
    assert "matplotlib is missing: pip install 'lookaheadkv-kernels[" in capsys.readouterr().err


def test_a_server_that_answers_anything_is_there() -> None:
    from lookaheadkv_kernels.evaluation.judge import EndpointJudge

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Nothing)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    judge = EndpointJudge(f"http://127.0.0.1:{server.server_port}/v1", "judge")
    judge.check()
    server.shutdown()
    thread.join()
    server.server_close()
    with pytest.raises(ConnectionError, match="chat/completions") as caught:
        judge.check()
    assert isinstance(caught.value.__cause__, urllib.error.URLError)
