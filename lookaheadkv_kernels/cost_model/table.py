"""Predictions as text, as plain data, and beside the paper's printed cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..lookahead.config import ALL_LINEARS
from .hardware import HARDWARE, Hardware
from .paper import TABLE_5, Cells, paper_setting
from .ttft import PAPER, Accounting, Prediction
from .workload import Setting

METHOD_COLUMN = "method"
PHASE_COLUMN = "phase"


class Comparison(NamedTuple):
    """One printed cell of the paper and ours, rounded as that is printed."""

    context: int
    method: str
    column: str
    ours: str
    paper: str

    @property
    def same(self) -> bool:
        """Whether both print the same."""
        return self.ours == self.paper


def is_paper_table(setting: Setting, hardware: Hardware, accounting: Accounting) -> bool:
    """Whether this is the setting of the paper's tables."""
    return (setting, hardware, accounting) == (paper_setting(), HARDWARE[PAPER.chip], PAPER)


def rounded(prediction: Prediction, accounting: Accounting) -> Cells:
    """As the paper rounds: whole numbers, and hundredths for the overhead."""
    units = accounting.units
    return Cells(
        f"{prediction.flops / units.tera:.0f}",
        f"{prediction.bytes / units.giga:.0f}",
        f"{prediction.ttft * 1e3:.0f}",
        None if prediction.method == "forward" else f"{prediction.overhead * 1e3:.2f}",
    )


def compare(predictions: Sequence[Prediction]) -> list[Comparison]:
    """All cells of the paper that these rows have; :func:`is_paper_table` must hold."""
    return [
        Comparison(prediction.context, prediction.method, column, ours, printed)
        for prediction in predictions
        if (cells := TABLE_5.get((prediction.context, prediction.method))) is not None
        for column, ours, printed in zip(
            Cells._fields, rounded(prediction, PAPER), cells, strict=True
        )
        if ours is not None and printed is not None
    ]


def heading(setting: Setting, hardware: Hardware, accounting: Accounting) -> str:
    """What the table below is about."""
    units = accounting.units
    linears = "all" if setting.lora_linears == ALL_LINEARS else " ".join(setting.lora_linears)
    draft = "none" if setting.draft is None else setting.draft.name
    return "\n".join(
        (
            f"{setting.model.name}, 16 bit, batch 1, on {hardware.name}: "
            f"{hardware.tflops:g} {units.flop_name}/s x {hardware.flops_efficiency:g}, "
            f"{hardware.gbps:g} {units.byte_name}/s x {hardware.memory_efficiency:g}",
            f"budget {setting.budget}, window {setting.window}, "
            f"{setting.num_lookahead} lookahead rows, LoRA rank {setting.lora_rank} on "
            f"{linears or 'no'} linear maps; "
            f"{setting.draft_tokens} draft tokens, draft model {draft}",
        )
    )


def table(predictions: Sequence[Prediction], accounting: Accounting) -> str:
    """One row per context and method."""
    units = accounting.units
    head = [
        "context",
        METHOD_COLUMN,
        units.flop_name,
        units.byte_name,
        "TTFT ms",
        "overhead ms",
        "%",
    ]
    rows = [head]
    for prediction in predictions:
        row = [
            str(prediction.context),
            prediction.method,
            f"{prediction.flops / units.tera:.2f}",
            f"{prediction.bytes / units.giga:.2f}",
            f"{prediction.ttft * 1e3:.2f}",
        ]
        if prediction.method == "forward":
            row += ["-", "-"]
        else:
            row += [f"{prediction.overhead * 1e3:.3f}", f"{prediction.overhead_ratio * 100:.2f}"]
        rows.append(row)
    return aligned(rows)


def paper_table(predictions: Sequence[Prediction]) -> str:
    """Our cells beside the paper's, how many are the same, and which are not."""
    units = PAPER.units
    head = ["context", METHOD_COLUMN, units.flop_name, units.byte_name, "TTFT ms", "overhead ms"]
    rows = [head]
    for prediction in predictions:
        ours = rounded(prediction, PAPER)
        printed = TABLE_5.get((prediction.context, prediction.method), (None,) * len(ours))
        cells = (_beside(*pair) for pair in zip(ours, printed, strict=True))
        rows.append([str(prediction.context), prediction.method, *cells])
    compared = compare(predictions)
    differing = [cell for cell in compared if not cell.same]
    lines = [
        aligned(rows),
        "",
        "model = table 5 of the paper; != where they differ",
        f"{len(compared) - len(differing)} of {len(compared)} theoretical cells match",
        *(
            f"not {cell.context} {cell.method} {cell.column}: "
            f"{cell.ours}, the paper prints {cell.paper}"
            for cell in differing
        ),
    ]
    return "\n".join(lines)


def breakdown(predictions: Sequence[Prediction], accounting: Accounting) -> str:
    """One row per phase; what was solved from printed cells is marked."""
    units = accounting.units
    rows = [
        ["context", METHOD_COLUMN, PHASE_COLUMN, units.flop_name, units.byte_name, "ms", "timing"]
    ]
    for prediction in predictions:
        for phase, seconds in prediction.phases:
            rows.append(
                [
                    str(prediction.context),
                    prediction.method,
                    phase.name,
                    f"{phase.flops / units.tera:.3f}",
                    f"{phase.bytes / units.giga:.3f}",
                    f"{seconds * 1e3:.3f}",
                    phase.timing + (", solved" if phase.solved else ""),
                ]
            )
    return aligned(rows)


def as_data(
    predictions: Sequence[Prediction],
    setting: Setting,
    hardware: Hardware,
    accounting: Accounting,
) -> dict[str, Any]:
    """Everything, for JSON: FLOPs, bytes and seconds, unrounded."""
    data: dict[str, Any] = {
        "accounting": accounting.name,
        "model": setting.model.name,
        "draft_model": None if setting.draft is None else setting.draft.name,
        "budget": setting.budget,
        "window": setting.window,
        "num_lookahead": setting.num_lookahead,
        "draft_tokens": setting.draft_tokens,
        "lora_rank": setting.lora_rank,
        "lora_linears": list(setting.lora_linears),
        "hardware": {
            "name": hardware.name,
            **hardware.rates(accounting.units)._asdict(),
        },
        "rows": [
            {
                "method": prediction.method,
                "context": prediction.context,
                "flops": prediction.flops,
                "bytes": prediction.bytes,
                "ttft_seconds": prediction.ttft,
                "overhead_seconds": prediction.overhead,
                "overhead_ratio": prediction.overhead_ratio,
                "phases": [
                    {
                        "name": phase.name,
                        "flops": phase.flops,
                        "bytes": phase.bytes,
                        "seconds": seconds,
                        "timing": phase.timing,
                        "solved": phase.solved,
                    }
                    for phase, seconds in prediction.phases
                ],
            }
            for prediction in predictions
        ],
    }
    if is_paper_table(setting, hardware, accounting):
        data["paper"] = [{**cell._asdict(), "same": cell.same} for cell in compare(predictions)]
    return data


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: names to the left, numbers to the right."""
    head = rows[0]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [name in (METHOD_COLUMN, PHASE_COLUMN, "timing") for name in head]

    def line(row: Sequence[str]) -> Iterator[str]:
        for cell, width, to_left in zip(row, widths, left, strict=True):
            yield cell.ljust(width) if to_left else cell.rjust(width)

    return "\n".join("  ".join(line(row)).rstrip() for row in rows)


def _beside(ours: str | None, printed: str | None) -> str:
    if ours is None:
        return "-"
    if printed is None:
        return ours
    return f"{ours} {'=' if ours == printed else '!='} {printed}"
