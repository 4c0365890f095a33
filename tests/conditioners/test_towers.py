import pytest
import torch

from partita.conditioners.audio_towers.resnet import ResNet
from partita.conditioners.audio_towers.spectrogram_transformer import SpectrogramTransformer
from partita.conditioners.text_towers.words_transformer import WordsTransformer
from partita.core.registry import lookup
from partita.layers.transformer_blocks import BlockConfig

SMALL = {"width": 16, "depth": 2, "num_heads": 2}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def meta(tower, *sizes):
    with torch.device("meta"):
        tower.build(*sizes)
    return tower


def test_the_published_sizes():
    """ResNet-50 has 25,557,032 parameters with 1000 classes and 3 channels; ViT-B 12 blocks of 12 · 768²."""
    resnet = meta(ResNet(), 1001, 128, 1000)
    assert parameters(resnet) == 25_557_032 - 2 * 64 * 49
    vit = meta(SpectrogramTransformer(), 1001, 128, 128)
    assert len(vit.transformer.blocks) == 12
    assert parameters(vit.transformer.blocks) == 12 * (12 * 768**2 + 4 * 768)
    assert vit.grid == (63, 8)
    bert = meta(WordsTransformer(), 128)
    assert parameters(bert.transformer.blocks) == 12 * (12 * 768**2 + 4 * 768)
    assert bert.embeddings.weight.shape == (30522, 768)


def test_resnet_computes_what_torchvision_describes():
    """Each stage halves both axes, except the first one; the mean does not depend on the number of frames."""
    tower = ResNet(width=4, depths=(1, 2, 1, 1))
    tower.build(64, 32, 3)
    shapes = []
    for block in tower.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    tower.eval()(torch.randn(1, 64, 32))
    assert shapes == [(16, 16, 8), (32, 8, 4), (32, 8, 4), (64, 4, 2), (128, 2, 1)]
    assert tower(torch.randn(2, 640, 32)).shape == (2, 3)
    constant = torch.ones(1, 1, 32).expand(1, 640, 32)
    assert tower(constant).isfinite().all()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_patches_cover_the_spectrum_and_have_places(positions, pooling):
    torch.manual_seed(0)
    tower = SpectrogramTransformer(**SMALL, patch=(4, 8), positions=positions, pooling=pooling)
    tower.build(30, 20, 5)
    assert tower.grid == (8, 3)
    spectrum = torch.randn(1, 30, 20, requires_grad=True)
    embedding = tower(spectrum)
    assert embedding.shape == (1, 5)
    (gradient,) = torch.autograd.grad(embedding.square().sum(), spectrum)
    assert (gradient != 0).all()  # every place counts
    for axis in (1, 2):  # and the embedding tells where something is
        assert (tower(spectrum.detach().roll(8, axis)) - embedding).abs().max() > 1e-4


def test_a_patch_holds_its_own_frames_and_bands():
    tower = SpectrogramTransformer(**SMALL, patch=(2, 3))
    tower.build(4, 6, 5)
    seen = []
    tower.patches.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    spectrum = torch.arange(24.0).reshape(1, 4, 6)
    tower(spectrum)
    expected = [spectrum[0, i : i + 2, j : j + 3].flatten() for i in (0, 2) for j in (0, 3)]
    assert torch.equal(seen[0][0], torch.stack(expected))


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "relative"])
def test_every_word_counts_and_padding_does_not(pooling, positions):
    torch.manual_seed(0)
    tower = WordsTransformer(**SMALL, num_embeddings=64, pooling=pooling, positions=positions)
    tower.build(5)
    tokens, mask = tower.tokenize(["slow harp", "slow waltz for one harp and ten flutes", ""])
    embedded = tower(tokens, mask)
    alone = tower(*tower.tokenize(["slow harp"]))
    torch.testing.assert_close(embedded[0], alone[0], rtol=0, atol=1e-5)
    assert embedded.isfinite().all()
    last = tower(*tower.tokenize(["slow waltz for one harp and ten tubas"]))
    assert (embedded[1] - last[0]).abs().max() > 1e-4


def test_words_have_the_numbers_that_lookup_gives_them():
    tower, words = WordsTransformer(**SMALL, num_embeddings=64), lookup("conditioner", "lookup")(num_embeddings=64)
    from toys import told

    texts = ["Slow, slow waltz!", "harp"]
    prepared = words.prepare(told(texts))
    assert torch.equal(tower.tokenize(texts)[0], prepared["words"])
    assert torch.equal(tower.tokenize(texts)[1], prepared["mask"])


def test_dropout_of_the_blocks_is_only_in_training():
    tower = WordsTransformer(**SMALL, num_embeddings=64, block=BlockConfig(dropout=0.5))
    tower.build(5)
    batch = tower.tokenize(["slow harp"])
    assert not torch.equal(tower(*batch), tower(*batch))
    tower.eval()
    assert torch.equal(tower(*batch), tower(*batch))


def test_mistakes_are_named():
    for make, message in (
        (lambda: ResNet(depths=()), "depths"),
        (lambda: ResNet(width=0), "width"),
        (lambda: SpectrogramTransformer(patch=(0, 16)), "patch"),
        (lambda: SpectrogramTransformer(width=10, depth=1, num_heads=5, positions="sinusoidal"), "multiple of 4"),
        (lambda: SpectrogramTransformer(width=15, num_heads=2), "multiple of twice"),
        (lambda: WordsTransformer(max_words=0), "max_words"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
