"""RULER's tasks: samples made to a length, and their score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..task import Sample, Task, encode_prompt
from .draft import Draft, drawing, largest_fitting
from .metrics import string_match_all, string_match_part
from .niah import NIAH_TASKS, NiahDraft
from .qa import Corpus, QaDraft
from .texts import Essay, WordLists, builtin_essay, builtin_words, more_words
from .tracking import CweDraft, FweDraft, VtDraft

SYNTHETIC_TASKS = (*NIAH_TASKS, "vt", "cwe", "fwe")
QA_TASKS = ("qa_1", "qa_2")
TASK_NAMES = (*SYNTHETIC_TASKS, *QA_TASKS)
# Tokens of the answer, which belong to the length.
MAX_NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


class RulerTask(Task):
    """One of the thirteen tasks.

    Sample i depends on the task, the seed, the length, i, the texts and the tokenizer alone.

    Args:
        name: one of ``TASK_NAMES``.
        tokenizer: of the model.
        seed: of everything random.
        essay: haystack; this machine's own texts when None.
        words: keys; the package's own when None.
        corpus: questions and documents, for ``qa_1`` and ``qa_2``.

    Raises:
        ValueError: an unknown task, or a corpus missing or not wanted.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        seed: int,
        essay: Essay | None = None,
        words: WordLists | None = None,
        corpus: Corpus | None = None,
    ) -> None:
        if name not in TASK_NAMES:
            raise ValueError(f"unknown RULER task {name!r}; there are {', '.join(TASK_NAMES)}")
        if (name in QA_TASKS) != (corpus is not None):
            raise ValueError(f"{name}: questions are {'missing' if corpus is None else 'not used'}")
        self.name = name
        self.family = name.partition("_")[0]
        self.max_new_tokens = MAX_NEW_TOKENS[self.family]
        self.num_samples = None if corpus is None else len(corpus.questions)
        self._tokenizer, self._seed, self._corpus = tokenizer, seed, corpus
        self._given_essay = essay
        self._words = builtin_words() if words is None else words

    @cached_property
    def _essay(self) -> Essay:
        return builtin_essay() if self._given_essay is None else self._given_essay

    @cached_property
    def _all_words(self) -> list[str]:
        return more_words(self._words, self._essay)

    def source(self) -> dict[str, str]:
        """Names and checksums of what the samples are made of."""
        facts = {"words": self._words.name}
        if self._needs_essay:
            facts["essay"] = f"{self._essay.name}, sha256 {self._essay.sha256}"
        return facts

    @property
    def _needs_essay(self) -> bool:
        niah = NIAH_TASKS.get(self.name)
        return self.name == "cwe" or (niah is not None and niah.haystack == "essay")

    def _draft(self, length: int, index: int) -> Draft:
        rng = drawing("ruler", self.name, self._seed, length, index)
        if self.family == "niah":
            # Only tasks that show an essay read one: finding it takes a while.
            task = NIAH_TASKS[self.name]
            return NiahDraft(rng, task, self._essay if self._needs_essay else None, self._words)
        if self.family == "vt":
            return VtDraft(rng, length)
        if self.family == "cwe":
            return CweDraft(rng, length, self._all_words)
        if self.family == "fwe":
            return FweDraft(rng, length)
        assert self._corpus is not None
        return QaDraft(rng, self._corpus, index, length)

    def sample(self, length: int, index: int) -> Sample:
        """Sample ``index``, as near below ``length`` as its smallest parts come.

        Raises:
            IndexError: there is no such question.
            ValueError: ``length`` has no room for the task, or the words do not fill it.
        """
        if index < 0 or (self.num_samples is not None and index >= self.num_samples):
            raise IndexError(f"{self.name} has {self.num_samples} samples, got index {index}")
        draft = self._draft(length, index)
        limit = length - self.max_new_tokens

        def ids(size: int, filler: int = 0) -> list[int]:
            return encode_prompt(self._tokenizer, *draft.text(size, filler))

        try:
            size = largest_fitting(
                lambda size: len(ids(size)), limit, draft.least, draft.most, draft.tokens_a_unit
            )
        except ValueError as error:
            raise ValueError(
                f"{self.name}: sample {index} takes {error} tokens without a haystack and "
                f"{self.max_new_tokens} for the answer; length must be larger than {length}"
            ) from error
        filler = 0
        if draft.has_filler:
            # More parts than any unit has, because another whole unit would not fit.
            filler = largest_fitting(
                lambda filler: len(ids(size, filler)), limit, 0, 4 * draft.tokens_a_unit, 5
            )
        prompt = ids(size, filler)
        if size == draft.most and len(prompt) < 0.98 * limit:
            raise ValueError(
                f"{self.name}: {size} units of haystack are all there are; they fill "
                f"{len(prompt)} of {limit} tokens"
            )
        facts = {**draft.facts, "tokens": len(prompt)}
        return Sample(prompt, draft.references, self.max_new_tokens, facts)

    def score(self, answers: Sequence[str], sample: Sample) -> float:
        """Share of the references that the answer names; in qa whether it names any."""
        metric = string_match_part if self.family == "qa" else string_match_all
        return metric(answers[0], sample.references)
