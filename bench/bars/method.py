"""The bars of the trained method on SmolLM2: `python -m bench.bars method --json FILE`.

On held-out prompts of every kind: KL of trained and untrained modules, and the share of the
answer's attention that each policy keeps. On needles: how many each policy still finds. The model
answers greedily; what it attends to from a full cache is the ground truth. Finished samples are
kept in the file, so that an interrupted run goes on.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import machine
from bench.bars import Bar, options
from bench.clock import interleaved, medians
from bench.store import Store
from bench.work import usual_dtype_name
from lookaheadkv_kernels.evaluation.measures import group_mean, kept_mass, mean_over_layers
from lookaheadkv_kernels.evaluation.needle import needle_sample, noise_sentences, text_sentences
from lookaheadkv_kernels.integrations.transformers import EvictableCache, Eviction
from lookaheadkv_kernels.integrations.transformers.attention import attach
from lookaheadkv_kernels.integrations.transformers.compat import cache_argument
from lookaheadkv_kernels.integrations.transformers.greedy import next_logits
from lookaheadkv_kernels.integrations.transformers.loading import load
from lookaheadkv_kernels.integrations.transformers.weights import find_modules
from lookaheadkv_kernels.lookahead import LookaheadModules, load_modules
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
    """The model and the policies.

    Args:
        weights: packaged name or folder of the trained modules.
        dtype: of the model.
    """

    def __init__(self, weights: str, dtype: torch.dtype) -> None:
        self.model, self.tokenizer = load(MODEL, dtype=dtype)
        attach(self.model)
        self.trained = load_modules(find_modules(weights))
        self.untrained = LookaheadModules(self.trained.config)
        std = float(self.model.get_input_embeddings().weight.float().std())
        self.untrained.reset_parameters(std, torch.Generator().manual_seed(0))

    def policies(self) -> dict[str, Policy]:
        """Every policy, by its name in the results."""
        return {
            "lookaheadkv": LookaheadPolicy(self.trained.to(self.model.dtype)),
            "snapkv": SnapKV(),
            "laq": LAQ(),
            "streaming_llm": StreamingLLM(),
        }

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
        """The cache of all but the prompt's last part, from which every policy continues."""
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
        """Whether each policy still answers correctly at the needle budget."""
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

    return medians(interleaved({"sample": sample, "prefill": prefill}, rounds=6))


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


def held_out_bars(results: dict[str, Any], kind: str) -> Iterator[Bar]:
    """The bars on held-out prompts of one kind."""
    trained = mean_of(results, kind, "kl trained")
    untrained = mean_of(results, kind, "kl untrained")
    yield Bar(
        f"{kind}: KL trained at most 1/4 of untrained",
        trained,
        untrained / 4,
        "at most",
        f"{trained:.3f} of {untrained:.3f} ({trained / untrained:.2f})",
    )
    rivals = ("snapkv", "laq") if kind == "retrieval" else ("snapkv",)
    for budget in BUDGETS:
        masses = {
            name: mean_of(results, kind, f"{name} {budget}")
            for name in ("lookaheadkv", "snapkv", "laq")
        }
        yield Bar(
            f"{kind}: kept mass at {budget} above {' and '.join(rivals)}",
            masses["lookaheadkv"],
            max(masses[rival] for rival in rivals),
            "above",
            ", ".join(f"{name} {mass:.3f}" for name, mass in masses.items()),
        )


def bars(results: dict[str, Any]) -> Iterator[Bar]:
    """Every bar of a finished run."""
    for kind in KINDS:
        yield from held_out_bars(results, kind)
    for length in NEEDLE_LENGTHS:
        found = [value for name, value in results.items() if name.startswith(f"needle {length} ")]
        right = {name: sum(sample[name] for sample in found) for name in found[0]}
        yield Bar(
            f"needle, {length} tokens, budget {NEEDLE_BUDGET}: 85 % of the full cache's",
            right["lookaheadkv"],
            0.85 * right["full"],
            text=", ".join(f"{name} {count}/{len(found)}" for name, count in right.items()),
        )
    peaks, times = results["memory"], results["step time"]
    yield Bar(
        f"peak KV of {peaks['tokens']} tokens, budget 128: at most 1/10 of the full cache",
        peaks["cut"],
        peaks["full"] / 10,
        "at most",
        f"{peaks['cut'] / 1e6:.1f} of {peaks['full'] / 1e6:.1f} MB "
        f"(1/{peaks['full'] / peaks['cut']:.1f})",
    )
    yield Bar(
        "training sample, 1,000 tokens: at most 2x the plain prefill",
        times["sample"],
        2 * times["prefill"],
        "at most",
        f"{times['sample']:.2f} s of {times['prefill']:.2f} s "
        f"({times['sample'] / times['prefill']:.2f}x)",
    )


def main(arguments: list[str]) -> int:
    """Measure, print, and say which bars are met."""
    parser = options("method", __doc__)
    parser.add_argument("--weights", default=MODEL, help="packaged name or folder")
    parser.add_argument("--held-out", type=int, default=8, help="prompts of each kind")
    parser.add_argument("--needles", type=int, default=50, help="of each length")
    parser.add_argument(
        "--dtype",
        default=usual_dtype_name(),
        help="of the model (default: bfloat16, or float32 on a CPU without instructions for it)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.json is None:
        parser.error("--json is needed: the results, which are continued if the file exists")
    bench, store = Bench(chosen.weights, getattr(torch, chosen.dtype)), Store(chosen.json)
    store.once("machine", lambda: {**machine.host(), "dtype": chosen.dtype})
    store.once("step time", partial(step_time, bench))
    store.once("memory", partial(memory, bench))
    for kind in KINDS:
        for index, ids in enumerate(held_out_prompts(bench, kind, chosen.held_out)):
            store.once(f"held-out {kind} {index}", partial(bench.held_out, ids))
    for length in NEEDLE_LENGTHS:
        for index, (ids, value) in enumerate(needles(bench, length, chosen.needles)):
            store.once(f"needle {length} {index}", partial(bench.needle, ids, value))
    for bar in bars(store.results):
        print(bar)
    return 0
