"""Frames that an autoregressive stage delivers while it generates."""

import pytest
import torch

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.base import Delivery

TARGET = RepresentationSpec(16000, 1, 50.0, num_codebooks=3, cardinality=16)
TEXT = {"text": Given(ConditionSpec(dim=4), "cross")}
FRAMES = 23


def generate(pattern, delivery=None, **options):
    torch.manual_seed(0)
    ends = options.pop("ends", False)
    backbone = Transformer(width=16, depth=1, num_heads=2)
    stage = Autoregressive(TARGET, TEXT, backbone=backbone, pattern=pattern, ends=ends).eval()
    if ends:
        stage.output_heads.weight.data[stage.codebooks.end] *= 3
    text = Condition(torch.randn(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))
    pairs = {"text": (text, text.absent())}
    return stage.generate(pairs, FRAMES, seeds=[1, 2, 3], delivery=delivery, **options)


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten", "partial_flatten", "coarse_first", "musiclm"])
@pytest.mark.parametrize("prefix", [0, 9])
def test_what_is_delivered_is_the_start_of_what_is_returned(pattern, prefix):
    known = torch.randint(16, (3, 3, prefix)) if prefix else None
    parts, steps = [], []
    made = generate(
        pattern,
        Delivery(lambda part: parts.append((len(steps), part)), 4),
        prefix=known,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert torch.equal(made.values, generate(pattern, prefix=known).values)
    for _, part in parts:
        assert torch.equal(part.values, made.values[..., : part.values.shape[-1]])
        assert part.whole
    total = steps[-1][1]
    if pattern in ("coarse_first", "musiclm"):  # the last codebooks come in one block at the end
        assert all(at >= total - 2 * (FRAMES - prefix) for at, _ in parts)
    else:
        new = [(at, part.values.shape[-1]) for at, part in parts if part.values.shape[-1] > prefix]
        assert [frames for _, frames in new] == [n for n in (4, 8, 12, 16, 20) if n > prefix]
        late = 2 if pattern == "delay" else 0
        slots = {"flatten": 3, "partial_flatten": 2}.get(pattern, 1)
        for at, frames in new:  # as soon as the last code of the frame is drawn
            assert at + 1 == (frames - prefix + late) * slots


def test_samples_that_have_ended_say_so():
    parts = []
    made = generate("delay", Delivery(parts.append, 2), ends=True)
    assert made.lengths.min() < FRAMES
    for part in parts:
        frames = part.values.shape[-1]
        assert torch.equal(part.values, made.values[..., :frames])
        assert torch.equal(part.lengths, made.lengths.clamp(max=frames))
