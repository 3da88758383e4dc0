"""LongBench's metrics for one answer and one reference, from 0 to 1.

They reproduce the numbers of the published scripts, quirks included: papers report those.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher


def normalised_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def qa_f1(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """F1 of the words in common."""
    predicted = normalised_answer(prediction).split()
    true = normalised_answer(reference).split()
    common = sum((Counter(predicted) & Counter(true)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(true)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """F1 of ROUGE-L as the ``rouge`` package computes it, which the published script calls.

    Sentences end at dots. The words of the longest common subsequences of all pairs of sentences
    are united, and counted, like those of both texts, once each.
    """
    predicted, true = _rouge_sentences(prediction), _rouge_sentences(reference)
    if not predicted or not true:
        return 0.0
    common: set[str] = set()
    for one in true:
        for other in predicted:
            common.update(_longest_common_subsequence(one, other))
    precision = len(common) / len({word for sentence in predicted for word in sentence})
    recall = len(common) / len({word for sentence in true for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _rouge_sentences(text: str) -> list[list[str]]:
    # A sentence of spaces alone has one word, the empty one, as in the package.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The one that the package finds: traced from the end, ``other`` steps back at ties."""
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, word in enumerate(one):
        for j, second in enumerate(other):
            lengths[i + 1][j + 1] = (
                lengths[i][j] + 1 if word == second else max(lengths[i][j + 1], lengths[i + 1][j])
            )
    found = []
    i, j = len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            found.append(one[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def classification(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """1 / (number of classes that the answer names), if the right one is among them.

    A class whose name is part of the right one's does not count.
    """
    named = [name for name in classes if name in prediction]
    # The published loop deletes from the list that it iterates over, and so skips the next item.
    place = 0
    while place < len(named):
        if named[place] in reference and named[place] != reference:
            named.remove(named[place])
        place += 1
    return 1 / len(named) if reference in named else 0.0


def retrieval(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Share of the answer's numbers that are the right paragraph's."""
    (number, *_) = re.findall(r"Paragraph (\d+)", reference)
    return count(prediction, number)


def count(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Share of the answer's numbers that are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return sum(number == reference for number in numbers) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Similarity of the answer's first line of code, rounded to whole percents."""
    line = next(
        (
            line
            for line in prediction.lstrip("\n").split("\n")
            if "`" not in line and "#" not in line and "//" not in line
        ),
        "",
    )
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


METRICS = {
    "narrativeqa": qa_f1,
    "qasper": qa_f1,
    "multifieldqa_en": qa_f1,
    "hotpotqa": qa_f1,
    "2wikimqa": qa_f1,
    "musique": qa_f1,
    "gov_report": rouge_l,
    "qmsum": rouge_l,
    "multi_news": rouge_l,
    "trec": classification,
    "triviaqa": qa_f1,
    "samsum": rouge_l,
    "passage_count": count,
    "passage_retrieval_en": retrieval,
    "lcc": code_similarity,
    "repobench-p": code_similarity,
}
