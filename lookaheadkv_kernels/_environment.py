"""The environment variables of this project: all of them, and a check of those that are set."""

from __future__ import annotations

import difflib
import os
from typing import NamedTuple

from ._log import logger

PREFIX = "LOOKAHEADKV_"


class Variable(NamedTuple):
    """One environment variable; docs/environment.md shows the same."""

    name: str
    read: str  # when, and by what
    values: str
    default: str
    text: str


VARIABLES = (
    Variable(
        "LOOKAHEADKV_BACKEND",
        "import, and every choice of a backend",
        "cuda, triton, cpu",
        "by the tensor's device",
        "the implementation of the ops; set_backend() has the last word",
    ),
    Variable(
        "LOOKAHEADKV_CPU_ISA",
        "import, and every call of an op on a CPU",
        "amx, avx512_bf16, avx512, avx2, neon_bf16, neon, portable",
        "the best that this machine has",
        "instruction set of the CPU kernels; lookaheadkv info prints those of this machine",
    ),
    Variable(
        "LOOKAHEADKV_CUDA",
        "build",
        "auto, on, off",
        "auto",
        "whether to build the CUDA library; auto: where nvcc is found",
    ),
    Variable(
        "LOOKAHEADKV_CUDA_ARCHS",
        "build",
        "chips, e.g. 80;86;89;90a;100a;120a",
        "80;90a-real",
        "what the CUDA library is compiled for",
    ),
    Variable(
        "LOOKAHEADKV_NUMPY",
        "build",
        "on, off",
        "on",
        "whether to build the NumPy module, the only part tied to a Python version",
    ),
    Variable(
        "LOOKAHEADKV_WERROR",
        "build",
        "on, off",
        "off",
        "whether warnings of the compilers are errors",
    ),
    Variable(
        "LOOKAHEADKV_TEST_SEED",
        "tests",
        "a whole number",
        "0",
        "other random inputs",
    ),
)


def check() -> None:
    """Called at import: a variable that asks for what cannot be must raise, not be ignored.

    A name that is none of ours is most likely misspelled; since it may be somebody else's, it is
    only logged.

    Raises:
        ValueError: a variable holds a name that is unknown.
        RuntimeError: it holds one that is not available in this process or on this machine.
    """
    from .backend import check_environment
    from .info import active_isa

    check_environment()
    if os.environ.get("LOOKAHEADKV_CPU_ISA"):
        active_isa()
    known = [variable.name for variable in VARIABLES]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; is {near[0]} meant?" if near else f"; there are {', '.join(known)}"
            logger.warning("the environment variable %s is not known%s", name, meant)
