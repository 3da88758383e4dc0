"""MT-Bench: two turns, the judge's prompts, ratings, an endpoint on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.eval_texts import PieceTokenizer

from lookaheadkv_kernels.evaluation.judge import EndpointJudge
from lookaheadkv_kernels.evaluation.mtbench import MtBench, judge_messages, rating


def write_questions(folder: Path) -> Path:
    """One question of taste, and one with a known answer."""
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Write again."]},
        {
            "question_id": 111,
            "category": "math",
            "turns": ["2+2?", "And 3+3?"],
            "reference": ["4", "6"],
        },
    ]
    (folder / "question.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder


class Endpoint:
    """Answers chat completions with what is queued, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[tuple[int, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.asked.append({"path": self.path, **json.loads(body)})
                endpoint.keys.append(self.headers.get("Authorization"))
                status, answer = endpoint.answers.pop(0)
                if isinstance(answer, str):
                    answer = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server of this test's own."""
    found = Endpoint()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def test_two_turns_are_asked_and_rated(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    tokenizer = PieceTokenizer()
    judge = EndpointJudge(endpoint.url + "/", "judge-1")
    task = MtBench(tokenizer, write_questions(tmp_path), judge)
    assert task.num_samples == 2 and task.source()["judge"] == "judge-1"
    sample = task.sample(0, 0)
    assert tokenizer.decode(sample.prompt_ids) == "[user]Write.[/][assistant]"
    second = task.follow_up(sample, ["First."])
    assert second is not None
    assert tokenizer.decode(second) == (
        "[user]Write.[/][assistant]First.[/][user]Write again.[/][assistant]"
    )
    assert task.follow_up(sample, ["First.", "Second."]) is None
    endpoint.answers = [(200, "Good. Rating: [[8]]"), (503, {}), (200, "So so. [[5.5]]")]
    assert task.score(["First.", "Second."], sample) == pytest.approx((8 + 5.5) / 2 / 10)
    first, failed, again = endpoint.asked  # a failing server is asked again
    assert failed == again and first["path"] == "/v1/chat/completions"
    assert first["model"] == "judge-1" and first["temperature"] == 0
    assert endpoint.keys == ["Bearer not-a-key"] * 3
    assert "[The Start of Assistant's Answer]\nFirst.\n" in first["messages"][1]["content"]
    assert "### User:\nWrite again.\n\n### Assistant A:\nSecond." in again["messages"][1]["content"]


def test_known_answers_go_to_the_judge(tmp_path: Path) -> None:
    asked: list[Any] = []

    def judge(messages: Any) -> str:
        asked.append(messages)
        return "no rating"

    task = MtBench(PieceTokenizer(), write_questions(tmp_path), judge)
    sample = task.sample(0, 1)
    assert sample.references == ("4", "6")
    assert task.score(["4", "7"], sample) is None
    one, two = asked
    assert "[The Start of Reference Answer]\n4\n[The End" in one[1]["content"]
    assert "### Reference answer:\n6" in two[1]["content"]
    assert "comparing the assistant's answer with the reference" in two[0]["content"]
    (tmp_path / "reference_answer").mkdir()
    (tmp_path / "reference_answer" / "gpt-4.jsonl").write_text(
        json.dumps({"question_id": 111, "choices": [{"turns": ["four", "six"]}]})
    )
    again = MtBench(PieceTokenizer(), tmp_path, judge)
    assert again.sample(0, 1).references == ("four", "six")
    assert again.sample(0, 0).references == ()


def test_prompts_without_a_reference_ask_for_quality() -> None:
    (system, user) = judge_messages(["Q"], ["A"], [])
    assert system["content"] == "You are a helpful assistant."
    assert "helpfulness, relevance, accuracy" in user["content"]
    assert user["content"].endswith("A\n[The End of Assistant's Answer]")


def test_ratings_by_hand() -> None:
    assert rating("Rating: [[7]]") == 7
    assert rating("Rating: [7.5] of 10") == 7.5
    assert rating("[[11]] or nothing") is None
    assert rating("seven") is None


def test_refusals_are_named(endpoint: Endpoint) -> None:
    judge = EndpointJudge(endpoint.url, "m")
    endpoint.answers = [(401, {"error": "no key"})]
    with pytest.raises(ValueError, match=r"401 .*no key"):
        judge([])
    endpoint.answers = [(200, {"choices": []})]
    with pytest.raises(ValueError, match="no chat completion"):
        judge([])
    endpoint.answers = [(500, {})] * 3
    with pytest.raises(ConnectionError, match="500"):
        judge([])
    with pytest.raises(ValueError, match="must be http"):
        EndpointJudge("file:///etc", "m")


def test_bad_questions_are_named(tmp_path: Path) -> None:
    (tmp_path / "question.jsonl").write_text('{"turns": ["a"]}\n{"turns": "b"}\n')
    with pytest.raises(ValueError, match=r"question\.jsonl, line 2: no list of texts 'turns'"):
        MtBench(PieceTokenizer(), tmp_path, lambda messages: "")
    with pytest.raises(FileNotFoundError):
        MtBench(PieceTokenizer(), tmp_path / "none", lambda messages: "")
