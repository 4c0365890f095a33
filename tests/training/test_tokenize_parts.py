"""Stored outputs of conditioners, clips of what cannot be cropped, stems, mixtures, and tokens of other parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import partita
from partita.conditioners.base import Conditioner
from partita.core.contracts import Condition, ConditionSpec, RepresentationSpec
from partita.core.part_key import PartKey
from partita.core.registry import register
from partita.data.shards import Shards
from partita.data.token_catalog import CATALOG
from partita.recipe.plan import load_recipe
from partita.storage.audio_file import write_audio
from partita.storage.shard_folder import ShardReader
from partita.system.system import System
from partita.tokenizers.base import Tokenizer
from partita.training.fit_data import FitData
from partita.training.training import train
from saved_systems import weights

SMALL_STAGE = (
    "{name: autoregressive, backbone: {name: transformer, width: 16, depth: 1, num_heads: 2}, "
    "fit: {steps: 2, batch_size: 2}}"
)


@register("conditioner", "toy-envelope")
class ToyEnvelope(Conditioner):
    """The loudness of the clip over time."""

    inputs = ("audio",)
    sample_rate = 2000
    weightless, trainable = True, False

    @property
    def spec(self):
        return ConditionSpec(dim=1, frame_rate=20.0)

    def prepare(self, clips):
        silent = [torch.zeros(round(clip.seconds * 2000)) for clip in clips]
        return {
            "audio": torch.stack([s if c.audio is None else c.audio[0] for s, c in zip(silent, clips, strict=True)])
        }

    def forward(self, prepared):
        levels = F.avg_pool1d(prepared["audio"].abs(), 100, ceil_mode=True)[..., None]
        return Condition(levels, torch.ones(levels.shape[:2], dtype=torch.bool))


@register("conditioner", "toy-power")
class ToyPower(ToyEnvelope):
    """The loudness of the clip."""

    @property
    def spec(self):
        return ConditionSpec(dim=1)

    def forward(self, prepared):
        level = prepared["audio"].square().mean(1)[:, None, None]
        return Condition(level, torch.ones(len(level), 1, dtype=torch.bool))


@register("tokenizer", "toy-events")
class ToyEvents(Tokenizer):
    """The signs of the first tenths of a second, which have no frame rate."""

    weightless, trainable = True, False

    @property
    def spec(self):
        return RepresentationSpec(4000, 1, None, 1, 3, end=2, longest=6)

    def encode(self, audio):
        signs = (audio.unflatten(-1, (-1, 400)).mean(-1) > 0).long()
        return F.pad(signs, (0, 6), value=2)[..., :6]


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Files of noise, as long as the window."""
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    for number in range(6):
        write_audio(folder / f"{number}.wav", rng.uniform(-0.5, 0.5, (1, 4000)).astype(np.float32), 4000)
        (folder / f"{number}.txt").write_text("a slow flute" if number % 2 else "drums")
    return folder


@pytest.fixture
def base(toy_recipe, tmp_path, music):
    """A recipe in which only the stage is untrained."""
    codec = tmp_path / "codec"
    torch.manual_seed(0)
    System(load_recipe(toy_recipe)).tokenizers["acoustic"].save(codec)
    return load_recipe(
        toy_recipe,
        [f"tokenizers.acoustic={{weights: {codec}, fit: null}}", f"data={{name: folder, path: {music}, test: 0.0}}"],
    )


def changed(plan, *overrides):
    return load_recipe(plan.values, overrides)


def from_shards(plan, folder, *overrides):
    return changed(plan, f"data={{name: shards, path: {folder}}}", *overrides)


def trains_alike(plan, folder):
    """Whether the stage trains to the same weights from audio and from shards; returns the largest difference."""
    partita.tokenize(plan, folder / "shards", progress=False)
    train(plan, folder / "audio")
    train(from_shards(plan, folder / "shards"), folder / "tokens")
    ours, theirs = weights(folder / "tokens" / "stages"), weights(folder / "audio" / "stages")
    return max(float((ours[k] - theirs[k]).abs().max()) for k in ours)


def conditions(folder):
    catalog = json.loads((Path(folder) / CATALOG).read_text())
    return catalog["conditions"], ShardReader(Path(folder) / "train")[0][0]


def test_outputs_of_a_frozen_text_encoder_are_stored(base, tmp_path, t5_checkpoint, monkeypatch):
    text = t5_checkpoint("relu", ["a slow flute", "drums"])
    shape = "{width: 16, feed_forward_width: 24, depth: 2, num_heads: 2, head_width: 8, vocabulary: 64}"
    plan = changed(base, f"conditioners.text={{name: t5, shape: {shape}, weights: {text}, word_dropout: 0.0}}")
    # the encoder runs on each text alone when it is stored, and on batches in training: sums in another order
    assert trains_alike(plan, tmp_path) < 1e-6
    rates, tensors = conditions(tmp_path / "shards")
    (key,) = rates
    assert tensors[f"condition {key}"].shape[1] == 16
    from partita.conditioners.t5 import T5

    def ran(self, prepared):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(T5, "forward", ran)
    train(from_shards(plan, tmp_path / "shards"), tmp_path / "without")


def test_what_is_drawn_at_random_in_each_step_is_not_stored(base, tmp_path, t5_checkpoint):
    text = t5_checkpoint("relu", ["a slow flute", "drums"])
    shape = "{width: 16, feed_forward_width: 24, depth: 2, num_heads: 2, head_width: 8, vocabulary: 64}"
    plan = changed(base, f"conditioners.text={{name: t5, shape: {shape}, weights: {text}, word_dropout: 0.5}}")
    assert trains_alike(plan, tmp_path) == 0
    assert conditions(tmp_path / "shards")[0] == {}


def noises(tmp_path):
    """Three recordings of noise of 3.5 s."""
    folder = tmp_path / "noises"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(3):
        write_audio(folder / f"{number}.wav", rng.uniform(-0.5, 0.5, (1, 14000)).astype(np.float32), 4000)
    return folder


def test_a_condition_aligned_in_time_is_cropped_with_the_codes(base, tmp_path, music):
    long = noises(tmp_path)
    plan = changed(base, "conditioners.text=toy-envelope")
    assert trains_alike(plan, tmp_path) == 0
    plan = changed(plan, f"data={{name: folder, path: {long}, validation: 0.0, test: 0.0}}")
    partita.tokenize(plan, tmp_path / "cropped", progress=False)
    source = Shards(str(tmp_path / "cropped"))
    source.setup()
    (key,) = source.stored_keys
    envelope = ToyEnvelope()
    for seed in range(20):
        example = source.read("train", 1, seed=seed, seconds=1.0, sample_rate=4000, channels=1)
        start = example.fields["seconds_start"]
        assert abs(start * 20 - round(start * 20)) < 1e-9  # a frame of both
        whole = partita.load_part(plan.tokenizers["acoustic"].weights).encode_audio(long / example.fields["id"])
        first = round(start * 40)
        codes = next(iter(example.representations.values())).long()
        assert torch.equal(codes, whole[0][:, first : first + 40])
        audio = torch.from_numpy(partita.storage.audio_file.read_clip(long / example.fields["id"], 0, None, 2000, 1)[0])
        levels = envelope({"audio": audio}).values[0]
        values, mask = example.conditions[key]
        assert torch.allclose(values, levels[round(start * 20) : round(start * 20) + 20], atol=1e-6)
        assert mask.all()


def test_a_condition_of_the_whole_clip_is_stored_in_clips(base, tmp_path, music):
    plan = changed(base, "conditioners.text=toy-power")
    assert trains_alike(plan, tmp_path) == 0
    catalog = json.loads((tmp_path / "shards" / CATALOG).read_text())
    assert not catalog["whole"]
    assert catalog["versions"] == {"train": 4, "validation": 1, "test": 1}
    with pytest.raises(partita.PartitaError, match=r"windows of up to 1 s, but a stage has a window of 2 s"):
        train(from_shards(plan, tmp_path / "shards", "stages.main.window=2.0"), tmp_path / "longer")


def test_shorter_windows_are_crops_of_stored_clips_with_their_conditions(base, tmp_path, music):
    second = f"{{generator: {SMALL_STAGE}, target: other, given: [acoustic], window: 0.5}}"
    other = f"tokenizers.other={{name: toy-codec, weights: {base.tokenizers['acoustic'].weights}}}"
    plan = changed(base, "conditioners.text=toy-power", "tokens.versions=1", other, f"stages.second={second}")
    train(plan, tmp_path / "run")
    shards = Shards(str(tmp_path / "run" / "tokens"))
    shards.setup()
    (power,) = shards.stored_keys
    starts = set()
    for seed in range(12):
        clip = shards.read("train", 1, seed=0, seconds=1.0, sample_rate=4000, channels=1)
        crop = shards.read("train", 1, seed=seed, seconds=0.5, sample_rate=4000, channels=1)
        first = round(crop.fields["seconds_start"] * 40)
        starts.add(first)
        for key, codes in clip.representations.items():
            assert torch.equal(crop.representations[key], codes[:, first : first + 20])
        assert torch.equal(crop.conditions[power][0], clip.conditions[power][0])
    assert len(starts) > 4


def test_clips_can_be_stored_instead_of_whole_pieces(base, tmp_path, music):
    long = noises(tmp_path)
    for number in range(3):
        (long / f"{number}.txt").write_text("drums")
    plan = changed(base, f"data={{name: folder, path: {long}, validation: 0.0, test: 0.0}}")
    options = partita.TokenOptions(clip=1.5, versions=3)
    partita.tokenize(plan, tmp_path / "clips", options=options, progress=False)
    reader = ShardReader(tmp_path / "clips" / "train")
    assert {codes.shape[1] for number in range(9) for codes in reader[number][0].values()} == {60}
    train(from_shards(plan, tmp_path / "clips"), tmp_path / "run")
    with pytest.raises(partita.PartitaError, match=r"windows of up to 1.5 s, but a stage has a window of 2 s"):
        train(from_shards(plan, tmp_path / "clips", "stages.main.window=2.0"), tmp_path / "longer")


def test_what_has_no_frame_rate_is_stored_in_clips(base, tmp_path):
    plan = changed(base, "tokenizers.acoustic=null", "tokenizers.events=toy-events", "stages.main.target=events")
    assert trains_alike(plan, tmp_path) == 0
    second = f"{{generator: {SMALL_STAGE}, target: more, given: [events], window: 0.5}}"
    two = changed(plan, "tokenizers.more=toy-events", f"stages.second={second}")
    with pytest.raises(partita.PartitaError, match=r"the windows of these stages or the clips differ \(0.5, 1 s\)"):
        partita.tokenize(two, tmp_path / "two", progress=False)
    with pytest.raises(partita.PartitaError, match=r"which cannot be cropped, but a stage has a window of 0.5 s"):
        train(from_shards(plan, tmp_path / "shards", "stages.main.window=0.5"), tmp_path / "shorter")


def test_a_conditioner_that_learns_from_audio_needs_audio(base, tmp_path, monkeypatch, toy_recipe):
    for name, value in (("trained_with_stage", True), ("weightless", False), ("trainable", True)):
        monkeypatch.setattr(ToyEnvelope, name, value)
    words = "text reads audio and learns together with its stage"
    with pytest.raises(partita.PartitaError, match=words):
        partita.tokenize(changed(base, "conditioners.text=toy-envelope"), tmp_path / "shards", progress=False)
    # before the codec is trained
    plan = load_recipe(toy_recipe, ["tokens=store", "conditioners.text=toy-envelope"])
    refused(plan, tmp_path / "run", words)
    assert not (tmp_path / "run" / "tokenizers").exists()
    refused(load_recipe(toy_recipe, ["tokens.longest=1.5"]), tmp_path / "short", "must contain two windows of 1 s")
    assert not (tmp_path / "short" / "tokenizers").exists()


def test_clips_over_each_other_need_audio(base, tmp_path):
    mixed = "stages.main.generator.fit.overlay=0.5"
    with pytest.raises(partita.PartitaError, match=r"stages.main lays clips over each other \(fit.overlay\)"):
        partita.tokenize(changed(base, mixed), tmp_path / "mixed", progress=False)
    partita.tokenize(base, tmp_path / "shards", progress=False)
    refused(from_shards(base, tmp_path / "shards", mixed), tmp_path / "run", "stored tokens have no audio: name data")


def test_a_mixture_keeps_its_order_and_its_names(base, tmp_path, music):
    more = tmp_path / "more"
    more.mkdir()
    for number in range(4):
        write_audio(more / f"x{number}.wav", np.full((1, 4000), 0.1 * number, np.float32), 4000)
        (more / f"x{number}.txt").write_text("drums")
    sources = f"[{{name: folder, path: {music}, weight: 2}}, {{name: folder, path: {more}, weight: 0.7}}]"
    plan = changed(base, f"data={sources}")
    assert trains_alike(plan, tmp_path) == 0
    data = FitData(System(plan), PartKey("stages/main"))
    data.source.setup()
    shards = Shards(str(tmp_path / "shards"))
    shards.setup()
    for split in ("train", "validation"):
        live, kept = (data.examples(split, 30, 3, source) for source in (data.source, shards))
        assert [live[i].fields["id"] for i in range(30)] == [kept[i].fields["id"] for i in range(30)]
    assert str(shards.summary) == str(data.source.summary)


def test_shards_and_audio_are_mixed(base, tmp_path, music):
    """Conditions and codes of one example are stored, those of another are computed, in one batch."""
    plan = changed(base, "conditioners.text=toy-envelope")
    partita.tokenize(plan, tmp_path / "shards", progress=False)
    mixed = changed(
        plan, f"data=[{{name: shards, path: {tmp_path / 'shards'}}}, {{name: folder, path: {music}, test: 0.0}}]"
    )
    system = System(mixed)
    system.tokenizers["acoustic"].load_weights(mixed.tokenizers["acoustic"].weights)
    system.source.setup()
    data = FitData(system, PartKey("stages/main"))
    examples = data.examples("train", 4, 0)
    batch = data.collate([examples[i] for i in range(4)])
    assert sorted(batch["has_audio"]) == [False, False, True, True]
    staged = data.on_after_batch_transfer(batch, 0)
    for row, name in enumerate(batch["id"]):
        audio = torch.from_numpy(
            partita.storage.audio_file.read_clip(music / name.partition("/")[2], 0, 1.0, 4000, 1)[0]
        )
        assert torch.equal(staged.target[row], system.tokenizers["acoustic"].encode(audio[None])[0])
        half = partita.core.resample.convert(audio[None], 4000, 2000, 1)[0]
        assert torch.allclose(staged.given["text"][0].values[row], ToyEnvelope()({"audio": half}).values[0], atol=1e-6)


@pytest.fixture
def shards(base, tmp_path):
    partita.tokenize(base, tmp_path / "shards", progress=False)
    return tmp_path / "shards"


def refused(plan, run, words):
    with pytest.raises(partita.PartitaError, match=words) as error:
        train(plan, run)
    assert "\n" not in str(error.value)


def test_tokens_of_another_part_are_refused_and_the_difference_named(base, shards, tmp_path, toy_recipe):
    other = tmp_path / "other"
    codec = System(load_recipe(toy_recipe, ["seed=5"])).tokenizers["acoustic"]
    codec.save(other)
    plan = from_shards(base, shards, f"tokenizers.acoustic={{weights: {other}, fit: null}}")
    refused(plan, tmp_path / "a", r"another tokenizers/acoustic: its weights differ; run `partita tokenize` again")
    System(load_recipe(toy_recipe, ["tokenizers.acoustic.cardinality=8"])).tokenizers["acoustic"].save(other)
    plan = from_shards(base, shards, f"tokenizers.acoustic={{weights: {other}, cardinality: 8, fit: null}}")
    refused(plan, tmp_path / "b", r"another tokenizers/acoustic: cardinality was 16 and is 8; run")
    plan = from_shards(base, shards, "conditioners.text=toy-envelope")
    refused(plan, tmp_path / "c", r"hold nothing of conditioners/text, which reads audio; run")
    plan = changed(load_recipe(toy_recipe), f"data={{name: shards, path: {shards}}}")
    refused(plan, tmp_path / "d", r"tokenizers/acoustic has no weights, and stored tokens have no audio")
    refused(changed(plan, "tokens=store"), tmp_path / "e", r"tokenizers/acoustic has no weights")


def test_a_folder_of_other_tokens_is_not_continued(base, shards, tmp_path, music, toy_recipe):
    def again(words, *overrides, plan=base, folder=shards, **options):
        with pytest.raises(partita.PartitaError, match=words) as error:
            partita.tokenize(changed(plan, *overrides), folder, progress=False, **options)
        assert "\n" not in str(error.value)

    System(load_recipe(toy_recipe, ["seed=5"])).tokenizers["acoustic"].save(tmp_path / "other")
    again("differ in tokenizers/acoustic: choose", f"tokenizers.acoustic={{weights: {tmp_path / 'other'}, fit: null}}")
    again("differ in the pieces of the data, the data options", f"data={{name: folder, path: {music}, test: 0.4}}")
    again("differ in the windows of the stages", "stages.main.window=0.5")
    again("differ in the seed", "seed=1")
    again("differ in the number of versions", options=partita.recipe.token_options.TokenOptions(versions=2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    again(r"is not empty and has no tokens\.json: choose", folder=tmp_path / "full")
    for number, content in enumerate(["{", "[]", '{"format": 1}']):
        (tmp_path / f"damaged-{number}").mkdir()
        (tmp_path / f"damaged-{number}" / "tokens.json").write_text(content)
        again(r"tokens\.json.*: (delete its folder|another version)", folder=tmp_path / f"damaged-{number}")
    again("is a file; give a folder", folder=tmp_path / "full" / "thesis.tex")
    again("shards cannot be written there", folder="hf://datasets/x")
    again("stored tokens already", f"data={{name: shards, path: {shards}}}", folder=tmp_path / "new")
    again("tokenizers/acoustic has no weights, so there are no tokens", plan=load_recipe(toy_recipe))
    again("at most|longest is 1 s, but excerpts", options=partita.recipe.token_options.TokenOptions(longest=1.0))
