"""``python -m lookaheadkv_kernels`` is the ``lookaheadkv`` command."""

from .cli import main

raise SystemExit(main())
