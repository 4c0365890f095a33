import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from partita.errors import PartitaError
from partita.metrics.neighbors import StyleNeighbors


def test_on_a_line():
    """Songs at 0, 1, …, 9. An excerpt at 2.2 of song 2 has neighbors 3, 1, 4 without it, its nearest 0.8 away."""
    songs = torch.arange(10.0)[:, None]
    excerpt, source = torch.tensor([[2.2], [2.2], [2.2]]), torch.tensor([2, 2, 2])
    generated = torch.tensor([[2.6], [4.4], [8.6]])  # neighbors 3, 4, 1; 4, 5, 3; 9, 8, 7
    metric = StyleNeighbors(songs, neighbors=3, distance="euclidean")
    metric.update(excerpt, generated, source)
    found = metric.compute()
    assert found["common"].item() == pytest.approx((3 + 2 + 0) / 9)
    assert found["overfit"].item() == pytest.approx(1 / 3)
    with_source = StyleNeighbors(songs, neighbors=3, distance="euclidean", exclude_source=False)
    with_source.update(excerpt, generated, source)
    found = with_source.compute()  # 2, 3, 1; against 3, 2, 4; 4, 5, 3; 9, 8, 7. Song 2 is 0.2 away
    assert found["common"].item() == pytest.approx((2 + 1 + 0) / 9)
    assert found["overfit"] == 0


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_neighbors_are_scipys(distance):
    generator = np.random.default_rng(0)
    songs, excerpt, generated = (generator.normal(size=(n, 5)) for n in (60, 25, 25))
    generated = excerpt + generated
    metric = StyleNeighbors(torch.from_numpy(songs), neighbors=7, distance=distance)
    metric.update(torch.from_numpy(excerpt[:9]), torch.from_numpy(generated[:9]))
    metric.update(torch.from_numpy(excerpt[9:]), torch.from_numpy(generated[9:]))
    to_excerpt, to_generated = cdist(excerpt, songs, distance), cdist(generated, songs, distance)
    common = [
        len(set(a[:7]) & set(b[:7])) / 7 for a, b in zip(to_excerpt.argsort(1), to_generated.argsort(1), strict=True)
    ]
    apart = np.diagonal(cdist(excerpt, generated, distance))
    found = metric.compute()
    assert found["common"].item() == pytest.approx(np.mean(common))
    assert found["overfit"].item() == pytest.approx((apart < to_excerpt.min(1)).mean())
    assert found["common_low"] < found["common"] < found["common_high"]


def test_inequality_and_criterion():
    songs = torch.tensor([[0.0, 0.0], [4.0, 0.0], [9.0, 0.0]])
    excerpt, generated, source = torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 2.0]]), torch.tensor([1])
    settings = {"neighbors": 1, "distance": "euclidean"}
    for options, expected in [
        ({}, 0),  # 2 away, as song 0 is
        ({"strict": False}, 1),
        ({"overfit": "source"}, 0),  # nearest to what was generated: songs 0 and 1 alike, the first is taken
    ]:
        metric = StyleNeighbors(songs, **settings, **options)
        metric.update(excerpt, generated, source)
        assert metric.compute()["overfit"].item() == expected
    metric.reset()
    metric.update(excerpt, generated + 0.1, source)
    assert metric.compute()["overfit"] == 1


def test_a_copy_overfits_and_the_same_style_does_not():
    """Styles are clusters: from the same cluster most neighbors are common, whichever the song."""
    styles = torch.randn(6, 12) * 8
    songs = styles.repeat_interleave(30, 0) + torch.randn(180, 12)
    excerpt = songs + 0.1 * torch.randn(180, 12)
    source = torch.arange(180)
    results = {}
    for name, generated in {
        "copy": excerpt + 0.1 * torch.randn(180, 12),
        "style": styles.repeat_interleave(30, 0) + torch.randn(180, 12),
        "unrelated": songs.roll(90, 0),
    }.items():
        metric = StyleNeighbors(songs, neighbors=10, distance="euclidean")
        metric.update(excerpt, generated, source)
        results[name] = metric.compute()
    assert [results[name]["overfit"].item() for name in results] == [1, pytest.approx(0.1, abs=0.1), 0]
    common = [results[name]["common"].item() for name in results]
    assert common[0] > 0.7 > common[1] > 0.25 > common[2] == 0


def test_merged_metrics_equal_one():
    songs, excerpt, generated = torch.randn(40, 4), torch.randn(20, 4), torch.randn(20, 4)
    one, other, whole = (StyleNeighbors(songs) for _ in range(3))
    one.update(excerpt[:4], generated[:4])
    other.update(excerpt[4:], generated[4:])
    whole.update(excerpt, generated)
    one.merge_state(other)
    merged = one.compute()
    for name, value in whole.compute().items():
        assert merged[name].item() == pytest.approx(value.item(), rel=1e-12), name


def test_mistakes_are_named():
    songs = torch.randn(12, 4)
    with pytest.raises(ValueError, match="12 songs, one of them excluded"):
        StyleNeighbors(songs, neighbors=12)
    metric = StyleNeighbors(songs)
    with pytest.raises(PartitaError, match=r"\[B, 4\]"):
        metric.update(torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(PartitaError, match="numbers of database songs"):
        metric.update(torch.randn(2, 4), torch.randn(2, 4), torch.tensor([1, 12]))
    with pytest.raises(PartitaError, match="source of every excerpt"):
        StyleNeighbors(songs, overfit="source").update(torch.randn(2, 4), torch.randn(2, 4))
