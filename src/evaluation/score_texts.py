"""What scores are called, and what each says in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "key_exact": "right key",
    "key": "right or related key",
    "chord_root": "right chord roots",
    "chord_majmin": "right chords",
    "chord_segmentation": "chord changes in time",
    "tempo_accuracy_1": "right tempo",
    "tempo_accuracy_2": "right tempo, half or double",
    "beat_f_measure": "beats in place",
    "chroma_cosine": "melody kept",
}
"""What people call what metrics find."""

DISTANCES = (
    "Intervals are over pieces, as clips of one piece resemble each other. Few clips make a Fréchet distance (FAD) "
    "larger: compare it only with that of as many clips, for which its interval is, too. FAD∞ is without that, as far "
    "as leaving out clips tells, and is given only where half as many clips tell the same within its interval; what a "
    "finite reference adds is in all these figures, those of real clips too. A kernel distance (KAD) has no such bias. "
    "Where both sides are alike, FAD∞ and KAD are zero on average, and as often below as above."
)
"""How to read distances between sets of clips."""

_ABOUT = {
    "right key": "Fraction of the clips whose key, estimated from the audio, is the one that was asked for.",
    "right or related key": "Mean over the clips: 1 for the key that was asked for, 0.5 for the one a fifth above, "
    "0.3 for the relative and 0.2 for the parallel one (the score of MIREX).",
    "right chord roots": "Fraction of the time in which the estimated chord has the root that the piece has there.",
    "right chords": "Fraction of the time in which the estimated chord is the piece's, by its root and its third.",
    "chord changes in time": "How far estimated chords change when the piece's do; 1 where all changes fall together.",
    "right tempo": "Fraction of the clips whose estimated tempo is within 4 % of the piece's.",
    "right tempo, half or double": "Fraction of the clips whose estimated tempo is within 4 % of the piece's, its half "
    "or its double.",
    "beats in place": "How many estimated beats are within 70 ms of the piece's, and how many of those are found "
    "(F-measure).",
    "melody kept": "How alike the notes of clip and piece are over time (cosine of chroma); 1 where they are the same.",
    "codec distance": "Mean difference between the log-mel spectra of real clips and of what the codec makes of them, "
    "in nepers; stages can hardly come nearer to real audio than that.",
    "memorized exactly": "Fraction of continued training clips whose codes are the very ones of the clip.",
    "memorized approximately": "Fraction of continued training clips whose codes are those of the clip, or the same "
    "ones nearly as often.",
    "FAD": "Fréchet audio distance: how far the clips as a whole are from other real clips, in this embedding.",
    "FAD∞": "What the Fréchet audio distance tends to with more clips of these pieces; the reference stays as it is.",
    "KAD": "Kernel audio distance: how far the clips as a whole are from other real clips, whatever their number.",
    "KLD": "How far what a classifier hears in a clip is from what it hears in the piece of the same caption "
    "(Kullback–Leibler divergence).",
    "text–audio consistency": "How near clips are to their captions in the space of a model of both (cosine).",
}


def clips_text(row: Mapping[str, Any]) -> str:
    """How many clips a score was measured on, and of how many pieces where several are of one.

    >>> clips_text({"clips": 64, "pieces": 26}), clips_text({"clips": 5, "pieces": 5})
    ('64 of 26 pieces', '5')
    """
    clips, pieces = row["clips"], row.get("pieces", row["clips"])
    return f"{clips}" if clips == pieces else f"{clips} of {pieces} piece{'s' * (pieces != 1)}"


def about(name: str) -> str:
    """What a score says, by its name, with or without what it is measured in; nothing where it is not known.

    >>> about("FAD (clap)") == about("FAD") != ""
    True
    """
    return _ABOUT.get(name.partition(" (")[0], "")
