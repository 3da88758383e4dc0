"""A C++ program, built against libtorch, that calls the op without any Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.build_tools import checked, cmake_build

from lookaheadkv_kernels._library import library_path

SOURCE = Path(__file__).parents[1] / "cpp" / "consumer"


@pytest.mark.slow
def test_cpp_program_calls_the_op_through_the_dispatcher(tmp_path: Path) -> None:
    cmake_build(
        SOURCE,
        tmp_path,
        "-DCMAKE_BUILD_TYPE=Debug",  # quicker to compile; the kernels are built already
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
    )
    output = checked([tmp_path / "consumer", library_path("cpu")])
    assert output == "score_and_evict agrees with plain loops\n"
