#!/usr/bin/env python3
"""A real language model answers from a KV cache cut to a few percent.

SmolLM2-135M-Instruct reads a long text with hidden facts. Each layer's cache is then cut to
--budget entries per KV head by torch.ops.lookaheadkv.score_and_evict, and the model answers
questions about the facts from the full and from the evicted cache. What was kept is compared with
the project's reference; the exit status is 1 if it differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from demo_prompt import FACTS

MIN_TRANSFORMERS = (5, 17)
MIN_BUDGET = 33  # one more than the 32 observation entries, which always stay
MIN_PROMPT_TOKENS = 256


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a value that cannot work ends the program with a message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=256,
        help="cache entries kept per layer and KV head; 32 of them are the end of the prompt",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=2048,
        help="least length of the text; chat template and question come on top",
    )
    parser.add_argument(
        "--questions", type=int, default=4, help=f"facts to ask for, 1..{len(FACTS)}"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the text, the facts and the questions"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the model and its cache: float32 is exact and fast on every CPU; bfloat16 halves "
        "the cache, and shortens the prefill on CPUs that have bfloat16 instructions",
    )
    args = parser.parse_args(argv)
    if args.budget < MIN_BUDGET:
        parser.error(f"--budget must be at least {MIN_BUDGET}, got {args.budget}")
    if args.prompt_tokens < MIN_PROMPT_TOKENS:
        parser.error(
            f"--prompt-tokens must be at least {MIN_PROMPT_TOKENS}, got {args.prompt_tokens}"
        )
    if not 1 <= args.questions <= len(FACTS):
        parser.error(f"--questions must be in 1..{len(FACTS)}, got {args.questions}")
    return args


def missing_requirement() -> str | None:
    """What to install before the demo can run, or None."""
    for package in ("lookaheadkv-kernels", "transformers", "gguf", "accelerate", "rich"):
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"{package} is not installed: pip install '.[demo]'"
        if package == "transformers":
            release = tuple(int(part) for part in found.split(".")[:2])
            if release < MIN_TRANSFORMERS:
                least = ".".join(map(str, MIN_TRANSFORMERS))
                return f"transformers {found} is too old (least: {least}): pip install '.[demo]'"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo: 0 if what was kept passes both checks, 1 if not, 2 if it cannot run."""
    args = parse_arguments(argv)
    missing = missing_requirement()
    if missing:
        print(f"demo: {missing}", file=sys.stderr)
        return 2
    os.environ.setdefault("TQDM_DISABLE", "1")  # loading has a line of its own
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # For bench.peers. Appended, so that the installed package wins over the source tree.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

    import torch
    from demo_report import print_report
    from demo_run import Options, load_model, run_demo
    from rich.console import Console

    console = Console()
    try:
        run = run_demo(
            load_model(getattr(torch, args.dtype), console),
            Options(args.budget, args.prompt_tokens, args.questions, args.seed),
            console,
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print_report(console, run)
    return 0 if run.agreement.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
