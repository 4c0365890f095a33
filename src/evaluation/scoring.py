"""Selection of scores from the registry, and measurement of their rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ..core.registry import lookup, names
from ..core.schema import build
from ..errors import PartitaError
from ..system.system import System
from .comparison import Comparison
from .evaluation_options import Evaluation
from .rows import Rows, beats_chance
from .score import SUBJECTS, Score, sentence_on_row

log = logging.getLogger(__name__)


def chosen_scores(options: Evaluation) -> dict[str, Score]:
    """Return the scores that the options request or that run by default, by name.

    Raises:
        PartitaError: A requested score needs a package that is not installed, or refuses its options.
    """
    chosen: dict[str, Score] = {}
    for name in names("score"):
        cls = lookup("score", name)
        choice = options.scores.get(name, cls.runs_by_default)
        if choice is False:
            continue
        if missing := cls.missing_packages():
            reason = f"{name} is not measured: it needs {' and '.join(missing)} (pip install 'partita[metrics]')"
            if name in options.scores:
                raise PartitaError(reason)
            log.info("%s", reason)
            continue
        try:
            chosen[name] = build(cls, choice if isinstance(choice, Mapping) else {})
        except (TypeError, ValueError) as error:
            raise PartitaError(f"scores.{name}: {error}") from None
    order = list(SUBJECTS)
    return dict(sorted(chosen.items(), key=lambda item: order.index(item[1].subject)))


def measurable(scores: Mapping[str, Score], options: Evaluation, system: System) -> dict[str, Score]:
    """Return the scores that can be measured for a system.

    Raises:
        PartitaError: A requested score cannot be measured. Default scores that cannot be measured are left out.
    """
    found: dict[str, Score] = {}
    for name, score in scores.items():
        reason = score.obstacle(system)
        if reason is None:
            found[name] = score
        elif name in options.scores:
            raise PartitaError(f"the score {name} cannot be measured: {reason}; leave it out")
        else:
            log.debug("%s is not measured: %s", name, reason)
    return found


def measure(scores: Mapping[str, Score], comparison: Comparison) -> Rows:
    """Return the rows of all scores by name, with the keys ``score``, ``about``, ``subject`` and ``beats_chance``."""
    rows: Rows = {}
    for name, score in scores.items():
        # the clips of a codec alone are its reconstructions
        subject = "codec" if score.subject == "system" and not comparison.system.stages else score.subject
        for label, row in score.measure(comparison).items():
            rows[label] = row | {"score": name, "about": sentence_on_row(score, label), "subject": subject}
            beats = beats_chance(row) if subject != "memorization" else None
            rows[label] |= {} if beats is None else {"beats_chance": beats}
    return rows
