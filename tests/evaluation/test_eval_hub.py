"""Benchmark data from an archive and from a (local) hub."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from support.eval_texts import PieceTokenizer
from support.hub_server import serve

from lookaheadkv_kernels.evaluation.longbench import LongBenchTask

RECORD = {"input": "What is it?", "context": "It is a lamp.", "answers": ["a lamp"]}


def archive(name: str) -> bytes:
    """LongBench's archive with one record of a task."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(f"data/{name}.jsonl", json.dumps(RECORD) + "\n")
    return content.getvalue()


def test_longbench_is_read_from_its_archive(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(archive("qasper"))
    task = LongBenchTask("qasper", PieceTokenizer(), tmp_path)
    assert task.num_samples == 1 and task.sample(4096, 0).references == ("a lamp",)
    assert len(task.source()["sha256"]) == 64
    with pytest.raises(FileNotFoundError, match=r"no lcc\.jsonl in"):
        LongBenchTask("lcc", PieceTokenizer(), tmp_path)
    (tmp_path / "data.zip").write_bytes(b"PK, but no archive")
    with pytest.raises(ValueError, match=r"data\.zip is damaged"):
        LongBenchTask("qasper", PieceTokenizer(), tmp_path)


PROGRAM = """
import sys
from pathlib import Path
from lookaheadkv_kernels.evaluation.hub import data_folder

folder = data_folder(Path("somebody/longbench"))
print(sorted(path.name for path in folder.rglob("*") if path.is_file()))
assert data_folder(folder) == folder
try:
    data_folder(Path("somebody/else"))
except FileNotFoundError as error:
    assert "'somebody/else': neither a folder" in str(error)
else:
    sys.exit("found what is not there")
"""


def test_data_come_from_the_hub_and_scripts_do_not(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    files = {"data.zip": archive("qasper"), "longbench.py": b"raise SystemExit", "a.jsonl": b"{}"}
    server = serve("somebody/longbench", files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['a.jsonl', 'data.zip']\n"
