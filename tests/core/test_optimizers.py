"""Optimizers: Adam in one kernel, Muon for hidden matrices, and averaged weights."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from partita.core.averaging import AverageWeights
from partita.core.contracts import ConditionSpec, Given, RepresentationSpec
from partita.core.fit import Fit
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.denoisers.dit import DiT
from partita.generators.diffusion import Diffusion

FIT = Fit(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3, optimizer="muon")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 2))


def learn(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_is_one_kernel(kind):
    fit = Fit(lr=0.1, weight_decay=0.3, optimizer=kind)
    fused, by_torch = network(), network()
    expected = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    learn(by_torch, expected(by_torch.parameters(), lr=0.1, weight_decay=0.3, fused=False, foreach=False), 5)
    optimizer = fit.make_optimizer(fused.parameters())
    assert optimizer.defaults["fused"] is True
    learn(fused, optimizer, 5)
    for a, b in zip(fused.parameters(), by_torch.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_muon_turns_hidden_matrices_and_adamw_moves_the_rest():
    net, by_torch = network(), network()
    hidden, generator = net[2].weight, torch.Generator().manual_seed(1)
    before = hidden.detach().clone()
    optimizer = FIT.make_optimizer(net.parameters(), [hidden])
    adamw = torch.optim.AdamW(by_torch.parameters(), lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    for mine, theirs in zip(net.parameters(), by_torch.parameters(), strict=True):
        mine.grad = torch.randn(mine.shape, generator=generator)
        theirs.grad = mine.grad.clone()
    optimizer.step()
    adamw.step()
    for index in (0, 4):
        torch.testing.assert_close(net[index].weight, by_torch[index].weight)
        torch.testing.assert_close(net[index].bias, by_torch[index].bias)
    # the nearest orthogonal matrix to the gradient, with 0.2 lr for its root mean square (arXiv 2502.16982 §2.2)
    left, _, right = torch.linalg.svd(hidden.grad, full_matrices=False)
    expected = left @ right * 0.2 * 0.1 * 12**0.5
    moved = before * (1 - 0.1 * 0.3) - hidden.detach()
    # five iterations leave the singular values between 0.7 and 1.2
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), 0) > 0.97
    assert (torch.linalg.svdvals(moved) / torch.linalg.svdvals(expected)).min() > 0.65
    assert (torch.linalg.svdvals(moved) / torch.linalg.svdvals(expected)).max() < 1.3


def test_a_resumed_muon_continues_exactly():
    whole, half, rest = network(), network(), network()
    learn(whole, FIT.make_optimizer(whole.parameters(), [whole[2].weight]), 6)
    first = FIT.make_optimizer(half.parameters(), [half[2].weight])
    learn(half, first, 3)
    rest.load_state_dict(half.state_dict())
    second = FIT.make_optimizer(rest.parameters(), [rest[2].weight])
    second.load_state_dict(first.state_dict())
    learn(rest, second, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))


@pytest.mark.parametrize("everything", [True, False])
def test_muon_may_have_all_parameters_or_none(everything):
    layer = nn.Linear(3, 4, bias=False)
    optimizer = FIT.make_optimizer(layer.parameters(), list(layer.parameters()) if everything else [])
    layer.weight.grad = torch.ones(4, 3)
    before = layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def stages():
    text = {"text": Given(ConditionSpec(dim=6), "cross")}
    codes = RepresentationSpec(4000, 1, 10.0, 2, 16)
    latents = RepresentationSpec(4000, 1, 10.0, dim=5)
    backbone = Transformer(width=8, depth=1, num_heads=2)
    yield Autoregressive(codes, text, backbone=backbone), "backbone.layers.blocks.0."
    yield Diffusion(latents, text, denoiser=DiT(width=8, depth=1, num_heads=2)), "denoiser.layers.blocks.0."


def test_the_hidden_matrices_of_a_stage_are_those_of_its_blocks():
    for stage, block in stages():
        stage.fit_options = FIT
        optimizer = stage.configure_optimizers()["optimizer"]
        muon = {id(p) for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
        names = {name for name, parameter in stage.named_parameters() if id(parameter) in muon}
        layers = ("self_attention.query_key_value", "self_attention.output", "cross_attention.query")
        layers += (
            "cross_attention.key_value",
            "cross_attention.output",
            "feed_forward.expand",
            "feed_forward.contract",
        )
        assert names == {f"{block}{layer}.weight" for layer in layers}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(stage.parameters()))


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.net[0].requires_grad_(False)


def test_averaged_weights_are_those_of_torch():
    module, every, decay = Module(), 2, 0.7
    torch_average = AveragedModel(module, avg_fn=get_ema_avg_fn(decay))
    average = AverageWeights(decay, every)
    for step in range(1, 7):
        with torch.no_grad():
            for parameter in module.net[2:].parameters():
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        for _ in range(2):  # two batches of a step, of which the first does not change the step
            average.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)
        if (step - 1) % every == 0:
            torch_average.update_parameters(module)
    current = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    average.on_validation_epoch_start(None, module)
    for name, parameter in torch_average.module.named_parameters():
        if not name.startswith("net.0"):
            assert torch.equal(dict(module.named_parameters())[name], parameter), name
            assert not torch.equal(parameter, current[name])
    average.on_validation_epoch_end(None, module)
    assert all(torch.equal(current[name], parameter) for name, parameter in module.named_parameters())
    average.on_train_end(None, module)
    assert torch.equal(module.net[2].weight, torch_average.module.net[2].weight)
    assert torch.equal(module.net[0].weight, current["net.0.weight"])  # frozen


@pytest.mark.parametrize("kind", ["adamw", "adam", "muon"])
def test_rates_multiply_the_learning_rate_of_what_they_name(kind):
    """The first step of Adam is the learning rate; that of Muon is proportional to it."""

    def moved(**rates):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False), nn.Linear(4, 2))
        fit = Fit(lr=0.01, optimizer=kind, rates={"1.*": 0.1} | rates)
        optimizer = fit.make_optimizer(fit.groups(net.named_parameters()), [net[1].weight])
        schedule = fit.make_scheduler(optimizer)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        net(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        schedule.step()
        return [(old - new).detach() for old, new in zip(before, net.parameters(), strict=True)]

    slow, even = moved(), moved(**{"1.*": 1.0})
    for number, (a, b) in enumerate(zip(slow, even, strict=True)):
        torch.testing.assert_close(a, b * (0.1 if number == 1 else 1.0), atol=1e-6, rtol=1e-3)
    assert torch.equal(moved(**{"*": 5.0})[1], slow[1])  # the first pattern counts
    assert slow[0].abs().max() == pytest.approx(0.01, rel=1e-3)


def test_rates_are_positive():
    with pytest.raises(ValueError, match=r"rates must be positive, not 0\.0 for a"):
        Fit(rates={"a.*": 0.0})
