"""The ops' signatures are the API: a change of this page breaks callers and exported programs."""

from __future__ import annotations

import inspect

import pytest
import torch

import lookaheadkv_kernels as lk

PADDING = "Tensor? leftpad_k=None, Tensor? seqused_k=None"
SELECTION = "int pool_kernel=7, int num_sink=0, int num_recent=0"
KEPT = f'{SELECTION}, bool keep_observation=False, str head_reduction="none"'
BATCH = "Tensor cu_seqlens_q, Tensor seq_lens, int num_rows"
PAGES = f"Tensor query, Tensor key_cache, Tensor block_table, {BATCH}"
SCORING = "Tensor? lse=None, float? scale=None, Tensor? k_scale=None"
SCHEMAS = {
    "lookahead_attention": (
        f"(Tensor query, Tensor key, Tensor value, *, float? scale=None, {PADDING}) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "column_scores": (
        f"(Tensor query, Tensor key, Tensor? lse=None, *, float? scale=None, {PADDING}) -> Tensor"
    ),
    "column_scores_backward": (
        "(Tensor grad_scores, Tensor query, Tensor key, Tensor? lse=None, *, "
        f"float? scale=None, {PADDING}) -> (Tensor, Tensor)"
    ),
    "prefill_attention": (
        "(Tensor query, Tensor key, Tensor value, int num_lookahead, *, float? scale=None) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "select": f"(Tensor scores, int budget, *, {SELECTION}, {PADDING}) -> Tensor",
    "gather_kv": "(Tensor key, Tensor value, Tensor indices) -> (Tensor, Tensor)",
    "score_and_evict": (
        "(Tensor query, Tensor key, Tensor value, int budget, *, Tensor? lse=None, "
        f"float? scale=None, {SELECTION}, bool keep_observation=False, {PADDING}) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "paged_column_scores": f"({PAGES}, int max_seq_len, *, {SCORING}) -> Tensor",
    "paged_select": (
        f"(Tensor scores, {BATCH}, int max_budget, *, Tensor? budgets=None, {KEPT}) "
        "-> (Tensor, Tensor)"
    ),
    "paged_score_and_select": (
        f"({PAGES}, int max_seq_len, int max_budget, *, Tensor? budgets=None, {SCORING}, {KEPT}) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "paged_score_and_select_out": (
        f"({PAGES}, int max_budget, *, Tensor(a!) indices, Tensor(b!) kept_lens, "
        f"Tensor(c!) scores, Tensor? budgets=None, {SCORING}, {KEPT}) -> ()"
    ),
    "compact_kv_cache": (
        "(Tensor(a!)[] caches, Tensor indices, Tensor kept_lens, Tensor src_block_table, "
        "Tensor? dst_block_table=None, *, Tensor? dst_start=None) -> ()"
    ),
}
WRITES = {
    "paged_score_and_select_out": {"indices", "kept_lens", "scores"},
    "compact_kv_cache": {"caches"},
}
PUBLIC = sorted(set(SCHEMAS) - {"column_scores_backward"})


def op(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.lookaheadkv, name).default


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name):
    assert str(op(name)._schema) == f"lookaheadkv::{name}{SCHEMAS[name]}"


def test_no_other_op():
    """Every op but the private ones is on this page."""
    names = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("lookaheadkv::")
    }
    assert {name for name in names if not name.startswith("_")} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_declares_what_it_writes_and_no_alias(name):
    schema = op(name)._schema
    written = {argument.name for argument in schema.arguments if argument.is_write}
    assert written == WRITES.get(name, set())
    assert all(
        value.alias_info is None
        for value in (*schema.arguments, *schema.returns)
        if value.name not in written
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_has_the_ops_arguments(name):
    """Same names, order, defaults and keyword-only split."""
    parameters = inspect.signature(getattr(lk, name)).parameters.values()
    arguments = op(name)._schema.arguments
    assert [p.name for p in parameters] == [a.name for a in arguments]
    for parameter, argument in zip(parameters, arguments, strict=True):
        assert (parameter.kind is parameter.KEYWORD_ONLY) == argument.kwarg_only
        assert (parameter.default is parameter.empty) != argument.has_default_value()
        if argument.has_default_value():
            assert parameter.default == argument.default_value


@pytest.mark.parametrize("name", PUBLIC)
def test_public_function_is_documented(name):
    text = inspect.getdoc(getattr(lk, name)) or ""
    assert all(f"{section}:" in text for section in ("Args", "Returns", "Raises"))
    for argument in op(name)._schema.arguments:
        assert f"\n    {argument.name}: " in text
