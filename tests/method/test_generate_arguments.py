"""Every argument of the installed `generate`: it does what it does in plain `generate`, or is
refused with a reason. A new release's new arguments fail here until somebody has looked at them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support.eviction_model import VOCABULARY, attached, text, tiny
from tokenizers import Tokenizer, decoders, models
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteriaList,
)
from transformers.utils import TransformersKwargs

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH, NEW = 20, 5
IDS = text(LENGTH)
SAMPLED = {"do_sample": True}
BEAMS = {"num_beams": 3}
NOT_AVAILABLE = "is not available while eviction is on: "


class Words:
    """A streamer."""

    def put(self, value: Any) -> None:
        pass

    def end(self) -> None:
        pass


def stop_at_23(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    return torch.full((len(input_ids),), input_ids.shape[1] >= 23)


def take_two(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """A decoding method of the user's own."""
    names = ("attention_mask", "position_ids", "cache", "past_key_values", "use_cache")
    state = {name: kwargs[name] for name in (*names, "logits_to_keep") if name in kwargs}
    for _ in range(2):
        inputs = model.prepare_inputs_for_generation(
            input_ids[:, -1:] if input_ids.shape[1] > LENGTH else input_ids, **state
        )
        out = model(**inputs)
        state = model._update_model_kwargs_for_generation(out, state)
        input_ids = torch.cat([input_ids, out.logits[:, -1:].argmax(dim=-1)], dim=1)
    return input_ids


# What passes: an argument's value, and the options that it needs.
PASSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "inputs": (IDS, {}),
    "generation_config": (GenerationConfig(max_new_tokens=3, do_sample=False), {}),
    "logits_processor": (
        LogitsProcessorList([MinNewTokensLengthLogitsProcessor(LENGTH, 4, 5, device="cpu")]),
        {},
    ),
    "stopping_criteria": (StoppingCriteriaList([stop_at_23]), {}),
    "prefix_allowed_tokens_fn": (lambda row, ids: [5, 6, 7], {}),
    "synced_gpus": (False, {}),
    "streamer": (Words(), {}),
    "negative_prompt_ids": (IDS, {}),
    "negative_prompt_attention_mask": (torch.ones_like(IDS), {}),
    "custom_generate": (take_two, {}),
    # Read by generate alone, from **kwargs.
    "tokenizer": (object(), {}),
    "assistant_tokenizer": (object(), {}),
    "trust_remote_code": (False, {}),
    # Fields of GenerationConfig.
    "max_length": (LENGTH + 4, {"max_new_tokens": None}),
    "max_new_tokens": (4, {}),
    "min_length": (LENGTH + 3, {"eos_token_id": 9}),
    "min_new_tokens": (4, {"eos_token_id": 9}),
    "early_stopping": (True, BEAMS),
    "max_time": (60.0, {}),
    "do_sample": (True, {}),
    "num_beams": (3, {}),
    "use_mtp": (False, {}),
    "use_cache": (True, {}),
    "cache_implementation": ("dynamic", {}),
    "temperature": (0.7, SAMPLED),
    "top_k": (9, SAMPLED),
    "top_p": (0.8, SAMPLED),
    "min_p": (0.1, SAMPLED),
    "top_h": (0.5, SAMPLED),
    "typical_p": (0.7, SAMPLED),
    "epsilon_cutoff": (0.01, SAMPLED),
    "eta_cutoff": (0.01, SAMPLED),
    "repetition_penalty": (1.5, {}),
    "encoder_repetition_penalty": (1.5, {}),
    "length_penalty": (0.5, BEAMS),
    "no_repeat_ngram_size": (2, {}),
    "bad_words_ids": ([[5], [7, 8]], {}),
    "renormalize_logits": (True, SAMPLED),
    "forced_bos_token_id": (5, {}),
    "forced_eos_token_id": (5, {}),
    "remove_invalid_values": (True, {}),
    "exponential_decay_length_penalty": ((2, 1.5), {"eos_token_id": 9}),
    "suppress_tokens": ([5, 6], {}),
    "begin_suppress_tokens": ([5, 6], {}),
    "sequence_bias": ([[[5], 3.0]], {}),
    "watermarking_config": ({"bias": 2.5, "seeding_scheme": "selfhash"}, {}),
    "num_return_sequences": (3, SAMPLED),
    "output_scores": (True, {}),
    "output_logits": (True, {}),
    "return_dict_in_generate": (True, {}),
    "pad_token_id": (4, {"eos_token_id": 9}),
    "bos_token_id": (3, {}),
    "eos_token_id": (9, {}),
    "encoder_no_repeat_ngram_size": (2, {}),
    "decoder_start_token_id": (3, {}),
    "num_assistant_tokens": (3, {}),
    "num_assistant_tokens_schedule": ("constant", {}),
    "assistant_confidence_threshold": (0.5, {}),
    "max_matching_ngram_size": (2, {}),
    "assistant_lookbehind": (3, {}),
    "target_lookbehind": (3, {}),
    "assistant_ensemble_weight": (0.5, {}),
    "speculation_type": ("sampling", {}),
    "disable_compile": (True, {}),
    "low_memory": (True, {}),
    "_from_model_config": (False, {}),
    "transformers_version": ("5", {}),
    # Arguments of the model's forward.
    "input_ids": (IDS, {}),
    "attention_mask": (torch.ones_like(IDS), {}),
    "position_ids": (torch.arange(LENGTH)[None] + 7, {}),
    "logits_to_keep": (1, {}),
}
# What eviction refuses, and a part of the reason.
REFUSED: dict[str, tuple[Any, str]] = {
    "assistant_model": ("model", "takes tokens back"),
    "use_mtp": (True, "takes tokens back"),
    "is_assistant": (True, "takes tokens back"),
    "prompt_lookup_num_tokens": (3, "takes tokens back"),
    "assistant_early_exit": (2, "takes tokens back"),
    "use_cache": (False, "nothing to evict"),
    "cache_implementation": ("static", "eviction brings its own cache"),
    "cache_config": ({"backend": "quanto"}, "eviction brings its own cache"),
    "max_cache_len": (99, "eviction brings its own"),
    "guidance_scale": (1.5, "a second time"),
    "penalty_alpha": (0.6, "takes tokens back"),
    "dola_layers": ("high", "hidden states"),
    "output_attentions": (True, "lookahead rows"),
    "output_hidden_states": (True, "lookahead rows"),
    "prefill_chunk_size": (7, "chunk="),
    "logits_to_keep": (2, "last token alone"),
    **{
        name: (3, "a prompt takes attention_mask")
        for name in TransformersKwargs.__optional_keys__
        if name not in ("output_attentions", "output_hidden_states", "position_ids")
    },
}
# What transformers itself refuses, deprecates or needs a download for, alike in both.
REFUSED_BY_TRANSFORMERS = {
    "diversity_penalty",
    "num_beam_groups",
    "constraints",
    "force_words_ids",
    "token_healing",  # needs a tokenizer of another kind
    "continuous_batching_config",  # of generate_batch
    "compile_config",  # of static caches
}
# In tests of their own.
ELSEWHERE = {"stop_strings", "inputs_embeds", "labels"}


@pytest.fixture(scope="module")
def lkv() -> Any:
    return attached(tiny())


def parameters_of_generate() -> set[str]:
    model = tiny()
    named = set(inspect.signature(model.generate).parameters) - {"kwargs"}
    forward = set(inspect.signature(model.forward).parameters) - {"kwargs"}
    # `cache` has tests below.
    fields = set(vars(GenerationConfig()))
    others = set(TransformersKwargs.__optional_keys__)
    return (named | fields | forward | others) - {"cache", "past_key_values"}


def test_every_argument_of_the_installed_transformers_was_looked_at() -> None:
    known = {*PASSES, *REFUSED, *REFUSED_BY_TRANSFORMERS, *ELSEWHERE}
    assert parameters_of_generate() - known == set()


def run(generate: Any, options: dict[str, Any]) -> Any:
    """Same seed, same prompt, unless the options bring one."""
    if not {"inputs", "input_ids"} & set(options):
        options = {"input_ids": IDS, **options}
    if "generation_config" not in options:
        options = {"max_new_tokens": NEW, "do_sample": False, **options}
    torch.manual_seed(11)
    out = generate(**{name: value for name, value in options.items() if name is not None})
    return out if isinstance(out, torch.Tensor) else out.sequences


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(PASSES))
def test_what_passes_does_what_it_does_in_plain_generate(lkv: Any, name: str) -> None:
    value, needs = PASSES[name]
    options = {**needs, name: value}
    expected = run(lkv.model.generate, options)
    for budget in (1.0, LENGTH):  # everything is kept
        assert run(lambda **o: lkv.generate(budget=budget, **o), options).equal(expected)  # noqa: B023
    with lkv.evicting(LENGTH):
        assert run(lkv.model.generate, options).equal(expected)
    config = set(vars(GenerationConfig()))
    if name in config and name not in ("_from_model_config", "transformers_version"):
        fields = {"max_new_tokens": NEW, "do_sample": False} | options
        whole = GenerationConfig(**fields)
        with lkv.evicting(LENGTH):
            out = run(lkv.model.generate, {"generation_config": whole})
        assert out.equal(expected)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_says_why(lkv: Any, name: str) -> None:
    value, reason = REFUSED[name]
    value = lkv.model if name == "assistant_model" else value
    runs = []
    handle = lkv.model.model.register_forward_pre_hook(lambda *a: runs.append(1))
    config = {name: value} if name in vars(GenerationConfig()) else None
    try:
        with pytest.raises(ValueError, match=f"{name}.*{NOT_AVAILABLE}.*{reason}"):
            lkv.generate(IDS, budget=8, max_new_tokens=2, **{name: value})
        with lkv.evicting(8), pytest.raises(ValueError, match=f"{name}.*{reason}"):
            lkv.model.generate(IDS, max_new_tokens=2, **{name: value})
        if config is not None:
            setattr(lkv.model.generation_config, name, value)
            with pytest.raises(ValueError, match=f"{name}.*{reason}"):
                lkv.generate(IDS, budget=8, max_new_tokens=2)
    finally:
        handle.remove()
        if config is not None:
            setattr(lkv.model.generation_config, name, None)
    assert not runs


@pytest.mark.filterwarnings("ignore")
def test_stop_strings_and_a_tokenizer(lkv: Any) -> None:
    letters = {chr(33 + number): number for number in range(VOCABULARY)}
    words = Tokenizer(models.BPE(vocab=letters, merges=[]))
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    plain = lkv.model.generate(IDS, max_new_tokens=NEW, do_sample=False)
    options = {
        "stop_strings": [tokenizer.decode(plain[0, LENGTH + 2])],
        "tokenizer": tokenizer,
        "max_new_tokens": NEW,
        "do_sample": False,
    }
    expected = lkv.model.generate(IDS, **options)
    assert expected.shape[1] < LENGTH + NEW
    assert lkv.generate(IDS, budget=LENGTH, **options).equal(expected)
    # Outside of a block, on a cache that eviction made.
    cache = lkv.prefill(IDS, budget=LENGTH)
    options["max_new_tokens"] = NEW - 1
    out = lkv.model.generate(plain[:, : LENGTH + 1], **options, **cache_of(lkv, cache))
    assert out.equal(expected)


def cache_of(lkv: Any, cache: Any) -> dict[str, Any]:
    return {lkv.runner._cache_argument: cache}


def test_embeddings_and_labels(lkv: Any) -> None:
    options = {"max_new_tokens": NEW, "do_sample": False}
    expected = lkv.model.generate(IDS, **options)
    embeds = lkv.model.get_input_embeddings()(IDS)
    out = lkv.generate(inputs_embeds=embeds, budget=LENGTH, **options)
    assert out.equal(expected[:, LENGTH:])
    assert lkv.generate(IDS, budget=LENGTH, labels=IDS, **options).equal(expected)


def test_a_prompt_that_generate_makes_by_itself(lkv: Any) -> None:
    options = {"max_new_tokens": NEW, "do_sample": False}
    assert lkv.generate(budget=8, **options).equal(lkv.model.generate(**options))


def test_names_of_the_prompt(lkv: Any) -> None:
    with pytest.raises(ValueError, match="only one of inputs and input_ids"):
        lkv.generate(IDS, budget=8, inputs=IDS)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        lkv.generate(IDS, budget=8, inputs_embeds=torch.ones(1, LENGTH, 48))
    with lkv.evicting(8), pytest.raises(TypeError, match="multiple values"):
        lkv.model.generate(IDS, inputs=IDS)


def caches(model: Any) -> list[Any]:
    dynamic = DynamicCache(config=model.config)
    return [
        dynamic,
        DynamicCache(),
        StaticCache(config=model.config, max_cache_len=64),
        EncoderDecoderCache(DynamicCache(), DynamicCache()),
        ((torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8)),) * 3,
        (),
        model,
    ]


@pytest.mark.parametrize("number", range(7))
def test_caches_of_other_kinds_are_refused_wherever_they_come_in(lkv: Any, number: int) -> None:
    cache = caches(lkv.model)[number]
    name = lkv.runner._cache_argument
    kind = type(cache).__name__
    with pytest.raises(ValueError, match=f"cannot go on from a {kind}"):
        lkv.prefill(IDS, budget=8, cache=cache)
    with pytest.raises(ValueError, match=f"cannot go on from a {kind}"):
        lkv.generate(IDS, budget=8, max_new_tokens=2, **{name: cache})
    for argument in {name, "past_key_values"}:
        with lkv.evicting(8):
            with pytest.raises(ValueError, match=f"cannot go on from a {kind}"):
                lkv.model.generate(IDS, max_new_tokens=2, **{argument: cache})
            for ids in (IDS, IDS[:, :1]):
                with pytest.raises(ValueError, match=f"cannot go on from a {kind}"):
                    lkv.model(input_ids=ids, logits_to_keep=1, **{argument: cache})
    if hasattr(cache, "get_seq_length"):
        assert cache.get_seq_length() == 0


def test_a_decoding_method_that_keeps_a_cache_of_its_own_is_refused(lkv: Any) -> None:
    name = lkv.runner._cache_argument

    def forgetful(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        mine = DynamicCache()
        for _ in range(2):
            model(input_ids=input_ids, logits_to_keep=1, **{name: mine})
        return input_ids

    with pytest.raises(ValueError, match="cannot go on from a DynamicCache"):
        lkv.generate(IDS, budget=8, max_new_tokens=3, custom_generate=forgetful)
