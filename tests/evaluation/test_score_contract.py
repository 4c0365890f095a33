"""Every registered score keeps its contract, on a system and pieces that have whatever a score may ask for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import toys
from evaluation_toys import ToyJoint, ToyLoops
from partita.core.contracts import Example
from partita.core.registry import lookup, names, register
from partita.core.schema import arguments, build
from partita.evaluation.comparison import Comparison
from partita.evaluation.evaluation_options import Evaluation
from partita.evaluation.score import SUBJECTS
from partita.evaluation.scoring import chosen_scores, measurable, measure
from partita.recipe.plan import load_recipe
from partita.system.system import System

CLIPS, RATE, SECONDS = 6, 4000, 8
TONICS = {"C": 0, "F#": 6, "Eb": 3, "A": 9, "D": 2, "G#": 8}
INPUTS = ("text", "key", "chords", "tempo", "beats", "melody", "cover", "excerpt")

for field in INPUTS:

    @register("conditioner", f"toy-reads-{field}")
    class ToyReader(toys.ToyLetters):
        """Reads one field, and learns nothing from it."""

        inputs = (field,)
        sample_rate = RATE

        def __init__(self, *, dim: int = 8):
            super().__init__(dim=dim)

        def prepare(self, clips):
            return super().prepare(toys.told([None for _ in clips], self.inputs[0]))


def whistle(number, samples, rate):
    """What every second piece is played on: a high tone, as samples ``[samples]`` and as a name."""
    tone = 0.1 * np.sin(2 * np.pi * 1900 * np.arange(samples) / rate) * (number % 2)
    return tone.astype(np.float32), ["whistle" if number % 2 else "harp"]


@register("data", "toy-labeled")
class ToyLabeled(ToyLoops):
    """Loops of which everything could be known."""

    fields = frozenset({"id", "instruments", *INPUTS})

    def read(self, split, index, **how):
        loop = super().read(split, index, **how)
        tone, names = whistle(index, loop.audio.shape[1], how["sample_rate"])
        fields = loop.fields | {"instruments": names}
        return replace(loop, recording=loop.audio * 0.8 + torch.from_numpy(tone), fields=fields)


def piece(number, seed):
    """Triads I, IV, V and I, two seconds each, struck on every beat; with everything that is known of them."""
    tonic = list(TONICS)[number]
    bpm, sharps = 80 + 15 * number, ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
    roots = [(TONICS[tonic] + step) % 12 for step in (0, 5, 7, 0)]
    time = np.arange(RATE * SECONDS) / RATE
    decay = np.exp(-6 * (time % (60 / bpm)))
    audio = np.random.default_rng(seed).normal(0, 1e-3, len(time))
    for bar, root in enumerate(roots):
        for interval in (0, 4, 7):
            note = np.sin(2 * np.pi * 261.63 * 2 ** ((root + interval) / 12) * time)
            audio += 0.25 * note * decay * (time // 2 == bar)
    tone, instruments = whistle(number, len(time), RATE)
    fields = {
        "id": f"piece {number}",
        "instruments": instruments,
        "key": f"{tonic} major",
        "chords": [(2.0 * bar, 2.0 * bar + 2, f"{sharps[root]}:maj") for bar, root in enumerate(roots)],
        "tempo": float(bpm),
        "beats": np.arange(0, SECONDS, 60 / bpm).tolist(),
        "melody": [(2.0 * bar, 2.0 * bar + 2, 60 + root) for bar, root in enumerate(roots)],
    }
    example = Example(torch.from_numpy(audio.astype(np.float32) + tone)[None], len(time), fields)
    fields["cover"] = fields["excerpt"] = example.audio[:, : RATE * 6]
    # a caption that the toy joint conditioner understands: the pitch that it hears
    heard = int(ToyJoint().embed_audio(example.audio[None])[0].mean(0).argmax())
    fields["text"] = f"tone {heard}"
    return example


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A good system's clips beside its pieces: what a codec of 16 levels makes of them."""
    folder = tmp_path_factory.mktemp("contract")
    lines = [
        "tokenizers: {acoustic: {name: toy-codec, hop: 1, cardinality: 16}}",
        f"conditioners: {{{', '.join(f'{name}: toy-reads-{name}' for name in INPUTS)}}}",
        f"stages: {{main: {{generator: toy-dice, target: acoustic, given: [{', '.join(INPUTS)}], window: 0.2}}}}",
        "data: {name: toy-labeled, pieces: 8}",
    ]
    (folder / "recipe.yaml").write_text("\n".join(lines))
    system = System(load_recipe(folder / "recipe.yaml"))
    with torch.no_grad():
        system.tokenizers["acoustic"].gain.fill_(1.0)
    pieces, reference = ([piece(number, seed) for number in range(CLIPS)] for seed in (0, 1))
    made = Comparison(system, torch.zeros(0), pieces, reference, Evaluation(clips=CLIPS), folder)
    made.generated = made.reconstructed
    return made


@pytest.fixture(scope="module")
def slots(tmp_path_factory):
    """What scores take by the names of their arguments, at toy size."""
    folder = tmp_path_factory.mktemp("weights") / "joint"
    ToyJoint().save(folder)
    joint = {"name": "toy-joint", "weights": str(folder)}
    return {"embeddings": ["log-mel-16khz"], "classifiers": ["toy-listener"], "conditioners": [joint]}


@pytest.mark.parametrize("name", names("score"))
def test_a_score_keeps_its_contract(comparison, slots, name):
    cls = lookup("score", name)
    options = {argument: slots[argument] for argument in arguments(cls) if argument in slots}
    only = dict.fromkeys(names("score"), False) | {name: options}
    evaluation = Evaluation(clips=CLIPS, scores=only)
    (score,) = chosen_scores(evaluation).values()
    score.load(comparison.embedders)
    assert list(measurable({name: score}, evaluation, comparison.system)) == [name]
    rows = measure({name: score}, comparison)
    assert rows, "nothing was measured, though all that there is can be"
    for label, row in rows.items():
        assert math.isfinite(row["value"]), label
        assert row["better"] in ("lower", "higher"), label
        assert row["about"].endswith("."), label
        assert row["embedding"], label
        assert row["subject"] in SUBJECTS, label
        assert 0 < row["clips"] <= CLIPS, label
        assert "low" not in row or row["low"] <= row["value"] <= row["high"], label
        if "real" in row and "chance" in row:
            assert row["real"] >= row["chance"] if row["better"] == "higher" else row["real"] <= row["chance"], label
    assert score.explanation(rows) == "" or score.explanation(rows).endswith(".")
    assert all(path.is_file() for _, path in score.clips(rows, comparison.folder))
    assert build(cls, score.config["arguments"]).config == score.config
    assert list(cls.description())
