"""Budgets of every kind, and what a policy says when a budget cannot hold what it pins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.eviction_model import kept_heads, modules_of, text, tiny

from lookaheadkv_kernels.integrations.transformers import Eviction
from lookaheadkv_kernels.policies import POLICY_NAMES, Policy, RandomPolicy, make_policy
from lookaheadkv_kernels.policies.budget import check_budget

pytestmark = pytest.mark.usefixtures("one_thread")
WINDOW = 8
# What pins entries: more of them than the short row may keep, fewer than the long one may.
PINNING: dict[str, dict[str, Any]] = {
    "snapkv": {"window": WINDOW},
    "pyramidkv": {"window": WINDOW},
    "streaming_llm": {"num_sink": WINDOW},
    "h2o": {"num_recent": WINDOW},
    "adakv": {"window": WINDOW},
    "laq": {"window": WINDOW, "draft_window": WINDOW, "draft_tokens": 3},
    "speckv": {"window": WINDOW, "draft_tokens": 3},
}
FREE: dict[str, dict[str, Any]] = {"random": {}, "oracle": {"max_tokens": 3}, "full": {}}


def policy_of(name: str, model: Any) -> Policy:
    options = {**PINNING, **FREE, "lookahead": {}}[name]
    if name == "speckv":
        options = {**options, "draft_model": tiny()}
    if name == "lookahead":
        options = {**options, "modules": modules_of(model)}
    return make_policy(name, **options)


def test_every_policy_is_tried() -> None:
    assert {*PINNING, *FREE, "lookahead"} == set(POLICY_NAMES)


def batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, max(lengths) - length :] = text(length, row)[0]
    return ids, (ids != 0).long()


@pytest.mark.parametrize("name", PINNING)
def test_a_row_that_the_ratio_makes_too_short_is_named(name: str) -> None:
    eviction = Eviction(tiny(), policy_of(name, None))
    ids, mask = batch(60, 14, 50)
    with pytest.raises(RuntimeError) as caught:
        eviction.prefill(ids, mask, budget=0.2)
    message = str(caught.value)
    first = name if name != "laq" else "snapkv"  # which writes LAQ's draft
    assert f"policy {first!r} cannot cut row 1 of 14 tokens in layer 0" in message
    assert "budget 0.2, which is 3 entries" in message
    assert f"{WINDOW}" in message and "got 3" in message
    assert "L +" not in message and "lookaheadkv." not in message
    # A count that cannot hold it names the longest row, which needs the room.
    with pytest.raises(RuntimeError, match=r"row 0 of 60 tokens .* budget 5, which is 5 entries"):
        eviction.prefill(ids, mask, budget=5)


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("budget", [1.0, 16])
def test_a_row_that_fits_is_kept_whole(name: str, budget: float) -> None:
    model = tiny()
    eviction = Eviction(model, policy_of(name, model))
    ids, mask = batch(60, 5, 16)
    cache = eviction.prefill(ids, mask, budget=budget)
    for row, length in ((1, 5), (2, 16)):
        assert kept_heads(cache, row) == [[list(range(length))] * 2] * 3


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.int64(9), 9),
        (np.int32(9), 9),
        (np.uint8(9), 9),
        (np.float64(0.3), 0.3),
        (np.float32(0.25), 0.25),
        (np.float16(0.25), 0.25),
        (np.array([9, 8, 7]), [9, 8, 7]),
        (np.array(9), 9),
        ([np.int64(9), 8, np.float64(0.5)], [9, 8, 0.5]),
        ((9, 8, 7), [9, 8, 7]),
        (torch.tensor(9), 9),
        (torch.tensor([9, 8, 7]), [9, 8, 7]),
    ],
)
def test_numbers_of_other_libraries_are_budgets(given: Any, plain: Any) -> None:
    checked = check_budget(given, 3)
    assert checked == plain and type(checked) is type(plain)
    model = tiny()
    eviction = Eviction(model, policy_of("snapkv", model))
    calls: list[Callable[[Any], Any]] = [
        lambda budget: eviction.prefill(text(40), budget=budget),
        lambda budget: eviction.generate(
            text(40), budget=budget, max_new_tokens=3, return_dict_in_generate=True
        )[eviction.runner._cache_argument],
    ]
    # SnapKV's window of 8 has no room in some of these.
    if plain not in ([9, 8, 7], [9, 8, 0.5]):
        for call in calls:
            assert kept_heads(call(given)) == kept_heads(call(plain))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("128", r"got '128' \(str\)"),
        ("0.5", r"got '0.5' \(str\)"),
        (b"12", r"\(bytes\)"),
        (["8", 8, 8], r"got '8' \(str\)"),
        ({8: 8}, r"\(dict\)"),
        ({8, 9}, r"\(set\)"),
        (None, r"got None \(NoneType\)"),
        (True, r"got True \(bool\)"),
        (np.bool_(True), r"got True \(bool\)"),
        (8 + 0j, r"\(complex\)"),
        (range(3), r"range\(0, 3\) \(range\)"),
        (np.array([[8, 8, 8]]), "1 entries for a model of 3 layers"),
        (np.array([8.5, 1, 1]), r"must be in \(0, 1\], got 8.5"),
        (np.float64("nan"), "got nan"),
        (np.int64(0), ">= 1, got 0"),
    ],
)
def test_what_is_no_budget_is_refused_by_value_and_type(budget: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"budget.*{message}"):
        check_budget(budget, 3)


@pytest.mark.parametrize("value", ["8", 8.0, True, None, [8]])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("snapkv", "window"),
        ("pyramidkv", "beta"),
        ("streaming_llm", "num_sink"),
        ("h2o", "num_recent"),
        ("adakv", "window"),
        ("laq", "draft_tokens"),
        ("oracle", "max_tokens"),
    ],
)
def test_options_that_are_no_whole_numbers(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a whole number, got"):
        make_policy(name, **{option: value})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_random_entries_do_not_depend_on_torchs_default_dtype(dtype: torch.dtype) -> None:
    eviction = Eviction(tiny(), RandomPolicy(seed=3))
    expected = kept_heads(eviction.prefill(text(50), budget=9))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert kept_heads(eviction.prefill(text(50), budget=9)) == expected
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("default", [torch.float64, "meta"])
def test_policies_under_other_defaults_of_torch(name: str, default: Any) -> None:
    """What is made on the way has a dtype and a device of its own, not torch's default."""
    model = tiny()
    eviction = Eviction(model, policy_of(name, model))
    ids, mask = batch(40, 23)
    expected = eviction.prefill(ids, mask, budget=12)
    if default == "meta":
        with torch.device("meta"):
            cache = eviction.prefill(ids, mask, budget=12)
    else:
        torch.set_default_dtype(default)
        try:
            cache = eviction.prefill(ids, mask, budget=12)
        finally:
            torch.set_default_dtype(torch.float32)
    for row in range(2):
        assert kept_heads(cache, row) == kept_heads(expected, row)
    assert cache.layers[0].keys.dtype == torch.float32
