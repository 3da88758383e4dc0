"""The plugin in vLLM itself, against the same policy in transformers: docs/engines/vllm.md.

Needs vLLM 0.32 in an environment of its own, where this package is installed: ``make vllm``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.eviction_model import modules_of, tiny

pytest.importorskip("vllm.v1", reason="vLLM is not installed")

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

from vllm import LLM, SamplingParams

from lookaheadkv_kernels.integrations.transformers import Eviction, LookaheadKV
from lookaheadkv_kernels.integrations.vllm import held_blocks, kept_entries
from lookaheadkv_kernels.lookahead.files import save_modules
from lookaheadkv_kernels.policies import SnapKV

BLOCK, BUDGET, WINDOW, CHUNK, NEW = 32, 64, 16, 128, 20
SNAPKV = {"budget": BUDGET, "window": WINDOW}
# Shorter than the budget, of whole blocks, with last chunks shorter than the window and longer.
LENGTHS = [300, 40, 132, 260, 64, 96, 129]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny(head_dim=32)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts an engine; in this process, where its blocks can be counted, unless told otherwise."""

    def started(
        eviction: dict[str, Any] | None, *, own_process: bool = False, **options: Any
    ) -> Any:
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(int(own_process)))
        if eviction is not None:
            options["additional_config"] = {"lookaheadkv": eviction}
        return LLM(
            str(folder),
            **{
                "skip_tokenizer_init": True,
                "dtype": "float32",
                "enforce_eager": True,
                "block_size": BLOCK,
                "kv_cache_memory_bytes": 64 << 20,
                "enable_prefix_caching": False,
                "max_model_len": 1024,
                "max_num_batched_tokens": CHUNK,
                **options,
            },
        )

    yield started


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in lengths]


def run(engine: Any, prompts: list[list[int]], after_step: Callable[[], None]) -> list[list[int]]:
    """Greedy tokens of all prompts, with a look at the engine after each step."""
    params = SamplingParams(temperature=0, max_tokens=NEW, detokenize=False, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        engine.llm_engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    tokens: dict[str, list[int]] = {}
    while engine.llm_engine.has_unfinished_requests():
        for output in engine.llm_engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        after_step()
    return [tokens[str(number)] for number in range(len(prompts))]


def expected(eviction: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The same from transformers, each prompt on its own, with what the block grid leaves."""
    return [
        eviction.generate(
            torch.tensor([prompt]),
            budget=kept_entries(len(prompt), BUDGET, BLOCK),
            max_new_tokens=NEW,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def full_cache(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """What the model says if nothing is evicted."""
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


def test_tokens_and_blocks(start: Callable[..., Any], model: Any) -> None:
    """Mixed lengths in chunks: transformers' tokens, and as many blocks in use as computed."""
    engine = start(SNAPKV)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    idle = pool.get_num_free_blocks()
    seen: list[tuple[int, int, int]] = []

    def count() -> None:
        held = whole = 0
        for request in scheduler.running:
            tokens, prompt = request.num_computed_tokens, request.num_prompt_tokens
            unevicted = -(-tokens // BLOCK)
            whole += unevicted
            held += held_blocks(tokens, prompt, BUDGET, BLOCK) if tokens > prompt else unevicted
        seen.append((idle - pool.get_num_free_blocks(), held, whole))

    prompts = prompts_of(LENGTHS)
    got = run(engine, prompts, count)

    eviction = Eviction(model, SnapKV(window=WINDOW))
    assert got == expected(eviction, prompts)
    eviction.detach()
    plain = full_cache(model, prompts)
    assert sum(a != b for a, b in zip(got, plain, strict=True)) >= 3, "eviction must be seen"

    assert [used for used, _, _ in seen] == [held for _, held, _ in seen]
    assert max(whole - used for used, _, whole in seen) >= 15
    assert pool.get_num_free_blocks() == idle


def test_freed_blocks_are_used_at_once(start: Callable[..., Any], model: Any) -> None:
    """Room for two whole prompts: more run together, in blocks that others gave up."""
    engine = start(SNAPKV, num_gpu_blocks_override=25, max_model_len=512)
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    together: list[int] = []
    # The last block of each has room for the answer: nothing has to be preempted.
    prompts = prompts_of([300, 330, 298, 301, 321, 297])
    got = run(engine, prompts, lambda: together.append(len(scheduler.running)))
    eviction = Eviction(model, SnapKV(window=WINDOW))
    assert got == expected(eviction, prompts)
    eviction.detach()
    assert max(together) > 24 // -(-297 // BLOCK)


def test_lookahead_rows(start: Callable[..., Any], model: Any, tmp_path: Path) -> None:
    """Learned rows over the finished prompt's blocks; the engine in a process of its own."""
    modules = modules_of(model, num_lookahead=8)
    save_modules(modules, tmp_path)
    engine = start(
        {"policy": "lookahead", "budget": BUDGET, "modules": str(tmp_path)},
        own_process=True,
        hf_overrides={"architectures": ["LookaheadLlamaForCausalLM"]},
    )
    prompts = prompts_of(LENGTHS)
    got = run(engine, prompts, lambda: None)
    eviction = LookaheadKV(model, modules)
    assert got == expected(eviction, prompts)
    eviction.detach()


def test_without_a_budget_it_is_vllm(start: Callable[..., Any], model: Any) -> None:
    prompts = prompts_of(LENGTHS[:3])
    engine = start(None, enable_prefix_caching=True)
    assert run(engine, prompts, lambda: None) == full_cache(model, prompts)


@pytest.mark.parametrize(
    ("eviction", "options", "words"),
    [
        (SNAPKV, {"enable_prefix_caching": True}, "prefix caching shares blocks"),
        (
            {"policy": "lookahead", "budget": BUDGET, "modules": "here"},
            {},
            "needs one of the architectures LookaheadLlamaForCausalLM",
        ),
    ],
    ids=["prefix-caching", "architecture"],
)
def test_what_is_refused_at_the_start(
    start: Callable[..., Any], eviction: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        start(eviction, **options)
