"""RULER's generators by the thousand: `python -m bench.bars ruler [--squad FILE --hotpotqa FILE]`.

Every sample must be made without an error, fill its length to 2 % (space for the answer included),
contain what it asks for, have its needles at their depths, and be the same when made again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.bars import Bar, Step, measure, options, status
from lookaheadkv_kernels.evaluation.ruler import SYNTHETIC_TASKS, RulerTask
from lookaheadkv_kernels.evaluation.ruler.qa import read_hotpotqa, read_squad
from lookaheadkv_kernels.evaluation.ruler.texts import ends_sentence
from lookaheadkv_kernels.evaluation.task import Sample
from lookaheadkv_kernels.integrations.transformers.loading import load_tokenizer

LEAST_SHARE = 0.98
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for [^ ]+ is: [^ .]+\.")
HAYSTACKS_OF_NEEDLES = ("niah_multikey_2", "niah_multikey_3")  # their haystack is other needles


def places(text: str, noise: bool) -> tuple[list[int], int]:
    """How many units of haystack (lines of noise, or sentences) precede each needle of a prompt,
    and how many there are.
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


def check(task: RulerTask, again: RulerTask, tokenizer: Any, length: int, samples: int) -> Bar:
    """Make and check samples, every tenth a second time; the bar is that none fails."""
    failed, least, most, started = 0, length, 0, time.perf_counter()
    for index in tqdm(range(samples), desc=f"{task.name} {length}", leave=False):
        try:
            sample = task.sample(length, index)
            found = list(faults(task, tokenizer, sample, length))
            if index % 10 == 0 and again.sample(length, index) != sample:
                found.append("another one when made again")
        except Exception as error:  # the bar is that there is none
            found = [repr(error)]
        else:
            total = len(sample.prompt_ids) + sample.max_new_tokens
            least, most = min(least, total), max(most, total)
        if found:
            tqdm.write(f"{task.name} {length} #{index}: {'; '.join(found)}")
            failed += 1
    seconds = time.perf_counter() - started
    text = f"{samples} samples of {least} to {most} tokens; {seconds:.0f} s"
    return Bar(f"{task.name}, {length} tokens: samples that fail", failed, 0, "at most", text)


def main(arguments: list[str]) -> int:
    """Check all tasks; whether a sample fails."""
    parser = options("ruler", __doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--squad", type=Path, help="SQuAD v2 JSON, for qa_1")
    parser.add_argument("--hotpotqa", type=Path, help="HotpotQA JSON, for qa_2")
    chosen = parser.parse_args(arguments)
    tokenizer = load_tokenizer(chosen.model)
    corpora: dict[str, Any] = dict.fromkeys(SYNTHETIC_TASKS)
    if chosen.squad:
        corpora["qa_1"] = read_squad(chosen.squad)
    if chosen.hotpotqa:
        corpora["qa_2"] = read_hotpotqa(chosen.hotpotqa)

    def one(name: str, length: int) -> Iterator[Bar]:
        task, again = (RulerTask(name, tokenizer, seed=0, corpus=corpora[name]) for _ in range(2))
        yield check(task, again, tokenizer, length, chosen.samples)

    steps: list[Step] = [
        (f"{name} {length}", partial(one, name, length))
        for name in corpora
        for length in chosen.length
    ]
    return status(*measure(steps, {"kind": "ruler bars"}, chosen.json))
