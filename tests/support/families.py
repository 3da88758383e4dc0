"""The decoder classes of transformers that are used most, tiny, and what becomes of each.

A family is built from its own config class by shrinking whatever that class calls sizes, so that a
new release of transformers brings its own defaults along.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "ffn_dim": 64,
    "word_embed_proj_dim": 64,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "d_model": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.12,
}
FULL = {"layer_types": ["full_attention"] * 2}
MIXED = "only full attention is supported"
NO_LAYERS = r"has no layers\[i\]\.self_attn"
MLA = "multi-head latent attention"
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
# model type: (class, what its config needs besides, why it is refused; None: it is not).
FAMILIES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "apertus": ("ApertusForCausalLM", {}, None),
    "arcee": ("ArceeForCausalLM", {}, None),
    "bart": ("BartForCausalLM", {}, "cross-attention"),
    "biogpt": ("BioGptForCausalLM", {}, None),
    "bitnet": ("BitNetForCausalLM", {}, None),
    "bloom": ("BloomForCausalLM", {}, NO_LAYERS),
    "cohere": ("CohereForCausalLM", {}, None),
    "cohere2": ("Cohere2ForCausalLM", {"layer_types": None}, MIXED),
    "deepseek_v2": ("DeepseekV2ForCausalLM", LATENT, MLA),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT, MLA),
    "diffllama": ("DiffLlamaForCausalLM", {}, "attends 2 times per layer"),
    "doge": ("DogeForCausalLM", {}, "makes a mask of its own"),
    "ernie4_5": ("Ernie4_5ForCausalLM", {}, None),
    "exaone4": ("Exaone4ForCausalLM", FULL, None),
    "falcon": ("FalconForCausalLM", {}, NO_LAYERS),
    "gemma": ("GemmaForCausalLM", {}, None),
    "gemma2": ("Gemma2ForCausalLM", FULL, "attends with softcap=50.0"),
    "gemma3_text": ("Gemma3ForCausalLM", FULL, None),
    "glm": ("GlmForCausalLM", {}, None),
    "glm4": ("Glm4ForCausalLM", {}, None),
    "glm4_moe": ("Glm4MoeForCausalLM", {}, None),
    "gpt2": ("GPT2LMHeadModel", {}, NO_LAYERS),
    "gpt_neox": ("GPTNeoXForCausalLM", {}, f"{NO_LAYERS} at i = 0, but .*attention"),
    "gpt_oss": ("GptOssForCausalLM", FULL, "attends with s_aux=a tensor"),
    "granite": ("GraniteForCausalLM", {}, None),
    "granitemoe": ("GraniteMoeForCausalLM", {}, None),
    "helium": ("HeliumForCausalLM", {}, None),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", {}, None),
    "jetmoe": ("JetMoeForCausalLM", {}, NO_LAYERS),
    "llama": ("LlamaForCausalLM", {}, None),
    "llama4_text": ("Llama4ForCausalLM", {"layer_types": None}, MIXED),
    "mistral": ("MistralForCausalLM", {}, "sliding_window=4096 is not supported"),
    "mixtral": ("MixtralForCausalLM", {}, None),
    "mpt": ("MptForCausalLM", {}, NO_LAYERS),
    "nemotron": ("NemotronForCausalLM", {}, None),
    "olmo": ("OlmoForCausalLM", {}, None),
    "olmo2": ("Olmo2ForCausalLM", {}, None),
    "olmo3": ("Olmo3ForCausalLM", {"layer_types": None}, MIXED),
    "olmoe": ("OlmoeForCausalLM", {}, None),
    "opt": ("OPTForCausalLM", {}, None),
    "persimmon": ("PersimmonForCausalLM", {}, None),
    "phi": ("PhiForCausalLM", {}, None),
    "phi3": ("Phi3ForCausalLM", {}, None),
    "phimoe": ("PhimoeForCausalLM", {}, None),
    "prophetnet": ("ProphetNetForCausalLM", {}, r"cross-attention|no layers\[i\]"),
    "qwen2": ("Qwen2ForCausalLM", {}, None),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {}, None),
    "qwen3": ("Qwen3ForCausalLM", {}, None),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {}, None),
    "qwen3_next": ("Qwen3NextForCausalLM", {"layer_types": None}, MIXED),
    "seed_oss": ("SeedOssForCausalLM", {}, None),
    "smollm3": ("SmolLM3ForCausalLM", {}, None),
    "stablelm": ("StableLmForCausalLM", {}, None),
    "starcoder2": ("Starcoder2ForCausalLM", {}, None),
    "xglm": ("XGLMForCausalLM", {}, "does not attend through transformers' attention interface"),
}
SUPPORTED = [name for name, (_, _, refusal) in FAMILIES.items() if refusal is None]
REFUSED = [name for name, (_, _, refusal) in FAMILIES.items() if refusal is not None]


def family(name: str) -> Any:
    """A tiny model of a family, always with the same weights."""
    kind = CONFIG_MAPPING[name]
    known = set(inspect.signature(kind.__init__).parameters)
    known |= set(getattr(kind, "__dataclass_fields__", {})) | set(kind.attribute_map)
    model, own, _ = FAMILIES[name]
    sizes = {size: value for size, value in SIZES.items() if size in known}
    if "layer_types" in known and hasattr(kind(), "layer_types"):
        sizes |= {"layer_types": (kind().layer_types or ["full_attention"])[:2]}
    torch.manual_seed(0)
    config = kind(**{k: v for k, v in (sizes | own).items() if k in known})
    return getattr(transformers, model)(config).eval()
