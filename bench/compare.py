"""Two revisions on one machine: `python -m bench.compare REV_A REV_B`.

Each revision gets a tree of its own under build/compare/ with its libraries built there, and a
process that waits for its turn: both run every call alternately, so the machine is the same for
both. Ratios are B's time over A's, medians over the rounds. A folder in place of a revision is
taken as it is, built. The exit status says whether B is more than `--limit` times as slow anywhere,
in every attempt.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.cases import Case
from bench.ratios import ATTEMPTS, Batch, judge

CALLS = ("attention", "scores", "select", "gather", "score_and_evict")
FOLDER = machine.ROOT / "build" / "compare"
WORKER = Path(__file__).resolve().parent / "compare_worker.py"


def git(*arguments: str) -> bytes:
    """What git says in the repository."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=machine.ROOT, check=True, stdout=subprocess.PIPE).stdout


def extract(revision: str, folder: Path) -> Path:
    """The tree of a revision, in a folder named by its commit; an existing one is used again.

    Raises:
        subprocess.CalledProcessError: git does not know the revision.
    """
    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()
    tree = folder / commit[:12]
    if not tree.is_dir():
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
            archive.extractall(tree, filter="data")
    return tree


def checkout(revision: str) -> Path:
    """The tree of a revision, built; or a folder, as it is."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    tree = extract(revision, FOLDER)
    if not any((tree / "lookaheadkv_kernels" / "lib").glob("*cpu*")):
        build(tree)
    return tree


def build(tree: Path) -> None:
    """Compile a tree's libraries in place."""
    environment = {
        **os.environ,
        "LOOKAHEADKV_NUMPY": "off",
        "LOOKAHEADKV_CUDA": "auto" if torch.cuda.is_available() else "off",
    }
    print(f"building {tree}", file=sys.stderr)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=sys.stderr)


class Worker:
    """A process with one revision's package."""

    def __init__(self, tree: Path, settings: dict[str, Any]) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            # A waiting process must not spin on the core that the other one is timed on.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(settings)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.where = Path(self._read().split(maxsplit=1)[1]).parent
        if tree not in self.where.parents:
            raise RuntimeError(f"the package of {self.where} was imported, not that of {tree}")

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self._process.wait()}")
        return line.strip()

    def seconds(self, call: str) -> float:
        """Seconds of one call, made now."""
        assert self._process.stdin is not None
        print(call, file=self._process.stdin, flush=True)
        return float(self._read())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turn(a: Worker, b: Worker, call: str, rounds: int) -> Batch:
    """Some rounds of B and A, when called; who goes first changes every round."""

    def batch() -> tuple[list[float], list[float]]:
        taken: dict[Worker, list[float]] = {a: [], b: []}
        for round_ in range(rounds):
            for worker in (a, b) if round_ % 2 == 0 else (b, a):
                taken[worker].append(worker.seconds(call))
        return taken[b], taken[a]

    return batch


def settings_of(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The settings that a worker gets."""
    return {
        **asdict(case),
        "dtype": case.dtype_name,
        "device": options.device,
        "threads": options.threads,
        "budget": options.budget,
        "repeats": options.repeats,
        "seed": 0,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, measure, print, and say whether B is slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=8192)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--call", action="append", choices=CALLS, help="repeatable; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="per measurement (default: 15)")
    parser.add_argument("--repeats", type=int, default=3, help="calls per round (default: 3)")
    parser.add_argument("--attempts", type=int, default=ATTEMPTS)
    parser.add_argument("--limit", type=float, default=1.2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    trees = [checkout(revision) for revision in options.revisions]
    settings = settings_of(Case(num_prompt=options.prompt), options)
    with Worker(trees[0], settings) as a, Worker(trees[1], settings) as b:
        found = {
            call: judge(
                in_turn(a, b, call, options.rounds), options.limit, attempts=options.attempts
            )
            for call in options.call or CALLS
        }
    for call, verdict in found.items():
        print(f"{call:16} B / A = {verdict.ratio}  {'SLOWER' if verdict.slow else 'ok'}")
    if options.json:
        record = {
            "kind": "compare",
            **machine.facts(options.device, machine.command("bench.compare")),
            "revisions": options.revisions,
            "settings": settings,
            "verdicts": {call: asdict(verdict) for call, verdict in found.items()},
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(verdict.slow for verdict in found.values()))


if __name__ == "__main__":
    sys.exit(main())
