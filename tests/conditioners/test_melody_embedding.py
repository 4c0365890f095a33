"""Embeddings of melodies: learned from covers, and robust to any audio."""

import math
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import partita
import toys  # noqa: F401  (registers the parts)
from partita.conditioners.audio_towers.pitch_classes import PitchClasses
from partita.conditioners.audio_towers.spectrogram_transformer import SpectrogramTransformer
from partita.conditioners.embedding import mean_embedding
from partita.conditioners.melody_embedding import MelodyEmbedding, MelodyLoss, MelodySpectrum
from partita.conditioners.quantized import Quantized
from partita.core.contracts import Clip
from partita.core.part import Part
from partita.data.clips import clip_for
from partita.data.corpus import Corpus
from partita.data.examples import Collate, Examples
from partita.errors import PartitaError
from partita.metrics.retrieval import recall
from partita.recipe.compose import compose

RATE = 4000
SPECTRUM = MelodySpectrum(sample_rate=RATE, bands=36, window=512, hop=128, f_min=110.0, per_octave=12)
RECIPE = """
conditioners:
  melody:
    name: melody-embedding
    audio_tower: {name: pitch-classes, width: 4, hidden: 8, bands_per_semitone: 1}
    dim: 8
    window: 1.0
    stride: 0.5
    seconds: 2.0
    spectrum: {sample_rate: 4000, window: 512, hop: 128, bands: 36, f_min: 110.0, per_octave: 12}
    fit: {steps: 3, batch_size: 4, crop: 2.0, validation_examples: 4}
"""


def small(**options):
    torch.manual_seed(0)
    tower = PitchClasses(width=8, hidden=32, bands_per_semitone=1)
    return MelodyEmbedding(
        **{"audio_tower": tower, "dim": 16, "window": 1.0, "stride": 0.75, "seconds": 2.5, "spectrum": SPECTRUM}
        | options
    )


def play(melody, *, transposed=0, seconds=1.0, harmonics=(1.0,)):
    """Pitches in semitones above 220 Hz as tones of equal length, ``[1, T]``."""
    time = np.arange(round(seconds / len(melody) * RATE)) / RATE
    tones = [
        sum(a * np.sin(2 * math.pi * 220 * 2 ** ((p + transposed) / 12) * n * time) for n, a in enumerate(harmonics, 1))
        for p in melody
    ]
    return torch.from_numpy(0.3 * np.concatenate(tones)[None]).float()


def pairs(count=8):
    """Clips with covers: other keys, lengths and timbres."""
    draw = np.random.default_rng(3)
    clips = []
    for number in range(count):
        melody = draw.integers(0, 12, 4).tolist()
        cover = play(melody, transposed=1 + number % 6, seconds=0.6 + 0.05 * (number % 8), harmonics=(1.0, 0.5, 0.3))
        clips.append(Clip({"cover": cover, "id": f"piece {number}"}, 1.0, play(melody), RATE))
    return clips


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def loader(part, clips, batch_size):
    return DataLoader(clips, batch_size=batch_size, collate_fn=part.prepare)


def both(part, clips):
    """The embeddings of clips and of their covers."""
    views = part.eval().views(part.prepare(clips))
    return mean_embedding(views.first), mean_embedding(views.second)


def learned_by_heart(part):
    """The embeddings of the pairs and of their covers after sixty steps of training."""
    part.log = lambda *args, **options: None
    prepared, optimizer = part.prepare(pairs()), torch.optim.Adam(part.parameters(), 0.01)
    part.train()
    for _ in range(60):
        part.training_step(prepared, 0).backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return both(part, pairs())


@pytest.mark.parametrize("loss", [MelodyLoss(margin=0.5), MelodyLoss("softmax")], ids=["triplet", "softmax"])
def test_eight_pairs_are_learned_by_heart(loss):
    part = small(loss=loss)
    clips, covers = learned_by_heart(part)
    assert recall(clips, covers, 1) == recall(covers, clips, 1) == 1


def test_neither_key_nor_level_changes_the_embedding_of_the_pitch_class_network():
    """Without training. Tones stay clear of the edges of the spectrum, and a semitone is a band."""
    part, melody = small().eval(), [0, 4, 7, 5]
    one = part.embed_audio(play(melody)[None])
    moved = part.embed_audio(play(melody, transposed=5)[None])
    other = part.embed_audio(play([0, 1, 0, 8])[None])
    assert (one * moved).sum() > 0.98
    assert (one * moved).sum() > (one * other).sum()
    torch.testing.assert_close(part.embed_audio(0.01 * play(melody)[None]), one, atol=1e-4, rtol=0)


def test_what_the_pitch_class_network_reads_can_turn_around_the_circle():
    """A shift by a semitone is one of the bands; notes that leave an octave at the top return at the bottom."""
    torch.manual_seed(0)
    tower = PitchClasses(width=4, hidden=8, bands_per_semitone=2, registers=2, taps=5)
    tower.build(9, 48, 6)
    spectrum = torch.rand(2, 9, 48)
    octaves = spectrum.unflatten(2, (2, 24))
    for semitones in (1, 5, 11):
        turned = octaves.roll(2 * semitones, 3).flatten(2)
        torch.testing.assert_close(tower(turned), tower(spectrum), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tower(octaves.roll(1, 3).flatten(2)), tower(spectrum), atol=1e-5)
    assert not torch.allclose(tower(spectrum.flip(1)), tower(spectrum), atol=1e-5)


@pytest.mark.parametrize("cents", [-40, 0, 40])
def test_a_note_out_of_tune_stays_in_its_pitch_class(cents):
    """A singer is seldom exactly in tune. The tower of the preset takes the strongest of the bands of a pitch class."""
    slot = compose({"conditioners": {"melody": "melody-embedding-tiny"}, "data": "corpus"}).values["conditioners"]
    spectrum = MelodySpectrum(**slot["melody"]["spectrum"])
    time = torch.arange(2 * spectrum.sample_rate) / spectrum.sample_rate
    for pitch, frequency in enumerate(440 * 2 ** (torch.arange(12) / 12)):
        tone = torch.sin(2 * math.pi * frequency * 2 ** (cents / 1200) * time)
        bands = spectrum.make()(tone[None, None])[0, 0].mean(0)
        assert int(bands.unflatten(0, (-1, 12, 3)).amax((0, 2)).argmax()) == pitch


@pytest.mark.parametrize(("detune", "losses"), [(0.0, 1), (50.0, 3)])
def test_windows_are_out_of_tune_by_chance_in_training_only(detune, losses):
    """The clips are as long as a window, so nothing else is left to chance."""
    part = small(detune=detune).train()
    part.log = lambda *args, **kwargs: None
    same = [Clip({"cover": play([0, 4, 7, 5])}, 1.0, play([5, 9, 0, 10])), Clip({"cover": play([1])}, 1.0, play([2]))]
    prepared = part.prepare(same)
    assert len({part.training_step(prepared, 0).item() for _ in range(3)}) == losses
    assert torch.equal(part(prepared).values, part(prepared).values)


def test_embeddings_that_keep_the_key_are_turned_by_a_transposition():
    torch.manual_seed(0)
    tower = PitchClasses(width=4, hidden=8, bands_per_semitone=2, registers=2, keep_key=True)
    tower.build(9, 48, 24)
    spectrum = torch.rand(2, 9, 48)
    for semitones in (1, 5, 11):
        turned = spectrum.unflatten(2, (2, 24)).roll(2 * semitones, 3).flatten(2)
        expected = tower(spectrum).unflatten(1, (12, 2)).roll(semitones, 1).flatten(1)
        torch.testing.assert_close(tower(turned), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="multiple of 12, not 16"):
        PitchClasses(width=8, bands_per_semitone=1, keep_key=True).build(9, 36, 16)


@pytest.mark.parametrize("loss", [MelodyLoss(margin=0.5), MelodyLoss("softmax")], ids=["triplet", "softmax"])
def test_embeddings_that_keep_the_key_find_their_covers_in_other_keys(loss):
    tower = PitchClasses(width=8, hidden=32, bands_per_semitone=1, keep_key=True)
    part = small(audio_tower=tower, dim=24, loss=loss)
    clips, covers = learned_by_heart(part)
    assert part.recalls(clips, covers, torch.arange(8))["recall_at_1"] == 1
    assert recall(clips, covers, 1) < 1  # unless they are compared in the best key


def test_validation_does_not_depend_on_the_size_of_a_batch():
    found = []
    for batch_size in (3, 8):
        part = small(loss=MelodyLoss("softmax", temperature=0.1))
        (values,) = trainer().validate(part, loader(part, pairs(), batch_size), verbose=False)
        found.append(values)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    clips, covers = both(part, pairs())
    logits, own = 10 * clips @ covers.T, torch.arange(8)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert found[0]["val/loss"] == pytest.approx(expected.item(), abs=1e-4)
    assert found[0]["val/recall_at_1"] == recall(clips, covers, 1)
    assert found[0]["val/recall_at_10"] == 1


@pytest.mark.parametrize("loss", [MelodyLoss(), MelodyLoss("softmax")], ids=["triplet", "softmax"])
def test_clips_of_one_piece_are_not_each_others_negatives(loss):
    part = small(loss=loss)
    part.log = lambda *args, **options: None
    one, two = pairs(2)
    same = Clip(two.fields | {"id": "piece 0"}, 1.0, two.audio, RATE)
    assert part.training_step(part.prepare([one, same]), 0).item() == pytest.approx(0, abs=1e-6)
    assert part.training_step(part.prepare([one, two]), 0).item() > 0.01
    unnamed = [Clip({"cover": clip.fields["cover"]}, 1.0, clip.audio, RATE) for clip in (one, two)]
    assert part.training_step(part.prepare(unnamed), 0).item() > 0.01


def test_clips_without_a_cover_do_not_count():
    part = small()
    part.log = lambda *args, **options: None
    whole = pairs(3)
    more = [*whole, Clip({}, 1.0, whole[0].audio, RATE), Clip({"cover": whole[0].fields["cover"]}, 1.0)]
    expected = part.training_step(part.prepare(whole), 0).item()
    assert part.training_step(part.prepare(more), 0).item() == pytest.approx(expected, abs=1e-5)
    alone, where = (
        part.prepare(more[3:4]),
        "50 batches in a row .* both audio and cover.*set `covers: true` for the corpus",
    )
    part.training_step(alone, 0).backward()  # a batch may have no pair by chance
    assert all(p.grad is None or not p.grad.any() for p in part.parameters())
    for _ in range(48):
        part.training_step(alone, 0)
    with pytest.raises(PartitaError, match=where):
        part.training_step(alone, 0)
    with pytest.raises(PartitaError, match="its inputs are audio: add cover"):
        small(inputs=("audio",)).setup("fit")


def test_the_windows_of_clip_and_cover_begin_after_the_same_fraction():
    part = small()
    clip = torch.arange(3.0 * RATE).repeat(3, 1)
    samples = torch.tensor([3 * RATE, 2 * RATE, RATE // 2])
    windows = part._window_at(clip, samples, torch.tensor([0.5, 0.999, 0.7]))
    assert windows.shape == (3, RATE)
    assert windows[0, 0] == RATE
    assert windows[1, -1] == pytest.approx(2 * RATE - 1, abs=0.002 * RATE)
    assert windows[2, 0] == 0


def test_a_condition_has_an_embedding_for_each_window():
    """Four seconds every three, of ten seconds at most: three embeddings, as published."""
    tower = SpectrogramTransformer(width=16, depth=1, num_heads=2, patch=(16, 16))
    spectrum = MelodySpectrum(sample_rate=RATE, window=256, hop=64, bands=32)
    part = MelodyEmbedding(audio_tower=tower, spectrum=spectrum).eval()
    torch.manual_seed(1)
    audio = torch.rand(1, 25 * RATE) - 0.5
    clips = [
        Clip({}, 10.0, audio[:, : 10 * RATE], RATE),
        Clip({}, 25.0, audio, RATE),
        Clip({}, 4.5, audio[:, : round(4.5 * RATE)], RATE),
        Clip({"cover": audio[:, :RATE]}, 4.0),
        Clip({}, 4.0),
    ]
    condition = part(part.prepare(clips))
    assert condition.values.shape == (5, 3, 192)
    assert condition.mask.sum(1).tolist() == [3, 3, 2, 1, 0]
    torch.testing.assert_close(condition.values.norm(dim=-1), condition.mask.float())
    torch.testing.assert_close(condition.values[0], condition.values[1])
    whole = part.embed_audio(audio[None])
    assert whole.shape == (1, 8, 192)  # 0, 3, … 21 s
    torch.testing.assert_close(whole[:, :3], condition.values[1:2])
    torch.testing.assert_close(whole[:, 2:3], part.embed_audio(audio[None, :, 6 * RATE : 10 * RATE]))
    alone = part(part.prepare(clips[2:3]))
    torch.testing.assert_close(alone.values, condition.values[2:3, :2])


def test_an_aligned_condition_has_a_frame_for_each_stride_in_the_middle_of_its_window():
    part = small(aligned=True, window=1.0, stride=0.5, seconds=None).eval()
    assert part.spec.frame_rate == 2.0
    audio = play([0, 4, 7, 5, 2, 9], seconds=6.0)[:, : round(2.75 * RATE)]
    condition = part(part.prepare([Clip({}, 2.75, audio, RATE), Clip({}, 4.0, torch.zeros(1, 4 * RATE), RATE)]))
    assert condition.mask.tolist() == [[True] * 6 + [False] * 2, [False] * 8]
    padded = F.pad(audio, (RATE // 4, RATE))
    for frame in range(6):  # from frame / 2 s to (frame + 1) / 2 s
        window = padded[:, frame * RATE // 2 : frame * RATE // 2 + RATE]
        expected = small(seconds=None).eval().embed_audio(window[None])
        torch.testing.assert_close(condition.values[0, frame], expected[0, 0])
    codes = Quantized(embedding=part, num_codebooks=2, cardinality=4, samples=4)
    assert codes.spec.frame_rate == 2.0
    assert codes.positions(2.75) == 6


def test_the_field_that_is_named_first_is_the_condition():
    (clip,) = pairs(1)
    by_clip, by_cover = small().eval(), small(inputs=("cover", "audio")).eval()
    audio, cover = (by_clip.embed_audio(one[None]) for one in (clip.audio, clip.fields["cover"]))
    torch.testing.assert_close(by_clip(by_clip.prepare([clip])).values, audio)
    torch.testing.assert_close(by_cover(by_cover.prepare([clip])).values, cover)
    hummed = Clip({"cover": clip.fields["cover"]}, 1.0)
    torch.testing.assert_close(by_clip(by_clip.prepare([hummed])).values, cover)


@pytest.mark.parametrize(("seconds", "rate", "channels"), [(0.1, 4000, 1), (1.0, 8000, 2), (600.0, 4000, 1)])
def test_audio_of_any_length_rate_and_channels(tmp_path, seconds, rate, channels):
    part = small().eval()
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(tmp_path / "hum.wav", np.repeat(0.3 * np.sin(2 * math.pi * 440 * time)[:, None], channels, 1), rate)
    clip = clip_for(part, Clip({"cover": tmp_path / "hum.wav"}, 2.0))
    condition = part(part.prepare([clip]))
    assert condition.mask.tolist() == [[True] * (3 if seconds > 2 else 1)]
    torch.testing.assert_close(condition.values.norm(dim=-1), torch.ones(condition.mask.shape))
    whole = part.embed_audio(clip.fields["cover"][None])
    assert whole.shape == (1, max(1, 1 + math.ceil((seconds - 1) / 0.75)), 16)


def test_silence_is_embedded_like_any_audio():
    part = small().eval()
    silence = part.embed_audio(torch.zeros(2, 1, RATE))
    assert silence.isfinite().all()
    torch.testing.assert_close(silence.norm(dim=-1), torch.ones(2, 1))
    with pytest.raises(PartitaError, match="mix it down first"):
        part.embed_audio(torch.zeros(1, 2, RATE))
    with pytest.raises(PartitaError, match="not"):
        part.embed_audio(torch.zeros(1, 1, 0))


def test_a_silent_recording_is_no_melody():
    """As if it were missing: another field takes its place, or nothing is known."""
    part, melody = small().eval(), play([0, 4, 7])
    silent, faint = torch.zeros(1, RATE), 1e-3 * melody
    clips = [Clip({"cover": melody}, 1.0, silent, RATE), Clip({}, 1.0, silent, RATE), Clip({}, 1.0, faint, RATE)]
    condition = part(part.prepare(clips))
    assert condition.mask.any(1).tolist() == [True, False, True]
    torch.testing.assert_close(condition.values[0], part.embed_audio(melody[None])[0])
    assert not part.views(part.prepare(clips)).keys.numel()


def test_saved_and_loaded_it_embeds_the_same(tmp_path):
    part = small(loss=MelodyLoss("softmax", temperature=0.2)).eval()
    part.save(tmp_path / "part")
    again = Part.load(tmp_path / "part")
    audio = torch.rand(2, 1, 3 * RATE) - 0.5
    assert torch.equal(again.embed_audio(audio), part.embed_audio(audio))
    assert again.fingerprint() == part.fingerprint()
    assert again.loss == part.loss


def test_clips_of_the_corpus_and_their_covers_are_pairs():
    part = small().eval()
    source = Corpus(limit=6, covers=True)
    source.setup()
    read = Examples(source, "train", length=3, seconds=2.0, sample_rate=8000, channels=1, seed=0)
    prepared = Collate({"melody": part}, 8000)([read[i] for i in range(3)])["prepared"]["melody"]
    assert prepared["audio"].shape == (3, 2 * RATE)
    assert (prepared["cover_samples"] > 0).all()
    assert len(set(prepared["cover_samples"].tolist())) == 3
    assert part._paired(prepared).all()
    assert len(set(prepared["piece"].tolist())) == len({read[i].fields["id"] for i in range(3)})


def test_it_is_trained_and_used_as_a_recipe_says(tmp_path):
    recipe = tmp_path / "melody.yaml"
    recipe.write_text("tokenizers: {}" + RECIPE + "data: {name: corpus, limit: 6, covers: true}\n")
    partita.train(recipe, tmp_path / "run", progress=False)
    system = partita.load(tmp_path / "run")
    assert system.inputs == ("audio", "cover")
    recipe.write_text("tokenizers: {}" + RECIPE + "data: {name: corpus, limit: 6}\n")
    with pytest.raises(PartitaError, match=r"does not supply 'cover', which conditioners.melody reads: set `cov"):
        partita.System.checked(recipe)
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "one.wav", play([0, 4, 7], seconds=3.0)[0].numpy(), RATE)
    with pytest.raises(PartitaError, match=r"none of 1 file in music has a cover, which conditioners.melody reads: wr"):
        partita.train(recipe, tmp_path / "b", [f"data={{name: folder, path: {tmp_path}/music}}"], progress=False)
    saved = tmp_path / "run" / "conditioners" / "melody"
    partita.System.checked(recipe, [f"conditioners.melody.weights={saved}"])  # no training, no covers


def test_a_stage_learns_from_clips_and_takes_a_recording_in_generation(tmp_path):
    stage = """
tokenizers: {acoustic: {name: toy-codec, fit: {steps: 2, batch_size: 2, crop: 0.5}}}
stages:
  main:
    generator: {name: toy-bigram, fit: {steps: 2, batch_size: 2, validation_examples: 2}}
    target: acoustic
    given: [melody]
    window: 1.0
data: {name: corpus, limit: 6, covers: true}
"""
    (tmp_path / "song.yaml").write_text(RECIPE + stage)
    partita.train(tmp_path / "song.yaml", tmp_path / "run", progress=False)
    system = partita.load(tmp_path / "run")
    soundfile.write(tmp_path / "hum.wav", play([0, 4, 7], seconds=1.5)[0].numpy(), RATE)
    for name in ("cover", "audio"):
        audio = system.generate({name: [str(tmp_path / "hum.wav")]}, duration=1.0, seed=0)
        assert audio.shape[0] == 1
        assert audio.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"window": 0.0}, "window must be above 0 seconds"),
        ({"stride": 1e-9}, "stride must be at least the hop of the spectrum"),
        ({"stride": math.inf}, "stride must be above 0 seconds"),
        ({"seconds": -1.0}, "seconds must be above 0 seconds"),
        ({"aligned": True, "stride": 1.5}, "windows of 1 s leave gaps at a stride of 1.5 s"),
        ({"detune": 101.0}, "detune must be from 0 to 100 cents"),
        ({"detune": math.nan}, "detune must be from 0 to 100 cents"),
        (
            {
                "detune": 20.0,
                "spectrum": MelodySpectrum(bands=32),
                "audio_tower": SpectrogramTransformer(width=8, depth=1, num_heads=2),
            },
            "detune needs bands in octaves",
        ),
        ({"spectrum": replace(SPECTRUM, per_octave=13)}, "needs 12 bands per octave, and spectrum.per_octave is 13"),
        ({"spectrum": replace(SPECTRUM, per_octave=None)}, "needs 12 bands per octave, and .* is None"),
        ({"spectrum": replace(SPECTRUM, bands=36000)}, "36000 bands from 110 Hz reach 2999.92 octaves higher"),
        ({"spectrum": replace(SPECTRUM, bands=10**8)}, "take fewer bands"),
        ({"inputs": ("audio", "audio")}, "inputs names a field twice: audio, audio"),
        ({"inputs": ("text",)}, "reads audio, but text is text"),
        ({"inputs": ("audio", "stems")}, "stems holds several"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: MelodyLoss("cosine"), "triplet or softmax, not 'cosine'"),
        (lambda: MelodyLoss(margin=0.0), "margin must be above 0"),
        (lambda: MelodySpectrum(bands=0), "bands must be at least 1"),
        (lambda: MelodySpectrum(window=1), "window must be at least 2"),
        (lambda: MelodySpectrum(f_min=0.0, per_octave=12), "need per_octave and f_min of at least 1"),
        (lambda: PitchClasses(width=6), "positive multiple of 4, not 6"),
        (lambda: PitchClasses(taps=2), "positive odd number"),
        (lambda: PitchClasses(registers=0), "must be positive"),
        (lambda: PitchClasses().build(9, 100, 4), "100 bands are not whole octaves .* take a multiple of 108"),
    ],
)
def test_wrong_sizes(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
