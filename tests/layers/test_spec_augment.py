import pytest
import torch

from partita.layers.spec_augment import SpecAugment


def test_stripes_are_masked_and_differ_from_spectrum_to_spectrum():
    torch.manual_seed(0)
    augment = SpecAugment(time_masks=2, longest=0.2, band_masks=1, widest=0.25)
    masked = augment(torch.ones(200, 40, 16)) == 0
    frames, bands = masked.all(2), masked.all(1)
    assert torch.equal(masked, frames[:, :, None] | bands[:, None])  # nothing but whole stripes
    assert frames.sum(1).max() <= 2 * 8
    assert bands.sum(1).max() == 4  # a quarter of 16, and it does occur
    assert bands.sum(1).min() == 0
    assert len(frames.unique(dim=0)) > 100
    assert frames.any(0).all()  # any frame and band can be masked
    assert bands.any(0).all()
    edges = (bands[:, 1:] != bands[:, :-1]).sum(1)
    assert edges.max() <= 2  # a single stripe


def test_nothing_is_masked_without_masks():
    spectrum = torch.randn(2, 10, 8)
    assert torch.equal(SpecAugment(time_masks=0, band_masks=0)(spectrum), spectrum)
    assert torch.equal(SpecAugment(longest=0.0, widest=0.0)(spectrum), spectrum)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="time_masks"):
        SpecAugment(time_masks=-1)
    with pytest.raises(ValueError, match="widest"):
        SpecAugment(widest=1.0)
