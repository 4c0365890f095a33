"""Every condition matters: in every registered stage, on every component, in every way in which it can enter."""

import pytest
import torch
from components import changed, registered, shaken, small

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.core.registry import lookup
from partita.core.schema import part_arguments
from partita.layers.guidance import Term
from partita.layers.sampling import Sampling

CODES = RepresentationSpec(16000, 1, 50.0, num_codebooks=2, cardinality=11)
LATENTS = RepresentationSpec(16000, 1, 50.0, dim=3)
SPECS = {
    "embeddings": ConditionSpec(dim=6),
    "aligned": ConditionSpec(dim=6, frame_rate=25.0),
    "codes": ConditionSpec(num_codebooks=2, cardinality=7, frame_rate=25.0),
}
BATCH, FRAMES = 4, 8


def combinations():
    """Each kind of stage with each of its components, each way to enter, and each kind of condition that can."""
    for name in registered("generator"):
        cls = lookup("generator", name)
        slots = part_arguments(cls) or {"": ""}
        for slot, family in slots.items():
            for component in registered(family) if slot else [""]:
                own = lookup(family, component).fusions if slot else cls.fusions
                for fusion in (f for f in cls.fusions if f in own):
                    for kind, spec in SPECS.items():
                        if spec.frame_rate is not None or fusion not in ("add", "concat"):
                            values = (name, slot, family, component, fusion, kind)
                            yield pytest.param(*values, id="-".join((name, component, fusion, kind)))


def stage_of(name, slot, family, component, fusion, kind):
    cls = lookup("generator", name)
    torch.manual_seed(0)
    parts = {slot: small(family, component)} if slot else {}
    stage = cls(CODES if cls.discrete else LATENTS, {"it": Given(SPECS[kind], fusion)}, **parts)
    return shaken(stage).eval()


def condition_of(kind, batch=BATCH):
    spec, draw = SPECS[kind], torch.Generator().manual_seed(1)
    if spec.dim is not None:
        values = torch.randn(batch, FRAMES // 2, spec.dim, generator=draw)
    else:
        values = torch.randint(spec.cardinality, (batch, spec.num_codebooks, FRAMES // 2), generator=draw)
    return Condition(values, torch.ones(batch, FRAMES // 2, dtype=torch.bool))


@pytest.mark.parametrize(("name", "slot", "family", "component", "fusion", "kind"), combinations())
def test_changing_a_condition_changes_loss_and_output(name, slot, family, component, fusion, kind):
    stage = stage_of(name, slot, family, component, fusion, kind)
    condition = condition_of(kind)
    target = torch.randint(11, (BATCH, 2, FRAMES)) if stage.discrete else torch.randn(BATCH, 3, FRAMES)
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)

    def loss(of):
        torch.manual_seed(3)
        return stage.loss(target, mask, {"it": of})["loss"]

    own = loss(condition)
    assert not torch.isclose(own, loss(changed(condition)))
    assert not torch.isclose(own, loss(condition.absent()))
    own.backward()
    weights = list(stage.conditioning.projections["it"].parameters())
    assert weights
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)

    def generate(of, frames):
        pairs = {"it": (of, of.absent())}
        return stage.generate(pairs, frames, seeds=range(BATCH), guidance=[Term(None, 1.0)]).values

    many = condition_of(kind)
    for frames in (1, FRAMES):
        first, other = generate(many, frames), generate(changed(many), frames)
        assert stage.discrete or not torch.isclose(first, other).flatten(1).all(1).any()
        assert frames == 1 or not torch.equal(first, other)


def autoregressive():
    return [param for param in combinations() if param.values[0] == "autoregressive"]


@pytest.mark.parametrize(("name", "slot", "family", "component", "fusion", "kind"), autoregressive())
@pytest.mark.parametrize("use_cache", [True, False])
def test_every_step_hears_a_condition(name, slot, family, component, fusion, kind, use_cache, monkeypatch):
    """Whatever is drawn, the logits of the first step and of all that follow from the cache depend on it."""
    stage = stage_of(name, slot, family, component, fusion, kind)
    seen = []

    def draw(self, logits, noise):
        seen.append(logits)
        return torch.zeros(logits.shape[:-1], dtype=torch.long)

    monkeypatch.setattr(Sampling, "draw", draw)

    def logits(of):
        seen.clear()
        pairs = {"it": (of, of.absent())}
        stage.generate(pairs, FRAMES, seeds=range(BATCH), guidance=[Term(None, 1.0)], use_cache=use_cache)
        return torch.stack(seen, 1)

    condition = condition_of(kind)
    own, other, none = logits(condition), logits(changed(condition)), logits(condition.absent())
    # the last step of the delay pattern predicts a frame as the others do
    assert not torch.isclose(own, other).flatten(2).all(2).any()
    assert not torch.isclose(own, none).flatten(2).all(2).any()
