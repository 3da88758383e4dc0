"""RULER's generators by the thousand: `python -m bench.ruler_bars [--squad FILE --hotpotqa FILE]`.

Every sample must be made without an error, come within 2 % of its length with the room for its
answer, hold what it asks for, have its needles at their depths, and be the same when made again.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lookaheadkv_kernels.evaluation.ruler import SYNTHETIC_TASKS, RulerTask
from lookaheadkv_kernels.evaluation.ruler.qa import read_hotpotqa, read_squad
from lookaheadkv_kernels.evaluation.ruler.texts import ends_sentence
from lookaheadkv_kernels.evaluation.task import Sample
from lookaheadkv_kernels.integrations.transformers.loading import load_tokenizer

LEAST_SHARE = 0.98
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for [^ ]+ is: [^ .]+\.")
HAYSTACKS_OF_NEEDLES = ("niah_multikey_2", "niah_multikey_3")  # other needles stand there too


def places(text: str, noise: bool) -> tuple[list[int], int]:
    """How many units of haystack (lines of noise, or sentences) stand before each needle of a
    prompt, and in all.
    """
    context = text[text.index("afterwards.\n") + len("afterwards.\n") : text.rindex("\nWhat ")]
    found, units = [], 0
    for part in NEEDLE.split(context):
        if noise:
            units += len([line for line in part.split("\n") if line])
        else:
            words = part.split()
            units += sum(map(ends_sentence, words))
            units += bool(words) and not ends_sentence(words[-1])  # the last one, cut off
        found.append(units)
    return found[:-1], units


def faults(task: RulerTask, tokenizer: Any, sample: Sample, length: int) -> Iterator[str]:
    """What is wrong with a sample."""
    total = len(sample.prompt_ids) + sample.max_new_tokens
    if not LEAST_SHARE * length <= total <= length:
        yield f"{total} tokens"
    text = tokenizer.decode(sample.prompt_ids)
    if task.family != "qa" and (lost := [r for r in sample.references if r not in text]):
        yield f"not in the prompt: {', '.join(lost)}"
    if task.score([" ".join(sample.references)], sample) != 1:
        yield "its references do not score 1"
    if task.family == "niah" and task.name not in HAYSTACKS_OF_NEEDLES:
        noise = task.name == "niah_single_1"
        found, units = places(text, noise)
        to_place = round if noise else int
        if found != (wanted := [to_place(units * depth) for depth in sample.facts["depths"]]):
            yield f"needles behind {found} of {units} units, to be behind {wanted}"


def check(task: RulerTask, again: RulerTask, tokenizer: Any, length: int, samples: int) -> int:
    """Make and check samples, every tenth a second time; prints a line; returns how many fail."""
    failed, least, most, started = 0, length, 0, time.perf_counter()
    for index in tqdm(range(samples), desc=f"{task.name} {length}", leave=False):
        try:
            sample = task.sample(length, index)
            found = list(faults(task, tokenizer, sample, length))
            if index % 10 == 0 and again.sample(length, index) != sample:
                found.append("another one when made again")
        except Exception as error:  # the bar is that there is none
            tqdm.write(f"{task.name} {length} #{index}: {error!r}")
            failed += 1
            continue
        if found:
            tqdm.write(f"{task.name} {length} #{index}: {'; '.join(found)}")
            failed += 1
        total = len(sample.prompt_ids) + sample.max_new_tokens
        least, most = min(least, total), max(most, total)
    seconds = time.perf_counter() - started
    print(
        f"{task.name:<16} {length:>6} tokens: {samples} samples of {least} to {most} tokens, "
        f"{failed} fail; {seconds:.0f} s",
        flush=True,
    )
    return failed


def main(argv: list[str] | None = None) -> int:
    """Check all tasks; the number of failing samples as the exit status, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--squad", type=Path, help="SQuAD v2 JSON, for qa_1")
    parser.add_argument("--hotpotqa", type=Path, help="HotpotQA JSON, for qa_2")
    arguments = parser.parse_args(argv)
    tokenizer = load_tokenizer(arguments.model)
    corpora: dict[str, Any] = dict.fromkeys(SYNTHETIC_TASKS)
    if arguments.squad:
        corpora["qa_1"] = read_squad(arguments.squad)
    if arguments.hotpotqa:
        corpora["qa_2"] = read_hotpotqa(arguments.hotpotqa)
    failed = 0
    for name, corpus in corpora.items():
        task, again = (RulerTask(name, tokenizer, seed=0, corpus=corpus) for _ in range(2))
        for length in arguments.length:
            failed += check(task, again, tokenizer, length, arguments.samples)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
