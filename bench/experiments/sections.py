"""The sections of `docs/results.md`, each from the condensed data of its experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.experiments import plots
from bench.experiments.condense import Scores
from bench.experiments.variants import Variant, variants_of
from bench.text import table

Data = dict[str, dict[str, Any]]
BAR_BUDGET = 256  # the bars are for budgets up to this
RIVALS = ("snapkv", "pyramidkv", "h2o", "streaming_llm")
PACKAGED = "smollm2-135m-instruct"
NOTES = (
    "The packaged modules were trained on samples of these kinds, `fwe` apart: about a third of "
    "the needles there have RULER's own wording, with other keys, values and texts "
    "([how](smollm2.md)). The other policies learn nothing. How far LookaheadKV is ahead of them "
    "here holds for prompts like those it was trained on. SpecKV is not among them: it needs a "
    "smaller model of the same tokenizer, and this is the smallest of its family."
)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) if names else "none"


def _score(found: tuple[float, float]) -> str:
    return f"{found[0]:.1f} ± {found[1]:.1f}"


def accuracy(data: Data, folder: Path) -> list[str]:
    """Paper figure 4: accuracy against budget."""
    facts, environment = data["accuracy"]["facts"], data["accuracy"]["environment"]
    scores = Scores(data["accuracy"])
    any_solved = any(scores.solved(length) for length in scores.lengths)
    if any_solved:
        plots.accuracy_plot(folder / "accuracy.png", scores)
    lines = [
        "## Accuracy against budget",
        "",
        f"RULER's eleven synthetic tasks, {facts['samples']} samples of each; {facts['model']} in "
        f"{facts['dtype']}, greedy answers, on {environment['machine']}, "
        f"torch {environment['torch']}, transformers {environment['transformers']}. Means are over "
        "the tasks that the full cache solves above chance, with their standard errors over "
        "samples. Chance is what the full cache's answers score against the references of the next "
        "sample; above it means by more than two standard errors of the difference.",
        "",
        *([NOTES, ""] if facts["model"] == PACKAGED else []),
        *(["![accuracy](results/accuracy.png)", ""] if any_solved else []),
    ]
    for length in scores.lengths:
        solved = scores.solved(length)
        unsolved = [task for task in scores.tasks if task not in solved]
        lines += [
            f"### {length} tokens",
            "",
            f"The full cache solves {_listed(solved)}. Not above chance, and left out of the "
            f"means: {_listed(unsolved)}.",
            "",
            *(_means(scores, length, solved) if solved else []),
            "",
            *_by_task(scores, length),
            "",
        ]
    return [*lines, *_bars(scores), ""] if any_solved else lines


def _means(scores: Scores, length: int, tasks: Sequence[str]) -> list[str]:
    rows = [
        [
            policy,
            *(
                _score(scores.mean(length, policy, budget, tasks))
                if scores.has(length, policy, budget)
                else ""
                for budget in scores.budgets
            ),
        ]
        for policy in scores.policies
    ]
    full = [_score(scores.mean(length, "full", None, tasks))] * len(scores.budgets)
    return table(["policy", *map(str, scores.budgets)], [["full", *full], *rows])


def _by_task(scores: Scores, length: int) -> list[str]:
    """Every task, folded away."""
    settings: list[tuple[str, Any]] = [("full", None)]
    settings += [(policy, budget) for budget in scores.budgets for policy in scores.policies]
    rows = []
    for policy, budget in settings:
        if scores.has(length, policy, budget):
            found = [scores.cell(task, length, policy, budget)[0] for task in scores.tasks]
            size = "all" if budget is None else str(budget)
            rows.append([policy, size, *(f"{score:.0f}" for score in found)])
    head = ["policy", "budget", *(task.removeprefix("niah_") for task in scores.tasks)]
    summary = "<details><summary>Every task</summary>"
    return [summary, "", *table(head, rows), "", "</details>"]


def _bars(scores: Scores) -> list[str]:
    """LookaheadKV at or above LAQ, and above the others, at small budgets."""
    rows = []
    for length in (n for n in scores.lengths if scores.solved(n)):
        tasks = scores.solved(length)
        for budget in (b for b in scores.budgets if b <= BAR_BUDGET):
            found = {
                policy: scores.mean(length, policy, budget, tasks)[0]
                for policy in ("lookahead", "laq", *RIVALS)
                if scores.has(length, policy, budget)
            }
            ours = found.pop("lookahead")
            missed = [
                policy
                for policy, mean in found.items()
                if (ours < mean if policy == "laq" else ours <= mean)
            ]
            best = max(found, key=lambda policy: found[policy])
            rows.append(
                [
                    str(length),
                    str(budget),
                    f"{ours:.1f}",
                    f"{best} {found[best]:.1f}",
                    f"**not met**: {', '.join(missed)}" if missed else "met",
                ]
            )
    return [
        f"The bar: LookaheadKV at or above LAQ and above {', '.join(RIVALS)}.",
        "",
        *table(["tokens", "budget", "lookahead", "best other", ""], rows),
    ]


def context(data: Data, folder: Path) -> list[str]:
    """The RULER row of paper figure 4: accuracy against context length."""
    scores = Scores(data["accuracy"], data["context"])
    (budget,) = Scores(data["context"]).budgets
    tasks = scores.solved(*scores.lengths)
    if not tasks:
        return []
    plots.context_plot(folder / "context.png", scores, budget)
    rows = [
        [policy, *(_score(scores.mean(n, policy, where, tasks)) for n in scores.lengths)]
        for policy, where in [("full", None), *((name, budget) for name in scores.policies)]
        if all(scores.has(n, policy, where) for n in scores.lengths)
    ]
    longest = [str(length) for length in Scores(data["context"]).lengths]
    return [
        "## Accuracy against context length",
        "",
        f"Budget {budget}; {data['context']['facts']['samples']} samples of each task at "
        f"{', '.join(longest)} tokens, the others as above. Means over the tasks that the full "
        f"cache solves above chance at all lengths: {_listed(tasks)}.",
        "",
        "![context length](results/context.png)",
        "",
        *table(["policy", *(f"{length} tokens" for length in scores.lengths)], rows),
        "",
    ]


def overhead(data: Data, folder: Path) -> list[str]:
    """Paper figure 2: accuracy against overhead."""
    scores, facts = Scores(data["accuracy"]), data["overhead"]["facts"]
    timed = data["overhead"]["rows"]
    (budget,) = facts["budgets"]
    if not any(scores.solved(length) for length in facts["lengths"]):
        return []
    plots.overhead_plot(folder / "overhead.png", scores, timed, budget)
    rows = [
        [
            str(length),
            policy,
            f"{1e3 * seconds:.0f} ms",
            f"{1e3 * more:.0f} ms",
            f"{share:.1f} % ({low:.1f} to {high:.1f})",
            _score(scores.mean(length, policy, budget, scores.solved(length))),
        ]
        for length, of, policy, seconds, more, low, share, high in timed
        if of == budget and scores.solved(length) and scores.has(length, policy, budget)
    ]
    head = ["tokens", "policy", "prefill", "added", "of the plain prefill", "score, %"]
    return [
        "## Accuracy against overhead",
        "",
        "What eviction adds to the prefill of one prompt: medians (and quartiles) over "
        f"{facts['prompts']} prompts of `{facts['task']}`, of each the best of {facts['runs']} "
        f"runs, policies in turn, each run in another order; on {facts['cpu']}, "
        f"{facts['threads']} threads, torch {facts['torch']}.",
        "",
        "![overhead](results/overhead.png)",
        "",
        *table(head, rows),
        "",
    ]


def _swept(data: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Held-out kind -> variant -> means."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, variant, means in data["rows"]:
        found.setdefault(kind, {})[variant] = means
    return found


def _how(data: dict[str, Any]) -> str:
    """How a sweep's modules were trained and measured."""
    facts, machine = data["facts"], data["machine"]
    training = facts["training"]
    samples = training["steps"] * training["batch_size"]
    return (
        f"Every variant: {samples} samples of the recipe ({training['steps']} steps of "
        f"{training['batch_size']}), the same ones where their lengths and responses are the same; "
        "far fewer than the packaged modules had, so figures compare with each other alone. "
        f"Measured on {facts['prompts']} held-out prompts of each kind: KL from the attention of "
        "the model's own greedy answer, and the share of that attention which the kept entries "
        f"hold. On {machine['cpu']}, torch {machine['torch']}, {facts['model']} in "
        f"{facts['dtype']}."
    )


def _figures(
    data: dict[str, Any], label: Callable[[Variant], str], variants: Sequence[Variant]
) -> list[str]:
    """One row per variant, and one for SnapKV: KL and kept mass by kind."""
    found, budgets = _swept(data), data["facts"]["budgets"]
    head = ["", *(f"KL, {kind}" for kind in found)]
    head += [f"mass at {budget}, {kind}" for kind in found for budget in budgets]
    rows = []
    for name, text in [*((v.name, label(v)) for v in variants), ("snapkv", "SnapKV")]:
        row = [text]
        row += [f"{found[k][name]['kl']:.3f}" if "kl" in found[k][name] else "" for k in found]
        row += [f"{found[k][name][f'mass {b}']:.3f}" for k in found for b in budgets]
        rows.append(row)
    return table(head, rows)


def _mean_kl(data: dict[str, Any], variant: Variant) -> float:
    found = _swept(data)
    return sum(found[kind][variant.name]["kl"] for kind in found) / len(found)


def _section(
    data: dict[str, Any],
    title: str,
    picture: str,
    label: Callable[[Variant], str],
    more: str = "",
) -> list[str]:
    """A sweep's section around its picture; ``label`` names a variant in the table."""
    figures = _figures(data, label, variants_of(data["facts"]))
    return [f"## {title}", "", _how(data) + more, "", picture, "", *figures, ""]


def ablation(data: Data, folder: Path) -> list[str]:
    """Paper table 3: lookahead size and LoRA placement."""
    mine = data["ablation"]
    lines: dict[str, list[tuple[float, float]]] = {}
    for variant in variants_of(mine["facts"]):
        point = (variant.num_lookahead, _mean_kl(mine, variant))
        lines.setdefault(variant.placement, []).append(point)
    plots.lines_plot(
        folder / "ablation.png", lines, xlabel="lookahead tokens", ylabel="held-out KL"
    )
    return _section(
        mine,
        "Lookahead size and LoRA placement",
        "![ablation](results/ablation.png)",
        lambda v: f"{v.num_lookahead} tokens, {v.placement}",
    )


def training_length(data: Data, folder: Path) -> list[str]:
    """Paper figure 6: training context length."""
    mine = data["training-length"]
    found = _swept(mine)
    lines: dict[str, list[tuple[float, float]]] = {
        f"trained to {v.max_prompt}": [(int(kind), found[kind][v.name]["kl"]) for kind in found]
        for v in variants_of(mine["facts"])
    }
    plots.lines_plot(
        folder / "training-length.png", lines, xlabel="prompt, tokens", ylabel="held-out KL"
    )
    return _section(
        mine,
        "Training context length",
        "![training context length](results/training-length.png)",
        lambda v: f"trained to {v.max_prompt} tokens",
    )


def responses(data: Data, folder: Path) -> list[str]:
    """Paper figure 7: generated or source responses."""
    mine = data["responses"]
    found, variants = _swept(mine), variants_of(mine["facts"])
    bars = {kind: {v.responses: found[kind][v.name]["kl"] for v in variants} for kind in found}
    plots.bars_plot(folder / "responses.png", bars, ylabel="held-out KL")
    return _section(
        mine,
        "Generated and source responses",
        "![responses](results/responses.png)",
        lambda v: f"{v.responses} responses",
        " Prompts whose text has a response; trained on that, or on the model's own.",
    )


# Section, and the experiments whose results it takes.
SECTIONS = (
    (accuracy, ("accuracy",)),
    (context, ("accuracy", "context")),
    (overhead, ("accuracy", "overhead")),
    (ablation, ("ablation",)),
    (training_length, ("training-length",)),
    (responses, ("responses",)),
)
