"""The parts of the vLLM plugin that need no vLLM: arithmetic, options, refusals, bookkeeping."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch

from lookaheadkv_kernels.integrations import vllm as plugin
from lookaheadkv_kernels.integrations.vllm import evicted_blocks, held_blocks, kept_entries
from lookaheadkv_kernels.integrations.vllm.config import EvictionConfig
from lookaheadkv_kernels.integrations.vllm.pages import Pages, compact
from lookaheadkv_kernels.integrations.vllm.refusals import (
    EngineFacts,
    LayerFacts,
    check,
    refusals,
)
from lookaheadkv_kernels.integrations.vllm.requests import RequestState, RequestTable


@pytest.mark.parametrize("block_size", [1, 3, 16, 32])
def test_block_arithmetic_against_a_list_of_slots(block_size: int) -> None:
    """Slots of a prompt, whole blocks taken from the front while the budget still fits."""
    for budget in (1, 5, 16, 64):
        for prompt in range(1, 140):
            slots, freed = list(range(prompt)), 0
            while len(slots) - block_size >= budget:
                slots, freed = slots[block_size:], freed + 1
            assert evicted_blocks(prompt, budget, block_size) == freed
            assert kept_entries(prompt, budget, block_size) == len(slots)
            used = {slot // block_size for slot in range(freed * block_size, prompt + 7)}
            assert held_blocks(prompt + 7, prompt, budget, block_size) == len(used)


def test_options_of_an_engine() -> None:
    assert EvictionConfig.of({}) is None
    assert EvictionConfig.of({"other": 1}) is None
    config = EvictionConfig.of({"lookaheadkv": {"budget": 64, "window": 8}})
    assert config == EvictionConfig(budget=64, policy="snapkv", window=8, pool_kernel=7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "budget is missing"),
        (3, "options must be a mapping, got 3"),
        ({"budget": 0}, "budget must be a whole number >= 1, got 0"),
        ({"budget": 0.5}, "budget must be a whole number >= 1, got 0.5"),
        ({"budget": True}, "budget must be a whole number >= 1, got True"),
        ({"budget": 16}, "budget must hold the window of 32 entries, got 16"),
        ({"budget": 64, "pool_kernel": 4}, "pool_kernel must be odd, got 4"),
        ({"budget": 64, "policy": "h2o"}, "policy must be one of snapkv, lookahead, got 'h2o'"),
        ({"budget": 64, "policy": "lookahead"}, "policy 'lookahead' with modules None"),
        ({"budget": 64, "modules": "x"}, "policy 'snapkv' with modules 'x'"),
        ({"budget": 64, "bugdet": 1}, "unknown option 'bugdet'"),
    ],
)
def test_options_that_make_no_sense(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        EvictionConfig.of({"lookaheadkv": options})


def test_an_engine_that_can_evict_is_not_refused() -> None:
    assert refusals(EngineFacts(layers=(LayerFacts("model.layers.0.self_attn.attn"),))) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prefix_caching": True}, "enable_prefix_caching=False"),
        ({"mla": True}, "MLA"),
        ({"speculative": True}, "speculative decoding"),
        ({"kv_connector": True}, "KV connector"),
        ({"kv_events": True}, "KV events"),
        ({"pipeline_parallel": 2}, r"pipeline parallelism \(2\)"),
        ({"context_parallel": 4}, r"context parallelism \(4\)"),
        ({"cache_dtype": "fp8_e5m2"}, r"quantised KV cache \(fp8_e5m2\)"),
        ({"isa": "amx"}, "instruction set 'amx'"),
        ({"block_size": 64}, "blocks of 64 tokens are split into 32"),
        ({"other_layers": ("a", "b")}, "a, b: layers with a cache of another kind"),
        ({"policy": "lookahead", "tensor_parallel": 2}, r"tensor parallelism \(2\)"),
        ({"policy": "lookahead", "lora": True}, "LoRA"),
    ],
)
def test_engines_that_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(dataclasses.replace(EngineFacts(), **change))


@pytest.mark.parametrize(
    "change",
    [{"kind": "encoder"}]
    + [{f.name: True} for f in dataclasses.fields(LayerFacts) if f.name not in ("name", "kind")],
)
def test_layers_that_are_refused(change: dict[str, Any]) -> None:
    good, bad = LayerFacts("a"), dataclasses.replace(LayerFacts("b"), **change)
    (reason,) = refusals(EngineFacts(layers=(good, bad)))
    assert reason.startswith("layer b has ")


def test_every_reason_is_named_at_once() -> None:
    engine = EngineFacts(prefix_caching=True, mla=True)
    assert len(refusals(engine)) == 2
    with pytest.raises(ValueError, match=r"prefix caching.*; MLA"):
        check(engine)


def test_a_request_is_found_by_the_block_that_it_wrote_last() -> None:
    table = RequestTable(limit=8)
    first = table.step(0, 0, block_after=5)
    second = table.step(0, 0, block_after=9)
    assert table.step(40, block_before=5, block_after=6) is first
    assert table.step(40, block_before=9, block_after=9) is second
    # A third request gets a block that the first had, and the first is finished.
    third = table.step(0, 0, block_after=6)
    assert third is not first
    with pytest.raises(RuntimeError, match="40 tokens in the cache was never seen"):
        table.step(40, block_before=5, block_after=7)


def test_old_states_go_first() -> None:
    table = RequestTable(limit=2)
    table.step(0, 0, block_after=1)
    kept = table.step(0, 0, block_after=2)
    table.step(0, 0, block_after=3)
    assert len(table) == 2
    assert table.step(4, block_before=2, block_after=2) is kept
    with pytest.raises(RuntimeError, match="never seen"):
        table.step(4, block_before=1, block_after=1)


@pytest.mark.parametrize("chunks", [[40], [20, 20], [33, 5, 2], [1] * 40, [8]])
def test_the_newest_queries_across_chunks(chunks: list[int]) -> None:
    rows = torch.randn(sum(chunks), 3, 4)
    state, start = RequestState(), 0
    for length in chunks:
        buffer = rows[start : start + length].clone()
        state.watch("layer", buffer, 10)
        buffer.zero_()  # an engine uses its buffers again
        start += length
    assert torch.equal(state.queries["layer"], rows[-10:])


def test_pages_are_where_vllm_puts_keys_and_values() -> None:
    """Layout of CPU_ATTN: each block and head holds K transposed, then V."""
    blocks, heads, size, dim = 5, 2, 4, 6
    key, value = torch.randn(2, blocks, size, heads, dim)
    memory = torch.empty(blocks, heads, 2, size * dim)
    for block in range(blocks):
        for head in range(heads):
            memory[block, head, 0] = key[block, :, head].T.flatten()
            memory[block, head, 1] = value[block, :, head].flatten()
    pages = Pages(memory.view(blocks, heads, size, 2 * dim))
    assert torch.equal(pages.key, key)
    assert torch.equal(pages.value, value)

    own = torch.tensor([3, 0, 4], dtype=torch.int32)
    wanted = [t[own.long()].flatten(0, 1)[:10].transpose(0, 1)[None] for t in (key, value)]
    assert torch.equal(pages.keys(own, 10), wanted[0])
    assert torch.equal(pages.values(own, 10), wanted[1])

    before = memory.clone()
    kept = torch.tensor([[0, 4, 9], [3, 7, 8]], dtype=torch.int32)  # of each head
    compact([pages], kept[None, None], own, 7)
    for tensor, read in zip(wanted, (pages.keys, pages.values), strict=True):
        moved = tensor.clone()
        for head in range(heads):
            moved[0, head, 7:] = tensor[0, head, kept[head].long()]
        assert torch.equal(read(own, 10), moved)
    assert int((memory != before).sum()) <= 2 * 3 * heads * dim  # and nothing else was touched


def test_another_vllm_is_refused_if_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lookaheadkv_kernels.integrations.vllm import plugin as module

    monkeypatch.setattr(module, "installed_version", lambda: "0.33.1")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    with caplog.at_level(logging.ERROR):
        plugin.register()
    assert "vLLM 0.32 is supported, found 0.33.1" in caplog.text
    monkeypatch.setenv("VLLM_PLUGINS", "other,lookaheadkv")
    with pytest.raises(RuntimeError, match=r"found 0\.33\.1"):
        plugin.register()
