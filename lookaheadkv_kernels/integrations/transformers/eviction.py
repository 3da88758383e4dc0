"""What users call: attach a policy to a model, then prefill, generate, or switch eviction on."""

from __future__ import annotations

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
from ...policies.base import Budget, Policy, check_budget
from ...policies.lookahead import LookaheadPolicy
from .attention import attach
from .cache import EvictableCache
from .compat import cache_argument, decoder_layers
from .prompt import Prompt, make_prompt
from .runner import Prefilled, Runner
from .weights import find_modules

# Set while a prefill runs the model itself: its passes are not prompts of a user.
_PREFILLING: ContextVar[bool] = ContextVar("lookaheadkv_prefilling", default=False)


class Eviction:
    """A transformers model whose prompt cache is cut by a policy.

    The model's classes and weights stay as they are. What changes is the name of its attention
    implementation, which for every other cache calls the one it had; :meth:`detach` puts the name
    back.

    Args:
        model: a causal language model (Llama, Mistral, Qwen2, Qwen3 and their like).
        policy: says which entries stay.
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
        self._base_attention = attach(model)
        self.runner = Runner(model, chunk)

    def detach(self) -> None:
        """Give the model back its own attention implementation."""
        self.model.set_attn_implementation(self._base_attention)

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
            make_prompt(
                input_ids,
                attention_mask,
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                seen=None if cache is None else cache.row_lengths(),
            ),
            budget,
            cache,
        ).cache

    def _prefill(self, prompt: Prompt, budget: Budget, cache: EvictableCache | None) -> Prefilled:
        check_budget(budget, self.runner.num_layers)
        token = _PREFILLING.set(True)
        try:
            done: Prefilled = self.policy.prefill(self.runner, prompt, budget, cache)
        finally:
            _PREFILLING.reset(token)
        done.cache.logits = done.logits
        done.cache.choices = done.choices
        return done

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        budget: Budget,
        **options: Any,
    ) -> Any:
        """``model.generate`` from a cut cache; everything it can do, it does.

        Right-padded rows are turned into left-padded ones first, as ``generate`` wants them.

        Args:
            input_ids: int64 [B, N].
            attention_mask: [B, N]; 0 is padding.
            budget: see :meth:`prefill`.
            **options: of ``model.generate``.
        """
        prompt = make_prompt(input_ids, attention_mask)
        mask = attention_mask if prompt.mask is None else prompt.mask.long()
        with self.evicting(budget):
            return self.model.generate(prompt.input_ids, attention_mask=mask, **options)

    @contextmanager
    def evicting(self, budget: Budget) -> Iterator[None]:
        """Within the block every prompt that the model gets is cut to ``budget``.

        A prompt is any call with a cache and more than one new token, or an empty cache, as
        ``generate`` makes them; it gets the logits of its last token alone. On the way out the
        model is as it was.

        Args:
            budget: see :meth:`prefill`.
        """
        check_budget(budget, self.runner.num_layers)
        plain = self.model.forward
        name = cache_argument(self.model)

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            cache = kwargs.get(name)
            if _PREFILLING.get() or cache is None:
                return plain(*args, **kwargs)
            if args:
                raise TypeError("while eviction is on, pass every argument by keyword")
            tokens = kwargs.get("input_ids")
            tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
            if tokens is None or (tokens.shape[1] == 1 and cache.get_seq_length() > 0):
                return plain(**kwargs)
            return self._prompt_output(kwargs, cache, name, budget)

        own = self.model.__dict__.get("forward")
        self.model.forward = forward
        try:
            yield
        finally:
            if own is None:
                del self.model.forward
            else:
                self.model.forward = own

    @torch.no_grad()
    def _prompt_output(
        self, kwargs: dict[str, Any], cache: Any, name: str, budget: Budget
    ) -> CausalLMOutputWithPast:
        """What the model's forward returns for a prompt."""
        if not isinstance(kwargs.get("logits_to_keep"), int) or kwargs["logits_to_keep"] != 1:
            raise ValueError(
                "while eviction is on, a prompt has the logits of its last token alone: pass "
                f"logits_to_keep=1 (got {kwargs.get('logits_to_keep', 0)})"
            )
        for option in ("labels", "output_attentions", "output_hidden_states"):
            if kwargs.get(option):
                raise ValueError(f"{option} is not available while eviction is on")
        if not isinstance(cache, EvictableCache):
            if cache.get_seq_length() > 0:
                raise ValueError(
                    f"eviction cannot go on from a {type(cache).__name__}: start with an empty "
                    "cache, or with one that eviction made"
                )
            cache = None
        prompt = make_prompt(
            kwargs.get("input_ids"),
            kwargs.get("attention_mask"),
            inputs_embeds=kwargs.get("inputs_embeds"),
            position_ids=kwargs.get("position_ids"),
            seen=None if cache is None else cache.row_lengths(),
        )
        done = self._prefill(prompt, budget, cache)
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
        shape = ModelShape.of(model.config)
        if shape != modules.config.model:
            raise ValueError(
                f"these lookahead modules are for {modules.config.model}, the model is {shape}"
            )
        modules = modules.to(model.device, model.dtype)
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


def check_supported(model: Any) -> None:
    """Refuse models that eviction would silently get wrong.

    Raises:
        ValueError: sliding-window or other non-full attention layers, or an unknown structure.
    """
    decoder_layers(model)
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"{type(model).__name__}: only full attention is supported, got {kinds}")
    uses_window = getattr(config, "use_sliding_window", True)
    if getattr(config, "sliding_window", None) is not None and uses_window:
        raise ValueError(
            f"{type(model).__name__}: sliding_window={config.sliding_window} is not supported"
        )
