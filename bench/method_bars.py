"""The bars of the trained method on SmolLM2, measured: `python -m bench.method_bars --json FILE`.

On held-out prompts of every kind: KL of trained and untrained modules, and the share of the
answer's attention that each policy keeps. On needles: how many each policy still finds. The model
answers greedily; what it attends to from a full cache is the ground truth. Finished samples are
kept in the file, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookaheadkv_kernels.evaluation.measures import group_mean, kept_mass, mean_over_layers
from lookaheadkv_kernels.evaluation.needle import needle_sample, noise_sentences, text_sentences
from lookaheadkv_kernels.info import cpu_model
from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction
from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.greedy import next_logits
from lookaheadkv_kernels.integrations.transformers.loading import load
from lookaheadkv_kernels.integrations.transformers.weights import find_modules
from lookaheadkv_kernels.lookahead import LookaheadModules, load_modules
from lookaheadkv_kernels.lookahead.files import write_atomically
from lookaheadkv_kernels.policies import LAQ, FullCache, LookaheadPolicy, SnapKV, StreamingLLM
from lookaheadkv_kernels.policies.base import Policy
from lookaheadkv_kernels.training.recipe import Recipe, find_texts
from lookaheadkv_kernels.training.step import Target, ground_truth, lookahead_loss

MODEL = "smollm2-135m-instruct"
KINDS = ("prose", "code", "retrieval")
BUDGETS = (64, 128)
NEEDLE_BUDGET = 64
NEEDLE_LENGTHS = (1024, 2048)
LEAST_TOKENS, MOST_TOKENS = 512, 4096
RESPONSE_TOKENS = 32
ANSWER_TOKENS = 12
LAST_PART = 64  # tokens; the part of a prompt that each policy runs for itself
HELD_OUT_SEED = 1000  # training has small seeds


class Bench:
    """The model, the policies, and the results so far."""

    def __init__(self, weights: str, path: Path) -> None:
        self.model, self.tokenizer = load(MODEL, dtype=torch.bfloat16)
        attach(self.model)
        self.trained = load_modules(find_modules(weights))
        self.untrained = LookaheadModules(self.trained.config)
        std = float(self.model.get_input_embeddings().weight.float().std())
        self.untrained.reset_parameters(std, torch.Generator().manual_seed(0))
        self.path = path
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def policies(self) -> dict[str, Policy]:
        """By the names that the results have."""
        return {
            "lookaheadkv": LookaheadPolicy(self.trained.to(torch.bfloat16)),
            "snapkv": SnapKV(),
            "laq": LAQ(),
            "streaming_llm": StreamingLLM(),
        }

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """``measure()``, unless an earlier run has done it."""
        if name not in self.results:
            self.results[name] = measure()
            write_atomically(self.path, json.dumps(self.results, indent=1).encode())
            print(name, self.results[name], flush=True)
        return self.results[name]

    @torch.no_grad()
    def held_out(self, prompt_ids: list[int]) -> dict[str, float]:
        """KL and kept mass on one prompt."""
        target = ground_truth(self.model, prompt_ids, None, RESPONSE_TOKENS)
        found = {
            "tokens": float(len(prompt_ids)),
            "kl trained": float(lookahead_loss(self.model, self.trained.float(), target)),
            "kl untrained": float(lookahead_loss(self.model, self.untrained, target)),
        }
        started = self.started(prompt_ids)
        for budget in BUDGETS:
            for name, policy in self.policies().items():
                found[f"{name} {budget}"] = self.mass(policy, prompt_ids, started, target, budget)
        return found

    @torch.no_grad()
    def started(self, prompt_ids: list[int]) -> EvictableCache:
        """All of a prompt but its end, which every policy goes on from: a prefill in two parts."""
        cache = EvictableCache()
        next_logits(self.model, prompt_ids[:-LAST_PART], cache)
        return cache

    def mass(
        self,
        policy: Policy,
        prompt_ids: list[int],
        started: EvictableCache,
        target: Target,
        budget: int,
    ) -> float:
        """Mean over layers and heads of the ground-truth attention that the policy keeps."""
        cache = Eviction(self.model, policy).prefill(
            torch.tensor([prompt_ids[-LAST_PART:]]), budget=budget, cache=started.fork()
        )
        heads = self.model.config.num_key_value_heads
        return mean_over_layers(
            [
                kept_mass(group_mean(scores, heads), layer.positions()[0])
                for scores, layer in zip(target.scores, cache.layers, strict=True)
            ]
        )

    def needle(self, prompt_ids: list[int], value: str) -> dict[str, bool]:
        """Which policies still answer right at the needle budget."""
        found = {}
        started = self.started(prompt_ids)
        for name, policy in {"full": FullCache(), **self.policies()}.items():
            ids = Eviction(self.model, policy).generate(
                torch.tensor([prompt_ids]),
                torch.ones(1, len(prompt_ids), dtype=torch.int64),
                budget=NEEDLE_BUDGET,
                max_new_tokens=ANSWER_TOKENS,
                do_sample=False,
                **{cache_argument(self.model): started.fork()},
            )
            found[name] = value in self.tokenizer.decode(ids[0, len(prompt_ids) :])
        return found


class MeasuredCache(EvictableCache):
    """Notes the most bytes that live keys and values took at once."""

    peak = 0

    def fork(self) -> MeasuredCache:
        """Itself: a prefill works on a fork, and this one starts empty and is not kept."""
        return self

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, then look."""
        found = super().update(*args, **kwargs)
        stores = [t.untyped_storage() for layer in self.layers for t in (layer.keys, layer.values)]
        self.peak = max(self.peak, sum({s.data_ptr(): s.nbytes() for s in stores}.values()))
        return found


def memory(bench: Bench) -> dict[str, int]:
    """Peak bytes of K and V of a 4K prompt: uncut, and cut layer by layer to 128 entries."""
    recipe = Recipe(
        bench.tokenizer, seed=HELD_OUT_SEED, split="heldout", min_tokens=4096, max_tokens=4096
    )
    ids = torch.tensor([recipe[0].prompt_ids])
    peaks = {}
    for name, policy in (("full", FullCache()), ("cut", bench.policies()["lookaheadkv"])):
        cache = MeasuredCache()
        Eviction(bench.model, policy).prefill(ids, budget=128, cache=cache)
        peaks[name] = cache.peak
    return {"tokens": ids.shape[1], **peaks}


def step_time(bench: Bench) -> dict[str, float]:
    """Seconds of a training sample of 1,000 tokens, and of the plain prefill of its prompt."""
    recipe = Recipe(
        bench.tokenizer, seed=HELD_OUT_SEED, kinds={"prose": 1.0}, min_tokens=1000, max_tokens=1000
    )
    prompt, response = next(
        (sample.prompt_ids[:1000], sample.response_ids)
        for sample in recipe
        if sample.response_ids and len(sample.prompt_ids) >= 1000
    )
    modules = bench.untrained.requires_grad_(True)
    model, ids = bench.model, torch.tensor([prompt])

    def sample() -> None:
        target = ground_truth(model, prompt, response, RESPONSE_TOKENS)
        lookahead_loss(model, modules, target).backward()

    def prefill() -> None:
        with torch.no_grad():
            model(ids, logits_to_keep=1, use_cache=True)

    times: dict[str, list[float]] = {"sample": [], "prefill": []}
    for _ in range(7):  # in turn, so that both meet the machine in the same states
        for name, run in (("sample", sample), ("prefill", prefill)):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def held_out_prompts(bench: Bench, kind: str, count: int) -> Iterator[list[int]]:
    """Held-out prompts of one kind."""
    recipe = Recipe(
        bench.tokenizer,
        seed=HELD_OUT_SEED,
        split="heldout",
        kinds={kind: 1.0},
        min_tokens=LEAST_TOKENS,
        max_tokens=MOST_TOKENS,
        skew=1.0,
    )
    for index in range(count):
        yield recipe[index].prompt_ids


def needles(bench: Bench, num_tokens: int, count: int) -> Iterator[tuple[list[int], str]]:
    """Half in RULER's noise, half in held-out prose; keys that training never had."""
    prose = find_texts().of_split("heldout").prose
    sentences = [part.strip() + "." for document in prose for part in document.text.split(".")]
    for index in range(count):
        rng = random.Random(f"needle {HELD_OUT_SEED} {num_tokens} {index}")
        key = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        haystack = noise_sentences(rng) if index % 2 == 0 else text_sentences(sentences, rng)
        sample = needle_sample(bench.tokenizer, rng, haystack, key, num_tokens)
        yield sample.prompt_ids, sample.value


# None of these is among the training's words.
ADJECTIVES = ("abrasive", "jazzy", "outgoing", "ritzy", "truculent", "wistful", "aberrant", "macho")
NOUNS = ("ukulele", "cardigan", "protocol", "spreadsheet", "leprechaun", "zeppelin", "mandolin")


def mean_of(results: dict[str, Any], kind: str, figure: str) -> float:
    """Mean of one figure over the held-out prompts of a kind."""
    return statistics.fmean(
        found[figure] for name, found in results.items() if name.startswith(f"held-out {kind} ")
    )


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def judge(results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(what, figures, met) for every bar."""
    bars = []
    for kind in KINDS:
        trained = mean_of(results, kind, "kl trained")
        untrained = mean_of(results, kind, "kl untrained")
        bars.append(
            (
                f"{kind}: KL trained at most 1/4 of untrained",
                f"{trained:.3f} of {untrained:.3f} ({trained / untrained:.2f})",
                trained <= untrained / 4,
            )
        )
        rivals = ("snapkv", "laq") if kind == "retrieval" else ("snapkv",)
        for budget in BUDGETS:
            masses = {
                name: mean_of(results, kind, f"{name} {budget}")
                for name in ("lookaheadkv", "snapkv", "laq")
            }
            bars.append(
                (
                    f"{kind}: kept mass at {budget} above {' and '.join(rivals)}",
                    ", ".join(f"{name} {mass:.3f}" for name, mass in masses.items()),
                    all(masses["lookaheadkv"] > masses[rival] for rival in rivals),
                )
            )
    for length in NEEDLE_LENGTHS:
        found = [value for name, value in results.items() if name.startswith(f"needle {length} ")]
        right = {name: sum(sample[name] for sample in found) for name in found[0]}
        bars.append(
            (
                f"needle, {length} tokens, budget {NEEDLE_BUDGET}: 85 % of the full cache's",
                ", ".join(f"{name} {count}/{len(found)}" for name, count in right.items()),
                right["lookaheadkv"] >= 0.85 * right["full"],
            )
        )
    peaks, times = results["memory"], results["step time"]
    bars.append(
        (
            f"peak KV of {peaks['tokens']} tokens, budget 128: at most 1/10 of the full cache",
            f"{peaks['cut'] / 1e6:.1f} of {peaks['full'] / 1e6:.1f} MB "
            f"(1/{peaks['full'] / peaks['cut']:.1f})",
            peaks["cut"] <= peaks["full"] / 10,
        )
    )
    bars.append(
        (
            "training sample, 1,000 tokens: at most 2x the plain prefill",
            f"{times['sample']:.2f} s of {times['prefill']:.2f} s "
            f"({times['sample'] / times['prefill']:.2f}x)",
            times["sample"] <= 2 * times["prefill"],
        )
    )
    return bars


def main() -> None:
    """Measure, print, and say which bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default=MODEL, help="packaged name or folder")
    parser.add_argument("--json", type=Path, required=True, help="results; continued if there")
    parser.add_argument("--held-out", type=int, default=8, help="prompts of each kind")
    parser.add_argument("--needles", type=int, default=50, help="of each length")
    arguments = parser.parse_args()
    bench = Bench(arguments.weights, arguments.json)
    bench.once("machine", machine)
    bench.once("step time", partial(step_time, bench))
    bench.once("memory", partial(memory, bench))
    for kind in KINDS:
        for index, ids in enumerate(held_out_prompts(bench, kind, arguments.held_out)):
            bench.once(f"held-out {kind} {index}", partial(bench.held_out, ids))
    for length in NEEDLE_LENGTHS:
        for index, (ids, value) in enumerate(needles(bench, length, arguments.needles)):
            bench.once(f"needle {length} {index}", partial(bench.needle, ids, value))
    for what, figures, met in judge(bench.results):
        print(f"{what:55} {figures:75} {'met' if met else 'NOT MET'}")


if __name__ == "__main__":
    main()
