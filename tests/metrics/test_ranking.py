"""Metrics rank clips that get worse step by step: what ``benchmarks/ranking.py`` expects, on few clips and steps."""

import importlib
import inspect
import pkgutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torchmetrics import Metric

import partita.metrics
from partita.data.arrangement import Arrangements
from partita.data.corpus import Corpus
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.base import Autoencoder
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.log_mel import LogMel
from partita.tokenizers.neural_codec import NeuralCodec

SPEC = spec_from_file_location("ranking", Path(__file__).parents[2] / "benchmarks" / "ranking.py")
ranking = module_from_spec(SPEC)
SPEC.loader.exec_module(ranking)

CLIPS, TRAINING, SECONDS = 12, 48, 8.0
STEPS = {
    "noise": (30.0, 15.0, -20.0),
    "low-pass": (4000.0, 1500.0, 500.0),
    "codec": (1.0, 0.25),
    "tempo": (1.02, 1.1),
}
SLACK = (64 / CLIPS) ** 0.5  # figures scatter the more, the fewer clips there are
RANKED = [
    (kind, key, degradation, how)
    for kind, keys in ranking.EXPECTED.items()
    for key, expected in keys.items()
    for degradation in STEPS
    if (how := getattr(expected, degradation.replace("-", "_"))) != "unranked"
]


class LogMelFrames(Autoencoder):
    """Log-mel frames, and audio of such frames: nothing to train."""

    hop = 320

    def build(self, sample_rate, channels, encoded_dim, dim):
        super().build(sample_rate, channels, encoded_dim, dim)
        self.log_mel = LogMel(iterations=8)

    def encode(self, audio):
        return self.log_mel.encode(audio)

    def decode(self, latents):
        return self.log_mel.decode(latents)


def log_mel_codec():
    """A codec of eight codebooks for log-mel frames, which a batch of frames is enough to fit."""
    return NeuralCodec(
        autoencoder=LogMelFrames(),
        bottleneck=RVQ(num_codebooks=8, cardinality=64, dropout=0.0, kmeans_iterations=10),
        sample_rate=16000,
        dim=80,
        losses=Losses(adversarial=0.0),
    )


@pytest.fixture(scope="module")
def measured():
    """The figures, by class, key and degradation; and the distance of the best constant sound."""
    torch.manual_seed(0)
    instruments = ("church organ", "strings", "harpsichord", "flute")
    source = Corpus(limit=30, test=0.4, arrangements=Arrangements(instruments=instruments, mixed=0.0, tempo=(60, 120)))
    source.setup()
    codec = log_mel_codec()
    training, clips = (
        ranking.read(source, split, count, SECONDS, codec) for split, count in (("train", TRAINING), ("test", CLIPS))
    )
    with torch.no_grad():
        codec.train().bottleneck.quantize(codec.encode_latents(ranking.stacked(training[::2])))
        judge = ranking.Judge(codec.eval(), training, clips)
        return ranking.measure(source, codec, judge, clips, STEPS), float(judge.constant.compute())


@pytest.mark.parametrize(("kind", "key", "degradation", "how"), RANKED, ids=[f"{row[1]}-{row[2]}" for row in RANKED])
def test_figures_move_as_expected(measured, kind, key, degradation, how):
    expected, values = ranking.EXPECTED[kind][key], measured[0][kind, key, degradation]
    assert ranking.as_expected(values, expected.moves, how, SLACK * expected.slack), (expected.moves, how, values)


def test_a_codec_is_nearer_than_the_best_constant_sound(measured):
    figures, constant = measured
    assert 0 < max(figures["MelDistance", "mel_distance", "codec"]) < constant


def test_every_metric_is_ranked_or_has_a_reason():
    modules = [
        importlib.import_module(m.name) for m in pkgutil.iter_modules(partita.metrics.__path__, "partita.metrics.")
    ]
    metrics = {
        name
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Metric) and kind.__module__ == module.__name__ and not inspect.isabstract(kind)
    }
    assert metrics == ranking.EXPECTED.keys() | ranking.UNRANKED.keys()


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        ([1.0, 0.8, 0.5, 0.2], {"steadily", "at once", "no better"}),
        ([1.0, 0.8, 0.9, 0.2], {"at once", "no better"}),
        ([1.0, 1.0, 0.96, 0.5], {"steadily", "late", "no better"}),
        ([1.0, 1.0, 1.03, 0.98], {"same", "no better"}),
        ([1.0, 1.2, 1.3, 1.4], set()),
    ],
)
def test_what_expectations_mean(values, fit):
    hows = {"steadily", "late", "at once", "same", "no better"}
    assert {how for how in hows if ranking.as_expected(values, "down", how, 0.05)} == fit
    rising = [-value for value in values]
    assert {how for how in hows if ranking.as_expected(rising, "up", how, 0.05)} == fit
