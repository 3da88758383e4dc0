"""``lookaheadkv inspect``: what each policy keeps of a prompt, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..policies import POLICY_NAMES
from .building import Policies, check_fit, check_judge, load_judge, sources_of
from .model import ModelFiles, check_installed
from .options import add_cell_options, add_data_options, add_model_options, add_policy_options

DESCRIPTION = """\
Write a page that shows what policies keep of a prompt, side by side, with the answer that the model
gives from each cache. The prompt is a text, a file, or a sample of a task as `lookaheadkv eval`
numbers them, so that a failure there can be looked at.
"""
INSPECTED = tuple(name for name in POLICY_NAMES if name != "full")


def add_parser(commands: Any) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "inspect", help="show what policies keep of a prompt, as a page", description=DESCRIPTION
    )
    add_model_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="the page, .html")
    parser.add_argument("--png", type=Path, help="a picture of it, too")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="the user's turn, as text")
    prompt.add_argument("--prompt-file", type=Path, help="the same from a file")
    prompt.add_argument("--task", help="a sample of this task, e.g. niah_single_2")
    parser.add_argument(
        "--sample", type=int, default=0, help="of the task, counted from 0 (default: 0)"
    )
    parser.add_argument("--length", type=int, default=1024, help="of the sample (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of the task (default: 0)")
    add_cell_options(parser, INSPECTED, ("lookahead", "snapkv"), 64)
    parser.add_argument(
        "--mark",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="point out where the prompt first says these (default: what a task's sample wants)",
    )
    parser.add_argument("--no-chat", action="store_true", help="the text goes on, without a turn")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest answer to a text (default: 64)"
    )
    parser.add_argument("--chunk", type=int, help="prefill in parts of so many tokens")
    add_policy_options(parser)
    add_data_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page; print the answers."""
    from ..evaluation.inspection import inspect_prompt, pieces_and_marks
    from ..evaluation.plan import check_room
    from ..policies.budget import check_at_least, check_budget
    from ..visual import write_html, write_png

    check_at_least("sample", arguments.sample, 0)
    check_at_least("length", arguments.length, 1)
    check_at_least("max_new_tokens", arguments.max_new_tokens, 1)
    if arguments.chunk is not None:
        check_at_least("chunk", arguments.chunk, 1)
    for path in (arguments.output, arguments.png):
        if path is not None and path.is_dir():
            raise ValueError(f"a page or picture must be a file, got the folder {path}")
    if arguments.png is not None:
        check_installed("eval", "matplotlib")
    files = ModelFiles.of(arguments)
    tokenizer = files.tokenizer
    made = Policies(arguments, files)
    for value in arguments.budget:
        check_budget(value, files.config.num_hidden_layers)
    sources = sources_of(arguments)
    sample, score = _sample(arguments, tokenizer, sources)
    what = arguments.task or "the prompt"
    check_room(what, sample, files.positions)
    marked = _marked(arguments, tokenizer, sample)
    pieces_and_marks(tokenizer, sample, marked)  # as the page will
    check_fit(made.pinned(), arguments.budget, len(sample.prompt_ids), what)
    check_judge(sources.judge)
    model = files.load()
    load_judge(sources.judge)
    policies = made.make(model)
    picture, answers = inspect_prompt(
        model,
        tokenizer,
        sample,
        policies,
        list(dict.fromkeys(arguments.budget)),
        score=score,
        marked=marked,
        title=_title(arguments, len(sample.prompt_ids)),
        chunk=arguments.chunk,
    )
    write_html(arguments.output, picture)
    if arguments.png is not None:
        write_png(arguments.png, picture)
    for answer in answers:
        score_text = "" if answer.score is None else f"{100 * answer.score:3.0f} %  "
        size = "all" if answer.budget is None else answer.budget
        print(f"{answer.policy:14} {size:>5}  {score_text}{' '.join(answer.text.split())}")
    print(f"written: {arguments.output}")
    return 0


def _sample(arguments: argparse.Namespace, tokenizer: Any, sources: Any) -> Any:
    """The prompt, and how its answers are scored."""
    from ..evaluation.catalog import make_tasks
    from ..evaluation.task import Sample, encode_prompt, read_text

    if arguments.task is not None:
        tasks = make_tasks([arguments.task], tokenizer, arguments.seed, sources)
        if len(tasks) != 1:
            raise ValueError(f"task {arguments.task} is a group: name one of its tasks")
        (task,) = tasks
        if task.num_samples is not None and arguments.sample >= task.num_samples:
            raise ValueError(
                f"{task.name} has {task.num_samples} samples, got --sample {arguments.sample}"
            )
        length = arguments.length if task.lengths else 0
        return task.sample(length, arguments.sample), task.score
    text = arguments.prompt
    if arguments.prompt_file is not None:
        text = read_text(arguments.prompt_file)
    ids = encode_prompt(tokenizer, text, chat=not arguments.no_chat)
    if not ids:
        raise ValueError("the prompt is empty")
    return Sample(ids, (), arguments.max_new_tokens, {}), lambda answers, sample: None


def _marked(arguments: argparse.Namespace, tokenizer: Any, sample: Any) -> list[tuple[str, str]]:
    """(label, text) to mark: what the user named, or the references that the prompt contains."""
    if arguments.mark:
        return [(text, text) for text in arguments.mark]
    prompt = tokenizer.decode(sample.prompt_ids, clean_up_tokenization_spaces=False)
    return [("wanted", text) for text in sample.references if text and text in prompt]


def _title(arguments: argparse.Namespace, num_tokens: int) -> str:
    if arguments.task is None:
        return f"What stays of {num_tokens:,} tokens"
    return f"{arguments.task}, sample {arguments.sample}: what stays of {num_tokens:,} tokens"
