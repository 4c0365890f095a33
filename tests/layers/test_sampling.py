import pytest
import torch
from torch import nn

from partita.layers.sampling import GumbelNoise, Sampling, evaluating

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def frequencies(sampling, draws=20_000):
    noise = GumbelNoise([0], (draws, len(LOGITS)), "cpu")
    noise.stretch = 1
    codes = sampling.draw(LOGITS.expand(1, draws, -1), noise.at(0))
    return torch.bincount(codes.flatten(), minlength=len(LOGITS)) / draws


def test_draws_follow_the_distribution():
    expected = (LOGITS / 0.7).softmax(0)
    torch.testing.assert_close(frequencies(Sampling(temperature=0.7, top_k=None)), expected, atol=0.015, rtol=0)


def test_top_k_draws_from_the_likeliest():
    expected = torch.cat([LOGITS[:2].softmax(0), torch.zeros(3)])
    torch.testing.assert_close(frequencies(Sampling(top_k=2)), expected, atol=0.015, rtol=0)


def test_top_p_keeps_the_code_that_reaches_the_probability():
    # probabilities 0.604, 0.222, 0.135, 0.030, 0.004
    torch.testing.assert_close(frequencies(Sampling(top_k=None, top_p=0.5)), torch.eye(5)[0])
    assert (frequencies(Sampling(top_k=None, top_p=0.7))[2:] == 0).all()
    assert frequencies(Sampling(top_k=None, top_p=0.7))[1] > 0.2
    assert (frequencies(Sampling(top_k=None, top_p=0.9))[:3] > 0).all()


def test_temperature_zero_takes_the_likeliest():
    assert Sampling(temperature=0).draw(torch.randn(4, 3, 9).index_fill(2, torch.tensor([6]), 50.0)).unique() == 6


def test_noise_belongs_to_the_seed_and_the_step():
    alone, among = GumbelNoise([7], (2, 5), "cpu"), GumbelNoise([1, 7, 3], (2, 5), "cpu")
    late = GumbelNoise([7], (2, 5), "cpu")
    for step in (0, 1, 63, 64, 150):
        noise = alone.at(step)
        assert torch.equal(noise[0], among.at(step)[1])
    assert torch.equal(noise, late.at(150))
    assert not torch.equal(among.at(151)[0], among.at(151)[1])
    assert not torch.equal(alone.at(151), noise)


def test_evaluating_leaves_every_module_in_the_mode_it_was_in():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module.train()
    module[1].eval()
    with evaluating(module):
        assert not any(child.training for child in module.modules())
    assert module.training
    assert module[0].training
    assert not module[1].training


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_mistakes_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
