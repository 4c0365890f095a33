"""What tokens tell about key, chords and melody per bit: linear probes on pieces that no tokenizer was trained on.

    python benchmarks/probes.py RUN/tokenizers/acoustic RUN/tokenizers/semantic

The tokens are those of the first codebook of each tokenizer, a trained part or a preset with weights. A probe is a
multinomial logistic regression on how often each token occurs around a moment: in the frame itself, within 0.2 s and
within 0.8 s. It predicts the chord (24 major and minor chords) and the melody (12 pitch classes) twice a second, and
the key (24) from all tokens of a clip. Probes are fitted on clips of the data's training pieces and evaluated on its
test and validation pieces. The gain is the accuracy above that of the most frequent class. Per kbit, it is divided by
the entropy of the tokens times their rate, in kbit/s. Intervals of 95 % come from a bootstrap over pieces; differences
are paired with the first tokenizer. The data are a preset of the corpus: other data have no such labels.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from measuring import add_save, save
from torch import Tensor
from torch.nn import functional as F

import partita
from partita.core.contracts import Example
from partita.core.harmony import MODES, PITCH_CLASSES, QUALITIES, key_name
from partita.core.registry import lookup
from partita.core.schema import build
from partita.data.base import Source
from partita.data.examples import Examples
from partita.data.splits import Split
from partita.errors import PartitaError
from partita.recipe.compose import preset_values
from partita.tokenizers.base import Tokenizer

SECONDS = 10.0
SPANS = (0.0, 0.2, 0.8)
"""Distances in seconds from a moment within which tokens are counted; zero is the frame itself."""
STEP = 0.5
"""Seconds between the moments at which chord and melody are predicted."""
PENALTIES = (1e-5, 1e-4, 1e-3)
"""Weights of the squared norm; the best one is chosen on a fifth of the training pieces."""
CLASSES = {"key": 24, "chords": 24, "melody": 12}
RESAMPLES = 2000

TRIADS = {name: 4 not in tones for name, tones in QUALITIES.items() if 7 in tones and (3 in tones or 4 in tones)}
"""Chord qualities that are major (0) or minor (1) chords, as in mir_eval's comparison ``majmin``."""
KEYS = {key_name(tonic, mode): tonic + 12 * mode for tonic in range(12) for mode in range(len(MODES))}


@dataclass
class Moments:
    """What a probe predicts: the class of some moments of clips.

    Attributes:
        clip: Number of the clip, ``[N]``.
        time: Time in seconds within the clip, ``[N]``; ``None`` where a label holds for the whole clip.
        label: Class, ``[N]``.
    """

    clip: np.ndarray
    time: np.ndarray | None
    label: np.ndarray


def corpus(preset: str) -> Source:
    """The corpus as a preset plays it.

    Raises:
        PartitaError: There is no such preset, or its data have no labels.
    """
    values = preset_values("data", preset)
    name = values.pop("name")
    if name != "corpus":
        raise PartitaError(f"the data {preset!r} have no labels for probes: take a preset of the corpus")
    source = build(lookup("data", name), values)
    source.setup()
    return source


def clips_of(source: Source, splits: Sequence[Split], number: int, seed: int, sample_rate: int) -> list[Example]:
    """Random clips, ``number`` of the pieces of each split."""
    found: list[Example] = []
    for split in splits:
        examples = Examples(
            source, split, length=number, seconds=SECONDS, sample_rate=sample_rate, channels=1, seed=seed
        )
        found += [examples[i] for i in range(number)]
    return found


def moments_of(clips: Sequence[Example], task: str) -> Moments:
    """The labeled moments of clips."""
    rows: list[tuple[int, float, int]] = []
    for number, clip in enumerate(clips):
        if task == "key":
            rows.append((number, 0.0, KEYS[clip.fields["key"]]))
            continue
        spans = [(start, end, _class(task, value)) for start, end, value in clip.fields[task]]
        for time in np.arange(STEP / 2, SECONDS, STEP).tolist():
            label = next((label for start, end, label in spans if start <= time < end), None)
            if label is not None:
                rows.append((number, time, label))
    clip, time, label = (np.array(column) for column in zip(*rows, strict=True))
    return Moments(clip, None if task == "key" else time, label)


def _class(task: str, value: str | int) -> int | None:
    if isinstance(value, int):
        return value % 12
    root, _, quality = value.partition(":")
    return PITCH_CLASSES.index(root) + 12 * TRIADS[quality] if quality in TRIADS else None


def tokens_of(tokenizer: Tokenizer, clips: Sequence[Example]) -> Tensor:
    """The first codebook's tokens of clips, ``[clips, S]``."""
    with torch.inference_mode():
        return torch.cat([tokenizer.encode(clip.audio[None])[:, 0] for clip in clips])


def counts(tokens: Tensor, moments: Moments, cardinality: int, frame_rate: float) -> Tensor:
    """How often each token occurs around each moment, in shares, ``[N, spans · cardinality]``."""
    one_hot = F.one_hot(tokens, cardinality).float()
    if moments.time is None:
        return one_hot.mean(1)[moments.clip]
    sums = F.pad(one_hot.cumsum(1), (0, 0, 1, 0))
    found = []
    for reach in SPANS:
        first = np.floor((moments.time - reach) * frame_rate + 1e-6).clip(0).astype(int)
        last = np.floor((moments.time + reach) * frame_rate + 1e-6).clip(max=tokens.shape[1] - 1).astype(int)
        size = torch.from_numpy(last + 1 - first)[:, None]
        found.append((sums[moments.clip, last + 1] - sums[moments.clip, first]) / size)
    return torch.cat(found, 1)


def fit(inputs: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights and biases of a multinomial logistic regression with a squared penalty."""
    weights = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    biases = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, biases], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights + biases, labels) + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), biases.detach()


def right_of(train: tuple[Tensor, Moments], test: tuple[Tensor, Moments], pieces: list[str], classes: int) -> Tensor:
    """Which moments of unseen pieces a probe predicts correctly, ``[N]`` bool.

    Args:
        train: Inputs and moments for fitting.
        test: Inputs and moments for the evaluation.
        pieces: Piece of each clip for fitting; every fifth piece chooses the penalty.
        classes: Number of classes.
    """
    inputs, labels = train[0], torch.from_numpy(train[1].label)
    names = sorted(set(pieces))
    aside = torch.tensor([names.index(pieces[clip]) % 5 == 0 for clip in train[1].clip.tolist()])

    def right(fitted: tuple[Tensor, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return (inputs @ fitted[0] + fitted[1]).argmax(1) == labels

    scores = {}
    for penalty in PENALTIES:
        fitted = fit(inputs[~aside], labels[~aside], classes, penalty)
        scores[penalty] = float(right(fitted, inputs[aside], labels[aside]).float().mean())
    chosen = max(scores, key=scores.__getitem__)
    return right(fit(inputs, labels, classes, chosen), test[0], torch.from_numpy(test[1].label))


def entropy(tokens: Tensor, cardinality: int) -> float:
    """Entropy of tokens in bits."""
    share = torch.bincount(tokens.flatten(), minlength=cardinality) / tokens.numel()
    return float(-torch.xlogy(share, share).sum()) / math.log(2)


class Bootstrap:
    """Means over moments whose pieces are drawn with replacement.

    Args:
        pieces: Piece of each clip.
    """

    def __init__(self, pieces: list[str]) -> None:
        names = sorted(set(pieces))
        self.piece = np.array([names.index(piece) for piece in pieces])
        draw = np.random.default_rng(0)
        self.times = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)

    def means(self, values: np.ndarray, moments: Moments) -> np.ndarray:
        """Means of the values of moments ``[N]``: first that of all pieces, then those of the draws."""
        piece, number = self.piece[moments.clip], self.times.shape[1]
        sums, sizes = np.bincount(piece, values, number), np.bincount(piece, minlength=number)
        return np.concatenate([[values.mean()], self.times @ sums / np.maximum(self.times @ sizes, 1)])


def bounds(values: np.ndarray) -> list[float]:
    """The interval of 95 % of the values after the first."""
    return np.quantile(values[1:], [0.025, 0.975]).tolist()


def shown(values: np.ndarray) -> str:
    """The first value and the interval of the others."""
    low, high = bounds(values)
    return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def probe(tokenizers: dict[str, Tokenizer], train: list[Example], test: list[Example]) -> list[dict]:
    """One row for each tokenizer and task, printed as it is found."""
    pieces, bootstrap = [clip.fields["id"] for clip in train], Bootstrap([clip.fields["id"] for clip in test])
    rows: list[dict] = []
    first: dict[str, np.ndarray] = {}
    for name, tokenizer in tokenizers.items():
        rate, cardinality = tokenizer.spec.rate, tokenizer.spec.cardinalities[0]
        tokens, unseen = tokens_of(tokenizer, train), tokens_of(tokenizer, test)
        bits = entropy(unseen, cardinality)
        print(f"{name}: {rate:g} Hz, {cardinality} tokens of {bits:.2f} bit, {bits * rate:.1f} bit/s", flush=True)
        for task, classes in CLASSES.items():
            known, asked = moments_of(train, task), moments_of(test, task)
            inputs = counts(tokens, known, cardinality, rate), counts(unseen, asked, cardinality, rate)
            right = right_of((inputs[0], known), (inputs[1], asked), pieces, classes).double().numpy()
            common = asked.label == np.bincount(known.label).argmax()
            accuracy = bootstrap.means(right, asked)
            gain = accuracy - bootstrap.means(common.astype(float), asked)
            per_bit = 1000 * gain / (bits * rate)
            first.setdefault(task, per_bit)
            row = {"tokenizer": name, "label": task, "bits_per_second": bits * rate, "accuracy": accuracy[0]}
            row |= {"gain": gain[0], "gain_interval": bounds(gain)}
            row |= {"gain_per_kbit": per_bit[0], "gain_per_kbit_interval": bounds(per_bit)}
            line = f"  {task}: accuracy {accuracy[0]:.3f}, most frequent {common.mean():.3f}, gain {shown(gain)}, "
            line += f"gain per kbit {shown(per_bit)}"
            if name != next(iter(tokenizers)):
                more = per_bit - first[task]
                row |= {"more_than_first": more[0], "more_than_first_interval": bounds(more)}
                line += f", more than the first by {shown(more)}"
            rows.append(row)
            print(line, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizers", nargs="+", help="Folders of saved parts, or presets.")
    parser.add_argument("--data", default="chorales", help="Preset of the corpus.")
    parser.add_argument("--clips", type=int, default=1000, help="Clips to fit probes on.")
    parser.add_argument("--unseen", type=int, default=300, help="Clips of each unseen split to evaluate them on.")
    add_save(parser)
    options = parser.parse_args()
    try:
        tokenizers = {source: partita.load_part(source).eval() for source in options.tokenizers}
        source = corpus(options.data)
    except PartitaError as error:
        parser.error(str(error))
    for name, part in tokenizers.items():
        if not isinstance(part, Tokenizer) or not part.spec.discrete or part.spec.frame_rate is None:
            parser.error(f"{name} makes no tokens at a frame rate")
    rates = {tokenizer.spec.sample_rate for tokenizer in tokenizers.values()}
    if len(rates) > 1:
        parser.error(f"the tokenizers have different sample rates: {sorted(rates)}")
    sample_rate = rates.pop()
    train = clips_of(source, ["train"], options.clips, 1, sample_rate)
    test = clips_of(source, ["test", "validation"], options.unseen, 2, sample_rate)
    rows = probe(tokenizers, train, test)
    if options.save:
        save("probes", rows, data=options.data, clips=options.clips, unseen=options.unseen)


if __name__ == "__main__":
    main()
