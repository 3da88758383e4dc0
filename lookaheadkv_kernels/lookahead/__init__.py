"""Lookahead modules: their configuration, weights and files, independent of any model library."""

from .config import LookaheadConfig, ModelShape
from .files import load_modules, save_modules, training_record
from .modules import LookaheadModules, LoRA

__all__ = [
    "LoRA",
    "LookaheadConfig",
    "LookaheadModules",
    "ModelShape",
    "load_modules",
    "save_modules",
    "training_record",
]
