"""What the demo prints: answers side by side, costs of each stage, and the two checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from demo_model import Answer
from demo_prompt import Needle
from demo_verify import SAME_BAR, Agreement
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Asked:
    """One question: both answers, both caches, and the time of both evictions."""

    needle: Needle
    full: Answer
    evicted: Answer
    full_bytes: int
    evicted_bytes: int
    evict_seconds: float  # all layers, our op
    eager_seconds: float  # all layers, paper-style eager code
    agreement: Agreement


@dataclass
class Run:
    """Everything the report is made of."""

    prompt_tokens: int
    budget: int
    prefill_seconds: float
    prefill_tokens: int
    asked: list[Asked] = field(default_factory=list)

    @property
    def agreement(self) -> Agreement:
        """Counts over all questions."""
        return sum((one.agreement for one in self.asked), Agreement())


def megabytes(count: int) -> str:
    """Bytes as ``12.3 MB``."""
    return f"{count / 1e6:.1f} MB"


def marked(answer: Answer, needle: Needle) -> Text:
    """An answer, with whether it states the fact."""
    right = needle.answered_by(answer.text)
    mark = Text("right  " if right else "wrong  ", style="green" if right else "red")
    return mark + Text(answer.text, style="default")


def answers_table(run: Run) -> Table:
    """One row a question."""
    table = Table(title="Answers", title_justify="left", expand=True)
    table.add_column("question", ratio=3)
    table.add_column("depth", justify="right")
    table.add_column("hidden fact")
    table.add_column("full cache", ratio=2)
    table.add_column(f"budget {run.budget}", ratio=2)
    for one in run.asked:
        table.add_row(
            one.needle.question,
            f"{one.needle.depth:.0%}",
            one.needle.value,
            marked(one.full, one.needle),
            marked(one.evicted, one.needle),
        )
    full = sum(one.needle.answered_by(one.full.text) for one in run.asked)
    evicted = sum(one.needle.answered_by(one.evicted.text) for one in run.asked)
    total = len(run.asked)
    table.add_section()
    table.add_row("right", "", "", f"{full} of {total}", f"{evicted} of {total}")
    return table


def costs_table(run: Run) -> Table:
    """Bytes and times; medians over the questions."""
    full_bytes = median(one.full_bytes for one in run.asked)
    evicted_bytes = median(one.evicted_bytes for one in run.asked)
    ours = median(one.evict_seconds for one in run.asked)
    eager = median(one.eager_seconds for one in run.asked)
    table = Table(
        title="Costs (medians; eager code: as papers publish it, in plain PyTorch)",
        title_justify="left",
    )
    for name in ("", "full cache", f"budget {run.budget}", "ratio"):
        table.add_column(name, justify="left" if name == "" else "right")
    table.add_row(
        "cache, all layers",
        megabytes(int(full_bytes)),
        megabytes(int(evicted_bytes)),
        f"{evicted_bytes / full_bytes:.1%}",
    )
    speeds = [
        median(one.full.tokens_per_second for one in run.asked),
        median(one.evicted.tokens_per_second for one in run.asked),
    ]
    table.add_row("decode", *(f"{s:.1f} tokens/s" for s in speeds), f"{speeds[1] / speeds[0]:.2f}x")
    table.add_section()
    table.add_row(
        f"prefill, {run.prefill_tokens} tokens",
        f"{run.prefill_seconds:.2f} s",
        f"{run.prefill_seconds:.2f} s",
        "",
    )
    table.add_row(
        "eviction, score_and_evict",
        "",
        f"{ours * 1e3:.1f} ms",
        f"{ours / run.prefill_seconds:.2%} of prefill",
    )
    table.add_row(
        "eviction, eager code",
        "",
        f"{eager * 1e3:.1f} ms",
        f"{eager / ours:.1f}x ours",
    )
    return table


def checks_table(agreement: Agreement) -> Table:
    """The two bars, and how far the eager code agrees."""
    table = Table(title="Checks (every layer, KV head and question)", title_justify="left")
    for name in ("", "found", "bar", ""):
        table.add_column(name, justify="right" if name in ("found", "bar") else "left")
    a = agreement

    def verdict(passed: bool) -> Text:
        return Text("passed", style="green") if passed else Text("FAILED", style="bold red")

    table.add_row(
        "heads exactly as selected by python_ref from the op's scores",
        f"{a.exact_heads} of {a.heads}",
        "100 %",
        verdict(a.exact_heads == a.heads),
    )
    table.add_row(
        "entries kept by python_ref too, end to end in float32",
        f"{a.same / a.kept:.3%}",
        f">= {SAME_BAR:.1%}",
        verdict(a.same >= SAME_BAR * a.kept),
    )
    table.add_row(
        "entries kept by the eager code too (no rule for ties)",
        f"{a.same_as_eager / max(a.chosen, 1):.3%}",
        "",
        "",
    )
    return table


def print_report(console: Console, run: Run) -> None:
    """The three tables."""
    for table in (answers_table(run), costs_table(run), checks_table(run.agreement)):
        console.print()
        console.print(table)
