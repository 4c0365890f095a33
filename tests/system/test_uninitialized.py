"""Parts whose weights are loaded are the same, whether or not their weights were drawn before."""

import pytest
import torch
from torch import nn

import partita
from partita.core.contracts import ConditionSpec, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.system.uninitialized import without_drawing
from partita.tokenizers.adversarial import Losses
from partita.tokenizers.autoencoders.stft_convnext import STFTConvNeXt
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.discriminators.multi_scale import MultiScale
from partita.tokenizers.neural_codec import NeuralCodec
from toys import ToyCodec


def stage():
    target = RepresentationSpec(16000, 1, 50.0, num_codebooks=2, cardinality=16)
    text = {"text": Given(ConditionSpec(dim=8), "cross")}
    return Autoregressive(target, text, backbone=Transformer(width=64, depth=2, num_heads=4))


def codec():
    return NeuralCodec(
        autoencoder=STFTConvNeXt(encoder_width=8, encoder_depth=1, decoder_width=8, decoder_depth=1),
        bottleneck=RVQ(num_codebooks=2, cardinality=8),
        discriminator=MultiScale(wave_scales=(1,), wave_width=2, stft_windows=(256,), stft_width=2),
        sample_rate=8000,
        dim=8,
        losses=Losses(),
    )


class Projected(ToyCodec):
    """A codec that draws a projection that it does not save, and with the same numbers as in training."""

    def __init__(self):
        super().__init__()
        self.learned = nn.Linear(16, 16)
        self.register_buffer("projection", torch.randn(4, 4), persistent=False)


def tensors(part):
    return dict(part.named_parameters()) | dict(part.named_buffers())


@pytest.mark.parametrize("make", [codec, Projected])
def test_what_is_not_saved_is_drawn_as_always(make):
    torch.manual_seed(3)
    always = tensors(make())
    torch.manual_seed(3)
    loading = tensors(without_drawing(make))
    assert always.keys() == loading.keys()
    for name, tensor in always.items():
        assert torch.equal(tensor, loading[name]), name


def test_weights_that_are_saved_are_not_drawn():
    torch.manual_seed(3)
    before, always = torch.random.get_rng_state(), stage()
    assert not torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(3)
    loading = without_drawing(stage)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, buffer in always.named_buffers():
        assert torch.equal(buffer, loading.get_buffer(name))
    loading.load_exported_state(always.exported_state(), "the other")
    for name, tensor in tensors(always).items():
        assert torch.equal(tensor, tensors(loading)[name]), name


def test_a_loaded_system_is_the_saved_one(saved_toy):
    loaded, built = partita.load(saved_toy), System(load_recipe(saved_toy / "recipe.yaml")).load_parts(saved_toy)
    for name, part in built.parts.items():
        for key, tensor in tensors(part).items():
            assert torch.equal(tensor, tensors(loaded.parts[name])[key]), key
