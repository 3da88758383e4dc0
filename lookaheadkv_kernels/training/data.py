"""Training data from files: sample i is the same sample at every call and in every process."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".cpp", ".h", ".java", ".js", ".tex")


class FileSample(NamedTuple):
    """One prompt and, if the data has it, its response."""

    prompt_ids: list[int]
    response_ids: list[int] | None


class JsonlSamples:
    """Records of a JSON-lines file, in a new order at every epoch.

    A record has ``prompt`` (a string that is tokenised as it stands, or a list of chat messages
    ``{role, content}``) and, unless the model is to answer by itself, ``response`` (a string). In
    their place ``prompt_ids`` and ``response_ids`` hold tokens.

    Args:
        path: the file.
        tokenizer: of the model.
        seed: of the order.

    Raises:
        ValueError: the file has no record; when a line is read, it is not a record.
    """

    def __init__(self, path: str | Path, tokenizer: Any, seed: int = 0) -> None:
        self.path = Path(path)
        self._tokenizer = tokenizer
        self._seed = seed
        with self.path.open("rb") as file:
            starts, position = [], 0
            for line in file:
                if line.strip():
                    starts.append(position)
                position += len(line)
        if not starts:
            raise ValueError(f"{path} holds no records")
        self._starts = starts
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, index: int) -> FileSample:
        """Sample ``index`` of the endless sequence."""
        epoch, place = divmod(index, len(self._starts))
        if self._epoch[0] != epoch:
            order = list(range(len(self._starts)))
            random.Random(f"{self._seed} {epoch}").shuffle(order)
            self._epoch = (epoch, order)
        line = self._epoch[1][place]
        with self.path.open("rb") as file:
            file.seek(self._starts[line])
            return self._sample(file.readline(), line)

    def _sample(self, text: bytes, line: int) -> FileSample:
        try:
            record = json.loads(text)
            return FileSample(*encode_record(record, self._tokenizer))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}, record {line + 1}: {error!r}") from error


def encode_record(record: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int] | None]:
    """Token ids of a record's prompt and response (None if it has none)."""
    if "prompt_ids" in record:
        prompt = list(record["prompt_ids"])
    elif isinstance(record["prompt"], str):
        prompt = list(tokenizer(record["prompt"]).input_ids)
    else:
        text = tokenizer.apply_chat_template(
            record["prompt"], tokenize=False, add_generation_prompt=True
        )
        prompt = list(tokenizer(text, add_special_tokens=False).input_ids)
    if record.get("response_ids") is not None:
        return prompt, list(record["response_ids"])
    if record.get("response") is None:
        return prompt, None
    return prompt, list(tokenizer(record["response"], add_special_tokens=False).input_ids)


class TextSamples:
    """Continuations of raw text: a prompt ends at a random point, the response is what follows.

    Args:
        folder: searched for text files, below it too.
        tokenizer: of the model.
        seed: of the choice of files and places.
        lengths: fewest and most prompt tokens; drawn log-uniformly.
        max_response: most response tokens.

    Raises:
        ValueError: there is no text file.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: Any,
        seed: int = 0,
        *,
        lengths: tuple[int, int] = (256, 4096),
        max_response: int = 512,
    ) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._lengths = lengths
        self._max_response = max_response
        self._files = sorted(
            path for path in Path(folder).rglob("*") if path.suffix in TEXT_SUFFIXES
        )
        if not self._files:
            raise ValueError(f"{folder} holds no text ({', '.join(TEXT_SUFFIXES)})")
        self._sizes = [path.stat().st_size for path in self._files]

    def __getitem__(self, index: int) -> FileSample:
        """Sample ``index`` of the endless sequence."""
        draw = random.Random(f"{self._seed} {index}")
        for _ in range(100):
            (path,) = draw.choices(self._files, weights=self._sizes)
            shortest, longest = self._lengths
            prompt = round(shortest * (longest / shortest) ** draw.random())
            ids = self._cut(path.read_text(errors="replace"), prompt + self._max_response, draw)
            # A file shorter than the prompt still gives a sample: its last tenth is the response.
            prompt = min(prompt, len(ids) * 9 // 10)
            if prompt >= 16:
                return FileSample(ids[:prompt], ids[prompt : prompt + self._max_response])
        raise ValueError("the text files are too short to cut prompts from")

    def _cut(self, text: str, num_tokens: int, draw: random.Random) -> list[int]:
        """``num_tokens`` tokens from a random place in ``text``, or fewer if the text ends."""
        span = num_tokens * 8  # characters; a token is seldom longer
        start = draw.randrange(max(1, len(text) - span // 2))
        ids: Sequence[int] = self._tokenizer(text[start : start + span]).input_ids
        return list(ids[:num_tokens])


class WithoutResponses:
    """The prompts of other samples: the model answers each by itself."""

    def __init__(self, samples: Any) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> FileSample:
        """Sample ``index`` of the endless sequence."""
        return FileSample(list(self._samples[index].prompt_ids), None)
