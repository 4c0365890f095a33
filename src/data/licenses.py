"""What the corpus is made of, with the licenses that music21 10.5 and pretty_midi 0.2.11 state.

The sources are the license files of music21 (of the package, ``corpus/license.txt`` and
``corpus/essenFolksong/license.txt``), the notices in the scores, the package pretty_midi, and the information chunk of
the SoundFont.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Origin

_RESERVED = "reserves rights to all derivative electronic formats (© 2000 John Miller)"
_UT_ORPHEUS = "bears “© Ut Orpheus Edizioni 2003”"
_UNNAMED = "bears “Copyright ©” without a name"

RESTRICTED = {
    "essenFolksong": "is for non-commercial use only, and its legal status is unclear",
    "palestrina": _RESERVED,
    "monteverdi/madrigal.5.4": _UT_ORPHEUS,
    "monteverdi/madrigal.5.5": _UT_ORPHEUS,
    "trecento/PMFC_01-Lugentium siccentur": _UNNAMED,
    "trecento/PMFC_01-Rex quem metrorum": _UNNAMED,
    "trecento/PMFC_01-Virtutibus laudabilis": _UNNAMED,
    "trecento/PMFC_01-Vos Qui Admiramini Gratissima virginis species": _UNNAMED,
    "trecento/PMFC_04-A lle s_andra lo spirt": _UNNAMED,
    "trecento/PMFC_04-Cara mi donna": _UNNAMED,
    "trecento/PMFC_04-Quanto piu caro": _UNNAMED,
    "trecento/PMFC_04-Si dolce non sono": _UNNAMED,
    "trecento/PMFC_06_10-I senti gia come l_arco": _UNNAMED,
    "trecento/PMFC_06_8-In Verde Prato": _UNNAMED,
}
"""Collections and scores (paths in the music21 corpus without suffix) that are not free to use, with the reasons."""

_ENCODERS = "distributed with music21 by permission of the encoders, who may hold rights; no license in the files"
_MARKED = {"bach": f"{_ENCODERS}, 361 of which bear “PDF © Margaret Greentree”"}


def restriction(name: str) -> str | None:
    """Return why a score is restricted; ``None`` if it is not.

    >>> restriction("monteverdi/madrigal.5.4"), restriction("monteverdi/madrigal.3.1")
    ('bears “© Ut Orpheus Edizioni 2003”', None)
    """
    return RESTRICTED.get(name) or RESTRICTED.get(name.split("/")[0])


def corpus_origins(collections: Sequence[str], restricted: bool) -> list[Origin]:
    """Return the scores of each collection and the samples of the SoundFont, with their licenses.

    Args:
        collections: Names of the collections.
        restricted: Whether restricted scores are included.
    """
    origins = []
    for collection in collections:
        reasons = {why for name, why in RESTRICTED.items() if name.split("/")[0] == collection}
        terms = _MARKED.get(collection, _ENCODERS)
        if collection in RESTRICTED:
            terms = f"restricted: {RESTRICTED[collection]}"
        elif restricted and reasons:
            terms += f"; restricted: some {', '.join(sorted(reasons)).replace('bears', 'bear')}"
        if restricted or collection not in RESTRICTED:
            origins.append(Origin(f"scores of {collection}, from music21's corpus", terms))
    return [
        *origins,
        Origin("sounds of TimGM6mb.sf2, from pretty_midi", "no license is stated in the package (whose code is MIT)"),
    ]
