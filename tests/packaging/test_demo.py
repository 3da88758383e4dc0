"""The demo's parts, the whole of it on a random model, and on the real one (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the demo's packages are not installed")
pytest.importorskip("rich", reason="the demo's packages are not installed")
pytest.importorskip("matplotlib", reason="the demo's packages are not installed")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
sys.path += [str(EXAMPLES), str(ROOT)]

import demo  # noqa: E402
from demo_chat import Answer, Chat  # noqa: E402
from demo_picture import write_pictures  # noqa: E402
from demo_prompt import FACTS, Needle, build_haystack, prose_paragraphs  # noqa: E402
from demo_report import print_report  # noqa: E402
from demo_run import (  # noqa: E402
    FULL,
    LEAST_REST,
    LOOKAHEAD,
    SNAPKV,
    STREAMING,
    Asked,
    Options,
    Result,
    Run,
    common_prefix,
    run_demo,
)
from demo_verify import (  # noqa: E402
    Agreement,
    CheckedLookahead,
    CheckedSnapKV,
    CheckedStreamingLLM,
    Checks,
    compare,
    count_common,
)
from rich.console import Console  # noqa: E402
from support.tiny_model import tiny_llama  # noqa: E402

from lookaheadkv_kernels.integrations.transformers import Eviction  # noqa: E402
from lookaheadkv_kernels.integrations.transformers.loading import packaged_gguf  # noqa: E402
from lookaheadkv_kernels.integrations.transformers.weights import packaged_names  # noqa: E402
from lookaheadkv_kernels.lookahead import (  # noqa: E402
    LookaheadConfig,
    LookaheadModules,
    ModelShape,
)
from lookaheadkv_kernels.policies import FullCache, Kept, LayerCall, Policy  # noqa: E402
from lookaheadkv_kernels.visual import Selection  # noqa: E402


def count_words(text: str) -> int:
    return len(text.split())


class Bytes:
    """A tokenizer whose tokens are the text's bytes."""

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(text.encode()))

    def decode(self, ids: Any, **options: Any) -> str:
        return bytes(int(i) for i in ids).decode("utf-8", errors="replace")

    def apply_chat_template(self, chat: list[dict[str, str]], **options: Any) -> str:
        return f"<user>{chat[0]['content']}</user><assistant>"


@pytest.fixture
def chat() -> Chat:
    model = tiny_llama(
        vocab_size=256,
        num_hidden_layers=2,
        max_position_embeddings=2048,
        initializer_range=0.02,
    )
    return Chat(model, Bytes())


def random_modules(chat: Chat) -> LookaheadModules:
    modules = LookaheadModules(LookaheadConfig(ModelShape.of(chat.model.config)))
    for parameter in modules.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return modules.requires_grad_(False)


# --- prompt ---


def test_haystack_states_each_fact_once_and_in_order_of_depth() -> None:
    haystack = build_haystack(3, 900, 5, count_words)
    places = []
    for needle in sorted(haystack.asked, key=lambda needle: needle.depth):
        assert haystack.text.count(needle.sentence) == 1
        places.append(haystack.text.index(needle.sentence) / len(haystack.text))
        assert abs(places[-1] - needle.depth) < 0.15
    assert len(places) == 5
    assert places == sorted(places)
    assert 900 <= count_words(haystack.text) < 1300


def test_haystack_comes_from_the_seed_alone() -> None:
    first, again, other = (build_haystack(seed, 400, 2, count_words) for seed in (1, 1, 2))
    assert first == again
    assert first.text != other.text


def test_prose_is_prose() -> None:
    paragraphs = prose_paragraphs()
    assert sum(map(count_words, paragraphs)) > 5000
    assert all(p[0].isupper() and p.endswith(".") and "\n" not in p for p in paragraphs)


@pytest.mark.parametrize("questions", [0, len(FACTS) + 1])
def test_number_of_questions_is_checked(questions: int) -> None:
    with pytest.raises(ValueError, match=f"questions must be in 1..{len(FACTS)}, got {questions}"):
        build_haystack(0, 400, questions, count_words)


def test_text_longer_than_the_prose_is_refused() -> None:
    with pytest.raises(ValueError, match="not enough prose"):
        build_haystack(0, 10**7, 1, count_words)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("417.", True), ("It is 417, I think", True), ("4175.", False), ("41", False), ("", False)],
)
def test_answer_is_right_only_as_a_word(answer: str, right: bool) -> None:
    assert Needle("number of the hotel room", "417", 0.5).answered_by(answer) is right


@pytest.mark.parametrize(
    ("ends", "more"),
    [([[1] * 40, [2] * 40], 0), ([[1] * 40, [1] * 9 + [2] * 31], 8), ([[1] * 40], 8)],
)
def test_common_prefix_leaves_the_queries_that_snapkv_needs(
    ends: list[list[int]], more: int
) -> None:
    assert LEAST_REST == 32
    assert common_prefix([[7] * 100 + end for end in ends]) == 100 + more


# --- checks ---


def random_call(window: int, budget: int = 48) -> LayerCall:
    query, (key, value) = torch.randn(1, 6, window, 8), torch.randn(2, 1, 2, 100, 8)
    return LayerCall(0, 1, query, key, value, budget, 8**-0.5)


def checked_policies(chat: Chat) -> dict[str, tuple[Policy, Checks]]:
    checks = [Checks() for _ in range(3)]
    return {
        LOOKAHEAD: (CheckedLookahead(random_modules(chat), checks[0]), checks[0]),
        SNAPKV: (CheckedSnapKV(checks[1]), checks[1]),
        STREAMING: (CheckedStreamingLLM(checks[2]), checks[2]),
    }


@pytest.mark.parametrize("name", [LOOKAHEAD, SNAPKV, STREAMING])
def test_checks_pass_on_what_the_policy_keeps(name: str, chat: Chat) -> None:
    policy, checks = checked_policies(chat)[name]
    for layers in (1, 2):
        policy.evict(random_call(32))
        assert checks.agreement == Agreement(2 * layers, 2 * layers, 96 * layers, 96 * layers)
        assert len(checks.evict_seconds) == layers
        assert len(checks.eager_seconds) == (0 if name == STREAMING else layers)
    assert checks.agreement.passed


@pytest.mark.parametrize("name", [LOOKAHEAD, SNAPKV, STREAMING])
def test_checks_pass_where_everything_fits(name: str, chat: Chat) -> None:
    policy, checks = checked_policies(chat)[name]
    kept = policy.evict(random_call(32, budget=500))
    assert kept.indices.shape[2] == (68 if name == LOOKAHEAD else 100)
    assert checks.agreement.passed


@pytest.mark.parametrize("name", [LOOKAHEAD, SNAPKV, STREAMING])
@pytest.mark.parametrize("wrong", ["indices", "key", "value"])
def test_checks_fail_on_one_wrong_entry(
    name: str, wrong: str, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, checks = checked_policies(chat)[name]
    time = Checks.time

    def spoiled(self: Checks, ours: Any, eager: Any) -> Kept:
        kept = time(self, ours, eager)
        missing = sorted(set(range(100)) - set(kept.indices[0, 1].tolist()))
        getattr(kept, wrong)[0, 1, 7] = missing[0] if wrong == "indices" else 1e3
        return kept

    monkeypatch.setattr(Checks, "time", spoiled)
    policy.evict(random_call(32))
    assert (checks.agreement.heads, checks.agreement.exact_heads) == (2, 1)
    assert not checks.agreement.passed


def test_too_few_entries_are_no_exact_head() -> None:
    call = random_call(32)
    positions = torch.arange(10, dtype=torch.int32).expand(1, 2, 10)
    few = Kept(call.key[:, :, :9], call.value[:, :, :9], positions[..., :9])
    assert compare(call, few, positions, positions) == Agreement(2, 0, 18, 18)


def test_bars_are_100_percent_and_three_nines() -> None:
    assert Agreement(heads=4, exact_heads=4, kept=10_000, same=9_990).passed
    assert not Agreement(heads=4, exact_heads=4, kept=10_000, same=9_989).passed
    assert not Agreement(heads=4, exact_heads=3, kept=10_000, same=10_000).passed


def test_count_common_ignores_order() -> None:
    a = torch.tensor([[[1, 5, 9], [0, 2, 4]]])
    b = torch.tensor([[[9, 1, 7, 8], [4, 2, 0, 3]]])
    assert count_common(a, b) == 5


# --- run, report and pictures ---


def test_answer_from_a_full_cache_is_the_models_own(chat: Chat) -> None:
    prompt, start = torch.randint(256, (1, 50)), "The café is"
    ids = torch.cat([prompt, torch.tensor([list(start.encode())])], dim=1)
    expected = chat.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
    cache = Eviction(chat.model, FullCache()).prefill(prompt, budget=1)
    said: list[Tensor] = []
    chat.tokenizer.decode = lambda new, **options: said.append(new) or "first\nsecond"
    assert chat.answer(prompt[0].tolist(), cache, start, 8).text == "first"
    assert torch.equal(said[0], expected[0, ids.shape[1] :])


def test_no_word_of_an_answer_comes_from_more_than_what_is_left(chat: Chat) -> None:
    """Prompts that differ only in what was evicted get one answer."""
    said = []
    for middle in (b"a", b"b"):
        ids = list(b"start" + 60 * middle)
        cache = Eviction(chat.model, FullCache()).prefill(torch.tensor([ids]), budget=1)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :5], layer.values[:, :, :5]
            layer.kept_positions = layer.kept_positions[:, :, :5]
        said.append(chat.answer(ids, cache, "The", 8).text)
    assert said[0] == said[1]


def test_the_whole_demo_on_a_random_model(chat: Chat, tmp_path: Path) -> None:
    console = Console(record=True, width=150)
    run = run_demo(chat, random_modules(chat), Options(40, 1200, 2, 3), console)
    assert run.passed
    assert list(run.agreements) == [LOOKAHEAD, SNAPKV, STREAMING]
    assert len(run.asked) == 2
    for one in run.asked:
        full = one.results[FULL].cache_bytes
        assert full == 2 * 2 * 2 * len(one.ids) * 8 * 4
        for name in (LOOKAHEAD, SNAPKV, STREAMING):
            assert one.results[name].cache_bytes == full * 40 // len(one.ids)
            assert [choice.positions.shape for choice in one.results[name].choices] == [
                (1, 2, 40)
            ] * 2
    print_report(console, run)
    paths = write_pictures(chat, run, tmp_path / "new", Selection(head=1))
    assert [path.name for path in paths] == [
        "question-1.html",
        "question-1.png",
        "question-2.html",
        "question-2.png",
    ]
    page = paths[0].read_text()
    assert page.count("<mark") == 2
    assert all(name in page for name in (LOOKAHEAD, SNAPKV, STREAMING))
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_a_prompt_longer_than_the_model_reads_is_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match="the model reads 2048"):
        run_demo(chat, random_modules(chat), Options(40, 2100, 1, 0), Console(quiet=True))


def test_report_shows_answers_costs_and_checks() -> None:
    needle = Needle("animal on the flag", "otter", 0.375)
    results = {
        FULL: Result(Answer("an otter.", 10.0), 100_000_000, 0.2),
        LOOKAHEAD: Result(Answer("the otter", 15.0), 3_000_000, 0.3, 0.01, 0.05),
        STREAMING: Result(Answer("a mango.", 15.5), 3_000_000, 0.21, 0.001),
    }
    run = Run(64, prefill_tokens=2080, prefill_seconds=2.0, asked=[Asked(needle, [1], results)])
    run.agreements = {
        LOOKAHEAD: Agreement(heads=90, exact_heads=89, kept=2000, same=1990),
        STREAMING: Agreement(heads=90, exact_heads=90, kept=2000, same=2000),
    }
    assert not run.passed
    console = Console(record=True, width=160)
    print_report(console, run)
    text = console.export_text()
    shown = ["✓ an otter.", "✓ the otter", "✗ a mango.", "1 of 1", "0 of 1", "38%", "2,080 tokens"]
    shown += ["3.0 MB, 3.0%", "100.0 MB", "10.0 ms", "50.0 ms, 5.0x ours", "300.0 ms", "15.5"]
    shown += ["89 of 90", "99.500%", "FAILED", "90 of 90", "passed"]
    assert [one for one in shown if one not in text] == []


# --- command line ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "32"], "--budget must be at least 33, got 32"),
        (["--prompt-tokens", "10"], "--prompt-tokens must be at least 256, got 10"),
        (["--questions", "0"], f"--questions must be in 1..{len(FACTS)}, got 0"),
        (["--dtype", "float16"], "invalid choice"),
        (["--picture", __file__], "--picture must be a folder"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("found", "missing"), [("5.16.1", True), ("5.17.0", False)])
def test_old_transformers_is_refused(
    found: str, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "version", lambda package: found)
    message = demo.missing_requirement()
    expected = "transformers 5.16.1 is too old (least: 5.17): pip install '.[demo]'"
    assert message == (expected if missing else None)


@pytest.mark.slow
def test_demo_answers_and_passes_its_checks(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    try:
        packaged_gguf("smollm2-135m-instruct")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if "smollm2-135m-instruct" not in packaged_names():
        pytest.skip("the package has no trained lookahead modules")
    short = ["--questions", "1", "--prompt-tokens", "600", "--picture", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), *short],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "160"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("90 of 90") == 3
    assert "FAILED" not in done.stdout
    assert "1 of 1" in done.stdout  # right with the full cache, so the model did read the text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["question-1.html", "question-1.png"]
