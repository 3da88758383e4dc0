"""What the demo prints: answers side by side, what each policy costs, and the checks."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from demo_chat import Answer
from demo_prompt import Needle
from demo_run import FULL, Asked, Result, Run
from demo_verify import SAME_BAR, Agreement
from rich.console import Console
from rich.table import Table
from rich.text import Text


def megabytes(count: float) -> str:
    """Bytes as ``12.3 MB``."""
    return f"{count / 1e6:.1f} MB"


def milliseconds(seconds: float) -> str:
    """Seconds as ``12.3 ms``."""
    return f"{seconds * 1e3:.1f} ms"


def marked(answer: Answer, needle: Needle) -> Text:
    """An answer, with whether it states the fact."""
    right = needle.answered_by(answer.text)
    mark = Text("✓ " if right else "✗ ", style="green" if right else "red")
    return mark + Text(answer.text, style="default")


def answers_table(run: Run) -> Table:
    """One row per question, one column per policy."""
    table = Table(title=f"Answers at budget {run.budget}", title_justify="left", expand=True)
    table.add_column("question, hidden fact and its depth", ratio=3)
    names = list(run.asked[0].results)
    for name in names:
        table.add_column(name, ratio=2)
    for one in run.asked:
        fact = f"{one.needle.value}, {one.needle.depth:.0%}"
        table.add_row(
            Text(f"{one.needle.question} ({fact})"),
            *(marked(one.results[name].answer, one.needle) for name in names),
        )
    table.add_section()
    table.add_row(
        "right", *(f"{count_right(run.asked, name)} of {len(run.asked)}" for name in names)
    )
    return table


def count_right(asked: list[Asked], name: str) -> int:
    """How many questions a policy still answers."""
    return sum(one.needle.answered_by(one.results[name].answer.text) for one in asked)


def costs_table(run: Run) -> Table:
    """Bytes, times and speeds; medians over the questions."""
    names = list(run.asked[0].results)

    def of(name: str, value: Callable[[Result], float]) -> float:
        return median(value(one.results[name]) for one in run.asked)

    def row(title: str, text: Callable[[str], str]) -> None:
        table.add_row(title, *map(text, names))

    table = Table(
        title=f"Costs (medians; the text of {run.prefill_tokens:,} tokens was read once for all, "
        f"in {run.prefill_seconds:.1f} s)",
        title_justify="left",
    )
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    full = of(FULL, lambda result: result.cache_bytes)

    def cache(name: str) -> str:
        size = of(name, lambda result: result.cache_bytes)
        return f"{megabytes(size)}, {size / full:.1%}"

    row("cache, all layers", cache)
    row("decode, tokens/s", lambda name: f"{of(name, lambda r: r.answer.tokens_per_second):.1f}")
    table.add_section()
    row(
        "question, lookahead rows and eviction",
        lambda name: milliseconds(of(name, lambda r: r.seconds)),
    )

    def eviction(name: str) -> str:
        return "" if name == FULL else milliseconds(of(name, lambda r: r.evict_seconds))

    def eager(name: str) -> str:
        if run.asked[0].results[name].eager_seconds is None:
            return ""
        ratio = of(name, lambda r: (r.eager_seconds or 0.0) / r.evict_seconds)
        return f"{milliseconds(of(name, lambda r: r.eager_seconds or 0.0))}, {ratio:.1f}x ours"

    row("of which eviction, all layers", eviction)
    row("the same in papers' eager PyTorch", eager)
    return table


def checks_table(agreements: dict[str, Agreement]) -> Table:
    """The two bars, for every policy."""
    table = Table(
        title="Checks against python_ref (every layer, KV head and question)", title_justify="left"
    )
    table.add_column("policy")
    table.add_column("heads exactly as selected\nfrom the op's scores", justify="right")
    table.add_column("entries kept by the reference too,\nend to end in float32", justify="right")
    table.add_column(f"bars: 100 %, {SAME_BAR:.1%}")
    for name, a in agreements.items():
        verdict = Text("passed", style="green") if a.passed else Text("FAILED", style="bold red")
        table.add_row(name, f"{a.exact_heads} of {a.heads}", f"{a.same / a.kept:.3%}", verdict)
    return table


def print_report(console: Console, run: Run) -> None:
    """The three tables."""
    for table in (answers_table(run), costs_table(run), checks_table(run.agreements)):
        console.print()
        console.print(table)
