"""The HTML page of an evaluation: scores, explanations, and players of clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import soundfile
import torch

from ..metrics.significance import p_relation
from ..pages.page import clip_media, data_uri, write_page
from ..pages.plots import png
from .comparison import Comparison
from .rows import Rows, below_required
from .score import SUBJECTS, Score

NUM_SHOWN = 6
"""Number of generated clips on the page."""


def write_evaluation_page(
    folder: Path, model: str, comparison: Comparison, results: Mapping[str, Any], scores: Mapping[str, Score]
) -> None:
    """Write ``evaluation.html``.

    Args:
        folder: Folder of the evaluation.
        model: Path or Hub id of the system, as the user wrote it.
        comparison: The clips, and the system that generated them.
        results: Content of ``evaluation.json``.
        scores: The measured scores, by name.
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
    """Return the table of all rows with one subject, with texts and clips; ``None`` if there are no such rows."""
    rows = {
        label: row | {"unreliable": below_required(row)} | ({"p_text": p_relation(row["p"])} if "p" in row else {})
        for label, row in metrics.items()
        if row["subject"] == name
    }
    if not rows:
        return None
    texts, clips, plots = [SUBJECTS[name].note], [], []
    for score in dict.fromkeys(row["score"] for row in rows.values()):
        own = {label: row for label, row in rows.items() if row["score"] == score}
        texts.append(scores[score].explanation(own))
        plots += [(title, data_uri(png(figure), "image/png")) for title, figure in scores[score].plots(own)]
        for caption, path in scores[score].clips(own, folder):
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
            clips.append(clip_media(torch.from_numpy(audio.T), rate, caption))
    subject = SUBJECTS[name]._asdict()
    return subject | {"rows": rows, "texts": [text for text in texts if text], "plots": plots, "clips": clips}


def _clips(comparison: Comparison) -> Iterator[dict[str, str]]:
    """Yield the first clips, each followed by the real clip with the same caption."""
    rate = comparison.spec.sample_rate
    how = "generated" if comparison.system.stages else "reconstructed"
    for clip, piece in list(zip(comparison.generated, comparison.pieces, strict=True))[:NUM_SHOWN]:
        caption = str(piece.fields.get("text") or piece.fields.get("id", ""))
        yield clip_media(clip, rate, f"{how}: {caption}")
        yield clip_media(piece.audio, rate, "real clip")
