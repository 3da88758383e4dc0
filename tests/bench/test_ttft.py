"""The cost model: the paper's printed cells, its properties, and ``lookaheadkv ttft``."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from support.build_tools import ROOT, run

from lookaheadkv_kernels.cli import main
from lookaheadkv_kernels.cost_model import (
    HARDWARE,
    OURS,
    PAPER,
    Hardware,
    Phase,
    Setting,
    find_draft,
    find_model,
    predict,
)
from lookaheadkv_kernels.cost_model.hardware import BINARY, DECIMAL, Rates
from lookaheadkv_kernels.cost_model.paper import paper_setting
from lookaheadkv_kernels.cost_model.ttft import seconds
from lookaheadkv_kernels.cost_model.workload import WORKLOADS, pair_flops, token_bytes, triangle

# The paper's table 5, as printed: context, method, TFLOPs, GB, TTFT in ms, overhead in ms. Table 2
# is its rows of 8,192 and 32,768.
TABLE_5 = """
 4096 forward      60  13  113 N/A
 4096 lookaheadkv  60  13  114 0.92
 4096 snapkv       60  13  113 0.01
 4096 speckv       70  77  165 52.10
 4096 laq          61 444  347 233.81
 8192 forward     136  13  257 N/A
 8192 lookaheadkv 137  13  258 1.03
 8192 snapkv      136  13  257 0.01
 8192 speckv      159  81  337 79.53
 8192 laq         137 445  492 234.59
16384 forward     336  13  635 N/A
16384 lookaheadkv 337  13  636 1.27
16384 snapkv      336  13  635 0.01
16384 speckv      398  89  792 157.05
16384 laq         337 447  871 236.15
32768 forward     928  13 1754 N/A
32768 lookaheadkv 929  13 1755 1.74
32768 snapkv      928  13 1754 0.01
32768 speckv     1115 106 2156 402.80
32768 laq         930 406 1993 239.26
"""
COLUMNS = ("compute", "traffic", "ttft", "overhead")
CELLS = [
    (int(context), method, column, cell)
    for context, method, *cells in map(str.split, TABLE_5.strip().splitlines())
    for column, cell in zip(COLUMNS, cells, strict=True)
    if cell != "N/A"
]
# At 4K, 8K and 16K LAQ's traffic is printed as 444, 445 and 447: it cannot fall to 406 at 32K.
MISPRINT = (32768, "laq", "traffic", "406")
CONTEXTS = (1, 31, 32, 500, 4096, 32768, 131072)
SXM = HARDWARE["h100-sxm"]


@pytest.fixture(scope="module")
def setting() -> Setting:
    return paper_setting()


def paper_value(setting: Setting, context: int, method: str, column: str) -> float:
    row = predict(setting, HARDWARE["h100-pcie"], method, context, PAPER)
    return {
        "compute": row.flops / 2**40,
        "traffic": row.bytes / 2**30,
        "ttft": row.ttft * 1e3,
        "overhead": row.overhead * 1e3,
    }[column]


def test_table_5_has_76_theoretical_cells() -> None:
    assert len(CELLS) == 76
    assert MISPRINT in CELLS


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != MISPRINT])
def test_printed_cell(setting: Setting, cell: tuple[int, str, str, str]) -> None:
    *where, printed = cell
    decimals = len(printed.partition(".")[2])
    assert f"{paper_value(setting, *where):.{decimals}f}" == printed


def test_the_misprinted_cell_goes_on_from_its_neighbours(setting: Setting) -> None:
    assert 450 < paper_value(setting, *MISPRINT[:3]) < 453


def test_solved_terms_are_marked(setting: Setting) -> None:
    solved = {
        method: {phase.name for phase in workload(setting, 4096) if phase.solved}
        for method, workload in PAPER.workloads.items()
    }
    assert not any(solved[method] for method in ("forward", "lookaheadkv", "snapkv"))
    assert solved["speckv"] == {"draft rows", "draft rows: attention", "scores"}
    assert solved["laq"] == {"window and draft rows", "weights, again", "scores"}
    assert not any(phase.solved for work in WORKLOADS.values() for phase in work(setting, 4096))


def test_sizes_of_llama(setting: Setting) -> None:
    model = setting.model
    assert model.num_linear_parameters == 6_979_321_856
    assert pair_flops(model) == 524_288
    assert token_bytes(model) == 131_072
    assert setting.draft == find_model("llama-3.2-1b")


def test_units() -> None:
    chip = Hardware("one", 1, 1, 0.5, 0.25)
    assert chip.rates(DECIMAL) == Rates(5e11, 2.5e8)
    assert chip.rates(BINARY) == Rates(2**39, 2**28)
    assert HARDWARE["h100-pcie"].rates(BINARY) == pytest.approx(
        (756 * 0.7 * 2**40, 2000 * 0.9 * 2**30)
    )


def test_times_of_a_phase() -> None:
    rates = Rates(100.0, 10.0)
    expected = {"roofline": 3.0, "serial": 5.0, "compute": 2.0, "memory": 3.0, "untimed": 0.0}
    for timing, time in expected.items():
        assert seconds(Phase("p", 200, 30, timing), rates) == time  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_triangle_counts_causal_pairs(rows: int) -> None:
    assert triangle(rows) == sum(key <= query for query in range(rows) for key in range(rows))


def test_our_overhead_is_what_the_lookahead_rows_add(setting: Setting) -> None:
    """By hand, for 32K on an H100 SXM: compute-bound rows, and K read once for the scores."""
    flops, bandwidth = 989e12 * 0.7, 3.35e12 * 0.9
    context, rows, heads = 32768, 32, 32 * 8
    row_flops = 2 * 6_979_321_856 * rows + 524_288 * (rows * context + rows * (rows + 1) // 2)
    modules = setting.lookahead_config().num_parameters()
    read = modules * 2 + context * 65_536 + heads * (2 * context + 128) * 4 + 2 * 128 * 131_072
    overhead = row_flops / flops + read / bandwidth
    prediction = predict(setting, SXM, "lookaheadkv", context)
    assert prediction.overhead == pytest.approx(overhead, rel=1e-9)
    assert prediction.overhead < 2.6e-3


def test_causal_half(setting: Setting) -> None:
    def attention(context: int) -> int:
        return next(
            p.flops for p in WORKLOADS["forward"](setting, context) if p.name == "attention"
        )

    square = 524_288 * 32768**2
    assert attention(32768) / square == pytest.approx(0.5, rel=1e-4)
    linear = 2 * 6_979_321_856 * 32768
    assert PAPER.workloads["forward"](setting, 32768)[0].flops == linear + square


@pytest.mark.parametrize("accounting", [OURS, PAPER], ids=lambda each: each.name)
def test_more_work_never_takes_less_time(setting: Setting, accounting) -> None:
    larger = {
        "budget": 4096,
        "num_lookahead": 64,
        "draft_tokens": 64,
        "lora_rank": 64,
        "draft": find_model("llama-3.2-3b"),
    }
    for method in accounting.workloads:
        rows = [predict(setting, SXM, method, context, accounting) for context in CONTEXTS]
        assert all(row.overhead >= 0 for row in rows)
        for field in ("flops", "bytes", "ttft"):
            values = [getattr(row, field) for row in rows]
            assert values == sorted(values), (method, field)
        for name, value in larger.items():
            more = dataclasses.replace(setting, **{name: value})
            for row in rows:
                changed = predict(more, SXM, method, row.context, accounting)
                # Both are sums of the same floats but for the changed ones.
                assert changed.ttft >= row.ttft * (1 - 1e-12), (method, name)
        for better in (dataclasses.replace(SXM, tflops=2000), HARDWARE["h200"]):
            for row in rows:
                assert predict(setting, better, method, row.context, accounting).ttft <= row.ttft


@pytest.mark.parametrize("context", CONTEXTS)
def test_order_of_methods(setting: Setting, context: int) -> None:
    cost = {name: predict(setting, SXM, name, context).overhead for name in WORKLOADS}
    assert cost["forward"] == 0
    assert cost["forward"] < cost["snapkv"] < cost["lookaheadkv"] < cost["lookaheadkv-extend"]
    assert cost["lookaheadkv-extend"] < min(cost["speckv"], cost["laq"])


def test_placement_of_lora_counts(setting: Setting) -> None:
    def overhead(*linears: str) -> float:
        placed = dataclasses.replace(setting, lora_linears=linears)
        return predict(placed, SXM, "lookaheadkv", 4096).overhead

    assert overhead() < overhead("q_proj", "v_proj") < overhead(*setting.lora_linears)


def test_budget_beyond_the_prompt_keeps_the_prompt(setting: Setting) -> None:
    large, exact = (dataclasses.replace(setting, budget=budget) for budget in (10_000, 500))
    for method in WORKLOADS:
        assert predict(large, SXM, method, 500) == predict(exact, SXM, method, 500)


def test_draft_models() -> None:
    assert find_draft(find_model("qwen3-8b")) == find_model("qwen3-1.7b")
    assert find_draft(find_model("llama-3.2-1b")) is None
    assert find_draft(find_model("smollm2-135m")) is None


CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def write_config(folder: Path, **changes: object) -> str:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder)


def test_model_of_a_folder(tmp_path: Path) -> None:
    name = write_config(tmp_path)
    assert find_model(name) == dataclasses.replace(find_model("llama-3.1-8b"), name=name)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": CONFIG}))
    assert find_model(name).shape == find_model("llama-3.1-8b").shape
    assert (
        find_model(write_config(tmp_path, num_key_value_heads=None)).shape.num_key_value_heads == 32
    )


def test_model_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    asked = []

    def from_pretrained(name: str):
        asked.append(name)
        if name == "no/such":
            raise OSError("no/such is not a model\nmore")
        return transformers.LlamaConfig(**CONFIG)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    assert find_model("meta/llama").shape == find_model("llama-3.1-8b").shape
    with pytest.raises(
        ValueError, match=r"unknown model 'no/such'.*the hub: no/such is not a model$"
    ):
        find_model("no/such")
    assert asked == ["meta/llama", "no/such"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_experts": 8}, "is a mixture of experts"),
        ({"layer_types": ["sliding_attention"]}, "only full attention is modelled"),
        ({"vocab_size": None}, "has no 'vocab_size'"),
        ({"num_attention_heads": None}, "has no 'num_attention_heads'"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
    ],
)
def test_configs_that_are_not_modelled(tmp_path: Path, changes, message: str) -> None:
    name = write_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*{message}"):
        find_model(name)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nope"], "unknown model 'nope'; "),
        (["--draft-model", "nope"], "unknown model 'nope'; "),
        (["--method", "nope"], "unknown method 'nope'; known: forward, lookaheadkv, "),
        (["--paper", "--method", "lookaheadkv-extend"], "unknown method 'lookaheadkv-extend'; "),
        (["--hardware", "nope"], "unknown hardware 'nope'; known: h100-sxm, "),
        (["--context", "0"], "context must be >= 1, got 0"),
        (["--context", "4096", "-3"], "context must be >= 1, got -3"),
        (["--budget", "0"], "budget must be >= 1, got 0"),
        (["--budget", "16"], "budget must be >= window (32), got 16"),
        (["--num-lookahead", "0"], "num_lookahead must be >= 1, got 0"),
        (["--draft-tokens", "0"], "draft_tokens must be >= 1, got 0"),
        (["--lora-rank", "0"], "lora_rank must be >= 1, got 0"),
        (["--lora-linears", "nope"], "got 'nope'"),
        (["--tflops", "0"], "tflops must be finite and > 0, got 0.0"),
        (["--gbps", "inf"], "gbps must be finite and > 0, got inf"),
        (["--flops-efficiency", "1.5"], "flops_efficiency must be in (0, 1], got 1.5"),
        (["--memory-efficiency", "0"], "memory_efficiency must be in (0, 1], got 0.0"),
        (
            ["--model", "smollm2-135m", "--method", "speckv"],
            "none is known for model 'smollm2-135m'",
        ),
        (["--plot", "figure.jpg"], "plot must end in .png or .svg, got 'figure.jpg'"),
    ],
)
def test_bad_arguments_are_named(arguments, message: str, capsys) -> None:
    assert main(["ttft", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lookaheadkv ttft: ")
    assert message in captured.err


def test_bad_json_names_its_file(tmp_path: Path, capsys) -> None:
    path = tmp_path / "config.json"
    for text in ("{", "[]"):
        path.write_text(text)
        assert main(["ttft", "--model", str(tmp_path)]) == 2
        assert f"lookaheadkv ttft: {path}: " in capsys.readouterr().err
    path.unlink()
    assert main(["ttft", "--model", str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_paper_mode_prints_the_cells(capsys) -> None:
    assert main(["ttft", "--paper"]) == 0
    output = capsys.readouterr().out
    assert "\n75 of 76 theoretical cells match\n" in output
    assert "\nnot 32768 laq traffic: 451, the paper prints 406\n" in output
    assert re.search(
        r"^ +32768  speckv +1115 = 1115 +106 = 106 +2156 = 2156 +402.80 = 402.80$",
        output,
        re.MULTILINE,
    )
    assert output.count("!=") == 2  # the cell, and the legend


def test_other_settings_are_not_compared_with_the_paper(capsys) -> None:
    for arguments in (["--budget", "256"], ["--hardware", "h100-sxm"], ["--model", "qwen3-8b"]):
        assert main(["ttft", "--paper", "--context", "4096", *arguments]) == 0
        output = capsys.readouterr().out
        assert "cells match" not in output
        assert "TiFLOP" in output


def test_json_carries_everything(capsys) -> None:
    assert main(["ttft", "--json", "--paper"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert sum(cell["same"] for cell in data["paper"]) == 75
    assert main(["ttft", "--json", "--context", "100", "--method", "laq", "--gbps", "500"]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["rows"]
    assert "paper" not in data
    assert data["hardware"]["bytes_per_second"] == pytest.approx(450e9)
    assert row["ttft_seconds"] == pytest.approx(sum(p["seconds"] for p in row["phases"]))
    assert row["flops"] == sum(phase["flops"] for phase in row["phases"])


def test_breakdown_has_a_row_for_every_phase(setting: Setting, capsys) -> None:
    assert main(["ttft", "--breakdown", "--context", "4096", "--method", "laq"]) == 0
    output = capsys.readouterr().out
    for phase in WORKLOADS["laq"](setting, 4096):
        assert f"  {phase.name}  " in output


def test_a_missing_draft_model_is_said(capsys) -> None:
    assert main(["ttft", "--model", "smollm2-135m", "--context", "2000"]) == 0
    output = capsys.readouterr().out
    assert "speckv is left out" in output
    assert "  speckv  " not in output


@pytest.mark.parametrize("suffix, begin", [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_plot(suffix: str, begin: bytes, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"figure{suffix}"
    assert main(["ttft", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(begin)
    assert main(["ttft", "--plot", str(path), "--method", "forward"]) == 2
    assert "plot needs a method besides forward" in capsys.readouterr().err


def test_the_command_runs_without_extras() -> None:
    """Neither transformers nor matplotlib is imported for a table."""
    script = (
        "import sys\n"
        "from lookaheadkv_kernels.cli import main\n"
        "main(['ttft'])\n"
        "assert not {'transformers', 'matplotlib'} & set(sys.modules)\n"
    )
    result = run([sys.executable, "-c", script], cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", [["ttft"], ["ttft", "--paper"]])
def test_the_document_has_what_the_command_prints(arguments, capsys) -> None:
    assert main(arguments) == 0
    document = (ROOT / "docs" / "cost_model.md").read_text()
    assert capsys.readouterr().out.strip() in document
