import numpy as np
import pytest
import torch

from partita.errors import PartitaError
from partita.metrics.kernel import KernelDistance, Sample

DIM = 3


def expected_kernel(means, variances, bandwidth):
    """The mean of the kernel between two Gaussians whose difference has these means and variances, in closed form."""
    wide = 1 + variances / bandwidth**2
    return np.prod(wide**-0.5 * np.exp(-(means**2) / (2 * bandwidth**2 * wide)))


def discrepancy(mean, deviation, bandwidth):
    """Between a Gaussian and the one of mean 0 and variance 1, in ``DIM`` dimensions."""
    one = np.ones(DIM)
    own = expected_kernel(0 * one, 2 * deviation**2 * one, bandwidth) + expected_kernel(0 * one, 2 * one, bandwidth)
    return 100 * (own - 2 * expected_kernel(mean * one, (1 + deviation**2) * one, bandwidth))


def frames_of(draw, clips, frames, within=0.5):
    """Frames of unit variance ``[clips * frames, DIM]``, of which so much is within a clip."""
    shared = draw.standard_normal((clips, 1, DIM))
    made = (1 - within) ** 0.5 * shared + within**0.5 * draw.standard_normal((clips, frames, DIM))
    return torch.from_numpy(made).flatten(0, 1)


def measured(made, real, frames, pieces=None, real_pieces=None, **how):
    metric = KernelDistance(DIM, **how)
    metric.update(made, torch.full((len(made) // frames,), frames), pieces=pieces)
    metric.update(real, torch.full((len(real) // frames,), frames), reference=True, pieces=real_pieces)
    return {name: value.item() for name, value in metric.compute().items()}


def test_distance_of_gaussians_is_the_closed_form():
    draw, truth = np.random.default_rng(0), discrepancy(0.7, 1.4, 1.5)
    made, real = frames_of(draw, 1500, 1) * 1.4 + 0.7, frames_of(draw, 1500, 1)
    found = measured(made, real, 1, bandwidth=1.5)
    assert found["kad"] == pytest.approx(truth, rel=0.1)
    assert found["kad_low"] < truth < found["kad_high"]
    assert found["kad_high"] - found["kad_low"] < 0.5 * truth


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 1.3)])
def test_distance_of_few_clips_is_without_bias_and_its_interval_holds_the_truth(mean, deviation):
    """Of 400 sets of six clips on each side, whose frames are alike; pairs of frames of a clip would add bias."""
    draw, truth, found = np.random.default_rng(0), discrepancy(mean, deviation, 2.0), []
    for _ in range(400):
        made, real = frames_of(draw, 6, 5) * deviation + mean, frames_of(draw, 6, 5)
        found.append(measured(made, real, 5, bandwidth=2.0))
    values = np.array([one["kad"] for one in found])
    assert abs(values.mean() - truth) < 3 * values.std() / 400**0.5
    assert sum(one["kad_low"] <= truth <= one["kad_high"] for one in found) > 0.92 * 400


def test_clips_of_the_same_pieces_on_both_sides_are_without_bias():
    """Each piece has a sound of its own, and both sides have clips of the same five pieces."""
    draw, names, values = np.random.default_rng(0), list("abcde"), []
    for _ in range(400):
        sound = torch.from_numpy(draw.standard_normal((5, 1, DIM)))
        made, real = (
            (sound + 0.3 * torch.from_numpy(draw.standard_normal((5, 4, DIM)))).flatten(0, 1) for _ in range(2)
        )
        values.append(measured(made, real, 4, names, names, bandwidth=2.0)["kad"])
    assert abs(np.mean(values)) < 3 * np.std(values) / 400**0.5


def test_distance_and_interval_are_those_of_all_pairs_one_by_one():
    draw, bandwidth = np.random.default_rng(0), 1.2
    sizes, pieces = (
        [torch.tensor([2, 1, 3, 2]), torch.tensor([1, 2, 2, 1, 2])],
        [list("abac"), ["a", None, "d", "e", "b"]],
    )
    sides = [torch.from_numpy(draw.standard_normal((int(number.sum()), DIM))).float() for number in sizes]
    metric = KernelDistance(DIM, bandwidth=bandwidth)
    for side, number, names, reference in zip(sides, sizes, pieces, (False, True), strict=True):
        metric.update(side, number, reference, names)
    names = [
        [x or "f" for x, n in zip(p, s, strict=True) for _ in range(n)] for p, s in zip(pieces, sizes, strict=True)
    ]

    def value(left=None):
        rows = [[(f, n) for f, n in zip(*both, strict=True) if n != left] for both in zip(sides, names, strict=True)]

        def mean(one, other):
            pairs = [
                np.exp(-float((f - g).double().square().sum()) / (2 * bandwidth**2))
                for f, n in one
                for g, m in other
                if n != m
            ]
            return np.mean(pairs)

        return 100 * (mean(rows[0], rows[0]) + mean(rows[1], rows[1]) - 2 * mean(*rows))

    found = metric.compute()
    assert found["kad"].item() == pytest.approx(value(), rel=1e-5)
    lesser = np.array([value(piece) for piece in "abcdef"])
    error = (5 / 6 * np.square(lesser - lesser.mean()).sum()) ** 0.5
    assert found["kad_high"].item() - found["kad"].item() == pytest.approx(4.302653 * error, rel=1e-4)  # t, 2 degrees
    assert (found["clips"], found["pieces"], found["reference_clips"]) == (4, 3, 5)


def test_bandwidth_is_the_median_distance_of_the_reference():
    draw = np.random.default_rng(0)
    real = frames_of(draw, 200, 1)
    found = measured(real[:20] * 5, real, 1)
    assert found["bandwidth"] == pytest.approx(np.median(torch.pdist(real)), rel=0.01)
    with pytest.raises(PartitaError, match="the bandwidth is zero"):
        measured(real, torch.ones(9, DIM), 1)


def test_long_clips_count_by_frames_that_are_spread_over_them():
    sample = Sample.of(torch.arange(1000.0)[:, None], torch.tensor([990, 10]))
    assert sample.sizes.tolist() == [32, 10]
    assert sample.frames[:32, 0].diff().unique().tolist() == [30, 31]
    assert sample.frames[0] < 31 > 990 - sample.frames[31]


def test_a_known_reference_is_as_good_as_its_clips(tmp_path):
    draw, names = np.random.default_rng(0), list("aabbcd")
    made, real, sizes = frames_of(draw, 6, 4), frames_of(draw, 6, 4) + 1, torch.full((6,), 4)
    Sample.of(real, sizes).save(tmp_path / "frames.safetensors", embedding="clap", source="x")
    known = Sample.load(tmp_path / "frames.safetensors", embedding="clap", source="x").from_pieces(names)
    metric = KernelDistance(DIM, reference=known)
    metric.update(made, sizes, pieces=names)
    expected = measured(made, real, 4, names, names)
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(expected)
    with pytest.raises(PartitaError, match="do not add embeddings"):
        metric.update(real, sizes, reference=True)
    with pytest.raises(PartitaError, match="'clap' instead of 'vggish'"):
        Sample.load(tmp_path / "frames.safetensors", embedding="vggish", source="x")


def test_mistakes_are_named():
    metric, sizes = KernelDistance(DIM), torch.ones(4, dtype=torch.int64)
    with pytest.raises(PartitaError, match=r"\[N, 3\]"):
        metric.update(torch.zeros(4, 2), sizes)
    with pytest.raises(PartitaError, match="finite"):
        metric.update(torch.full((4, 3), torch.inf), sizes)
    with pytest.raises(PartitaError, match="add up to 5"):
        metric.update(torch.zeros(5, 3), sizes)
    with pytest.raises(PartitaError, match="two pieces or more"):
        measured(torch.randn(4, 3), torch.randn(4, 3), 1, pieces=["a"] * 4)
    with pytest.raises(ValueError, match="bandwidth"):
        KernelDistance(3, bandwidth=0.0)
    with pytest.raises(ValueError, match="4-d embeddings"):
        KernelDistance(3, reference=Sample.of(torch.randn(4, 4), sizes))
