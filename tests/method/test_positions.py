"""Masks and positions have one owner: a padded batch is its rows alone, wherever it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.eviction_model import attached, text, tiny
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (17, 5, 11)
NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@pytest.fixture
def lkv() -> Any:
    return attached(tiny())


def batch(lengths: tuple[int, ...] = LENGTHS, side: str = "right", seed: int = 0) -> Any:
    """Ids with 0 as padding, their mask, and the rows [1, n]."""
    rows = [text(length, seed + number) for number, length in enumerate(lengths)]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for number, row in enumerate(rows):
        length = row.shape[1]
        left = side == "left" or (side == "mixed" and number % 2 == 0)
        ids[number, max(lengths) - length :] = 0
        where = slice(max(lengths) - length, None) if left else slice(0, length)
        ids[number, where] = row[0]
    return ids, (ids != 0).long(), rows


def alone(lkv: Any, rows: list[Tensor], budget: Any, new: int = NEW) -> list[list[int]]:
    """Greedy answers by hand, every token at an explicit position."""
    name = lkv.runner._cache_argument
    answers = []
    for row in rows:
        cache = lkv.prefill(row, budget=budget)
        answer = [int(cache.logits.argmax())]
        while len(answer) < new:
            with torch.no_grad():
                logits = lkv.model(
                    input_ids=torch.tensor([answer[-1:]]),
                    position_ids=torch.tensor([[row.shape[1] + len(answer) - 1]]),
                    **{name: cache},
                ).logits
            answer.append(int(logits[0, -1].argmax()))
        answers.append(answer)
    return answers


def in_a_block(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    with lkv.evicting(budget):
        return lkv.model.generate(ids, attention_mask=mask, **GREEDY)[:, -NEW:].tolist()


def in_a_block_without_a_mask(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    with lkv.evicting(budget):
        return lkv.model.generate(inputs=ids, **GREEDY)[:, -NEW:].tolist()


def by_generate(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    return lkv.generate(ids, mask, budget=budget, **GREEDY)[:, -NEW:].tolist()


def by_generate_without_a_mask(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    return lkv.generate(ids, budget=budget, **GREEDY)[:, -NEW:].tolist()


def by_generate_with_positions(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = lkv.generate(ids, mask, budget=budget, position_ids=positions, **GREEDY)
    return out[:, -NEW:].tolist()


def by_embeddings(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    embeds = lkv.model.get_input_embeddings()(ids)
    return lkv.generate(inputs_embeds=embeds, attention_mask=mask, budget=budget, **GREEDY).tolist()


def decoded(lkv: Any, cache: Any, **options: Any) -> list[list[int]]:
    """By the plain forward, without positions: the cache knows them."""
    token, answers = cache.logits.argmax(dim=-1), []
    for _ in range(NEW):
        answers.append(token)
        with torch.no_grad():
            out = lkv.model(
                input_ids=token[:, None], **{lkv.runner._cache_argument: cache}, **options
            )
        token = out.logits[:, -1].argmax(dim=-1)
    return torch.stack(answers, dim=1).tolist()


def by_prefill(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    return decoded(lkv, lkv.prefill(ids, mask, budget=budget))


def by_prefill_without_a_mask(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    return decoded(lkv, lkv.prefill(ids, budget=budget))


def by_prefill_and_generate(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    cache = {lkv.runner._cache_argument: lkv.prefill(ids, mask, budget=budget)}
    return lkv.generate(ids, mask, budget=budget, **cache, **GREEDY)[:, -NEW:].tolist()


def by_prefill_and_plain_generate(
    lkv: Any, ids: Tensor, mask: Tensor, budget: Any
) -> list[list[int]]:
    """Outside of any block, with the first token from the cache's logits."""
    cache = lkv.prefill(ids, mask, budget=budget)
    first = cache.logits.argmax(dim=-1, keepdim=True)
    out = lkv.model.generate(
        torch.cat([ids, first], dim=1),
        attention_mask=torch.cat([mask, torch.ones_like(first)], dim=1),
        max_new_tokens=NEW - 1,
        do_sample=False,
        **{lkv.runner._cache_argument: cache},
    )
    return out[:, -NEW:].tolist()


def by_a_prompts_forward(lkv: Any, ids: Tensor, mask: Tensor, budget: Any) -> list[list[int]]:
    name = lkv.runner._cache_argument
    with lkv.evicting(budget):
        cache = lkv.model(input_ids=ids, attention_mask=mask, logits_to_keep=1)[name]
        return decoded(lkv, cache, logits_to_keep=1)


def by_a_prompts_forward_without_a_mask(
    lkv: Any, ids: Tensor, mask: Tensor, budget: Any
) -> list[list[int]]:
    name = lkv.runner._cache_argument
    with lkv.evicting(budget):
        cache = lkv.model(input_ids=ids, logits_to_keep=1)[name]
        return decoded(lkv, cache, logits_to_keep=1)


WAYS: list[Callable[..., list[list[int]]]] = [
    in_a_block,
    in_a_block_without_a_mask,
    by_generate,
    by_generate_without_a_mask,
    by_generate_with_positions,
    by_embeddings,
    by_prefill,
    by_prefill_without_a_mask,
    by_prefill_and_generate,
    by_prefill_and_plain_generate,
    by_a_prompts_forward,
    by_a_prompts_forward_without_a_mask,
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", ["right", "left", "mixed"])
@pytest.mark.parametrize("way", WAYS)
def test_a_padded_batch_is_its_rows_alone(lkv: Any, way: Any, side: str) -> None:
    ids, mask, rows = batch(side=side)
    for budget in (6, 0.5):
        assert way(lkv, ids, mask, budget) == alone(lkv, rows, budget)


def watched_positions(model: Any) -> list[list[list[int]]]:
    """Of every pass of the decoder from now on."""
    seen: list[list[list[int]]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["position_ids"].tolist())

    model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    return seen


def test_the_positions_themselves(lkv: Any) -> None:
    ids, mask, _ = batch((17, 5))
    seen = watched_positions(lkv.model)
    with lkv.evicting(6):
        lkv.model.generate(ids, attention_mask=mask, **GREEDY)
    assert [[row[-1] for row in rows] for rows in seen[1:]] == [
        [17 + step, 5 + step] for step in range(NEW - 1)
    ]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2}])
def test_beams_and_several_answers_of_a_right_padded_batch(lkv: Any, options: dict) -> None:
    ids, mask, rows = batch()
    options = {"max_new_tokens": NEW, "budget": 6, "do_sample": False, **options}
    if "num_return_sequences" in options:
        options |= {"do_sample": True, "top_k": 1}  # the best token, by sampling
    out = lkv.generate(ids, mask, **options)[:, -NEW:]
    expected = [lkv.generate(row, **options)[:, -NEW:] for row in rows]
    assert out.equal(torch.cat(expected))
    # The same from a prefilled cache, whose rows are repeated; an error gives it back.
    cache = lkv.prefill(ids, mask, budget=6)
    options[lkv.runner._cache_argument] = cache
    with pytest.raises(ZeroDivisionError):
        lkv.generate(ids, mask, stopping_criteria=[lambda *a, **k: 1 / 0], **options)
    assert cache.num_rows() == 3 and cache.get_seq_length() == 17
    assert lkv.generate(ids, mask, **options)[:, -NEW:].equal(out)


def test_sampling_from_a_right_padded_batch(lkv: Any) -> None:
    ids, mask, rows = batch((17, 5))
    options = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.5}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(3)
    out = lkv.generate(ids, mask, budget=6, **options)
    tokens = out.sequences[:, -NEW:]
    for number, row in enumerate(rows):
        cache = lkv.prefill(row, budget=6)
        for step in range(NEW):
            torch.testing.assert_close(
                out.logits[step][number], cache.logits[0], rtol=1e-4, atol=1e-4
            )
            with torch.no_grad():
                cache.logits = lkv.model(
                    input_ids=tokens[number : number + 1, step : step + 1],
                    position_ids=torch.tensor([[row.shape[1] + step]]),
                    **{lkv.runner._cache_argument: cache},
                ).logits[:, -1]


@pytest.mark.parametrize("side", ["right", "left", "mixed"])
@pytest.mark.parametrize("masked", [True, False])
def test_turns_of_a_batch_by_generate(lkv: Any, side: str, masked: bool) -> None:
    """The second prompt follows answers of different ends; the whole text is passed each time."""
    name = lkv.runner._cache_argument
    ids, mask, rows = batch(side=side)
    more, more_mask, questions = batch((4, 9, 1), side=side, seed=20)
    first = lkv.generate(
        ids, mask if masked else None, budget=8, return_dict_in_generate=True, **GREEDY
    )
    said = first.sequences[:, -NEW:]
    whole = torch.cat([first.sequences, more], dim=1)
    seen = torch.cat([(first.sequences != 0).long(), more_mask], dim=1)
    out = lkv.generate(whole, seen if masked else None, budget=8, **{name: first[name]}, **GREEDY)[
        :, -NEW:
    ]
    for number, row in enumerate(rows):
        cache = lkv.prefill(row, budget=8)
        for step, token in enumerate(said[number, :-1].tolist()):
            with torch.no_grad():
                lkv.model(
                    input_ids=torch.tensor([[token]]),
                    position_ids=torch.tensor([[row.shape[1] + step]]),
                    **{name: cache},
                )
        new = torch.cat([said[number, -1:][None], questions[number]], dim=1)
        cache = lkv.prefill(new, budget=8, cache=cache)
        assert out[number].tolist() == decoded(lkv, cache)[0]


def test_new_tokens_alone_with_a_mask_of_everything(lkv: Any) -> None:
    """transformers' other way to go on: ids of the new tokens, a mask of all."""
    name = lkv.runner._cache_argument
    ids, mask, _ = batch()
    more, more_mask, _ = batch((4, 9, 1), seed=20)
    both = torch.cat([mask, more_mask], dim=1)
    whole = lkv.generate(
        torch.cat([ids, more], dim=1),
        both,
        budget=8,
        **{name: lkv.prefill(ids, mask, budget=8)},
        **GREEDY,
    )
    for own in (both, more_mask):
        cache = lkv.prefill(ids, mask, budget=8)
        tokens = more if own is both else torch.cat([ids, more], dim=1)
        out = lkv.generate(tokens, own, budget=8, **{name: cache}, **GREEDY)
        assert out[:, -NEW:].equal(whole[:, -NEW:])


def test_a_prefilled_cache_gives_the_first_token_from_its_own_logits(lkv: Any) -> None:
    name = lkv.runner._cache_argument
    ids = text(30)
    expected = lkv.generate(ids, budget=8, **GREEDY)
    cache = lkv.prefill(ids, budget=8)
    assert lkv.generate(ids, budget=8, **{name: cache}, **GREEDY).equal(expected)
    assert cache.get_seq_length() == 30 + NEW - 1  # as after any generate
    with pytest.raises(ValueError, match="has gone on since its last prompt"):
        lkv.generate(expected[:, :-1], budget=8, **{name: cache}, **GREEDY)
    cache = lkv.prefill(ids, budget=8)
    with lkv.evicting(8), lkv.evicting(8):
        assert lkv.model.generate(ids, **{name: cache}, **GREEDY).equal(expected)
    cache = lkv.prefill(ids, budget=8)
    with pytest.raises(ValueError, match="the prompt has 2 rows, the cache 1"):
        lkv.generate(ids.expand(2, -1), budget=8, **{name: cache}, **GREEDY)


@pytest.mark.parametrize(
    ("pad", "ends"),
    [(0, None), (0, 9), (0, [9, 8]), (0, 0), (0, [9, 0]), (None, None), (None, 9), (4, None)],
)
@pytest.mark.parametrize("places", [[0, 1], [8, 9], []])
def test_a_mask_is_inferred_as_transformers_does(pad: Any, ends: Any, places: list[int]) -> None:
    from lookaheadkv_kernels.integrations.transformers.padding import inferred_mask

    model = tiny()
    model.generation_config.pad_token_id = pad
    model.generation_config.eos_token_id = ends
    ids = torch.cat([text(10), text(10, 1)])
    ids[0, places] = 0
    config, _ = model._prepare_generation_config(None)
    model._prepare_special_tokens(config, False, device=ids.device)
    expected = model._prepare_attention_mask_for_generation(ids, config, {})
    found = inferred_mask(model, ids)
    assert (torch.ones_like(ids) if found is None else found.long()).equal(expected)
    # As arguments of generate, too.
    plain = tiny()
    options = {"pad_token_id": pad, "eos_token_id": ends}
    again = inferred_mask(plain, ids, options)
    assert (again is None) == (found is None) and (again is None or again.equal(found))


def test_a_pad_token_between_others_is_refused_unless_a_mask_says_what_it_is(lkv: Any) -> None:
    ids = text(20)
    ids[0, 7] = 0
    calls: list[Callable[..., Any]] = [
        lambda **o: lkv.prefill(ids, budget=6, **o),
        lambda **o: lkv.generate(ids, budget=6, **GREEDY, **o),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"one end of a row; .* inferred from pad_token_id=0"):
            call()
        call(attention_mask=torch.ones_like(ids))
    # The token itself counts then.
    assert lkv.prefill(ids, torch.ones_like(ids), budget=6).row_lengths().tolist() == [20]
