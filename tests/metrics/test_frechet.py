from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy import linalg

from partita.errors import PartitaError
from partita.metrics.bootstrap import LabelMeans, canonical_order
from partita.metrics.frechet import FrechetDistance, FrechetInfinity, bootstrap_frechet, frechet_limit
from partita.metrics.gaussian import Gaussian, frechet_distance, source_hash
from partita.metrics.similarity import PairedCosine

MANY = 10**9


def population(mean, covariance):
    """The statistics of so many embeddings that their number makes no difference."""
    return Gaussian(MANY, mean.double(), covariance.double() * (MANY - 1))


def diagonal_pair(dim):
    """Two Gaussians with diagonal covariances, and their distance in closed form."""
    mean, first = torch.linspace(-0.3, 0.3, dim), torch.linspace(0.5, 2, dim)
    second = first.flip(0)
    truth = mean.square().sum() + (first - second).square().sum()
    return population(torch.zeros(dim), torch.diag(first**2)), (mean, second), truth.item()


def correlated(number, dim, seed):
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.normal(size=(number, dim)) @ generator.normal(size=(dim, dim)) + 3)


def scipys(first, second):
    return scipys_formula(first.mean(0), np.cov(first, rowvar=False), second.mean(0), np.cov(second, rowvar=False))


def scipys_formula(mean, covariance, other_mean, other):
    means = np.square(mean - other_mean).sum()
    return means + np.trace(covariance + other - 2 * linalg.sqrtm(covariance @ other).real)


def test_distance_is_that_of_scipys_matrix_root():
    first, second = correlated(3000, 32, 0), correlated(2000, 32, 1)
    metric = FrechetDistance(32)
    for batch in first.split(700):
        metric.update(batch, reference=True)
    for batch in second.split(300):
        metric.update(batch)
    found = metric.compute()
    assert found["frechet"].item() == pytest.approx(scipys(first.numpy(), second.numpy()), rel=1e-6)
    assert (found["referred"].item(), found["evaluated"].item()) == (3000, 2000)


def test_distance_survives_a_mean_far_from_zero():
    """Sums of squares in float64 would keep nothing of deviations of 1 around 10⁹."""
    embeddings = correlated(500, 4, 0)
    metric = FrechetDistance(4)
    for batch in (embeddings + 1e9).split(50):
        metric.update(batch)
        metric.update(batch + 2, reference=True)
    assert metric.compute()["frechet"].item() == pytest.approx(4 * 2**2, rel=1e-5)
    assert metric.evaluation_statistics.covariance.numpy() == pytest.approx(np.cov(embeddings.T), rel=1e-4)


def test_distance_of_covariances_without_full_rank():
    """In a common subspace it is the distance there; in orthogonal ones the mixed term is zero."""
    basis = torch.linalg.qr(torch.randn(64, 20, dtype=torch.float64)).Q
    first, second = correlated(500, 10, 0), correlated(500, 10, 1)
    inside = frechet_distance(Gaussian.of(first), Gaussian.of(second)).item()
    low, high = basis[:, :10].T, basis[:, 10:].T
    together = frechet_distance(Gaussian.of(first @ low), Gaussian.of(second @ low)).item()
    assert together == pytest.approx(inside, rel=1e-6)
    apart = frechet_distance(Gaussian.of(first @ low), Gaussian.of(second @ high)).item()
    means = first.mean(0).square().sum() + second.mean(0).square().sum()
    assert apart == pytest.approx((means + first.var(0).sum() + second.var(0).sum()).item(), rel=1e-6)
    few = correlated(5, 64, 2)  # fewer than dimensions
    assert frechet_distance(Gaussian.of(few), Gaussian.of(few)).item() == pytest.approx(
        0, abs=1e-6 * few.var(0).sum().item()
    )


def test_distance_to_itself_is_zero():
    embeddings = Gaussian.of(correlated(1000, 16, 0))
    assert frechet_distance(embeddings, embeddings).item() == pytest.approx(0, abs=1e-9)


def test_interval_holds_the_distance_of_known_gaussians():
    """Frames of a clip alike: in 50 sets, a 90 % interval holds it 45 times; 39 or fewer by chance in one of 100."""
    reference, (mean, deviation), truth = diagonal_pair(6)
    held, corrected, plain = 0, [], []
    for _ in range(50):
        clips = 0.7 * torch.randn(120, 1, 6) + 0.51**0.5 * torch.randn(120, 8, 6)
        frames = (clips * deviation + mean).flatten(0, 1)
        found = bootstrap_frechet(frames, torch.full((120,), 8), reference, resamples=200, confidence=0.9)
        held += bool(found["low"] <= truth <= found["high"])
        corrected.append(found["corrected"])
        plain.append(found["value"])
    assert held >= 40
    assert abs(torch.stack(corrected).mean() - truth) < abs(torch.stack(plain).mean() - truth)


def test_value_is_scipys_and_its_interval_holds_the_analytic_one():
    """Gaussians whose covariances do not commute; 8 or more of 10 intervals of 99 %, but by chance in one of 8000."""
    generator, dim, held = np.random.default_rng(0), 8, 0
    mixes = generator.normal(size=(2, dim, dim))
    covariance, other = (mix @ mix.T for mix in mixes)
    mean = np.full(dim, 0.5)
    truth = scipys_formula(np.zeros(dim), covariance, mean, other)
    reference = population(torch.zeros(dim), torch.from_numpy(covariance))
    for seed in range(10):
        clips = generator.normal(size=(200, 10, dim)) + generator.normal(size=(200, 1, dim))  # their frames alike
        frames = (clips.reshape(-1, dim) / 2**0.5 @ mixes[1].T + mean).astype(np.float32)
        metric = FrechetInfinity(dim, reference=reference, resamples=300, confidence=0.99, seed=seed)
        metric.update(torch.from_numpy(frames), sizes=torch.full((200,), 10))
        found = {name: value.item() for name, value in metric.compute().items()}
        frames = frames.astype(np.float64)
        expected = scipys_formula(np.zeros(dim), covariance, frames.mean(0), np.cov(frames, rowvar=False))
        assert found["frechet"] == pytest.approx(expected, rel=1e-6)
        assert found["frechet_high"] - found["frechet_low"] < truth / 2
        held += found["frechet_low"] <= truth <= found["frechet_high"]
    assert held >= 8


@pytest.mark.parametrize("dim", [3, 50])  # more frames than that, and fewer
def test_interval_is_that_of_resampling_the_frames_of_clips(dim):
    """The same draws, with the embeddings of the clips drawn put together."""
    sizes = torch.tensor([3, 9, 5, 7, 4, 8])
    frames, reference = correlated(36, dim, 0), Gaussian.of(correlated(90, dim, 1))
    found = bootstrap_frechet(frames, sizes, reference, resamples=4000, confidence=0.8)
    clips, generator, distances = frames.split(sizes.tolist()), np.random.default_rng(0), []
    for _ in range(4000):
        drawn = torch.cat([clips[c] for c in generator.integers(6, size=6)])
        distances.append(frechet_distance(reference, Gaussian.of(drawn)).item())
    value = frechet_distance(reference, Gaussian.of(frames)).item()
    low, high = np.quantile(distances, [0.1, 0.9])
    spread = high - low
    assert found["low"].item() == pytest.approx(2 * value - high, abs=0.06 * spread)
    assert found["high"].item() == pytest.approx(2 * value - low, abs=0.06 * spread)
    assert found["corrected"].item() == pytest.approx(2 * value - np.mean(distances), abs=0.06 * spread)


def test_limit_is_that_of_the_population_or_of_the_set():
    """The distance of a set is too large. Drawing without replacement tells by how much, drawing with keeps that."""
    reference, truth = population(torch.zeros(16), torch.eye(16)), 16 * 0.2**2
    plain, without, fit = [], [], []
    for seed in range(20):
        embeddings = torch.randn(300, 16) + 0.2
        plain.append(frechet_distance(reference, Gaussian.of(embeddings)))
        settings = {"smallest": 100, "seed": seed}
        without.append(frechet_limit(embeddings, reference, replacement=False, **settings)["limit"])
        fit.append(frechet_limit(embeddings, reference, **settings))
    excess = torch.stack(plain).mean() - truth
    assert excess > 0.2
    assert abs(torch.stack(without).mean() - truth) < 0.35 * excess
    assert abs(torch.stack([f["limit"] for f in fit]).mean() - truth - excess) < 0.35 * excess
    slope = torch.stack([f["slope"] for f in fit]).mean()
    assert slope.item() / 300 == pytest.approx(excess.item(), rel=0.4)
    assert all(0 < f["r2"] <= 1 for f in fit)


def test_limit_recovers_the_distance_of_the_population():
    """In the mean over 150 sets of 300 to 5 %, three times its error; that of the sets themselves is 35 % too large."""
    reference, truth = population(torch.zeros(16), torch.eye(16)), 16 * 0.2**2
    plain, limits = [], []
    for seed in range(150):
        embeddings = torch.randn(300, 16) + 0.2
        plain.append(frechet_distance(reference, Gaussian.of(embeddings)))
        found = frechet_limit(embeddings, reference, smallest=100, sizes=15, replacement=False, seed=seed)
        limits.append(found["limit"])
    assert torch.stack(plain).mean() > 1.35 * truth
    assert torch.stack(limits).mean().item() == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("replacement", [True, False])
def test_interval_of_the_limit_holds_the_distance_of_known_gaussians(replacement):
    """As that of the distance does, and it is wider."""
    reference, (mean, deviation), truth = diagonal_pair(6)
    held = 0
    settings = {"reference": reference, "resamples": 200, "confidence": 0.9, "smallest": 100}
    for seed in range(50):
        clips = 0.7 * torch.randn(120, 1, 6) + 0.51**0.5 * torch.randn(120, 8, 6)
        metric = FrechetInfinity(6, replacement=replacement, seed=seed, **settings)
        metric.update((clips * deviation + mean).flatten(0, 1), sizes=torch.full((120,), 8))
        found = metric.compute()
        held += bool(found["limit_low"] <= truth <= found["limit_high"])
        width = (found["limit_high"] - found["limit_low"]) / (found["frechet_high"] - found["frechet_low"])
        assert 1 < width < 1.5
    assert held >= 40


def test_limit_and_its_error_are_those_of_numpys_fit():
    reference, embeddings = population(torch.zeros(3), torch.eye(3)), torch.randn(80, 3)
    found = frechet_limit(embeddings, reference, smallest=20, sizes=4)
    again = frechet_limit(embeddings.flip(0), reference, smallest=20, sizes=4)
    assert found["limit_error"] == again["limit_error"] > 0
    draws, distances = torch.Generator().manual_seed(0), []
    ordered = embeddings[canonical_order(embeddings)].double()
    for n in (20, 40, 60, 80):
        drawn = ordered[torch.randint(80, (n,), generator=draws)]
        distances.append(frechet_distance(reference, Gaussian.of(drawn)).item())
    inverse = np.array([1 / 20, 1 / 40, 1 / 60, 1 / 80])
    (slope, limit), covariance = np.polyfit(inverse, distances, 1, cov=True)
    assert (found["slope"].item(), found["limit"].item()) == pytest.approx((slope, limit))
    assert found["limit_error"].item() == pytest.approx(covariance[1, 1] ** 0.5)
    assert found["r2"].item() == pytest.approx(np.corrcoef(inverse, distances)[0, 1] ** 2)


def test_limit_of_one_embedding_repeated_is_its_distance():
    reference = Gaussian.of(correlated(100, 2, 0))
    found = frechet_limit(torch.ones(60, 2), reference, smallest=10, sizes=5)
    assert found["slope"].item() == pytest.approx(0, abs=1e-9)
    assert found["limit"].item() == pytest.approx(
        ((reference.mean - 1).square().sum() + reference.covariance.trace()).item()
    )


def test_limit_needs_enough_embeddings():
    with pytest.raises(PartitaError, match="more than 500 embeddings, not 500"):
        frechet_limit(torch.randn(500, 2), Gaussian.of(torch.randn(10, 2)))


def test_reference_statistics_are_saved_and_refuse_another_source(tmp_path):
    metric = FrechetDistance(3)
    embeddings = torch.randn(20, 3)
    metric.update(embeddings, reference=True)
    path, source = tmp_path / "reference.safetensors", source_hash(["a.wav", "b.wav"])
    metric.reference_statistics.save(path, embedding="vggish", source=source)
    known = Gaussian.load(path, embedding="vggish", source=source_hash(["b.wav", "a.wav"]), samples=20)
    loaded = FrechetDistance(3, reference=known)
    loaded.update(embeddings + 1)
    assert loaded.compute()["frechet"].item() == pytest.approx(3)
    with pytest.raises(PartitaError, match="'vggish' instead of 'clap'"):
        Gaussian.load(path, embedding="clap", source=source)
    with pytest.raises(PartitaError, match="source"):
        Gaussian.load(path, embedding="vggish", source=source_hash(["a.wav"]))
    with pytest.raises(PartitaError, match="samples 20 instead of 21"):
        Gaussian.load(path, embedding="vggish", source=source, samples=21)
    with pytest.raises(PartitaError, match="statistics of a reference"):
        Gaussian.load(tmp_path / "none.safetensors", embedding="vggish", source=source)
    path.write_bytes(b"broken")
    with pytest.raises(PartitaError, match="statistics of a reference"):
        Gaussian.load(path, embedding="vggish", source=source)
    with pytest.raises(PartitaError, match="add no embeddings"):
        loaded.update(embeddings, reference=True)


def test_mistakes_are_named():
    metric = FrechetDistance(3)
    with pytest.raises(PartitaError, match=r"\[N, 3\]"):
        metric.update(torch.zeros(2, 4))
    with pytest.raises(PartitaError, match="finite"):
        metric.update(torch.full((2, 3), torch.nan))
    metric.update(torch.zeros(1, 3))
    with pytest.raises(PartitaError, match="at least two"):
        metric.compute()
    with pytest.raises(PartitaError, match="sizes are missing"):
        FrechetInfinity(3).update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="4-d embeddings"):
        FrechetDistance(3, reference=Gaussian.of(torch.randn(5, 4)))


def test_half_precision_and_reset():
    metric = FrechetDistance(2)
    metric.half().update(torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.bfloat16))
    assert metric.evaluated.dtype == torch.float64
    metric.reset()
    assert metric.evaluation_statistics.count == 0


def infinity():
    return FrechetInfinity(4, smallest=20, sizes=5, resamples=50)


def test_merged_metrics_equal_one():
    first, second, whole = FrechetDistance(4), FrechetDistance(4), FrechetDistance(4)
    batches = [correlated(n, 4, n) for n in (30, 1, 17)]
    for metric, own in ((first, batches[:1]), (second, batches[1:]), (whole, batches)):
        for batch in own:
            metric.update(batch)
            metric.update(batch * 2, reference=True)
    first.merge_state(second)
    assert first.compute()["frechet"].item() == pytest.approx(whole.compute()["frechet"].item(), rel=1e-9)


class Labels(LabelMeans):
    names = ("first", "second")

    def update(self, sums, weights):
        self.record_clip(sums, weights)


def fill(metric, cosine, labels, rank):
    """The clips of one process; the second has fewer and longer ones, and no pairs at all."""
    sizes = torch.tensor([[7, 9, 5, 6], [11, 8]][rank])
    frames, pairs = correlated(int(sizes.sum()), 4, rank).float(), correlated(9, 4, 5)
    metric.update(frames, sizes=sizes)
    metric.update(frames * 2, reference=True)
    if rank == 0:
        cosine.update(pairs, pairs.flip(1))
        for sums, weights in (((1, 2), (2, 2)), ((3, 0), (4, 0)), ((0, 5), (1, 7))):
            labels.update(sums, weights)


def synchronised(rank, folder):
    """The results of one of two processes."""
    patience = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=patience)
    try:
        metric, cosine, labels = infinity(), PairedCosine(resamples=50), Labels(resamples=50)
        fill(metric, cosine, labels, rank)
        results = metric.compute() | cosine.compute() | labels.compute()
        assert len(metric.rows("frames")) == (27, 19)[rank]  # each goes on with its own
        return results
    finally:
        dist.destroy_process_group()


def second_process(_, folder):
    torch.save(synchronised(1, folder), f"{folder}/results.pt")


def test_two_processes_equal_one(tmp_path):
    other = mp.spawn(second_process, (str(tmp_path),), join=False)
    synced = synchronised(0, tmp_path)
    while not other.join():
        pass
    metric, cosine, labels = infinity(), PairedCosine(resamples=50), Labels(resamples=50)
    for rank in (0, 1):
        fill(metric, cosine, labels, rank)
    one = metric.compute() | cosine.compute() | labels.compute()
    assert {"limit_low", "frechet_low", "cosine_high", "first_low"} < one.keys()
    assert (one["first"].item(), one["second_clips"].item()) == (4 / 7, 2)
    for found in (synced, torch.load(tmp_path / "results.pt")):
        assert found.keys() == one.keys()
        for name, value in one.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-9), name
