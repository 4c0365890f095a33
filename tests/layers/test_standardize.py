import torch

from partita.layers.standardize import Standardize


def test_statistics_are_those_of_all_frames_that_count():
    torch.manual_seed(0)
    batches = [
        torch.randn(3, 2, 50) * torch.tensor([[3.0], [0.01]]) + torch.tensor([[1000.0], [-2.0]]) for _ in range(4)
    ]
    masks = [torch.rand(3, 50) > 0.3 for _ in batches]
    layer = Standardize(2, updates=4)
    for batch, mask in zip(batches, masks, strict=True):
        layer.observe(batch, mask)
    frames = torch.cat([batch.mT[mask] for batch, mask in zip(batches, masks, strict=True)])
    torch.testing.assert_close(layer.mean, frames.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.deviation, frames.std(0, correction=0), rtol=1e-3, atol=0)
    made = layer(batches[0])
    torch.testing.assert_close(layer.inverse(made), batches[0])
    before = layer.mean.clone()
    layer.observe(batches[0] + 5)
    assert torch.equal(layer.mean, before)  # they stay


def test_a_silent_channel_stays_finite():
    layer = Standardize(1)
    layer.observe(torch.full((1, 1, 9), 3.0))
    assert layer(torch.full((1, 1, 4), 3.0)).abs().max() < 1e-6


def test_a_batch_that_is_all_padding_changes_nothing():
    layer = Standardize(1)
    layer.observe(torch.ones(1, 1, 5), torch.zeros(1, 5, dtype=torch.bool))
    layer.observe(torch.arange(5.0)[None, None])
    assert layer.mean.item() == 2.0
