"""LookaheadKV kernels: score a prompt's KV cache with lookahead rows, evict what they do not need.

Importing the package loads the compiled op library, which registers ``torch.ops.lookaheadkv``;
the functions below are thin forwards to those ops.
"""

from . import _library

_library.load()

# The rest needs the registered ops; the first adds fake kernels and gradients to them.
from . import (  # noqa: E402
    _autograd,  # noqa: F401
    _environment,
    ops,
    paged,
)
from ._version import __version__  # noqa: E402
from .backend import (  # noqa: E402
    available_backends,
    backend_for,
    register_kernels,
    set_backend,
)
from .ops import *  # noqa: E402, F403
from .paged import *  # noqa: E402, F403

__all__ = ["__version__", "available_backends", "backend_for", "set_backend"]
__all__ += ops.__all__
__all__ += paged.__all__

_environment.check()
register_kernels()
