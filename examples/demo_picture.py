"""Pictures of the demo: for each question a page and a PNG of what every policy kept."""

from __future__ import annotations

from pathlib import Path

from demo_chat import Chat
from demo_run import FULL, MODEL_TITLE, Asked, Run

from lookaheadkv_kernels.visual import (
    Picture,
    PolicyView,
    Selection,
    find_mark,
    split_pieces,
    write_html,
    write_png,
)


def make_picture(chat: Chat, asked: Asked, budget: int) -> Picture:
    """What every policy but the full cache kept of one prompt."""
    pieces = split_pieces(chat.tokenizer, asked.ids)
    views = [
        PolicyView.from_choices(
            name,
            result.choices,
            note=result.answer.text,
            good=asked.needle.answered_by(result.answer.text),
        )
        for name, result in asked.results.items()
        if name != FULL
    ]
    return Picture(
        pieces,
        views,
        [
            find_mark("needle", pieces, asked.needle.sentence),
            find_mark("question", pieces, asked.needle.question),
        ],
        title=f"What stays of {len(asked.ids):,} tokens at budget {budget}",
        subtitle=f"{MODEL_TITLE} · {asked.needle.question} · the full cache says: "
        f"{asked.results[FULL].answer.text}",
    )


def write_pictures(chat: Chat, run: Run, folder: Path, selection: Selection) -> list[Path]:
    """``question-1.html``, ``question-1.png`` and so on below ``folder``; returns their paths."""
    paths = []
    for number, asked in enumerate(run.asked, start=1):
        picture = make_picture(chat, asked, run.budget)
        page, image = folder / f"question-{number}.html", folder / f"question-{number}.png"
        write_html(page, picture, selection)
        write_png(image, picture, selection)
        paths += [page, image]
    return paths
