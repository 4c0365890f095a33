"""The page of an evaluation: the rows of its scores, how to read them, and clips to listen to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import soundfile
import torch

from ..pages.page import clip_media, write_page
from .comparison import Comparison
from .rows import Rows
from .score import SUBJECTS, Score

SHOWN = 6
"""Number of generated clips on the page."""


def write_evaluation_page(
    folder: Path, model: str, comparison: Comparison, results: Mapping[str, Any], scores: Mapping[str, Score]
) -> None:
    """Write ``evaluation.html``.

    Args:
        folder: The folder of the evaluation.
        model: What was evaluated.
        comparison: The clips, and the system that generated them.
        results: The content of ``evaluation.json``.
        scores: The scores that were measured, by name.
    """
    sections = [section for name in SUBJECTS if (section := _section(name, folder, results["metrics"], scores))]
    parts, clips = comparison.system.summary(), list(_clips(comparison))
    write_page(
        folder / "evaluation.html",
        "evaluation.html",
        model=model,
        parts=parts,
        clips=clips,
        sections=sections,
        **results,
    )


def _section(name: str, folder: Path, metrics: Rows, scores: Mapping[str, Score]) -> dict[str, Any] | None:
    """The table of all rows with one subject, with texts and clips; ``None`` if there are no such rows."""
    rows = {label: row for label, row in metrics.items() if row["subject"] == name}
    if not rows:
        return None
    texts, clips = [SUBJECTS[name].note], []
    for score in dict.fromkeys(row["score"] for row in rows.values()):
        own = {label: row for label, row in rows.items() if row["score"] == score}
        texts.append(scores[score].explanation(own))
        for caption, path in scores[score].clips(own, folder):
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
            clips.append(clip_media(torch.from_numpy(audio.T), rate, caption))
    subject = SUBJECTS[name]._asdict()
    return subject | {"rows": rows, "texts": [text for text in texts if text], "clips": clips}


def _clips(comparison: Comparison) -> Iterator[dict[str, str]]:
    """The first clips, each followed by the piece of its caption."""
    rate = comparison.spec.sample_rate
    how = "generated" if comparison.system.stages else "after the codec"
    for clip, piece in list(zip(comparison.generated, comparison.pieces, strict=True))[:SHOWN]:
        caption = str(piece.fields.get("text") or piece.fields.get("id", ""))
        yield clip_media(clip, rate, f"{how}: {caption}")
        yield clip_media(piece.audio, rate, "the piece itself")
