"""What users call: attach a policy to a model, then prefill, generate, or switch eviction on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...lookahead import LookaheadModules, ModelShape, load_modules
from ...policies.base import Policy
from ...policies.budget import Budget, check_at_least, check_budget
from ...policies.lookahead import LookaheadPolicy
from .attachment import attach_user, check_autocast, detach_user, is_user, own_cache
from .cache import EvictableCache
from .checks import as_policy, check_modules, check_name, check_tokens
from .compat import cache_argument
from .compiled import as_written
from .devices import input_device, place_modules
from .generate_call import GenerateCall, call_of, check_kind, generating, named, prepare
from .generate_options import check_forward, check_generate, read_by_model
from .padding import explained, inferred_mask
from .patching import replaced
from .prefiller import ModelPrefiller, Prefilled
from .prompt import make_prompt
from .structure import check_linears, check_supported, decoder_of
from .weights import find_modules

# The model that a prefill is running: its passes are not a user's prompts.
_PREFILLING: ContextVar[Any] = ContextVar("lookaheadkv_prefilling", default=None)


class Eviction:
    """A transformers model whose prompt cache is cut by a policy.

    The model's classes and weights stay as they are. Two hooks on its decoder act on passes over
    evictable caches, which get an attention of their own; :meth:`detach` takes the hooks away,
    unless another eviction is attached to the model.

    Args:
        model: a causal language model (Llama, Mistral, Qwen2, Qwen3 and similar ones).
        policy: chooses which entries stay; or the name of a policy that needs no more, as the
            commands take it.
        chunk: prefill in parts of so many tokens; None runs the prompt at once.

    Raises:
        ValueError: the model is of an unsupported kind; there is no such policy.
    """

    def __init__(self, model: Any, policy: Policy | str, *, chunk: int | None = None) -> None:
        if chunk is not None:
            check_at_least("chunk", chunk, 1)
        check_supported(model)
        self.model = model
        self.policy = as_policy(policy)
        self.runner = ModelPrefiller(model, chunk)
        attach_user(self, model)

    def detach(self) -> None:
        """Leave the model; the last eviction that does takes its hooks away."""
        detach_user(self, self.model)

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        budget: Budget,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: EvictableCache | None = None,
    ) -> EvictableCache:
        """Run a batch of prompts and return what is left of their cache.

        ``result.logits`` [B, vocabulary] are those of every row's last token, computed before
        anything was evicted: the first token of an answer comes from them, all others from the
        cache.

        Args:
            input_ids: int64 [B, N], padded left, right, or not at all.
            attention_mask: [B, N]; 0 is padding. With ``cache`` it may cover earlier tokens too.
                None: the model's pad token is padding, unless it also ends answers.
            budget: entries to keep per KV head: a count, a ratio of the row's tokens in (0, 1], or
                one of these per layer.
            inputs_embeds: [B, N, hidden] in place of ``input_ids``.
            position_ids: int64 [B, N]; counted from the mask when None.
            cache: what an earlier turn left; it is changed, and returned.

        Raises:
            ValueError: a budget or a mask that makes no sense.
            RuntimeError: a budget that cannot hold what the policy pins.
        """
        return self._prefill(
            budget,
            cache,
            attention_mask,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
        ).cache

    def _prefill(
        self,
        budget: Budget,
        cache: EvictableCache | None,
        attention_mask: Tensor | None,
        *,
        infer: bool = True,
        **tokens: Tensor | None,
    ) -> Prefilled:
        """Check everything, then run and cut; ``infer`` the padding where there is no mask."""
        budget = check_budget(budget, self.runner.num_layers)
        self._check_attached()
        check_kind(cache)
        check_tokens(self.model, attention_mask=attention_mask, **tokens)
        check_autocast(input_device(self.model), self.model.dtype)
        # A fork, so that an error on the way leaves the cache as it was.
        work = EvictableCache() if cache is None else cache.fork()
        own_cache(work, decoder_of(self.model))
        infer = infer and attention_mask is None
        made = inferred_mask(self.model, tokens["input_ids"]) if infer else None
        mask = attention_mask if made is None else made
        try:
            prompt = make_prompt(attention_mask=mask, cache=work, **tokens)
        except ValueError as error:
            raise error if made is None else explained(error, self.model) from error
        token = _PREFILLING.set(self.model)
        try:
            done = self.policy.prefill(self.runner, prompt, budget, work)
        finally:
            _PREFILLING.reset(token)
        if cache is not None:
            cache.adopt(done.cache)
            done.cache = cache
        return done

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        budget: Budget,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """``model.generate`` from a cut cache: sampling, beams, streamers and the rest.

        Right-padded rows become left-padded first, as ``generate`` expects. Where the cache has
        seen the whole prompt, its logits give the first token. Assisted generation and other kinds
        of cache are not available.

        Args:
            input_ids: int64 [B, N]; with a cache of earlier turns the tokens of those too.
            attention_mask: [B, N]; 0 is padding.
            budget: see :meth:`prefill`.
            inputs_embeds: [B, N, hidden] in place of ``input_ids``.
            **options: of ``model.generate``.
        """
        with self.evicting(budget):
            return self.model.generate(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                **options,
            )

    def _check_attached(self) -> None:
        if not is_user(self, self.model):
            raise RuntimeError(
                f"this {type(self).__name__} was detached from its model: make a new one"
            )

    @contextmanager
    def evicting(self, budget: Budget) -> Iterator[None]:
        """Within the block every prompt that the model gets, in any thread, is cut to ``budget``.

        A prompt is any call with more than one new token, or with an empty cache, as ``generate``
        makes them; only the logits of its last token are computed. Afterwards the model is as it
        was before.

        Args:
            budget: see :meth:`prefill`.

        Raises:
            RuntimeError: another thread is in a block of the same model.
        """
        budget = check_budget(budget, self.runner.num_layers)
        self._check_attached()
        plain, plain_generate = self.model.forward, self.model.generate
        name = cache_argument(self.model)

        @functools.wraps(plain)
        @as_written
        def forward(*args: Any, **kwargs: Any) -> Any:
            if _PREFILLING.get() is self.model:
                return plain(*args, **kwargs)
            if args:
                raise TypeError("while eviction is on, pass every argument by keyword")
            if "past_key_values" in kwargs:  # transformers still accepts the old name
                kwargs[name] = kwargs.pop("past_key_values")
            call = call_of(self.model)
            kwargs = kwargs if call is None else read_by_model(plain, kwargs)
            cache: Any = kwargs.get(name)
            if call is not None and call.answer_first and not call.answered:
                call.answered = True
                return _first_output(cache, name)
            ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
            tokens = embeds if ids is None else ids
            started = isinstance(cache, EvictableCache) and cache.get_seq_length() > 0
            if started and isinstance(tokens, Tensor) and tokens.shape[1:2] == (1,):
                return plain(**kwargs)
            return self._prompt_output(kwargs, name, budget, call)

        @functools.wraps(plain_generate)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if call_of(self.model) is not None:  # an outer block's, or one that generate called
                return plain_generate(*args, **kwargs)
            options = named(plain_generate, args, kwargs, name)
            cache: Any = options.get(name)
            check_kind(cache)
            check_generate(self.model, options)
            if cache is not None:
                own_cache(cache, decoder_of(self.model))
            with generating(self.model, cache) as call:
                call.answer_first = prepare(self.model, options, cache)
                return plain_generate(**options)

        with replaced(self.model, forward=forward, generate=generate):
            yield

    @torch.no_grad()
    def _prompt_output(
        self, kwargs: dict[str, Any], name: str, budget: Budget, call: GenerateCall | None
    ) -> CausalLMOutputWithPast:
        """What the model's forward returns for a prompt."""
        check_forward(self.model, kwargs, name)
        cache: Any = kwargs.get(name)
        # Ours takes the place of the empty cache that `generate` made and nobody else sees. A
        # user's own would stay empty, and a later turn would start from nothing.
        if call is not None and call.made(cache):
            cache = None
        check_kind(cache)
        done = self._prefill(
            budget,
            cache,
            kwargs.get("attention_mask"),
            input_ids=kwargs.get("input_ids"),
            inputs_embeds=kwargs.get("inputs_embeds"),
            position_ids=kwargs.get("position_ids"),
            infer=call is None,
        )
        if call is not None:
            call.answered = True
        return CausalLMOutputWithPast(logits=done.logits[:, None], **{name: done.cache})


class LookaheadKV(Eviction):
    """LookaheadKV on a transformers model.

    Args:
        model: the model.
        modules: its trained lookahead modules.
        mode: ``"appended"`` or ``"extend"``; see
            :class:`~lookaheadkv_kernels.policies.lookahead.LookaheadPolicy`.
        chunk: see :class:`Eviction`.

    Raises:
        ValueError: the modules were made for a model of other sizes.
    """

    def __init__(
        self,
        model: Any,
        modules: LookaheadModules,
        *,
        mode: str = "appended",
        chunk: int | None = None,
    ) -> None:
        check_supported(model)
        check_modules(modules)
        shape = ModelShape.of(decoder_of(model).config)
        if shape != modules.config.model:
            raise ValueError(
                f"these lookahead modules are for {modules.config.model}, the model is {shape}"
            )
        check_linears(model, modules)
        # Copied: `to` would change the caller's modules, which may still be trained in float32.
        modules = place_modules(copy.deepcopy(modules).requires_grad_(False), model)
        super().__init__(model, LookaheadPolicy(modules, mode=mode), chunk=chunk)

    @classmethod
    def from_pretrained(cls, name: str | Path, model: Any, **options: Any) -> LookaheadKV:
        """Load modules by the name of a packaged set, a folder, or a hub id.

        Args:
            name: e.g. ``"smollm2-135m-instruct"``.
            model: the model they were trained for.
            **options: of the constructor.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: the files are damaged, or for another model.
        """
        check_name(name)
        check_supported(model)
        return cls(model, load_modules(find_modules(name)), **options)


def _first_output(cache: EvictableCache, name: str) -> CausalLMOutputWithPast:
    """What the forward returns for a prompt that the cache has seen whole."""
    logits = cache.next_logits()
    assert logits is not None  # `prepare` has looked
    return CausalLMOutputWithPast(logits=logits[:, None], **{name: cache})
