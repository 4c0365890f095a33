import json
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from scipy.stats import t as student
from torch import nn
from torch.nn import functional as F

import toys
from partita.cli import main as cli
from partita.conditioners.base import JointConditioner
from partita.core.contracts import Condition, ConditionSpec, Example, RepresentationSpec
from partita.core.registry import register
from partita.data.base import Source
from partita.data.examples import Examples
from partita.data.library import default_cache_dir
from partita.errors import PartitaError
from partita.evaluation.embedders import read_embedder, read_reference
from partita.evaluation.evaluate import SEED, _examples, evaluate
from partita.evaluation.options import Evaluation
from partita.layers.guidance import classifier_free
from partita.metrics.gaussian import Gaussian, frechet_distance
from partita.publishing.card import collect
from partita.recipe.plan import load_recipe
from partita.system.system import System, load
from partita.tokenizers.base import Tokenizer

FEW = Evaluation(clips=5, reference_clips=6, duration=1.0, batch_size=2, embeddings=())
LOG_MEL = replace(FEW, embeddings=Evaluation.embeddings)
EMBEDDED = []
"""Batches that the toy classifier has seen."""
JOINT = "toy-joint weights=joint"
"""What the slot of the joint conditioner is called."""


@register("tokenizer", "toy-listener")
class ToyListener(Tokenizer):
    """Logits of how many times a quarter of a second crosses zero: the pitch of a sine, in eight labels.

    Args:
        labels: How many.
    """

    weightless = True
    trainable = False
    logits = True

    def __init__(self, *, labels: int = 8):
        super().__init__()
        self.labels = labels

    @property
    def spec(self):
        return RepresentationSpec(4000, 1, 4.0, dim=self.labels)

    def encode(self, audio):
        EMBEDDED.append(len(audio))
        parts = F.pad(audio[:, 0], (0, -audio.shape[-1] % 1000)).unflatten(-1, (-1, 1000))
        crossings = (parts[..., 1:].sign() != parts[..., :-1].sign()).float().sum(-1)  # 50 for each 100 Hz
        return -((crossings[:, None] / 50 - 1 - torch.arange(self.labels)[:, None]) ** 2) * 4


@register("conditioner", "toy-joint")
class ToyJoint(JointConditioner):
    """Texts "tone 3" beside audio of that pitch, as the listener hears it.

    Args:
        gain: Changes what audio is like.
    """

    input = "text"
    sample_rate = 4000
    dim = 8

    def __init__(self, *, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.full((), gain))
        self.listener = ToyListener()

    @property
    def spec(self):
        return ConditionSpec(dim=self.dim)

    def prepare(self, inputs, seeds=None):
        return {"embedding": self.embed_text([text or "" for text in inputs])}

    def forward(self, prepared):
        return Condition(prepared["embedding"][:, None], torch.ones(len(prepared["embedding"]), 1, dtype=torch.bool))

    def embed_text(self, texts):
        return torch.stack([F.one_hot(torch.tensor(int(text.split()[-1])), self.dim).float() for text in texts])

    def embed_audio(self, audio):
        return F.normalize(self.listener.encode(audio * self.gain).mT.softmax(-1) + 0.01, dim=-1)


@register("generator", "toy-singer")
class ToySinger(toys.ToyDice):
    """The sine that a caption "tone 3" is of, in the codes of a codec of one gain and any hop."""

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        tone = conditions["text"][0].values[:, 0].argmax(-1, keepdim=True) + 1
        time = torch.arange(frames) / self.target.frame_rate
        sine = torch.sin(2 * torch.pi * 100 * tone * time + 0.1)
        return ((sine + 1) / 2 * (self.target.cardinality - 1)).round().long()[:, None]


@register("data", "toy-loops")
class ToyLoops(toys.ToySines):
    """Half a second at random, again and again; and a tune that nobody hears.

    Args:
        pieces: How many.
        pauses: So many of them are silent.
    """

    fields = frozenset({"text", "id", "melody"})

    def __init__(self, *, pieces: int = 5, pauses: int = 0):
        super().__init__(pieces=pieces)
        self.pauses = pauses

    def read(self, split, index, *, seed, seconds, sample_rate, channels):
        levels = np.random.default_rng((index, split == "train")).uniform(-0.9, 0.9, 20).astype(np.float32)
        half = levels.repeat(sample_rate // 40) * (index >= self.pauses)
        audio = np.resize(half, (1, round(seconds * sample_rate)))
        fields = {"text": f"loop {index}", "id": str(index), "melody": [(0.0, 1.0, 60)]}
        return Example(torch.from_numpy(audio), audio.shape[1], fields)


@register("generator", "toy-loop")
class ToyLoop(toys.ToyDice):
    """The prompt, again and again; dice where there is none."""

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        if prefix is None:
            return super().generate(conditions, frames, seeds=seeds)
        return prefix.repeat(1, 1, -(-frames // prefix.shape[-1]))[..., :frames]


@dataclass(frozen=True)
class Guided:
    """How the next toy draws.

    Args:
        guidance: Scale.
        temperature: Unused.
    """

    guidance: float = 3.0
    temperature: float = 1.0


@register("generator", "toy-misled")
class ToyMisled(ToyLoop):
    """The prompt, again and again, unless guidance leads away from it."""

    sampling = Guided()

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        guided = len(guidance or classifier_free(sampling.guidance)) > 1
        return super().generate(conditions, frames, seeds=seeds, prefix=None if guided else prefix)


@register("generator", "toy-mute")
class ToyMute(toys.ToyDice):
    """Silence, after the prompt if any."""

    def generate(self, conditions, frames, *, seeds, prefix=None, guidance=None, sampling=None, progress=None):
        codes = torch.full((len(seeds), 1, frames), self.target.cardinality // 2)
        if prefix is not None:
            codes[..., : prefix.shape[-1]] = prefix
        return codes


@register("conditioner", "toy-tune")
class ToyTune(toys.ToyLetters):
    """A melody, unheard.

    Args:
        dim: Width.
    """

    input = "melody"

    def prepare(self, inputs, seeds=None):
        return super().prepare(["a" for _ in inputs])


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing spectrograms takes most of an evaluation as small as these: one test sees that they are there."""
    if "real_clips" not in request.node.name:
        media = {"audio": "data:", "image": "data:"}
        monkeypatch.setattr(
            "partita.evaluation.evaluate.clip_media", lambda clip, rate, caption: media | {"caption": caption}
        )


@pytest.fixture
def run(toy_recipe, tmp_path):
    """A saved system with random weights."""
    System(load_recipe(toy_recipe)).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def other(toy_recipe, tmp_path):
    """Makes a saved system of the toy recipe with some slots changed."""

    def make(*overrides):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        System(load_recipe(toy_recipe, overrides)).save(folder)
        return folder

    return make


@pytest.fixture
def joint(tmp_path):
    """A slot of the joint conditioner with its weights."""
    ToyJoint().save(tmp_path / "joint")
    return f"{{name: toy-joint, weights: {tmp_path / 'joint'}}}"


@pytest.fixture
def singer(other, joint):
    """A system that does as it is told."""
    return other("tokenizers.acoustic.hop=1", f"conditioners.text={joint}", "stages.main.generator={name: toy-singer}")


def test_an_evaluation_that_was_interrupted_goes_on_and_ends_the_same(run, tmp_path):
    whole = evaluate(run, tmp_path / "whole", options=LOG_MEL)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(run, options=FEW, progress=interrupt)
    kept = sorted((run / "evaluation" / "clips").iterdir())
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    lines = []
    assert evaluate(run, options=LOG_MEL, say=lines.append) == whole
    assert "2 of 5 clips are there already" in lines
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert json.loads((run / "evaluation" / "evaluation.json").read_text()) == whole


def test_real_clips_score_better_than_what_random_weights_make(run):
    score = evaluate(run, options=LOG_MEL)["metrics"]["FAD (log-mel-16khz)"]
    assert 0 <= score["real"] < 0.2 * score["value"]
    assert score["real"] < score["codec"] < score["value"]
    assert score["low"] < score["high"]
    assert (score["clips"], score["reference_clips"]) == (5, 6)
    assert score["embedding"] == "log-mel-16khz"
    page = (run / "evaluation" / "evaluation.html").read_text()
    assert page.count("<audio") == page.count("data:image/png") == 10
    assert "log-mel-16khz" in page


def test_the_limit_is_only_shown_where_clips_can_tell_it(run):
    lines = []
    options = replace(LOG_MEL, clips=16, reference_clips=16)
    rows = evaluate(run, options=options)["metrics"]
    few = evaluate(run, options=LOG_MEL, say=lines.append)["metrics"]
    assert (
        rows["FAD∞ (log-mel-16khz)"]["low"]
        < rows["FAD∞ (log-mel-16khz)"]["value"]
        < rows["FAD (log-mel-16khz)"]["value"]
    )
    assert "FAD∞ (log-mel-16khz)" not in few
    assert any(line.startswith("no FAD∞ (log-mel-16khz): a limit takes 8 clips") for line in lines)


def test_kernel_distances_stand_beside_those_of_frechet(run):
    row = evaluate(run, options=LOG_MEL)["metrics"]["KAD (log-mel-16khz)"]
    assert abs(row["real"]) < 0.2 * row["value"]
    assert row["real"] < row["codec"] < row["value"]
    assert row["low"] < row["value"] < row["high"]
    assert (row["clips"], row["pieces"], row["reference_clips"]) == (5, 5, 6)
    assert "A kernel distance (KAD) has no such bias" in (run / "evaluation" / "evaluation.html").read_text()


def test_every_row_says_what_measured_it_and_on_how_many(run, joint):
    options = replace(FEW, embeddings=("log-mel-16khz", joint), classifiers=("toy-listener",), joint=(joint,))
    rows = evaluate(run, options=options)["metrics"]
    assert {"FAD (log-mel-16khz)", f"FAD ({JOINT})", "KLD (toy-listener)", f"text–audio consistency ({JOINT})"} <= set(
        rows
    )
    for name, row in rows.items():
        assert row["clips"] == 5, name
        assert row["embedding"], name
        assert row["better"] in ("lower", "higher"), name
        assert row["low"] <= row["high"], name
    assert all("weights:" in row["embedding"] for name, row in rows.items() if joint in name)


def test_what_stages_listen_to_is_in_the_results(other):
    """Weights that project a text to nothing make nothing of it."""
    deaf, lines = other("stages.main.generator={name: toy-bigram}"), []
    system = load(deaf)
    torch.nn.init.zeros_(system.stages["main"].projections["text"].weight)
    system.save(deaf)
    (use,) = evaluate(deaf, options=FEW, say=lines.append)["conditions"]
    assert (use["stage"], use["what"], use["rise"], use["unit"]) == ("main", "text", 0, "nats")
    assert any("no use of it found" in line for line in lines)
    assert "no use of it found" in (deaf / "evaluation" / "evaluation.html").read_text()


def test_a_classifier_hears_who_does_as_told(run, singer):
    """What sings the tone of its caption is near the piece, and as far from another's piece as that is from it."""
    options = replace(FEW, classifiers=("toy-listener",))
    good = evaluate(singer, options=options)["metrics"]["KLD (toy-listener)"]
    bad = evaluate(run, options=options)["metrics"]["KLD (toy-listener)"]
    assert good["value"] < 0.1 < 3 < good["chance"]
    assert bad["value"] > 3
    assert "real" not in good
    assert good["codec"] < 0.1


def test_captions_and_clips_are_compared_in_one_space(run, singer, joint):
    name, options = f"text–audio consistency ({JOINT})", replace(FEW, joint=(joint,))
    good, bad = (evaluate(made, options=options)["metrics"][name] for made in (singer, run))
    assert good["value"] > 0.95
    assert good["value"] == pytest.approx(good["real"], abs=0.02)
    assert good["chance"] < 0.1
    assert bad["value"] < 0.7 < bad["real"]


def test_the_distance_in_a_joint_space_is_that_of_its_embeddings(singer, joint):
    rows = evaluate(singer, options=replace(FEW, embeddings=(joint,)))["metrics"]
    embedder = read_embedder(joint)
    paths = sorted((singer / "evaluation" / "clips").iterdir())
    audio = [soundfile.read(path, dtype="float32")[0] for path in paths]
    assert len(audio) == 5
    made = torch.stack([torch.from_numpy(clip)[None] for clip in audio])
    examples = Examples.at(RepresentationSpec(4000, 1, 40.0), toys.ToySines(), "test", 6, 1.0, SEED + 1)
    real = torch.stack([examples[i].audio for i in range(6)])
    sides = [Gaussian.of(embedder(clips, 4000).flatten(0, 1)) for clips in (made, real)]
    assert rows[f"FAD ({JOINT})"]["value"] == pytest.approx(frechet_distance(*sides).item(), rel=1e-6)


def test_nothing_is_embedded_twice(run):
    EMBEDDED.clear()
    evaluate(run, options=replace(FEW, embeddings=("toy-listener",), classifiers=("toy-listener",)))
    assert sum(EMBEDDED) == 3 * 5 + 6 + 1  # generated, real and coded clips, the reference, and the fingerprint's noise


def test_the_reference_is_embedded_once_for_all_systems(run, other):
    options, lines = replace(FEW, embeddings=("toy-listener",), seed=11), []
    first = evaluate(run, options=options)
    EMBEDDED.clear()
    second = evaluate(other("seed=5"), options=options, say=lines.append)
    assert sum(EMBEDDED) == 3 * 5 + 1
    assert any("known from before" in line for line in lines)
    rows = [results["metrics"]["FAD (toy-listener)"] for results in (first, second)]
    assert rows[0]["real"] == rows[1]["real"]


def kept():
    return set((default_cache_dir() / "references").glob("reference-*.safetensors"))


def frames_of(path):
    return path.with_name(path.name.replace("reference", "frames"))


def test_statistics_of_other_clips_or_weights_are_never_taken(tmp_path):
    """Whatever is changed has a file of its own, and a file that says something else is not believed."""

    def slot(gain):
        ToyJoint(gain=gain).save(tmp_path / str(gain))
        return f"{{name: toy-joint, weights: {tmp_path / str(gain)}}}"

    def clips(number=4, seconds=1.0, seed=0, tones=8):
        source = toys.ToySines(pieces=tones)
        read = {"seconds": seconds, "sample_rate": 4000, "channels": 1}
        return [source.read("test", i % tones, seed=seed + i, **read).audio for i in range(number)]

    cases = [
        (slot(1.0), clips()),
        (slot(1.0), clips(5)),
        (slot(1.0), clips(seconds=0.5)),
        (slot(1.0), clips(seed=9)),
        (slot(1.0), clips(tones=3)),
        ("toy-listener", clips()),
        ("{name: toy-listener, labels: 5}", clips()),
        (slot(0.0), clips()),
    ]
    before, found, files = kept(), [], []
    for text, audio in cases:
        there = kept()
        found.append(read_reference(read_embedder(text), audio, 4000))
        (new,) = kept() - there
        files.append(new)
    assert len(kept() - before) == len(cases)
    # the same at another rate are other clips, too
    read_reference(read_embedder("toy-listener"), clips(), 8000)
    assert len(kept() - before) == len(cases) + 1
    lines = []
    again = read_reference(read_embedder(cases[0][0]), cases[0][1], 4000, lines.append)
    assert torch.equal(again[0].moment, found[0][0].moment)
    assert torch.equal(again[1].frames, found[0][1].frames)
    assert lines == ["the real clips in toy-joint weights=1.0 are known from before"]
    for first, other in ((files[0], files[3]), (frames_of(files[0]), frames_of(files[3]))):
        for wrong in (other.read_bytes(), b"not a file", first.read_bytes()[:-100]):
            first.write_bytes(wrong)
            lines.clear()
            again = read_reference(read_embedder(cases[0][0]), cases[0][1], 4000, lines.append)
            assert torch.equal(again[0].moment, found[0][0].moment)
            assert torch.equal(again[1].frames, found[0][1].frames)
            assert "computed again" in lines[0]


def test_the_same_name_with_other_weights_is_another_embedder(tmp_path):
    """The fingerprint goes by what is loaded, not by where it lies."""
    slot = f"{{name: toy-joint, weights: {tmp_path / 'weights'}}}"
    prints = []
    for gain in (1.0, 2.0, 1.0):
        ToyJoint(gain=gain).save(tmp_path / "weights")
        prints.append(read_embedder(slot).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_a_cache_that_cannot_be_written_is_no_obstacle(run, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "file" / "cache"))
    lines = []
    read_reference(read_embedder("toy-listener"), [torch.randn(1, 4000) for _ in range(3)], 4000, lines.append)
    assert "PARTITA_CACHE" in lines[0]


def test_the_melody_is_compared_where_it_was_told(other, run):
    tuned = other("data={name: toy-loops}", "conditioners.text=toy-tune")
    row = evaluate(tuned, options=FEW)["metrics"]["melody kept"]
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert row["clips"] == 5
    assert "chance" in row
    assert "melody kept" not in evaluate(run, options=FEW)["metrics"]


def test_a_codec_that_keeps_the_sound_is_near_it(run, singer):
    rough, fine = (evaluate(made, options=FEW)["metrics"]["codec distance"] for made in (run, singer))
    assert 0 < fine["value"] < rough["value"]
    assert fine["chance"] == pytest.approx(rough["chance"])
    assert (fine["clips"], fine["reference_clips"]) == (5, 6)


def test_training_clips_known_by_heart_are_found_out(other):
    """A stage that goes on with the prompt again does what the clips do; one that rolls dice does not."""
    options, rows = Evaluation(clips=8, reference_clips=2, batch_size=3, embeddings=(), memorization=True), {}
    for name in ("toy-loop", "toy-dice"):
        made = other("data={name: toy-loops, pieces: 8}", f"stages.main.generator={{name: {name}}}")
        rows[name] = evaluate(made, options=options)["metrics"]
        folder = made / "evaluation" / "memorization"
        assert len(list(folder.glob("*.safetensors"))) == 8
        # each clip and its continuation
        assert len(list(folder.glob("*.flac"))) == 2 * 8
        page = (made / "evaluation" / "evaluation.html").read_text()
        assert page.count("<figcaption>training clip") == page.count("<figcaption>its continuation") == 4
    for figure in ("memorized exactly", "memorized approximately"):
        loop, dice = rows["toy-loop"][figure], rows["toy-dice"][figure]
        assert (loop["value"], loop["high"], loop["chance"]) == (1, 1, 0)
        # Wilson's bound for 8 of 8, n / (n + q²), with Student's quantile
        assert loop["low"] == pytest.approx(8 / (8 + student.ppf(0.975, 7) ** 2))
        assert dice["value"] == 0
        assert (loop["clips"], loop["prompt_seconds"], loop["embedding"]) == (8, 0.5, "codes of toy-codec")


def test_memorization_goes_on_and_its_clips_are_those_of_training(other):
    made = other("data={name: toy-loops}", "stages.main.generator={name: toy-dice}")
    options = Evaluation(clips=5, reference_clips=2, batch_size=2, embeddings=(), memorization=True)
    calls = []

    def interrupt(done, total):
        calls.append(done)
        if len(calls) > 4:  # three batches of clips, and two of continuations
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(made, options=options, progress=interrupt)
    folder = made / "evaluation" / "memorization"
    codes = {path.name: load_file(path)["codes"] for path in folder.glob("*.safetensors")}
    assert len(codes) == 4
    resumed = evaluate(made, options=options)
    assert all(torch.equal(load_file(folder / name)["codes"], value) for name, value in codes.items())
    whole = evaluate(made, made.parent / "whole", options=options)
    assert resumed == whole
    # of the clip, what follows the prompt is left to the stage: 20 of 40 frames
    assert {len(value) for value in codes.values()} == {20}


def test_training_clips_are_continued_without_guidance(other):
    """As in MusicLM's study: guidance leads away from what was learned, and hides what is known by heart."""
    made = other("data={name: toy-loops, pieces: 8}", "stages.main.generator={name: toy-misled}")
    options = Evaluation(clips=8, reference_clips=2, embeddings=(), memorization=True)
    assert evaluate(made, options=options)["metrics"]["memorized exactly"]["value"] == 1


def test_silence_cannot_tell_memorization(other):
    """What remembers nothing but silence does not remember; where all is silence, nobody can say."""
    options = replace(FEW, memorization=True)
    made = other("data={name: toy-loops, pauses: 2}", "stages.main.generator={name: toy-loop}")
    row = evaluate(made, options=options)["metrics"]["memorized exactly"]
    assert (row["value"], row["clips"], row["left_out"]) == (1, 3, pytest.approx(0.4))
    mute, lines = other("data={name: toy-loops, pauses: 4}", "stages.main.generator={name: toy-loop}"), []
    assert "memorized exactly" not in evaluate(mute, options=options, say=lines.append)["metrics"]
    assert any("memorization is not measured: in 1 of 5 training clips" in line for line in lines)


def test_a_stage_that_falls_silent_remembers_nothing(other):
    made = other("data={name: toy-loops}", "stages.main.generator={name: toy-mute}")
    rows = evaluate(made, options=replace(FEW, memorization=True))["metrics"]
    assert rows["memorized exactly"]["value"] == rows["memorized approximately"]["value"] == 0
    assert rows["memorized exactly"]["clips"] == 5


def test_a_line_is_said_for_every_score(run, joint):
    lines = []
    options = replace(LOG_MEL, classifiers=("toy-listener",), joint=(joint,), memorization=True)
    evaluate(run, options=options, say=lines.append)
    for line in (
        "FAD and KAD (log-mel-16khz)",
        "KLD (toy-listener)",
        f"text–audio consistency ({JOINT})",
        "memorization",
    ):
        assert line in lines


def test_scores_can_be_added_to_clips_that_are_there(run):
    evaluate(run, options=LOG_MEL)
    lines = []
    more = evaluate(run, options=replace(LOG_MEL, classifiers=("toy-listener",)), say=lines.append)
    assert "5 of 5 clips are there already" in lines
    assert {"FAD (log-mel-16khz)", "KLD (toy-listener)"} <= more["metrics"].keys()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: content[:60]])
def test_a_damaged_clip_of_before_is_named(run, tmp_path, damage):
    evaluate(run, tmp_path / "evaluation", options=FEW)
    clip = tmp_path / "evaluation" / "clips" / "00001.flac"
    clip.write_bytes(damage(clip.read_bytes()))
    with pytest.raises(PartitaError, match=r"00001\.flac.*: delete (it|this clip), and run the same command again"):
        evaluate(run, tmp_path / "evaluation", options=FEW)
    clip.unlink()
    evaluate(run, tmp_path / "evaluation", options=FEW)


def test_a_clip_of_before_that_is_shorter_is_named(run, tmp_path):
    evaluate(run, tmp_path / "evaluation", options=FEW)
    clip = tmp_path / "evaluation" / "clips" / "00002.flac"
    soundfile.write(clip, np.zeros(100), soundfile.info(clip).samplerate)
    with pytest.raises(PartitaError, match=r"00002\.flac is shorter than the other clips: delete it"):
        evaluate(run, tmp_path / "evaluation", options=FEW)


def test_clips_of_another_request_are_not_taken_for_ones_own(run, tmp_path, monkeypatch):
    evaluate(run, options=FEW)
    with pytest.raises(PartitaError, match=r"something else.*-o[\s\S]*seed: 0 → 1"):
        evaluate(run, options=Evaluation(clips=5, reference_clips=6, duration=1.0, seed=1))
    more = replace(FEW, clips=6, reference_clips=7)
    assert evaluate(run, options=more)["request"]["clips"] == 6  # of the same clips there can be more
    with monkeypatch.context() as changed:  # the data gives other clips than it did before
        changed.setattr(Source, "revision", 1)
        with pytest.raises(PartitaError, match=r"something else[\s\S]*data_revision: None → 1"):
            evaluate(run, options=FEW)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(PartitaError, match="not empty"):
        evaluate(run, tmp_path / "mine", options=FEW)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"embeddings": ("lgo-mel",)}, "no tokenizer and no conditioner is called 'lgo-mel'.*'log-mel"),
        ({"embeddings": ("soundstream-tiny",)}, "soundstream-tiny has no weights"),
        ({"embeddings": ("{",)}, "'{' is not a YAML value"),
        ({"embeddings": ("3",)}, "expected the name of a tokenizer"),
        ({"embeddings": ("toy-joint",)}, "toy-joint has no weights"),
        ({"classifiers": ("log-mel-16khz",)}, "log-mel-16khz is no classifier"),
        ({"joint": ("log-mel-16khz",)}, "texts and audio in one space"),
        ({"duration": -1.0}, "duration"),
    ],
)
def test_what_cannot_be_evaluated_is_one_message(run, options, word):
    with pytest.raises(PartitaError, match=word):
        evaluate(run, options=Evaluation(**{"clips": 2, "reference_clips": 2, **options}))
    assert not (run / "evaluation" / "clips").exists() or "duration" in options


def test_a_conditioner_without_embeddings_of_audio_is_no_embedding(run, tmp_path):
    toys.ToyLetters().save(tmp_path / "letters")
    with pytest.raises(PartitaError, match="embeds no audio"):
        read_embedder(f"{{name: toy-letters, weights: {tmp_path / 'letters'}}}")


def test_what_a_system_was_not_asked_is_not_measured(toy_recipe, other, joint):
    recipe = toy_recipe.read_text().replace("conditioners:\n  text: toy-letters\n", "")
    toy_recipe.write_text(recipe.replace("given: [text]", "given: []").replace("toy-sines", "toy-silent"))
    dumb = other()
    with pytest.raises(PartitaError, match="reads no text"):
        evaluate(dumb, options=replace(FEW, joint=(joint,)))
    with pytest.raises(PartitaError, match="has no conditioner"):
        evaluate(dumb, options=replace(FEW, classifiers=("toy-listener",)))
    assert not (dumb / "evaluation").exists()


def command(monkeypatch, capfd, *arguments):
    """Status and output of ``partita evaluate``."""
    monkeypatch.setattr(sys, "argv", ["partita", "evaluate", *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capfd.readouterr()
    return stop.value.code or 0, captured.out + captured.err


def test_the_command_takes_every_score(run, joint, monkeypatch, capfd):
    scores = ["--embedding", "toy-listener", "--classifier", "toy-listener", "--joint", joint, "--memorization"]
    status, printed = command(monkeypatch, capfd, run, "--clips", 3, "--reference-clips", 3, *scores)
    assert status == 0, printed
    for name in ("FAD (toy-listener)", "KLD (toy-listener)", "text–audio consistency", "memorized exactly"):
        assert name in printed
    kept = json.loads((run / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert "codec distance" in kept


def test_the_command_refuses_before_anything_slow(run, monkeypatch, capfd):
    status, printed = command(monkeypatch, capfd, run, "--classifier", "log-mel-16khz")
    assert status == 2
    assert "is no classifier" in printed
    assert not (run / "evaluation").exists()


def test_training_pieces_never_pass_for_test_pieces(run, other):
    """Where nothing is held out, training pieces stand in, and whoever reads the scores is told."""
    lines = []
    trained = other("data=toy-trained")
    results = evaluate(trained, options=FEW, say=lines.append)
    (note,) = results["notes"]
    assert note.startswith("the data has no test pieces, so training pieces stand in")
    assert note in lines
    assert results["request"]["pieces"] == "training"
    assert note in (trained / "evaluation" / "evaluation.html").read_text()
    assert note in collect(trained, "me/mine")["README.md"].decode()
    results = evaluate(run, options=FEW)
    assert (results["request"]["pieces"], results["notes"]) == ("test", [])


def test_clips_that_nothing_was_asked_for_are_told(run, tmp_path, monkeypatch):
    """Of test pieces without captions, what is generated answers no prompt."""

    def without_captions(*arguments):
        made = _examples(*arguments)
        for example in made[:2]:
            example.fields.pop("text")
        return made

    monkeypatch.setattr("partita.evaluation.evaluate._examples", without_captions)
    lines = []
    (note,) = evaluate(run, tmp_path / "evaluation", options=FEW, say=lines.append)["notes"]
    assert note.startswith("2 of 5 clips are of pieces without caption: conditioners.text is told nothing")
    assert note in lines
    assert note in (tmp_path / "evaluation" / "evaluation.html").read_text()


def test_other_data_is_named_by_data_alone(run):
    with pytest.raises(PartitaError, match="changes data only"):
        evaluate(run, data=["seed=3"], options=FEW)
    assert evaluate(run, data=["data.pieces=3"], options=FEW)["request"]["data_changes"] == ["data.pieces=3"]


def test_no_clips_is_a_mistake():
    with pytest.raises(PartitaError, match="clips must be at least 1"):
        Evaluation(clips=0)


def test_frames_that_reach_beyond_a_clip_are_not_compared():
    embedder = read_embedder("log-mel-16khz")
    assert [embedder(torch.zeros(1, 1, n), 16000).shape[1] for n in (100, 16000, 16100, 16319)] == [1, 50, 50, 50]


def test_a_codec_alone_is_scored_on_what_it_makes_of_real_clips(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"], recipe["conditioners"]
    scores = {}
    for levels in (2, 256):
        recipe["tokenizers"]["acoustic"] |= {"cardinality": levels, "hop": 4}
        toy_recipe.write_text(yaml.safe_dump(recipe))
        System(load_recipe(toy_recipe)).save(tmp_path / str(levels))
        scores[levels] = evaluate(tmp_path / str(levels), options=LOG_MEL)["metrics"]
    for name in ("FAD (log-mel-16khz)", "codec distance"):
        assert scores[256][name]["value"] < scores[2][name]["value"]
    clip, _ = soundfile.read(tmp_path / "2" / "evaluation" / "clips" / "00000.flac")
    assert len(np.unique(clip)) <= 2
    with pytest.raises(PartitaError, match="a codec alone reads no text"):
        evaluate(tmp_path / "2", options=replace(FEW, memorization=True))
