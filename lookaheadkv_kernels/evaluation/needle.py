"""Single needle in a haystack, as RULER has it (niah_single 1 and 2), made to a token length."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from .ruler.templates import NOISE

NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the numbers afterwards.\n{text}\nWhat is the special magic number for "
    "{key} mentioned in the provided text?"
)
ANSWER_START = "The special magic number for {key} mentioned in the provided text is"


class NeedleSample(NamedTuple):
    """A prompt whose answer is one number."""

    prompt_ids: list[int]
    value: str
    depth: float  # of the needle: 0 at the start of the text, 1 at its end


def noise_sentences(rng: random.Random) -> Callable[[int], str]:
    """RULER's haystack of five sentences, repeated endlessly."""
    return lambda index: NOISE[index % len(NOISE)]


def text_sentences(sentences: list[str], rng: random.Random) -> Callable[[int], str]:
    """Real sentences in their order, starting at a random one."""
    start = rng.randrange(len(sentences))
    return lambda index: sentences[(start + index) % len(sentences)]


def needle_sample(
    tokenizer: Any,
    rng: random.Random,
    sentence: Callable[[int], str],
    key: str,
    num_tokens: int,
) -> NeedleSample:
    """A chat prompt of ``num_tokens`` tokens, as near as whole sentences come.

    Args:
        tokenizer: with a chat template.
        rng: draws the number and the needle's place.
        sentence: the haystack's sentence by its number.
        key: what the number belongs to.
        num_tokens: length of the prompt, the answer's start included.

    Raises:
        ValueError: ``num_tokens`` has no room for a haystack.
    """
    value = str(rng.randrange(1_000_000, 10_000_000))
    depth = rng.random()

    def prompt(count: int) -> list[int]:
        sentences = [sentence(index) for index in range(count)]
        sentences.insert(round(depth * count), NEEDLE.format(key=key, value=value))
        chat = [{"role": "user", "content": QUESTION.format(text=" ".join(sentences), key=key)}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = tokenizer(
            text + ANSWER_START.format(key=key), add_special_tokens=False
        ).input_ids
        return ids

    few, many = 0, 1
    if len(prompt(0)) >= num_tokens:
        raise ValueError(f"num_tokens: {num_tokens} has no room for a haystack")
    while len(prompt(many)) <= num_tokens:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        if len(prompt(middle)) <= num_tokens:
            few = middle
        else:
            many = middle
    return NeedleSample(prompt(few), value, depth)
