"""A random model small enough to train within a test, with a tokenizer of one word a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lookaheadkv_kernels.lookahead import (
    LookaheadConfig,
    LookaheadModules,
    ModelShape,
    save_modules,
)

WORDS = 90


# Three layers, 6 query heads of 8 dimensions on 2 KV heads.
TINY_SIZES = {
    "vocab_size": WORDS + 6,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_llama(seed: int = 0, **sizes: Any) -> Any:
    """A random Llama of ``TINY_SIZES``, or of other ``sizes``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(TINY_SIZES | sizes))).eval()


def random_modules(model: Any, seed: int = 0, **options: Any) -> LookaheadModules:
    """Modules none of whose weights is zero, so that every one of them matters."""
    config = LookaheadConfig(model=ModelShape.of(model.config), **options)
    modules = LookaheadModules(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return modules


def save_tiny_model(folder: Path) -> None:
    """Model and tokenizer as ``from_pretrained`` wants them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "user": 4, "assistant": 5}
    vocabulary |= {f"w{number}": number + 6 for number in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    tiny_llama().save_pretrained(folder)


def save_tiny_modules(folder: Path) -> None:
    """Random modules of that model."""
    save_modules(random_modules(tiny_llama(), num_lookahead=4, lora_rank=2), folder)
