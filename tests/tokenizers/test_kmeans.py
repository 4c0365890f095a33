import warnings

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from partita.core.contracts import RepresentationSpec
from partita.core.part import Part
from partita.core.registry import register
from partita.data.examples import StepSampler
from partita.tokenizers.base import Tokenizer
from partita.tokenizers.kmeans import KMeans
from partita.tokenizers.log_mel import LogMel


@register("tokenizer", "toy-frames")
class ToyFrames(Tokenizer):
    """Samples as they are, some to a frame; audio is what they were.

    Args:
        dim: Samples per frame.
        codes: Whether it says that it yields codes.
    """

    trainable = False
    weightless = True

    def __init__(self, *, dim: int = 4, codes: bool = False):
        super().__init__()
        self.dim, self.codes = dim, codes

    @property
    def spec(self):
        if self.codes:
            return RepresentationSpec(400, 1, 400 / self.dim, 1, 16)
        return RepresentationSpec(400, 1, 400 / self.dim, dim=self.dim)

    def encode(self, audio):
        return audio[:, 0].unflatten(1, (-1, self.dim)).mT


class Reseed(Callback):
    """As the package's training does: randomness is a function of the step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(batch_idx)


class Save(Callback):
    """A checkpoint before the step of the given number."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.step:
            trainer.save_checkpoint(self.path)


def train(part, clips, *callbacks, start=0, checkpoint=None, batch=8, **options):
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Reseed(), *callbacks],
        **options,
    )
    data = [{"audio": clip} for clip in clips]
    loader = DataLoader(data, batch_size=batch, sampler=StepSampler(len(data) // batch, batch, start=start))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*many workers")
        trainer.fit(part, loader, DataLoader(data[:batch], batch_size=batch), ckpt_path=checkpoint)
    return trainer


def blobs(clips=120, frames=25, dim=4, number=16):
    """Clips ``[N, 1, frames · dim]`` of frames around centers that are far apart, on scales that differ by channel."""
    draw = torch.Generator().manual_seed(1)
    centers = torch.randn(number, dim, generator=draw) * 3
    chosen = centers[torch.randint(number, (clips, frames), generator=draw)]
    scale = torch.tensor([1.0, 10.0, 100.0, 0.1])
    frames = (chosen + 0.2 * torch.randn(chosen.shape, generator=draw)) * scale + 7
    return frames.flatten(1)[:, None]


def chords(clips=96, seconds=2.0, rate=4000):
    """Clips ``[N, 1, T]`` in which three fading tones of a scale begin together, four times a second."""
    draw = torch.Generator().manual_seed(2)
    time = torch.arange(int(rate / 4)) / rate
    count = int(4 * seconds)
    pitch = 110 * 2 ** (torch.randint(24, (clips, count, 3, 1), generator=draw) / 12)
    fade = torch.exp(-(2 + 6 * torch.rand(clips, count, 1, 1, generator=draw)) * time)
    return (0.2 * torch.sin(2 * torch.pi * pitch * time) * fade).sum(2).flatten(1)[:, None]


def least_distance(frames, number, restarts=4):
    """The mean squared distance that Lloyd's algorithm reaches on all frames at once, from k-means++ starts."""
    draw, best = np.random.default_rng(0), np.inf
    for _ in range(restarts):
        centers = frames[draw.integers(len(frames), size=1)]
        distance = ((frames - centers[0]) ** 2).sum(1)
        while len(centers) < number:
            centers = np.concatenate([centers, frames[draw.choice(len(frames), 1, p=distance / distance.sum())]])
            distance = np.minimum(distance, ((frames - centers[-1]) ** 2).sum(1))
        before = np.inf
        for _ in range(200):
            squared = (frames**2).sum(1)[:, None] + (centers**2).sum(1) - 2 * frames @ centers.T
            codes, now = squared.argmin(1), squared.min(1).mean()
            if before - now < 1e-6 * now:
                break
            before = now
            filled = [frames[codes == k].mean(0) if (codes == k).any() else centers[k] for k in range(number)]
            centers = np.stack(filled)
        best = min(best, now)
    return best


@pytest.mark.parametrize(
    ("features", "clips", "number", "options"),
    [
        (ToyFrames(), blobs(), 16, {"updates": 2, "reservoir": 300}),
        (LogMel(sample_rate=4000, frame_rate=25, bands=32), chords(192), 32, {"updates": 6, "reservoir": 1500}),
    ],
)
def test_is_as_good_as_lloyd_on_everything_at_once(features, clips, number, options):
    """Though it never sees more than a batch and a sample of the first few."""
    part = KMeans(features=features, cardinality=number, **options)
    trainer = train(part, clips)
    frames = features.encode(clips).mT.flatten(0, 1).double().numpy()
    statistics = features.encode(clips[: 8 * options["updates"]]).mT.flatten(0, 1).double()
    mean, deviation = statistics.mean(0).numpy(), statistics.std(0, correction=0).numpy()
    standardized = (frames - mean) / deviation
    codes = part.encode(clips).flatten()
    centers = part.centers.detach().double().numpy()
    distance = ((standardized - centers[codes]) ** 2).sum(1).mean()
    assert distance < 1.03 * least_distance(standardized, number)
    assert len(codes.unique()) == number
    in_batch = (codes.reshape(len(clips), -1)[:8].flatten(), standardized.reshape(len(clips), -1, frames.shape[1])[:8])
    expected = ((in_batch[1].reshape(-1, frames.shape[1]) - centers[in_batch[0]]) ** 2).mean()
    assert trainer.callback_metrics["val/loss"] == pytest.approx(expected, rel=1e-3)


def test_codes_name_the_nearest_center_and_decode_to_it():
    features = LogMel(sample_rate=4000, frame_rate=25, bands=16)
    part = KMeans(features=features, cardinality=8, updates=2, reservoir=200)
    audio = chords(16)
    train(part, audio)
    part.eval()
    codes = part.encode(audio[:3, :, :7999])
    assert codes.shape == (3, 1, 50)
    assert codes.dtype == torch.int64
    latents = features.encode(audio[:3])
    frames = (latents - part.standardize.mean[:, None]) / part.standardize.deviation[:, None]
    distances = torch.cdist(frames.mT, part.centers)
    assert torch.equal(codes[:, 0], distances.argmin(-1))
    # each frame becomes the mean of its cluster, which is closer than the mean of all
    means = part.standardize.inverse(part.centers[codes[:, 0]].mT)
    assert torch.equal(part.decode(codes), features.decode(means))
    assert (means - latents).square().mean() < 0.7 * latents.var()


def test_facts_are_those_of_the_features():
    spec = KMeans(features=LogMel(frame_rate=12.5, channels=2), cardinality=9).spec
    assert spec == RepresentationSpec(16000, 2, 12.5, 1, 9)


@pytest.mark.parametrize("step", [2, 9])
def test_a_killed_run_goes_on_bit_for_bit(step, tmp_path):
    """While statistics are taken and after the clusters began."""

    def build():
        return KMeans(features=ToyFrames(), cardinality=16, updates=5, reservoir=500, revive_below=0.5)

    whole, killed = build(), build()
    train(whole, blobs(), Save(step, tmp_path / "last.ckpt"))
    train(killed, blobs(), start=step, checkpoint=tmp_path / "last.ckpt")
    assert not torch.equal(whole.share, torch.ones(16))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, killed.state_dict()[name]), name


def test_several_threads_do_not_change_a_bit():
    """Sums of many frames of a cluster depend on their order."""
    clips, before = blobs(clips=64, frames=4000), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        made = []
        for _ in range(3):
            torch.manual_seed(0)
            part = KMeans(features=ToyFrames(), cardinality=16, updates=2, reservoir=500)
            train(part, clips, batch=16)
            made.append(part.centers.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_clusters_that_lose_their_frames_move():
    part = KMeans(features=ToyFrames(), cardinality=16, updates=1, reservoir=100)
    train(part, blobs(8))
    part.centers.data[:8] = 1e3  # as after a change of the data
    train(part, blobs(2000))
    assert len(part.encode(blobs()).unique()) == 16


def test_statistics_are_a_uniform_sample_of_the_first_batches():
    part = KMeans(features=ToyFrames(), cardinality=2, updates=10, reservoir=1000)
    clips = torch.arange(80.0).repeat_interleave(100).reshape(80, 1, 100) + 0.01 * torch.rand(80, 1, 100)
    train(part, clips)
    per_clip = torch.bincount(part.reservoir[:, 0].long(), minlength=80)
    assert per_clip.sum() == 1000
    assert (per_clip.float() - 12.5).abs().max() < 9
    assert torch.allclose(part.standardize.mean, clips.reshape(-1, 4).mean(0), atol=1e-4)


def test_too_short_a_training_still_gives_clusters(tmp_path):
    part = KMeans(features=ToyFrames(), cardinality=16, updates=50, reservoir=500)
    train(part, blobs(16))
    assert part.started
    assert len(part.encode(blobs()).unique()) == 16


def test_says_nothing_and_logs_what_matters(recwarn):
    part = KMeans(features=ToyFrames(), cardinality=16, updates=3, reservoir=500)
    trainer = train(part, blobs())
    assert trainer.global_step == 15
    assert {"train/loss", "val/loss", "val/usage", "val/perplexity"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["val/usage"] == 1
    assert 10 < trainer.callback_metrics["val/perplexity"] <= 16
    ours = [w for w in recwarn if "kmeans" in str(w.message) or "optimizer" in str(w.message)]
    assert not ours


def test_is_saved_with_its_features(tmp_path):
    part = KMeans(features=ToyFrames(dim=2), cardinality=16, updates=2, reservoir=100)
    train(part, blobs(16))
    part.eval().save(tmp_path)
    loaded = Part.load(tmp_path)
    assert loaded.features.dim == 2
    assert torch.equal(loaded.encode(blobs()), part.encode(blobs()))
    assert not [name for name in part.exported_state() if name.startswith(("reservoir", "share"))]


def test_half_precision_takes_nothing_from_the_clusters():
    full, half = (KMeans(features=ToyFrames(), cardinality=16, updates=3, reservoir=500) for _ in range(2))
    half.load_state_dict(full.state_dict())
    train(full, blobs())
    train(half, blobs(), precision="bf16-mixed")
    assert torch.allclose(full.centers, half.centers, atol=1e-5)


def test_features_that_cannot_make_audio_say_so():
    part = KMeans(features=ToyFrames(), cardinality=4)
    with pytest.raises(NotImplementedError, match="toy-frames cannot turn"):
        part.decode(torch.zeros(1, 1, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"features": ToyFrames(codes=True)}, "must be continuous, but toy-frames"),
        ({"cardinality": 1}, "cardinality"),
        ({"reservoir": 10}, "reservoir"),
        ({"updates": 0}, "updates"),
        ({"revive_below": 1.0}, "revive_below"),
    ],
)
def test_refuses_nonsense(option, word):
    with pytest.raises(ValueError, match=word):
        KMeans(**{"features": ToyFrames(), "cardinality": 16} | option)


def test_built_without_memory():
    with torch.device("meta"):
        assert KMeans(features=LogMel(), cardinality=16).centers.is_meta
