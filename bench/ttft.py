"""Time to the first token, end to end: `python -m bench.ttft --model llama-3.1-8b --device cuda`.

Known models get random weights (a prompt's time does not depend on them); the packaged one is the
real one. Forward alone, then with LookaheadKV (appended and extend), SnapKV, LAQ, and the
paper-style eager eviction behind the forward (`bench/peers/eager.py`, queries of the right shape).
Methods take turns; medians; overhead against the forward of the same turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.peers.eager import eager_score_and_evict
from lookaheadkv_kernels.info import cpu_model
from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.loading import PACKAGED_MODELS, load
from lookaheadkv_kernels.lookahead import LookaheadConfig, LookaheadModules, ModelShape, catalog
from lookaheadkv_kernels.policies import LAQ, LookaheadPolicy, SnapKV

# TTFT overhead in ms that the paper measured for LLaMA-3.1-8B on an H100 (table 5).
PAPER = {
    4096: {"lookaheadkv": 11.38, "snapkv": 13.14, "laq": 506.58},
    8192: {"lookaheadkv": 10.88, "snapkv": 20.17, "laq": 509.38},
    16384: {"lookaheadkv": 18.50, "snapkv": 37.12, "laq": 523.54},
    32768: {"lookaheadkv": 38.04, "snapkv": 77.67, "laq": 553.68},
}
LOOKAHEAD_ROWS = 32


def make_model(name: str, dtype: torch.dtype, device: str) -> Any:
    """The packaged model, or a known one with random weights."""
    if name in PACKAGED_MODELS:
        return load(name, dtype=dtype, device=device)[0]
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = catalog.model_facts(name)
    config = AutoConfig.for_model(
        facts.shape.model_type,
        **{key: value for key, value in vars(facts.shape).items() if key != "model_type"},
        vocab_size=facts.vocab_size,
        tie_word_embeddings=facts.tie_word_embeddings,
        max_position_embeddings=131_072,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def methods(model: Any, budget: int) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What is timed, by name; each takes token ids [1, N]."""
    modules = LookaheadModules(LookaheadConfig(model=ModelShape.of(model.config)))
    modules.reset_parameters(0.02, torch.Generator().manual_seed(0))
    modules = modules.requires_grad_(False).to(model.device, model.dtype)

    def forward(ids: torch.Tensor) -> Any:
        return model(ids, use_cache=True, logits_to_keep=1)[cache_argument(model)]

    def eager(ids: torch.Tensor) -> Any:
        shape = ModelShape.of(model.config)
        size = (1, shape.num_attention_heads, LOOKAHEAD_ROWS, shape.head_dim)
        query = torch.randn(size, dtype=model.dtype, device=model.device)
        kept = []
        for layer in forward(ids).layers:
            kept.append(eager_score_and_evict(query, layer.keys, layer.values, budget)[:2])
        return kept

    def prefill(policy: Any) -> Callable[[torch.Tensor], Any]:
        eviction = Eviction(model, policy)
        return lambda ids: eviction.prefill(ids, budget=budget)

    return {
        "forward": forward,
        "lookaheadkv": prefill(LookaheadPolicy(modules)),
        "lookaheadkv extend": prefill(LookaheadPolicy(modules, mode="extend")),
        "snapkv": prefill(SnapKV()),
        "eager": eager,
        "laq": prefill(LAQ()),
    }


@torch.no_grad()
def measure(
    model: Any, num_tokens: int, budget: int, rounds: int
) -> dict[str, dict[str, float | None]]:
    """Median seconds, overhead in ms and percent, and peak bytes on a GPU, of every method."""
    cuda = model.device.type == "cuda"
    found = methods(model, budget)
    times: dict[str, list[float]] = {name: [] for name in found}
    peaks: dict[str, int] = {}
    for round_ in range(rounds + 1):
        for name, run in found.items():
            ids = torch.randint(3, 1000, (1, num_tokens), device=model.device)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(ids)
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated()
            if round_:  # the first warms up
                times[name].append(time.perf_counter() - start)
    overheads = {
        name: statistics.median(
            1e3 * (own - alone) for own, alone in zip(times[name], times["forward"], strict=True)
        )
        for name in found
    }
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "overhead_ms": overheads[name],
            "overhead_percent": 0.1 * overheads[name] / statistics.median(times["forward"]),
            "peak_bytes": peaks.get(name),
        }
        for name in found
    }


def main() -> None:
    """Measure and print a table for every length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, action="append", help="tokens; repeatable")
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = make_model(arguments.model, getattr(torch, arguments.dtype), arguments.device)
    attach(model)
    on_gpu = model.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else cpu_model()
    print(f"{arguments.model}, {arguments.dtype}, budget {arguments.budget}, {device}")
    results = {}
    for length in arguments.length or ([4096, 8192, 16384, 32768] if on_gpu else [1024, 4096]):
        results[length] = measure(model, length, arguments.budget, arguments.rounds)
        print(f"\n{length:6} tokens        TTFT ms   overhead ms        %   paper's ms   peak GB")
        for name, row in results[length].items():
            paper = PAPER.get(length, {}).get(name) if arguments.model == "llama-3.1-8b" else None
            peak = row["peak_bytes"]
            print(
                f"{name:20} {1e3 * (row['seconds'] or 0):9.2f} {row['overhead_ms']:13.2f} "
                f"{row['overhead_percent']:8.2f} {'' if paper is None else paper:>12} "
                f"{'' if peak is None else format(peak / 1e9, '.2f'):>9}"
            )
    if arguments.json:
        record = {"device": device, "torch": torch.__version__, **vars(arguments)}
        record["json"] = str(arguments.json)
        arguments.json.write_text(json.dumps({**record, "results": results}, indent=1))


if __name__ == "__main__":
    main()
