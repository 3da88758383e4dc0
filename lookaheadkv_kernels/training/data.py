"""Training data from files: sample i is the same sample at every call and in every process."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .records import check_file, encode_record, parse

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
        path: the file, which is read and checked as a whole here.
        tokenizer: of the model.
        seed: of the order.
        vocabulary: token ids that the model knows; None: those of the tokenizer.

    Attributes:
        unanswered: share of the records that have no response.
        sha256: of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no record, or there is none; the message has file, line and reason.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: Any,
        seed: int = 0,
        *,
        vocabulary: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._tokenizer = tokenizer
        self._seed = seed
        self._places, missing, self.sha256 = check_file(self.path, tokenizer, vocabulary)
        self.unanswered = missing / len(self._places)
        self._epoch: tuple[int, list[int]] = (-1, [])

    @property
    def num_records(self) -> int:
        """Records of the file: the length of an epoch."""
        return len(self._places)

    def __getitem__(self, index: int) -> FileSample:
        """Sample ``index`` of the endless sequence.

        Raises:
            ValueError: the file has changed, and the line is no record any more.
        """
        epoch, place = divmod(index, len(self._places))
        if self._epoch[0] != epoch:
            order = list(range(len(self._places)))
            random.Random(f"{self._seed} {epoch}").shuffle(order)
            self._epoch = (epoch, order)
        line, start = self._places[self._epoch[1][place]]
        with self.path.open("rb") as file:
            file.seek(start)
            record = parse(file.readline(), self.path, line)
        try:
            return FileSample(*encode_record(record, self._tokenizer))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path}, line {line}: {error!r}") from error


class TextSamples:
    """Continuations of raw text: a prompt ends at a random point, the response is what follows.

    Args:
        folder: searched for text files, below it too.
        tokenizer: of the model.
        seed: of the choice of files and places.
        lengths: fewest and most prompt tokens; drawn log-uniformly.
        max_response: most response tokens.

    Attributes:
        sha256: of the files' names and sizes.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no text file, or too little text in them.
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
            path
            for path in Path(folder).rglob("*")
            if path.suffix in TEXT_SUFFIXES and path.is_file() and path.stat().st_size
        )
        if not self._files:
            raise ValueError(f"{folder} holds no text ({', '.join(TEXT_SUFFIXES)})")
        for path in self._files:
            path.open("rb").close()
        self._sizes = [path.stat().st_size for path in self._files]
        names = [str(path.relative_to(folder)) for path in self._files]
        listed = json.dumps([names, self._sizes])
        self.sha256 = hashlib.sha256(listed.encode()).hexdigest()
        self._folder = folder
        self[0]  # says now whether there is enough of it

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
        raise ValueError(f"the texts in {self._folder} are too short to cut prompts from")

    def _cut(self, text: str, num_tokens: int, draw: random.Random) -> list[int]:
        """``num_tokens`` tokens from a random place in ``text``, or fewer if the text ends."""
        span = num_tokens * 8  # characters; a token is seldom longer
        start = draw.randrange(max(1, len(text) - span // 2))
        ids: Sequence[int] = self._tokenizer(text[start : start + span]).input_ids
        return list(ids[:num_tokens])


class WithoutResponses:
    """The prompts of other samples: the model answers each by itself."""

    unanswered = 1.0

    def __init__(self, samples: Any) -> None:
        self._samples = samples
        self.num_records: int | None = getattr(samples, "num_records", None)
        self.sha256: str | None = getattr(samples, "sha256", None)

    def __getitem__(self, index: int) -> FileSample:
        """Sample ``index`` of the endless sequence."""
        return FileSample(list(self._samples[index].prompt_ids), None)
