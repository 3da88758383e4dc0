"""Run named experiments, or go on: `python -m bench.experiments NAME ... --output FOLDER`.

What they are stands in `bench/experiments/config.json`. Each keeps its results in FOLDER/NAME; what
is there is not done again. `python -m bench.experiments.page --runs FOLDER` makes the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bench.experiments import accuracy, overhead, sweep
from bench.experiments.subject import Subject
from bench.work import usual_dtype_name

CONFIG = Path(__file__).parent / "config.json"


def main(argv: list[str] | None = None) -> None:
    """Run the experiments one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="experiments; all when none is given")
    parser.add_argument("--output", type=Path, required=True, help="folder of all results")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what the experiments are")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--weights", help="lookahead modules (default: the model's name)")
    parser.add_argument(
        "--dtype",
        default=usual_dtype_name(),
        help="of the model (default: bfloat16, or float32 on a CPU without instructions for it)",
    )
    parser.add_argument("--shard", help="I/N: this process's share of the accuracy's samples")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    arguments = parser.parse_args(argv)
    specs = json.loads(arguments.config.read_text())
    names = arguments.names or list(specs)
    if unknown := [name for name in names if name not in specs]:
        parser.error(f"unknown experiment {unknown[0]!r}; there are {', '.join(specs)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = ["--model", arguments.model, "--dtype", arguments.dtype]
    options += ["--threads", str(arguments.threads)]
    for name in ("weights", "shard"):
        if getattr(arguments, name) is not None:
            options += [f"--{name}", getattr(arguments, name)]
    for name in names:
        spec, folder = specs[name], arguments.output / name
        print(f"{name}: {folder}", flush=True)
        if spec["kind"] == "accuracy":
            accuracy.run(spec, folder, options)
            continue
        subject = Subject(arguments.model, arguments.weights, arguments.dtype)
        {"overhead": overhead.run, "sweep": sweep.run}[spec["kind"]](spec, folder, subject)


if __name__ == "__main__":
    main()
