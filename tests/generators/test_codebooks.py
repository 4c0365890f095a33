"""The cross-entropy of codes, whose logits never exist as a whole."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import partita.generators.codebooks
from partita.core.contracts import RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer

BATCH, FRAMES = 3, 20
EVEN = RepresentationSpec(4000, 1, 10.0, 3, 512)
UNEVEN = RepresentationSpec(4000, 1, 10.0, cardinality=(512, 100, 300), num_codebooks=3)


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that an operation makes and whose last axis has some size."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[-1] == self.size:
                self.found = max(self.found, leaf.numel())
        return made


def stage(target, **options):
    torch.manual_seed(0)
    return Autoregressive(target, {}, backbone=Transformer(width=16, depth=1, num_heads=2), **options).train()


def loss_and_gradients(made, target):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor(target.cardinalities)[:, None]
    codes = torch.randint(1 << 30, (BATCH, 3, FRAMES), generator=generator) % sizes
    mask = torch.arange(FRAMES) < torch.tensor([[20], [3], [11]])
    losses = made.loss(codes, mask, {})
    gradients = torch.autograd.grad(losses["loss"], list(made.parameters()))
    return losses, dict(zip([name for name, _ in made.named_parameters()], gradients, strict=True))


@pytest.mark.parametrize("options", [{}, {"ends": True}, {"pattern": "flatten", "tail": False}])
@pytest.mark.parametrize("target", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_chunks_give_the_loss_of_all_logits_at_once(target, options, monkeypatch):
    made = stage(target, **options)
    expected, gradients = loss_and_gradients(made, target)
    most = BATCH * 6 * 513  # six or seven frames of a codebook, and a rest
    monkeypatch.setattr(partita.generators.codebooks, "MOST_LOGITS", most)
    with Largest(made.codebooks.most) as largest:
        found, in_chunks = loss_and_gradients(made, target)
    assert 0 < largest.found <= most
    assert found.keys() == expected.keys() == {"loss", "ce_0", "ce_1", "ce_2"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    for name in gradients:
        torch.testing.assert_close(in_chunks[name], gradients[name], atol=1e-6, rtol=1e-4)


def test_chunked_logits_are_not_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(partita.generators.codebooks, "MOST_LOGITS", BATCH * 6 * 512)
    made, kept = stage(EVEN), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        made.loss(torch.zeros(BATCH, 3, FRAMES, dtype=torch.long), torch.ones(BATCH, FRAMES, dtype=torch.bool), {})
    assert not [t.shape for t in kept if t.dim() and t.shape[-1] == 512]


def test_validation_computes_chunks_too(monkeypatch):
    made = stage(EVEN).eval()
    codes, mask = torch.ones(BATCH, 3, FRAMES, dtype=torch.long), torch.ones(BATCH, FRAMES, dtype=torch.bool)
    with torch.no_grad():
        expected = made.loss(codes, mask, {})["loss"]
        monkeypatch.setattr(partita.generators.codebooks, "MOST_LOGITS", BATCH * 512)
        torch.testing.assert_close(made.loss(codes, mask, {})["loss"], expected)
