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
from ...policies.budget import Budget, check_budget
from ...policies.lookahead import LookaheadPolicy
from .attention import attach, detach
from .cache import EvictableCache
from .compat import cache_argument
from .patching import check_generate, replaced
from .prefiller import ModelPrefiller, Prefilled
from .prompt import make_prompt
from .structure import check_linears, check_supported, decoder_of
from .weights import find_modules

# The model that a prefill is running: its passes are not a user's prompts.
_PREFILLING: ContextVar[Any] = ContextVar("lookaheadkv_prefilling", default=None)
# Arguments that a prompt's forward may get; any other would be ignored silently.
PROMPT_ARGUMENTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "inputs_embeds",
    "use_cache",
    "logits_to_keep",
    "return_dict",
}


class Eviction:
    """A transformers model whose prompt cache is cut by a policy.

    The model's classes and weights stay as they are. What changes is the name of its attention
    implementation, which for every other cache calls the one it had; :meth:`detach` restores the
    name.

    Args:
        model: a causal language model (Llama, Mistral, Qwen2, Qwen3 and similar ones).
        policy: chooses which entries stay.
        chunk: prefill in parts of so many tokens; None runs the prompt at once.

    Raises:
        ValueError: the model is of an unsupported kind.
    """

    def __init__(self, model: Any, policy: Policy, *, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be >= 1, got {chunk}")
        check_supported(model)
        self.model = model
        self.policy = policy
        self.runner = ModelPrefiller(model, chunk)
        self._base_attention = attach(model)

    def detach(self) -> None:
        """Give the model back its own attention implementation."""
        detach(self.model, self._base_attention)

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
        cache: object,
        attention_mask: Tensor | None,
        **tokens: Tensor | None,
    ) -> Prefilled:
        budget = check_budget(budget, self.runner.num_layers)
        if cache is not None and not isinstance(cache, EvictableCache):
            raise ValueError(
                f"eviction cannot go on from a {type(cache).__name__}: start without a cache, or "
                "with one that eviction made"
            )
        # A fork, so that an error on the way leaves the cache as it was.
        work = EvictableCache() if cache is None else cache.fork()
        prompt = make_prompt(attention_mask=attention_mask, cache=work, **tokens)
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

        Right-padded rows become left-padded first, as ``generate`` expects. Assisted generation
        and other kinds of cache are not available.

        Args:
            input_ids: int64 [B, N]; with a cache of earlier turns the tokens of those too.
            attention_mask: [B, N]; 0 is padding.
            budget: see :meth:`prefill`.
            inputs_embeds: [B, N, hidden] in place of ``input_ids``.
            **options: of ``model.generate``.
        """
        cache = options.get("cache", options.get("past_key_values"))
        cache = cache.fork() if isinstance(cache, EvictableCache) else None
        past = 0 if cache is None else cache.get_seq_length()
        ids, embeds = (None if t is None else t[:, past:] for t in (input_ids, inputs_embeds))
        prompt = make_prompt(ids, attention_mask, inputs_embeds=embeds, cache=cache)
        if prompt.mask is not None:
            input_ids = _ending_in(input_ids, prompt.input_ids)
            inputs_embeds = _ending_in(inputs_embeds, prompt.inputs_embeds)
            attention_mask = _ending_in(attention_mask, prompt.mask)
        with self.evicting(budget):
            return self.model.generate(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                **options,
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
        plain, plain_generate = self.model.forward, self.model.generate
        name = cache_argument(self.model)

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if _PREFILLING.get() is self.model:
                return plain(*args, **kwargs)
            if args:
                raise TypeError("while eviction is on, pass every argument by keyword")
            if "past_key_values" in kwargs:  # transformers still accepts the old name
                kwargs[name] = kwargs.pop("past_key_values")
            ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
            tokens = embeds if ids is None else ids
            cache = kwargs.get(name)
            started = isinstance(cache, EvictableCache) and cache.get_seq_length() > 0
            if started and tokens is not None and tokens.shape[1] == 1:
                return plain(**kwargs)
            return self._prompt_output(kwargs, name, budget)

        @functools.wraps(plain_generate)
        def generate(*args: Any, **kwargs: Any) -> Any:
            check_generate(self.model, *args[1:2], **kwargs)
            return plain_generate(*args, **kwargs)

        with replaced(self.model, forward=forward, generate=generate):
            yield

    @torch.no_grad()
    def _prompt_output(
        self, kwargs: dict[str, Any], name: str, budget: Budget
    ) -> CausalLMOutputWithPast:
        """What the model's forward returns for a prompt."""
        keep = kwargs.get("logits_to_keep", 0)
        if not isinstance(keep, int) or keep != 1:
            raise ValueError(
                "while eviction is on, a prompt has the logits of its last token alone: pass "
                f"logits_to_keep=1, got {keep}"
            )
        for option in ("use_cache", "return_dict"):
            if kwargs.get(option) is False:
                raise ValueError(f"{option}=False is not available while eviction is on")
        for option, value in kwargs.items():
            # By identity: a tensor has no truth value.
            nothing = value is None or value is False or (isinstance(value, dict) and not value)
            if option not in {*PROMPT_ARGUMENTS, name} and not nothing:
                raise ValueError(f"{option} is not available while eviction is on")
        cache: Any = kwargs.get(name)
        # Ours takes the place of an empty cache that `generate` made and nobody else sees. A user's
        # own would stay empty, and a later turn would start from nothing: `_prefill` refuses it.
        if cache is not None and not isinstance(cache, EvictableCache):
            users = getattr(cache, "_is_user_defined", False)
            cache = cache if users or cache.get_seq_length() > 0 else None
        done = self._prefill(
            budget,
            cache,
            kwargs.get("attention_mask"),
            input_ids=kwargs.get("input_ids"),
            inputs_embeds=kwargs.get("inputs_embeds"),
            position_ids=kwargs.get("position_ids"),
        )
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
        shape = ModelShape.of(decoder_of(model).config)
        if shape != modules.config.model:
            raise ValueError(
                f"these lookahead modules are for {modules.config.model}, the model is {shape}"
            )
        check_linears(model, modules)
        # Copied: `to` would change the caller's modules, which may still be trained in float32.
        modules = copy.deepcopy(modules).requires_grad_(False).to(model.device, model.dtype)
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
        return cls(model, load_modules(find_modules(name)), **options)


def _ending_in(tensor: Tensor | None, end: Tensor | None) -> Tensor | None:
    """``tensor`` [B, t, ...] with its last tokens replaced by ``end``."""
    if tensor is None or end is None:
        return None
    return torch.cat([tensor[:, : tensor.shape[1] - end.shape[1]], end.to(tensor)], dim=1)
