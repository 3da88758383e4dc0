#!/usr/bin/env python3
"""A real language model answers from a KV cache cut to a few percent.

SmolLM2-135M-Instruct reads a long text with hidden facts and is asked for them: from its full
cache, and from what LookaheadKV, SnapKV and StreamingLLM leave of it at --budget entries per layer
and KV head. What they keep is compared with the project's reference; the exit status is 1 if it
differs. For each question a page and a picture show what stayed.
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
# 3 % of the text. With so few entries the choice matters: half of them are SnapKV's window. At 128
# SnapKV finds most of the facts as well, and at a few hundred everything that scores does.
BUDGET = 64
MIN_BUDGET = 33  # one more than SnapKV's window of 32 entries, which always stay
MIN_PROMPT_TOKENS = 256
PACKAGES = ("lookaheadkv-kernels", "transformers", "gguf", "accelerate", "rich", "matplotlib")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a value that cannot work ends the program with a message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--budget",
        type=int,
        default=BUDGET,
        help="cache entries kept per layer and KV head; of SnapKV's, 32 are the end of the prompt",
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
    parser.add_argument(
        "--weights",
        default="smollm2-135m-instruct",
        help="lookahead modules: the name of a packaged set, or a folder",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("build/demo"),
        metavar="FOLDER",
        help="where question-1.html, question-1.png and so on go",
    )
    parser.add_argument(
        "--layer", type=int, help="the pictures show this layer alone (the pages can switch)"
    )
    parser.add_argument("--head", type=int, help="the pictures show this KV head alone")
    args = parser.parse_args(argv)
    if args.budget < MIN_BUDGET:
        parser.error(f"--budget must be at least {MIN_BUDGET}, got {args.budget}")
    if args.prompt_tokens < MIN_PROMPT_TOKENS:
        parser.error(
            f"--prompt-tokens must be at least {MIN_PROMPT_TOKENS}, got {args.prompt_tokens}"
        )
    if not 1 <= args.questions <= len(FACTS):
        parser.error(f"--questions must be in 1..{len(FACTS)}, got {args.questions}")
    if args.picture.exists() and not args.picture.is_dir():
        parser.error(f"--picture must be a folder, got the file {args.picture}")
    return args


def missing_requirement() -> str | None:
    """What to install before the demo can run, or None."""
    for package in PACKAGES:
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
    """Run the demo: 0 if what was kept passes every check, 1 if not, 2 if it cannot run."""
    args = parse_arguments(argv)
    missing = missing_requirement()
    if missing:
        print(f"demo: {missing}", file=sys.stderr)
        return 2
    os.environ.setdefault("TQDM_DISABLE", "1")  # loading prints its own line
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # For bench.peers. Appended, so that the installed package wins over the source tree.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

    import torch
    from demo_picture import write_pictures
    from demo_report import print_report
    from demo_run import Options, load_chat, run_demo
    from rich.console import Console

    from lookaheadkv_kernels.visual import Selection

    console = Console()
    selection = Selection(args.layer, args.head)
    try:
        args.picture.mkdir(parents=True, exist_ok=True)  # a bad path is known before the work
        chat, modules = load_chat(getattr(torch, args.dtype), args.weights, console)
        config = chat.model.config
        selection.check(config.num_hidden_layers, config.num_key_value_heads)
        options = Options(args.budget, args.prompt_tokens, args.questions, args.seed)
        run = run_demo(chat, modules, options, console)
    except (OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print_report(console, run)
    console.print("\nWhat stayed, coloured by how many heads keep it:")
    for path in write_pictures(chat, run, args.picture, selection):
        console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)
    return 0 if run.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
