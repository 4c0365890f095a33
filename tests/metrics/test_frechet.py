from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy import linalg, stats

from partita.errors import PartitaError
from partita.metrics.frechet import FrechetDistance, FrechetInfinity
from partita.metrics.gaussian import Gaussian, frechet_distance, source_hash
from partita.metrics.kernel import KernelDistance
from partita.metrics.piece_means import LabelMeans
from partita.metrics.significance import jackknife
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


def alike(draw, clips, frames, dim, within=0.3):
    """Frames ``[clips, frames, dim]`` of unit variance, of which so much is within a clip."""
    shared = draw.standard_normal((clips, 1, dim))
    made = (1 - within) ** 0.5 * shared + within**0.5 * draw.standard_normal((clips, frames, dim))
    return torch.from_numpy(made)


def measured(frames, reference, pieces=None, **how):
    metric = FrechetInfinity(frames.shape[2], reference=reference, **how)
    metric.update(frames.flatten(0, 1), sizes=torch.full((len(frames),), frames.shape[1]), pieces=pieces)
    return {name: value.item() for name, value in metric.compute().items()}


def test_limit_of_frames_that_are_alike_within_clips_is_the_distance_of_the_population():
    """In the mean over 80 sets of 40 clips, within 5 %; the distances of the sets are 10 % larger and more.

    Of their 95 % intervals, 70 or fewer hold it by chance in one of 600.
    """
    reference, (mean, deviation), truth = diagonal_pair(12)
    draw, found = np.random.default_rng(0), []
    for _ in range(80):
        found.append(measured(alike(draw, 40, 6, 12) * deviation + mean, reference))
    assert np.mean([one["frechet"] for one in found]) > 1.1 * truth
    assert np.mean([one["limit"] for one in found]) == pytest.approx(truth, rel=0.05)
    assert sum(one["limit_low"] <= truth <= one["limit_high"] for one in found) > 70
    assert sum(abs(one["drift"]) <= 1 for one in found) > 70


def test_limit_of_pieces_in_turn_is_the_distance_of_all_clips_of_them():
    """Sets of 60 clips, three of each of 20 pieces, against 20,000; no piece is left to chance."""
    reference, draw = population(torch.zeros(12), torch.eye(12)), np.random.default_rng(0)
    middles = draw.standard_normal((20, 1, 12))

    def clips_of(each):
        return alike(draw, 20 * each, 4, 12) * 0.8 + torch.from_numpy(middles).repeat(each, 1, 1)

    truth = frechet_distance(reference, Gaussian.of(clips_of(1000).flatten(0, 1))).item()
    names = [f"piece {i % 20}" for i in range(60)]
    found = [measured(clips_of(3), reference, names) for _ in range(80)]
    bias = np.mean([one["frechet"] for one in found]) - truth
    assert bias > 0.15 * truth
    assert np.mean([one["limit"] for one in found]) == pytest.approx(truth, abs=0.15 * bias)


def test_limit_is_small_where_both_sides_are_the_same():
    """What is left of a distance that is nothing but bias."""
    reference, draw = population(torch.zeros(12), torch.eye(12)), np.random.default_rng(0)
    found = [measured(alike(draw, 40, 6, 12), reference) for _ in range(60)]
    bias = np.mean([one["frechet"] for one in found])
    assert abs(np.mean([one["limit"] for one in found])) < 0.1 * bias
    assert sum(one["limit_low"] <= 0 <= one["limit_high"] for one in found) > 52


def test_limit_of_so_few_clips_that_they_cannot_tell_it_drifts():
    """16 single frames say next to nothing of 64 dimensions: the line is none yet."""
    reference, draw = population(torch.zeros(64), torch.eye(64)), np.random.default_rng(0)
    found = measured(alike(draw, 16, 1, 64, within=1.0), reference)
    assert abs(found["drift"]) > 1
    assert found["limit"] > 10


def distance_of_some(frames, sizes, counts, reference):
    """The distance of frames ``[N, D]`` of clips, each of which counts so often, or a fraction of that."""
    weights = np.repeat(np.asarray(counts, float), sizes)
    mean = np.average(frames.double(), axis=0, weights=weights)
    centered = frames.double().numpy() - mean
    moment = torch.from_numpy((centered * weights[:, None]).T @ centered)
    return frechet_distance(reference, Gaussian(weights.sum(), torch.from_numpy(mean), moment)).item()


def test_limit_and_interval_are_those_of_leaving_out_clips_and_pieces():
    sizes, pieces = torch.tensor([3, 9, 5, 7, 4, 8, 6, 6]), ["a", "b", "a", "c", "d", None, None, "b"]
    frames, reference = correlated(48, 3, 0).float(), Gaussian.of(correlated(90, 3, 1))
    metric = FrechetInfinity(3, reference=reference, confidence=0.9)
    metric.update(frames, sizes=sizes, pieces=pieces)
    found = metric.compute()

    def distance(counts):
        return distance_of_some(frames, sizes, counts, reference)

    def without(left):
        return distance([i not in left for i in range(8)])

    value = without(())
    assert found["frechet"].item() == pytest.approx(value)
    # two clips of a, two of b, and four single ones: what is left of each takes the place of what is left out
    bias = 0.0
    for group in [(0, 2), (1, 7), (3, 4, 5, 6)]:
        rest = len(group) - 1
        for left in group:
            counts = [0 if i == left else (rest + 1) / rest if i in group else 1 for i in range(8)]
            bias += rest / (rest + 1) * (distance(counts) - value)
    assert found["limit"].item() == pytest.approx(value - bias)
    groups = [(0, 2), (1, 7), (3,), (4,), (5,), (6,)]
    distances = np.array([without(group) for group in groups])
    error = (5 / 6 * np.square(distances - distances.mean()).sum()) ** 0.5
    half = stats.t.ppf(0.95, 5) * error
    assert (found["frechet_low"].item(), found["frechet_high"].item()) == pytest.approx((value - half, value + half))
    assert found["limit_high"].item() - found["limit"].item() == pytest.approx(half)
    assert (found["clips"], found["pieces"]) == (8, 6)


def test_limit_of_more_clips_than_are_left_out_in_turn():
    """Several are left out together, which changes little and never depends on the order."""
    reference, draw = population(torch.zeros(4), torch.eye(4)), np.random.default_rng(0)
    frames = alike(draw, 150, 3, 4) + 0.3
    found, again = measured(frames, reference), measured(frames.flip(0), reference)
    assert found == pytest.approx(again, rel=1e-6)
    clips = list(frames)
    lesser = [
        frechet_distance(reference, Gaussian.of(torch.cat(clips[:i] + clips[i + 1 :]).float())).item()
        for i in range(150)
    ]
    corrected, error = jackknife(found["frechet"], lesser)
    assert found["limit"] == pytest.approx(float(corrected), abs=float(error) / 10)
    assert found["frechet_high"] - found["frechet"] == pytest.approx(2 * error, rel=0.3)


def test_fewer_frames_than_dimensions_have_the_distances_of_their_covariances():
    frames, reference = correlated(36, 50, 0).view(12, 3, 50), Gaussian.of(correlated(90, 50, 1))
    found = measured(frames, reference)
    lesser = [
        distance_of_some(frames.flatten(0, 1), [3] * 12, [0 if i == left else 12 / 11 for i in range(12)], reference)
        for left in range(12)
    ]
    assert found["limit"] == pytest.approx(12 * found["frechet"] - 11 * np.mean(lesser), rel=1e-4)


def test_what_there_are_too_few_clips_or_pieces_for_is_no_number():
    reference, draw = population(torch.zeros(2), torch.eye(2)), np.random.default_rng(0)
    found = measured(alike(draw, 7, 4, 2), reference)
    assert np.isnan(found["limit"])
    assert found["frechet_low"] < found["frechet"] < found["frechet_high"]
    found = measured(alike(draw, 9, 4, 2), reference, pieces=["one"] * 9)
    assert np.isnan([found["frechet_low"], found["limit_high"], found["drift"]]).all()


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
    with pytest.raises(PartitaError, match="do not add embeddings"):
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
    with pytest.raises(PartitaError, match="sizes is missing"):
        FrechetInfinity(3).update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="4-d embeddings"):
        FrechetDistance(3, reference=Gaussian.of(torch.randn(5, 4)))


def test_half_precision_and_reset():
    metric = FrechetDistance(2)
    metric.half().update(torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.bfloat16))
    assert metric.evaluated.dtype == torch.float64
    metric.reset()
    assert metric.evaluation_statistics.count == 0


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

    def compare(self, clip, labels):
        return labels["sums"], labels["weights"]


def fill(metrics, rank):
    """The clips of one process; the second has fewer and longer ones, and no pairs at all."""
    metric, kernel, cosine, labels = metrics
    sizes, pieces = (
        torch.tensor([[7, 9, 5, 6, 4, 4], [11, 8, 9]][rank]),
        [["a", "b", "c", None, "c", "d"], ["b", None, "a"]][rank],
    )
    frames, pairs = correlated(int(sizes.sum()), 4, rank).float(), correlated(9, 4, 5)
    metric.update(frames, sizes=sizes, pieces=pieces)
    metric.update(frames * 2, reference=True)
    kernel.update(frames, sizes, pieces=pieces)
    kernel.update(frames * 2, sizes, reference=True, pieces=pieces)
    if rank == 0:
        cosine.update(pairs, pairs.flip(1), pieces=list("aabbccdef"))
        for sums, weights in (((1, 2), (2, 2)), ((3, 0), (4, 0)), ((0, 5), (1, 7))):
            labels.update(torch.zeros(1, 1, 1), [{"sums": sums, "weights": weights}])


def new_metrics():
    return FrechetInfinity(4), KernelDistance(4), PairedCosine(), Labels()


def computed(metrics):
    found = [(type(metric).__name__, metric.compute()) for metric in metrics]
    return {
        f"{kind}_{name}" if name in ("clips", "pieces") else name: value
        for kind, one in found
        for name, value in one.items()
    }


def synchronized(rank, folder):
    """The results of one of two processes."""
    patience = timedelta(minutes=5)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=patience)
    try:
        metrics = new_metrics()
        fill(metrics, rank)
        results = computed(metrics)
        assert len(metrics[0].rows("frames")) == (35, 28)[rank]  # each goes on with its own
        return results
    finally:
        dist.destroy_process_group()


def second_process(_, folder):
    torch.set_num_threads(1)  # OpenMP's other threads are not forked
    torch.save(synchronized(1, folder), f"{folder}/results.pt")


def test_two_processes_equal_one(tmp_path):
    other = mp.start_processes(second_process, (str(tmp_path),), join=False, start_method="fork")
    synced = synchronized(0, tmp_path)
    while not other.join():
        pass
    metrics = new_metrics()
    for rank in (0, 1):
        fill(metrics, rank)
    one = computed(metrics)
    assert one["limit_low"] < one["limit"]
    assert one["kad_low"] < one["kad"]
    assert (one["FrechetInfinity_pieces"], one["KernelDistance_pieces"], one["PairedCosine_pieces"]) == (6, 6, 6)
    assert (one["first"].item(), one["second_clips"].item()) == (4 / 7, 2)
    for found in (synced, torch.load(tmp_path / "results.pt")):
        assert found.keys() == one.keys()
        for name, value in one.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-9, nan_ok=True), name
