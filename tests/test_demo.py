"""The demo's parts on a random model of two layers, and the whole demo once (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the demo's packages are not installed")
pytest.importorskip("rich", reason="the demo's packages are not installed")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import demo  # noqa: E402
from demo_cache import EvictableCache, ObservationTail  # noqa: E402
from demo_model import Answer  # noqa: E402
from demo_prompt import FACTS, Needle, build_haystack, prose_paragraphs  # noqa: E402
from demo_report import Asked, Run, print_report  # noqa: E402
from demo_run import common_prefix  # noqa: E402
from demo_verify import Agreement, check_layer, count_common  # noqa: E402
from rich.console import Console  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

ROWS = 8


def count_words(text: str) -> int:
    return len(text.split())


@pytest.fixture
def observation() -> ObservationTail:
    return ObservationTail(ROWS)


def random_model(
    observation: ObservationTail, layers: int, heads: int, kv_heads: int
) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        attn_implementation=observation.register(),
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model(observation: ObservationTail) -> LlamaForCausalLM:
    return random_model(observation, layers=2, heads=6, kv_heads=2)


@torch.inference_mode()
def prefill(
    model: LlamaForCausalLM, observation: ObservationTail, ids: Tensor, sizes: list[int]
) -> tuple[EvictableCache, dict[int, Tensor], Tensor]:
    """(cache, recorded queries, last logits) of a prefill in chunks of the given sizes."""
    cache, queries = EvictableCache(), {}
    with observation.recording(queries):
        for part in ids.split(sizes, dim=1):
            out = model(part, past_key_values=cache)
    return cache, queries, out.logits[:, -1]


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
    ("sequences", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[5, 6, 7]], 2), ([[1], [2]], 0)],
)
def test_common_prefix_leaves_a_token_of_each(sequences: list[list[int]], length: int) -> None:
    assert common_prefix(sequences) == length


# --- cache and attention ---


@pytest.mark.parametrize("sizes", [[50], [20, 20, 10], [43, 7], [45, 4, 1], [1] * 50])
def test_chunked_prefill_records_the_last_queries_and_all_keys(
    model: LlamaForCausalLM, observation: ObservationTail, sizes: list[int]
) -> None:
    ids = torch.randint(64, (1, 50))
    whole, expected, logits = prefill(model, observation, ids, [50])
    cache, queries, chunked_logits = prefill(model, observation, ids, sizes)
    torch.testing.assert_close(chunked_logits, logits)
    for index, (layer, reference) in enumerate(zip(cache.layers, whole.layers, strict=True)):
        assert queries[index].shape == (1, 6, ROWS, 8)
        torch.testing.assert_close(queries[index], expected[index])
        torch.testing.assert_close(layer.keys, reference.keys)
        torch.testing.assert_close(layer.values, reference.values)


@torch.inference_mode()
def test_recorded_queries_are_the_ones_attention_uses(
    model: LlamaForCausalLM, observation: ObservationTail
) -> None:
    """Probabilities from them equal those transformers' eager attention returns."""
    ids = torch.randint(64, (1, 30))
    cache, queries, _ = prefill(model, observation, ids, [30])
    model.set_attn_implementation("eager")
    attentions = model(ids, output_attentions=True).attentions
    for index, layer in enumerate(cache.layers):
        keys = layer.keys.repeat_interleave(3, dim=1)
        logits = queries[index] @ keys.transpose(-1, -2) / 8**0.5
        causal = torch.ones(ROWS, 30, dtype=torch.bool).tril(30 - ROWS)
        probabilities = logits.masked_fill(~causal, float("-inf")).softmax(-1)
        torch.testing.assert_close(probabilities, attentions[index][:, :, -ROWS:])


def test_nothing_is_recorded_outside_the_block(
    model: LlamaForCausalLM, observation: ObservationTail
) -> None:
    ids = torch.randint(64, (1, 20))
    cache, queries, _ = prefill(model, observation, ids, [20])
    before = queries[0].clone()
    model(ids[:, :1], past_key_values=cache)
    assert torch.equal(queries[0], before)


def greedy(model: LlamaForCausalLM, ids: Tensor, cache: DynamicCache | EvictableCache) -> Tensor:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )


def test_generation_from_a_full_budget_is_the_models_own(
    model: LlamaForCausalLM, observation: ObservationTail
) -> None:
    ids = torch.randint(64, (1, 41))
    cache, queries, _ = prefill(model, observation, ids[:, :40], [40])
    cache.evict(queries, budget=40)
    expected = greedy(model, ids, DynamicCache(config=model.config))
    assert torch.equal(greedy(model, ids, cache), expected)


@torch.inference_mode()
@pytest.mark.parametrize("num_new", [1, 3])
def test_after_eviction_positions_stay_logical(observation: ObservationTail, num_new: int) -> None:
    """New tokens see the kept entries and each other, at the positions after the whole prompt.

    Expected: the full cache under a 4-D mask that hides what was dropped; one layer and one KV
    head, because such a mask is the same for all.
    """
    model = random_model(observation, layers=1, heads=3, kv_heads=1)
    ids = torch.randint(64, (1, 40 + num_new))
    cache, queries, _ = prefill(model, observation, ids[:, :40], [40])
    full = cache.fork()
    (evicted,) = cache.evict(queries, budget=16)
    assert cache.get_seq_length() == 40
    assert cache.get_mask_sizes(num_new, 0) == (16 + num_new, 24)

    visible = torch.ones(1, 1, num_new, 40 + num_new, dtype=torch.bool).tril(40)
    visible[..., :40] = False
    visible[..., evicted.indices[0, 0].long()] = True
    new = ids[:, 40:]
    expected = model(new, past_key_values=full, attention_mask=visible).logits
    torch.testing.assert_close(model(new, past_key_values=cache).logits, expected)
    assert cache.layers[0].stored_length == 16 + num_new
    assert cache.get_seq_length() == 40 + num_new


def test_fork_leaves_the_original_alone(
    model: LlamaForCausalLM, observation: ObservationTail
) -> None:
    ids = torch.randint(64, (1, 40))
    cache, queries, _ = prefill(model, observation, ids, [40])
    size, keys = cache.nbytes(), cache.layers[1].keys.clone()
    fork = cache.fork()
    fork.evict(queries, budget=16)
    greedy(model, torch.cat([ids, ids[:, :1]], dim=1), fork)
    assert cache.nbytes() == size == 2 * 2 * 2 * 40 * 8 * 4
    assert torch.equal(cache.layers[1].keys, keys)
    assert cache.get_seq_length() == 40


def test_crop_is_refused(model: LlamaForCausalLM, observation: ObservationTail) -> None:
    cache, _, _ = prefill(model, observation, torch.randint(64, (1, 10)), [10])
    with pytest.raises(NotImplementedError, match="cannot be cropped"):
        cache.layers[0].crop(-1)


def test_reset_starts_again_from_nothing(
    model: LlamaForCausalLM, observation: ObservationTail
) -> None:
    cache, queries, _ = prefill(model, observation, torch.randint(64, (1, 40)), [40])
    cache.evict(queries, budget=16)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.get_mask_sizes(5, 0) == (5, 0)


# --- checks and report ---


def evict_random(budget: int) -> tuple[tuple[Tensor, Tensor, Tensor], SimpleNamespace]:
    layer = (torch.randn(1, 6, ROWS, 8), torch.randn(1, 2, 60, 8), torch.randn(1, 2, 60, 8))
    names = ("key", "value", "indices", "scores")
    result = torch.ops.lookaheadkv.score_and_evict(*layer, budget, keep_observation=True)
    return layer, SimpleNamespace(**dict(zip(names, result, strict=True)))


def test_check_passes_on_what_the_op_kept() -> None:
    layer, evicted = evict_random(20)
    agreement = check_layer(*layer, evicted, evicted.indices[..., : 20 - ROWS], 20)
    assert agreement == Agreement(2, 2, 40, 40, 24, 24)
    assert agreement.passed


def test_check_fails_on_one_wrong_entry() -> None:
    layer, evicted = evict_random(20)
    kept = set(evicted.indices[0, 1].tolist())
    evicted.indices[0, 1, 0] = next(j for j in range(60) if j not in kept)
    agreement = check_layer(*layer, evicted, evicted.indices[..., : 20 - ROWS], 20)
    assert (agreement.exact_heads, agreement.same) == (1, 39)
    assert not agreement.passed


def test_bars_are_100_percent_and_three_nines() -> None:
    assert Agreement(heads=4, exact_heads=4, kept=10_000, same=9_990).passed
    assert not Agreement(heads=4, exact_heads=4, kept=10_000, same=9_989).passed
    assert not Agreement(heads=4, exact_heads=3, kept=10_000, same=10_000).passed


def test_count_common_ignores_order() -> None:
    a = torch.tensor([[[1, 5, 9], [0, 2, 4]]])
    b = torch.tensor([[[9, 1, 7, 8], [4, 2, 0, 3]]])
    assert count_common(a, b) == 5


def test_report_shows_answers_costs_and_checks() -> None:
    needle = Needle("animal on the flag", "otter", 0.375)
    agreement = Agreement(heads=90, exact_heads=89, kept=2000, same=1990, chosen=1000)
    run = Run(2100, 256, prefill_seconds=2.0, prefill_tokens=2080)
    run.asked.append(
        Asked(
            needle=needle,
            full=Answer("an otter.", 10.0),
            evicted=Answer("a mango.", 15.0),
            full_bytes=100_000_000,
            evicted_bytes=12_000_000,
            evict_seconds=0.01,
            eager_seconds=0.05,
            agreement=agreement,
        )
    )
    console = Console(record=True, width=140)
    print_report(console, run)
    text = console.export_text()
    shown = ["right  an otter.", "wrong  a mango.", "1 of 1", "0 of 1", "38%", "12.0%", "100.0 MB"]
    shown += ["10.0 ms", "0.50% of prefill", "5.0x ours", "1.50x", "89 of 90", "99.500%", "FAILED"]
    assert [one for one in shown if one not in text] == []


# --- command line ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "32"], "--budget must be at least 33, got 32"),
        (["--prompt-tokens", "10"], "--prompt-tokens must be at least 256, got 10"),
        (["--questions", "0"], f"--questions must be in 1..{len(FACTS)}, got 0"),
        (["--dtype", "float16"], "invalid choice"),
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
def test_demo_answers_and_passes_its_checks() -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    import demo_model

    try:
        demo_model.find_gguf()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--questions", "1", "--prompt-tokens", "600"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "COLUMNS": "140"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "90 of 90" in done.stdout
    assert "FAILED" not in done.stdout
    assert "1 of 1" in done.stdout  # right with the full cache, so the model did read the text
