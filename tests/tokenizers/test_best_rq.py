import math
import multiprocessing
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from partita.core.fit import Fit
from partita.core.part import Part
from partita.core.processes import end_batch, seed_batch
from partita.tokenizers.best_rq import BestRQ, ConformerShape, Masking, MelInput
from partita.tokenizers.encoding_windows import Windows
from partita.tokenizers.kmeans import KMeans
from partita.tokenizers.random_targets import ChromaCodes, RandomTargets

RATE, FRAME = 4000, 160
"""Sample rate, and samples per frame of features."""


def build(**options):
    torch.manual_seed(0)
    small = {
        "sample_rate": RATE,
        "frame_rate": RATE / FRAME,
        "spectrum": MelInput(bands=12, stack=2, overlap=3, updates=5),
        "encoder": ConformerShape(width=32, depth=2, num_heads=2, kernel=7),
        "masking": Masking(probability=0.03, seconds=0.2),
        "targets": RandomTargets(number=2, cardinality=64, dim=4),
    }
    return BestRQ(**{**small, **options}).eval()


def tones(clips=2, seconds=3.0):
    """Clips ``[N, 1, T]`` of tones that change four times a second."""
    draw = torch.Generator().manual_seed(1)
    time = torch.arange(RATE // 4) / RATE
    pitch = 200 * 2 ** (torch.randint(24, (clips, int(4 * seconds), 1), generator=draw) / 12)
    return (0.3 * torch.sin(2 * torch.pi * pitch * time)).flatten(1)[:, None]


def train(part, clips, steps, batch=None, **fit):
    part.fit_options = Fit(steps=steps, **fit)
    batch = batch or len(clips)
    data = [{"audio": clip} for clip in clips] * math.ceil(steps * batch / len(clips))
    part.train()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*many workers")
        trainer.fit(part, DataLoader(data, batch), DataLoader(data[: len(clips)], len(clips)))
    part.eval()
    return trainer.callback_metrics


@pytest.mark.parametrize("overlap", [2, 3, 8])
def test_the_sound_of_a_masked_frame_changes_its_target_but_no_prediction(overlap):
    part = build(spectrum=MelInput(bands=12, stack=2, overlap=overlap))
    audio = tones(1)
    mask = torch.zeros(1, audio.shape[-1] // FRAME, dtype=torch.bool)
    mask[:, 20:25] = mask[:, 40] = True
    other = torch.where(mask.repeat_interleave(FRAME, 1)[:, None], torch.randn_like(audio), audio)
    predicted, targets = [], []
    for heard in (audio, other):
        mel = part.standardize(part.spectrum(heard))
        torch.manual_seed(7)
        predicted.append(part.predict(part.hide(mel, mask)))
        targets.append(part.target_codes(mel, heard))
    assert torch.equal(*predicted)
    changed = (targets[0] != targets[1]).any(1)
    assert changed[mask].all()
    far = math.ceil(overlap / 4)  # frames that the window reaches on either side
    assert not changed[:, : 20 - far].any()
    assert not changed[:, 41 + far :].any()
    unmasked = part.predict(part.standardize(part.spectrum(other))) - part.predict(
        part.standardize(part.spectrum(audio))
    )
    assert unmasked.abs().max() > 1e-3


def test_masks_are_spans_that_begin_at_random():
    part = build(masking=Masking(probability=0.02, seconds=0.2))
    mask = part.draw_mask(200, 400)
    span = round(0.2 * RATE / FRAME)
    # a frame is heard if no span began at its own mel frames or those of the frames before
    assert mask[:, span:].float().mean() == pytest.approx(1 - 0.98 ** (2 * span), abs=0.01)
    for row in mask[:20, :-span].int():
        edges = torch.diff(row, prepend=torch.zeros(1), append=torch.ones(1))
        begins, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        lengths = ends - begins[: len(ends)]
        assert (lengths >= span).all()


def test_a_span_longer_than_the_clip_masks_the_rest_of_it():
    mask = build(masking=Masking(probability=0.02, seconds=1e12)).draw_mask(50, 20)
    assert mask.any()
    assert not (mask[:, :-1] & ~mask[:, 1:]).any()


def test_masked_frames_are_noise_and_the_others_what_they_were():
    part = build(masking=Masking(noise=0.3))
    mel = part.standardize(part.spectrum(tones(8, 8.0)))
    mask = part.draw_mask(8, mel.shape[-1] // 2)
    hidden = part.hide(mel, mask)
    replaced = (hidden != mel).all(1)
    assert replaced[mask.repeat_interleave(2, 1)].all()
    assert torch.equal(hidden.mT[~replaced], mel.mT[~replaced])
    assert hidden.mT[replaced].std() == pytest.approx(0.3, rel=0.05)
    assert abs(hidden.mT[replaced].mean()) < 0.02


def test_targets_are_the_nearest_codes_to_random_projections(tmp_path):
    part = build()
    train(part, tones(4), 2)  # with statistics
    mel = part.standardize(part.spectrum(tones()))
    codes = part.target_codes(mel, tones())
    assert codes.shape == (2, 2, 75)
    part.save(tmp_path)
    state = {name: tensor.double().numpy() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    stacked = (
        mel.double().numpy()[:, :, :150].transpose(0, 2, 1).reshape(2, 75, 24)
    )  # two mel frames, one after the other
    for book in range(2):
        projected = stacked @ state["quantizer.projections"][book]
        projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
        distances = np.linalg.norm(projected[:, :, None] - state["quantizer.codes"][book], axis=-1)
        assert np.array_equal(distances.argmin(-1), codes[:, book].numpy())
    assert torch.equal(build().target_codes(mel, tones()), codes)  # from the same seed
    torch.manual_seed(5)
    assert torch.equal(Part.load(tmp_path).target_codes(mel, tones()), codes)
    assert not any(p.requires_grad for name, p in part.named_parameters() if name.startswith("quantizer"))


def chord(notes, instrument, seconds=2.0):
    """A chord ``[1, 1, T]`` of MIDI notes, each with harmonics of the given amplitudes."""
    time = torch.arange(int(seconds * RATE)) / RATE
    sound = torch.zeros(len(time))
    for note in notes:
        frequency = 440 * 2 ** ((note - 69) / 12)
        for harmonic, amplitude in enumerate(instrument, 1):
            sound += amplitude * torch.sin(2 * torch.pi * harmonic * frequency * time)
    return sound[None, None] / sound.square().mean().sqrt() / 10


def test_chroma_targets_are_those_of_the_notes_at_any_level_and_octave():
    codes = ChromaCodes(RandomTargets(chroma=8, cardinality=64, dim=8), RATE, FRAME, 5).eval()
    c_major, f_minor = [60, 64, 67], [53, 56, 60]
    chroma = codes.chroma(chord(c_major, [1.0])[:, 0])[0]
    assert chroma.shape == (12, 50)
    assert torch.allclose(chroma.norm(dim=0), torch.ones(50))
    assert sorted(chroma[:, 25].topk(3).indices.tolist()) == [0, 4, 7]
    middle = slice(20, 30)  # windows that lie within the sound
    found = codes(chord(c_major, [1.0])[:, 0])[..., middle]
    assert torch.equal(codes(chord(c_major, [0.05])[:, 0])[..., middle], found)
    higher = codes(chord([note + 12 for note in c_major], [1.0])[:, 0])[..., middle]
    louder = codes(3 * chord(c_major, [1.0])[:, 0])[..., middle]
    other = codes(chord(f_minor, [1.0])[:, 0])[..., middle]
    assert torch.equal(louder, found)
    assert (higher == found).float().mean() > 0.6 > 0.3 > (other == found).float().mean()


def test_chroma_targets_are_the_nearest_codes_to_random_projections():
    part = build(targets=RandomTargets(number=1, cardinality=64, dim=4, chroma=3))
    audio = tones(4)
    train(part, audio, 6)
    codes = part.target_codes(part.standardize(part.spectrum(audio)), audio)
    assert codes.shape == (4, 4, 75)
    state = {name: tensor.double().numpy() for name, tensor in part.chroma_codes.state_dict().items()}
    chroma = part.chroma_codes.chroma(audio[:, 0]).double().numpy()
    np.testing.assert_allclose(state["standardize.mean"], chroma.mean((0, 2)), atol=1e-5)  # batches hold all clips
    np.testing.assert_allclose(state["standardize.variance"], chroma.var((0, 2)), rtol=1e-3)
    frames = ((chroma - chroma.mean((0, 2))[:, None]) / chroma.std((0, 2))[:, None]).transpose(0, 2, 1)
    for book in range(3):
        projected = frames @ state["quantizer.projections"][book]
        projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
        distances = np.linalg.norm(projected[:, :, None] - state["quantizer.codes"][book], axis=-1)
        assert (distances.argmin(-1) == codes[:, 1 + book].numpy()).mean() > 0.99


def test_targets_can_be_of_the_chroma_alone():
    part = build(targets=RandomTargets(number=0, chroma=2, cardinality=64, dim=4), masking=Masking(heard=1.0))
    metrics = train(part, tones(4), 3)
    assert math.isfinite(metrics["val/loss"])
    assert metrics["val/target_perplexity"] > 4
    assert part.predict(part.standardize(part.spectrum(tones()))).shape == (2, 75, 2, 64)


def test_heard_frames_count_as_much_as_asked():
    losses = []
    for heard in (0.0, 0.5, 2.0):
        part, audio = build(masking=Masking(probability=0.03, seconds=0.2, heard=heard)), tones(4)
        torch.manual_seed(3)
        losses.append(part._loss(part.spectrum(audio), audio)[0].item())
    masked, half, double = losses
    assert (half - masked) * 4 == pytest.approx(double - masked, rel=1e-4)
    # an untrained network knows nothing of either: each mean is about that of a uniform guess
    assert half - masked == pytest.approx(0.5 * math.log(64), rel=0.1)


def test_overfits_two_clips():
    part = build(
        masking=Masking(probability=0.06, seconds=0.04),
        encoder=ConformerShape(width=64, depth=1, num_heads=2, kernel=7),
    )
    audio = tones()
    metrics = train(part, audio, 300, lr=1e-2, warmup_steps=10)
    codes = part.target_codes(part.standardize(part.spectrum(audio)), audio)
    share = torch.stack([torch.bincount(book.flatten(), minlength=64) for book in codes.unbind(1)]).double()
    share /= share.sum(1, keepdim=True)
    unigram = float(-torch.xlogy(share, share).sum(1).mean())
    assert unigram > 1.5
    assert metrics["val/loss"] < unigram / 3
    assert metrics["val/accuracy"] > 0.8
    assert float(metrics["val/target_perplexity"]) == pytest.approx(
        float((-torch.xlogy(share, share).sum(1)).exp().mean()), rel=1e-4
    )
    assert {"train/loss", "train/accuracy", "train/target_perplexity", "val/target_usage"} <= metrics.keys()


def test_targets_that_collapse_are_visible():
    metrics = train(build(), torch.zeros(2, 1, RATE), 2)
    assert metrics["train/target_perplexity"] == metrics["val/target_perplexity"] == 1
    assert math.isfinite(metrics["train/loss"])


def test_bands_are_normalized_by_the_first_batches():
    part, audio = build(), tones(20)
    train(part, audio, 10, batch=2)
    mel = part.spectrum(audio[:10]).double()  # five batches of two
    assert torch.allclose(part.standardize.mean.double(), mel.mean((0, 2)), atol=1e-4)
    assert torch.allclose(part.standardize.variance.double(), mel.var((0, 2), correction=0), rtol=1e-4)


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0])
@pytest.mark.parametrize("seconds", [0.1, 0.37, 9.99])
def test_there_is_a_frame_for_every_frame_that_begins(rate, seconds):
    part = build(frame_rate=rate)
    features = part.encode(torch.randn(1, 1, round(seconds * RATE)))
    assert features.shape == (1, 32, math.ceil(seconds * rate - 1e-6))
    assert (part.spec.dim, part.spec.frame_rate, part.spec.discrete) == (32, rate, False)


def test_ten_minutes_are_encoded_window_by_window():
    part = build(windows=Windows(seconds=4.0, context=1.0))
    lengths = []
    part.network.blocks[0].register_forward_hook(lambda block, inputs, output: lengths.append(output.shape[1]))
    audio = torch.randn(1, 1, 600 * RATE + 1) * 0.1
    features = part.encode(audio)
    assert features.shape == (1, 32, 15001)
    assert set(lengths) == {100}  # also at the end, where a window of the rest alone would hear too little
    windows = ((0, 100, slice(0, 50)), (125, 225, slice(25, 75)), (14901, 15001, slice(99, 100)))
    for first, last, kept in windows:
        alone = part.encode(audio[..., first * FRAME : last * FRAME])
        torch.testing.assert_close(features[..., first + kept.start : first + kept.stop], alone[..., kept])


def test_a_clip_alone_is_encoded_as_in_a_batch():
    part, audio = build(), tones(5)
    for clip, features in zip(audio, part.encode(audio), strict=True):
        torch.testing.assert_close(part.encode(clip[None])[0], features, rtol=0, atol=1e-5)


def test_silence_has_features():
    part = build()
    train(part, tones(4), 3)
    assert part.encode(torch.zeros(1, 1, 3 * RATE)).isfinite().all()


def test_features_are_those_of_the_chosen_block():
    part, audio = build(layer=1), tones(1)
    outputs = []
    for block in part.network.blocks:
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output))
    part.predict(part.standardize(part.spectrum(audio)))
    first, second = outputs
    torch.testing.assert_close(part.encode(audio), first.mT)
    part.layer = 2
    torch.testing.assert_close(part.encode(audio), second.mT)
    assert BestRQ(encoder=ConformerShape(width=8, depth=5, num_heads=2)).layer == 3


def test_its_clusters_are_codes():
    part = KMeans(features=build(), cardinality=4, updates=1, reservoir=100)
    audio = tones(4)
    train(part, audio, 3)
    codes = part.eval().encode(audio)
    assert codes.shape == (4, 1, 75)
    assert len(codes.unique()) == 4
    with pytest.raises(NotImplementedError, match="best-rq cannot turn"):
        part.decode(codes)


def test_trains_the_same_with_recomputed_blocks():
    shape = {"width": 32, "depth": 2, "num_heads": 2, "kernel": 7}
    parts = [build(encoder=ConformerShape(**shape, checkpointing=again)) for again in (False, True)]
    for part in parts:
        torch.manual_seed(0)
        train(part, tones(), 3)
    for one, other in zip(*(part.state_dict().values() for part in parts), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"frame_rate": 30.0}, "whole number of samples"),
        ({"layer": 3}, "layer"),
        ({"layer": 0}, "layer"),
        ({"spectrum": MelInput(f_min=3000, f_max=100)}, "bands go up"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"targets": RandomTargets(chroma=1, chroma_seconds=30)}, "at most the 20 s of windows"),
        ({"encoder": ConformerShape(width=30, depth=1, num_heads=4)}, "width"),
    ],
)
def test_refuses_what_cannot_be(options, word):
    with pytest.raises(ValueError, match=word):
        build(**options)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MelInput(stack=0), "stack"),
        (lambda: Masking(probability=0.0), "probability"),
        (lambda: Masking(seconds=-1), "seconds"),
        (lambda: Masking(seconds=math.inf), "seconds"),
        (lambda: Masking(noise=-1), "noise"),
        (lambda: Masking(noise=math.inf), "noise"),
        (lambda: Masking(heard=-1), "heard"),
        (lambda: Masking(heard=math.inf), "heard"),
        (lambda: RandomTargets(cardinality=1), "cardinality"),
        (lambda: RandomTargets(chroma=-1), "chroma"),
        (lambda: RandomTargets(chroma=1, chroma_seconds=0), "chroma_seconds"),
        (lambda: RandomTargets(number=0), "nothing to predict"),
        (lambda: Windows(seconds=4, context=2), "twice its context"),
    ],
)
def test_refuses_options_that_cannot_be(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_the_full_size_is_about_95_million():
    with torch.device("meta"):
        part = BestRQ(spectrum=MelInput(bands=128))
    assert part.num_parameters == pytest.approx(95e6, rel=0.05)
    assert part.outline_step(2, 3.0) is not None


def gradients(part, audio, rank=0, size=1):
    """Gradients and statistics after two batches, of which this process gets a share."""
    part.train()
    for batch in range(2):
        seed_batch(3, batch)
        share = audio[batch].chunk(size)[rank]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*self.log.*")
            part.training_step({"audio": share}, batch).backward()
        end_batch()
    statistics = (part.standardize, part.chroma_codes.standardize)
    return [*(x for one in statistics for x in (one.mean, one.variance)), *(p.grad for p in part.parameters())]


def build_with_all_losses():
    targets = RandomTargets(number=2, chroma=1, cardinality=64, dim=4)
    return build(targets=targets, masking=Masking(probability=0.03, seconds=0.2, heard=0.5))


def in_a_share(rank, store, audio, out):
    """Be one of two processes that train together, whose gradients are averaged."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(store), 2), rank=rank, world_size=2
    )
    found = gradients(build_with_all_losses(), audio, rank, 2)
    for gradient in found[4:]:
        torch.distributed.all_reduce(gradient)
    torch.save([*found[:4], *(gradient / 2 for gradient in found[4:])], f"{out}-{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    """Statistics, masks and noise are those of the whole batch, and so are the means over masked and other frames."""
    audio = tones(8).unflatten(0, (2, 4))
    context = multiprocessing.get_context("spawn" if torch.accelerator.is_available() else "fork")
    both = [
        context.Process(target=in_a_share, args=(rank, tmp_path / "store", audio, tmp_path / "out")) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    expected = gradients(build_with_all_losses(), audio)
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    for rank in (0, 1):
        for mine, wanted in zip(torch.load(tmp_path / f"out-{rank}"), expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-6)
