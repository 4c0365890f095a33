import pytest
import torch

from partita.layers.convolution import Conv1d, ConvTranspose1d, pad_to_multiple


def test_convolutions_preserve_variance():
    x = torch.randn(4, 64, 4000)
    for kernel, stride, dilation in ((7, 1, 9), (10, 5, 1), (1, 1, 1)):
        assert Conv1d(64, 96, kernel, stride=stride, dilation=dilation)(x).std().item() == pytest.approx(1, rel=0.1)
    for stride in (2, 5):
        assert ConvTranspose1d(64, 32, stride)(x).std().item() == pytest.approx(1, rel=0.1)
    assert Conv1d(64, 96, 7, normalization="weight_norm")(x).std().item() == pytest.approx(1, rel=0.1)


def test_padding_completes_the_last_frame():
    assert [pad_to_multiple(torch.ones(1, 1, t), 8).shape[-1] for t in (1, 8, 9)] == [8, 8, 16]
