"""What lies in fresh memory must not matter: glibc fills it with a pattern of our choice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.build_tools import checked

SCRIPT = """
import hashlib, torch
from support.calls import results_of_all_ops
from support.helpers import DTYPES, bits, make_inputs
digest = hashlib.sha256()
for dtype in DTYPES:
    for dim, rows, prompt in ((24, 5, 333), (64, 32, 1000), (8, 1, 2)):
        torch.manual_seed(dim)
        inputs = make_inputs(heads=6, prompt=prompt, rows=rows, dim=dim, dtype=dtype)
        for result in results_of_all_ops(inputs):
            assert not result.isnan().any()
            digest.update(bits(result).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
def test_content_of_fresh_memory():
    """0x80 fills it with 0x7f (huge floats, fp16 NaN), 0x01 with 0xfe (huge negative floats)."""
    digests = [
        checked(
            [sys.executable, "-c", SCRIPT],
            cwd=Path(__file__).parents[1],
            env={"MALLOC_PERTURB_": str(pattern)} if pattern else None,
        )
        for pattern in (0, 0x80, 0x01)
    ]
    assert len(digests[0].strip()) == 64
    assert digests[0] == digests[1] == digests[2]
