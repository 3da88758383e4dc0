"""The op tests on Triton's kernels, in its interpreter: no GPU needed.

The interpreter is chosen when the kernels are imported, so these are test runs of their own. To run
more cases by hand: TRITON_INTERPRET=1 LOOKAHEADKV_BACKEND=triton pytest tests/ops/test_ops.py
"""

from __future__ import annotations

import sys

import pytest
from support.build_tools import ROOT, run

INTERPRETER = {"TRITON_INTERPRET": "1", "LOOKAHEADKV_BACKEND": "triton"}
# Quick ones as a whole; of the others a few cases of every test. The largest shapes take minutes.
RUNS = {
    "errors": ("tests/ops/test_bad_input.py", "tests/paged/test_paged_bad_input.py"),
    "gather": ("tests/ops/test_gather.py", "--cases-per-test=12"),
    "paged": ("tests/triton/test_triton_paged.py",),
    "kernels": (
        "tests/triton/test_triton_kernels.py",
        "tests/ops/test_ops.py",
        "tests/ops/test_evict.py",
        "tests/ops/test_gradients.py",
        "tests/ops/test_select.py",
        "tests/ops/test_registration.py",
        "--cases-per-test=2",
        "--deselect=tests/ops/test_ops.py::test_long_prompt",
        "--deselect=tests/ops/test_ops.py::test_llama_layer",
        "--deselect=tests/ops/test_select.py::test_long_row",
        "--deselect=tests/ops/test_select.py::test_padding",
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "gather" else pytest.mark.slow) for name in RUNS],
)
def test_op_tests_on_triton(name: str) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *RUNS[name]]
    result = run(command, cwd=ROOT, env=INTERPRETER)
    assert result.returncode == 0, result.stdout[-8000:]
