"""What policies and modules look like when they are printed."""

from __future__ import annotations

import pytest
from support.tiny_model import random_modules, tiny_llama

from lookaheadkv_kernels import policies
from lookaheadkv_kernels.policies import POLICY_NAMES, Policy, make_policy

pytest.importorskip("transformers")

# Other than the defaults, so that none can be shown in place of what was given.
GIVEN = {
    "full": "FullCache()",
    "snapkv": "SnapKV(window=5, pool_kernel=3)",
    "pyramidkv": "PyramidKV(window=5, pool_kernel=3, beta=7, exact_total=True)",
    "streaming_llm": "StreamingLLM(num_sink=2)",
    "h2o": "H2O(num_recent=9)",
    "laq": "LAQ(window=5, draft_tokens=6, pool_kernel=3, draft_window=11)",
    "adakv": "AdaKV(window=5, pool_kernel=3, floor_ratio=0.4)",
    "random": "RandomPolicy(seed=3)",
    "oracle": "Oracle(max_tokens=7, responses=[[1, 2]], pool_kernel=3)",
}


def test_every_policy_is_shown_as_the_call_that_makes_it() -> None:
    assert set(GIVEN) == set(POLICY_NAMES) - {"lookahead", "speckv"}
    for name, text in GIVEN.items():
        policy: Policy = eval(text, dict(vars(policies)))
        assert policy.name == name and repr(policy) == text


def test_models_and_modules_are_shown_in_one_line() -> None:
    model = tiny_llama()
    modules = random_modules(model, num_lookahead=4, lora_rank=2, lora_linears=("q_proj",))
    assert repr(modules) == (
        "LookaheadModules(4 lookahead tokens, LoRA of rank 2 and alpha 32 on q_proj; for llama "
        f"with 3 layers of 48; {modules.config.num_parameters():,} parameters, float32 on cpu)"
    )
    lookahead = make_policy("lookahead", modules=modules, mode="extend")
    assert repr(lookahead) == f"LookaheadPolicy(modules={modules!r}, mode='extend', pool_kernel=7)"
    speckv = make_policy("speckv", draft_model=model, window=4)
    assert repr(speckv) == (
        "SpecKV(draft_model=<LlamaForCausalLM>, window=4, draft_tokens=32, pool_kernel=7)"
    )
    long = policies.Oracle(responses=[[token] for token in range(9)])
    assert "responses=<9 entries>" in repr(long)
    assert "scaling=16" in repr(modules.lora(0, "q_proj"))


def test_a_policy_of_ones_own_has_one_too() -> None:
    class Newest(policies.StreamingLLM):
        def __init__(self, *, count: int = 3, hidden: int = 1) -> None:
            super().__init__()
            self.count = count

    assert repr(Newest(count=5)) == "Newest(count=5)"
