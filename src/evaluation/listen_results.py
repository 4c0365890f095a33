"""Analysis of a listening test: wins, Bradley-Terry strengths, and significance of the differences."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import PartitaError
from ..metrics.significance import holm, jackknife, p_text, rate_interval, sign_flip_test
from ..pages.page import write_page
from ..pages.tables import markdown, write_csv, write_text
from .listen import KEY

SCORES = {"left": 1.0, "tie": 0.5, "right": 0.0}
"""Score of the left clip for each answer."""

MIN_LISTENERS = 6
"""Smallest number of listeners who can show a difference at the 5 % level if all agree: ``2 / 2**6 < 0.05``."""

_FORMAT = 1


class Answer(NamedTuple):
    """The answer to one trial: the indices of the two systems, and the score of the first: 1, 0.5 or 0."""

    first: int
    second: int
    score: float


@dataclass(frozen=True)
class Listener:
    """The answers of one listener.

    Args:
        name: Name that the listener entered.
        answers: Answers to pairs of systems.
        caught: Number of answered catch trials, and number of failed ones, in which the degraded clip was not judged
            to be worse.
    """

    name: str
    answers: Sequence[Answer]
    caught: tuple[int, int] = (0, 0)


class PairResult(NamedTuple):
    """The comparison of two systems: wins, ties and losses of the first, number of listeners, and p-values.

    The p-values, before and after Holm's correction, are NaN for a single listener.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    listeners: int
    p: float
    corrected: float


class SystemResult(NamedTuple):
    """The result of one system: strength as a share of one, bounds of its 95 % interval, mean score, number of trials.

    The bounds are ``None`` for a single listener.
    """

    system: str
    strength: float
    low: float | None
    high: float | None
    score: float
    trials: int


@dataclass(frozen=True)
class Results:
    """The results of a listening test.

    Args:
        systems: Result of each system, with the strongest first.
        pairs: Result of each pair of systems that was compared.
        listeners: The listeners who count.
        rejected: Names of listeners who failed catch trials, each with the reason.
    """

    systems: Sequence[SystemResult]
    pairs: Sequence[PairResult]
    listeners: Sequence[Listener]
    rejected: Sequence[tuple[str, str]]


def listening_results(folder: Path, answers: Sequence[Path], *, allowed: int = 0) -> Results:
    """Read answers and write ``results.html``, ``results.md``, ``systems.csv`` and ``pairs.csv`` into a test's folder.

    Args:
        folder: Folder of the test, with its key.
        answers: Files that listeners saved.
        allowed: Number of catch trials that a listener may fail.

    Raises:
        PartitaError: Files are invalid or belong to another test (the message names all of them), or no listener is
            left.
    """
    key = _read_key(folder)
    listeners, rejected = [], []
    for listener in _read_listeners(answers, key):
        reason = _reason_to_reject(listener, bool(key["catch"]), allowed)
        if reason:
            rejected.append((listener.name, reason))
        else:
            listeners.append(listener)
    if not any(listener.answers for listener in listeners):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected)
        raise PartitaError(
            "no listener is left to count" + (f": {reasons}" if reasons else ": there are no answers yet")
        )
    results = analyze(listeners, key["systems"], rejected=rejected)
    _write(folder, key, results)
    return results


def analyze(
    listeners: Sequence[Listener], systems: Sequence[str], *, rejected: Sequence[tuple[str, str]] = ()
) -> Results:
    """Compute Bradley-Terry strengths with 95 % intervals, and a significance test for each pair of systems.

    Answers of one listener are correlated, so both treat listeners as the independent units: the intervals come from a
    jackknife over listeners, and the test flips the signs of whole listeners' differences without ties. Both
    generalize to other listeners and the same clips, so they need at least two listeners. P-values are corrected by
    Holm's method.
    """
    active = [listener for listener in listeners if listener.answers]
    tables = np.stack([win_table(listener.answers, len(systems)) for listener in active])
    total = tables.sum(0)
    strengths = bradley_terry(total)
    low, high = [None] * len(systems), [None] * len(systems)
    if len(active) > 1:
        _, error = jackknife(strengths, bradley_terry(total - tables, tolerance=1e-6))
        error = np.fmax(error, _least_error(total, strengths))
        low, high = (bound.tolist() for bound in rate_interval(strengths, error, len(active)))
    rows = []
    for i, system in enumerate(systems):
        trials = total[i].sum() + total[:, i].sum()
        score = float(total[i].sum() / trials) if trials else math.nan
        rows.append(SystemResult(system, float(strengths[i]), low[i], high[i], score, round(trials)))
    rows.sort(key=lambda row: (row.strength, row.score), reverse=True)
    found = []
    for a, b in combinations([systems.index(row.system) for row in rows], 2):
        judged = [scores for one in active if (scores := _scores(one, a, b))]
        if judged:
            wins, ties, losses = (sum(scores.count(value) for scores in judged) for value in (1.0, 0.5, 0.0))
            p = sign_flip_test([x.count(1.0) - x.count(0.0) for x in judged]) if len(judged) > 1 else math.nan
            found.append((systems[a], systems[b], wins, ties, losses, len(judged), p))
    known = [i for i, row in enumerate(found) if not math.isnan(row[-1])]
    corrected = dict(zip(known, holm([found[i][-1] for i in known]), strict=True))
    pairs = [PairResult(*row, corrected.get(i, math.nan)) for i, row in enumerate(found)]
    return Results(rows, pairs, listeners, rejected)


def _least_error(wins: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return standard errors of strengths for independent answers: a lower bound if few listeners agree by chance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = strengths[:, None] / (strengths[:, None] + strengths)
        information = np.nansum((wins + wins.T) * odds * (1 - odds), axis=1)  # of the logarithms of the strengths
        return strengths * (1 - strengths) / np.sqrt(information)


def _scores(listener: Listener, first: int, second: int) -> list[float]:
    """Return the scores of the first system in a listener's trials of two systems."""
    trials = (answer for answer in listener.answers if {answer.first, answer.second} == {first, second})
    return [answer.score if answer.first == first else 1 - answer.score for answer in trials]


def win_table(answers: Sequence[Answer], systems: int) -> np.ndarray:
    """Return wins ``[systems, systems]`` of each system (row) against each other (column); a tie is half a win each."""
    table = np.zeros((systems, systems))
    for answer in answers:
        table[answer.first, answer.second] += answer.score
        table[answer.second, answer.first] += 1 - answer.score
    return table


def bradley_terry(wins: np.ndarray, *, iterations: int = 2000, tolerance: float = 1e-10) -> np.ndarray:
    """Fit strengths of the Bradley-Terry model by minorization-maximization (Hunter, 2004).

    The odds that one system wins against another are the ratio of their strengths. The strength of a system that always
    loses tends to zero.

    Args:
        wins: Wins ``[…, systems, systems]`` of the rows over the columns.
        iterations: Largest number of iterations.
        tolerance: Largest change of a strength at which the iteration stops.

    Returns:
        Maximum-likelihood strengths ``[…, systems]`` that sum to one. The strength of a system without trials stays at
        the initial value, before normalization.
    """
    wins = np.asarray(wins, dtype=float)
    systems = wins.shape[-1]
    won, met = wins.sum(-1), wins + wins.swapaxes(-1, -2)
    strengths = np.full(wins.shape[:-1], 1 / systems)
    compared = met.sum(-1) > 0
    for _ in range(iterations):
        sums = strengths[..., :, None] + strengths[..., None, :]
        weights = np.divide(met, sums, out=np.zeros_like(met), where=sums > 0).sum(-1)
        new = np.where(compared, np.divide(won, weights, out=np.zeros_like(won), where=weights > 0), strengths)
        new /= new.sum(-1, keepdims=True)
        change = np.abs(new - strengths).max(initial=0)
        strengths = new
        if change < tolerance:
            break
    return strengths


def _reason_to_reject(listener: Listener, catches: bool, allowed: int) -> str:
    answered, failed = listener.caught
    if catches and not answered:
        return "answered no catch trial"
    return f"failed {failed} of {answered} catch trials" if failed > allowed else ""


def _read_key(folder: Path) -> dict[str, Any]:
    try:
        key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PartitaError(f"{folder} holds no listening test: there is no {KEY} in it") from None
    except (OSError, ValueError) as error:
        raise PartitaError(f"cannot read {folder / KEY}: {error}") from None
    wanted = {"format", "test", "question", "systems", "items", "catch", "clips"}
    if not isinstance(key, dict) or wanted - key.keys() or key["format"] != _FORMAT:
        raise PartitaError(f"{folder / KEY} is not the key of a listening test that this version of Partita can read")
    return key


def _read_listeners(paths: Sequence[Path], key: Mapping[str, Any]) -> list[Listener]:
    """Return one listener for each name; if a listener saved the same answers twice, the longer file counts."""
    if not paths:
        raise PartitaError("there are no answers: name the files that listeners saved")
    problems: list[str] = []
    raw: dict[str, list[tuple[str, str, str]]] = {}
    for path in paths:
        try:
            name, answers = _read_answers(path, key)
        except PartitaError as error:
            problems.append(f"{path}: {error}")
            continue
        shorter, longer = sorted((answers, raw.get(name, [])), key=len)
        if longer[: len(shorter)] != shorter:
            problems.append(f"{path}: another file has different answers by {name!r}; change the name in one of them")
        raw[name] = longer
    if problems:
        raise PartitaError("\n".join(problems))
    clips, systems = key["clips"], key["systems"]
    listeners = []
    for name, answers in raw.items():
        compared, caught = [], []
        for left, right, answer in answers:
            a, b, score = clips[left], clips[right], SCORES[answer]
            if a["system"] == b["system"]:
                caught.append(score if b["degraded"] else 1 - score)
            else:
                compared.append(Answer(systems.index(a["system"]), systems.index(b["system"]), score))
        listeners.append(Listener(name, compared, (len(caught), sum(score < 1 for score in caught))))
    return listeners


def _read_answers(path: Path, key: Mapping[str, Any]) -> tuple[str, list[tuple[str, str, str]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PartitaError("there is no such file") from None
    except (OSError, ValueError) as error:
        raise PartitaError(f"cannot be read as answers: {error}") from None
    try:
        test, name = str(content["test"]), str(content["listener"])
        answers = [(str(a["left"]), str(a["right"]), str(a["answer"])) for a in content["answers"]]
    except (TypeError, KeyError):
        raise PartitaError("is not a file of answers, or it is damaged: save it again from the page") from None
    if test != key["test"]:
        raise PartitaError("holds answers to another listening test")
    clips, seen = key["clips"], set()
    for left, right, answer in answers:
        known = left in clips and right in clips and left != right and answer in SCORES
        if not known or not _meet(clips[left], clips[right]) or frozenset((left, right)) in seen:
            raise PartitaError(
                f"is damaged: {left}, {right}, {answer!r} is not an answer to a pair of this test, or repeats one"
            )
        seen.add(frozenset((left, right)))
    return name, answers


def _meet(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Return whether two clips can form a trial: clips of two systems, or a clip and its degraded copy."""
    caught = left["degraded"] or right["degraded"]
    return left["item"] == right["item"] and caught == (left["system"] == right["system"])


def _write(folder: Path, key: Mapping[str, Any], results: Results) -> None:
    systems = [
        [row.system, f"{row.strength:.1%}", _interval(row), f"{row.score:.1%}", str(row.trials)]
        for row in results.systems
    ]
    pairs = [
        [row.first, row.second, *map(str, row[2:6]), p_text(row.p), p_text(row.corrected)] for row in results.pairs
    ]
    count = sum(bool(listener.answers) for listener in results.listeners)
    spec = {
        "question": key["question"],
        "notes": [
            f"listeners: {count}; answers: {sum(len(one.answers) for one in results.listeners)}",
            *_caution(count),
            *(f"not counted: {name}, who {reason}" for name, reason in results.rejected),
        ],
        "system_columns": ["system", "strength", "95 % interval", "won (ties count half)", "trials"],
        "systems": systems,
        "pair_columns": ["system", "against", "won", "ties", "lost", "listeners", "p", "p (Holm)"],
        "pairs": pairs,
        "method": "Strength: normalized strength in a Bradley-Terry model in which a tie is half a win; the interval "
        "comes from a jackknife over listeners. p: two-sided randomization test over listeners, without ties. p "
        "(Holm): corrected for the number of pairs. Intervals and p-values generalize to other listeners, not to other "
        "clips.",
    }
    lines = [
        f"# {spec['question']}",
        *(f"- {note}" for note in spec["notes"]),
        markdown(spec["system_columns"], systems),
        markdown(spec["pair_columns"], pairs),
        spec["method"],
    ]
    write_page(folder / "results.html", "listen_results.html", **spec)
    text = "\n\n".join(lines).replace("\n\n- ", "\n- ").replace("\n- ", "\n\n- ", 1) + "\n"
    write_text(folder / "results.md", text)
    write_csv(folder / "systems.csv", SystemResult._fields, results.systems)
    write_csv(folder / "pairs.csv", PairResult._fields, results.pairs)


def _caution(listeners: int) -> list[str]:
    """Return warnings about conclusions that a small number of listeners does not allow."""
    if listeners == 1:
        return ["one listener: the results say nothing about the preferences of other listeners"]
    if listeners < MIN_LISTENERS:
        return [
            f"{listeners} listeners cannot show a difference at the 5 % level, even if all agree (p is at least "
            f"{p_text(2 / 2**listeners)}): at least {MIN_LISTENERS} are needed"
        ]
    return []


def _interval(row: SystemResult) -> str:
    return "–" if row.low is None else f"{row.low:.1%} – {row.high:.1%}"
