"""Stages that end by themselves, and codebooks of unequal size."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.base import NO_DROPOUT
from partita.layers.sampling import Sampling

UNEVEN = RepresentationSpec(16000, 1, 50.0, num_codebooks=3, cardinality=(5, 16, 9))
RESERVED = RepresentationSpec(16000, 1, None, num_codebooks=2, cardinality=(6, 4), end=5, longest=10)
TEXT = {"text": Given(ConditionSpec(dim=4), "cross")}
GREEDY = Sampling(temperature=0, guidance=1.0)
PATTERNS = ["delay", "parallel", "flatten", "partial_flatten", "coarse_first", "musiclm"]


def make(target=UNEVEN, **options):
    torch.manual_seed(0)
    backbone = Transformer(width=32, depth=2, num_heads=4)
    return Autoregressive(target, TEXT, backbone=backbone, condition_dropout=NO_DROPOUT, **options)


def text(batch):
    values = torch.randn(batch, 3, 4, generator=torch.Generator().manual_seed(1))
    return Condition(values, torch.ones(batch, 3, dtype=torch.bool))


def pairs(batch):
    return {"text": (text(batch), text(batch).absent())}


def codes_of(spec, batch, frames):
    return torch.stack([torch.randint(size, (batch, frames)) for size in spec.cardinalities], 1)


def test_before_it_has_learned_anything_every_id_of_a_codebook_is_equally_likely():
    """Closed form: cross-entropy is the logarithm of the number of ids, the end among those of the first codebook."""
    codes, mask = codes_of(UNEVEN, 2, 7), torch.arange(7) < torch.tensor([[7], [4]])
    for ends in (False, True):
        stage = make(ends=ends)
        stage.output_heads.weight.data.zero_()
        losses = stage.loss(codes, mask, {"text": text(2)})
        expected = [math.log(5 + ends), math.log(16), math.log(9)]
        assert [losses[f"ce_{k}"].item() for k in range(3)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_end_is_learned_in_the_first_codebook_after_the_last_frame(pattern):
    stage = make(ends=True, pattern=pattern)
    codes, mask = codes_of(UNEVEN, 2, 6), torch.arange(6) < torch.tensor([[6], [4]])
    logits, valid = stage.logits(codes, {"text": text(2)}, mask)
    expected = mask[:, None].repeat(1, 3, 1)
    expected[1, 0, 4] = True  # of the first clip, more may follow
    assert torch.equal(valid, expected)
    first = torch.cat([codes[0, 0], codes[1, 0, :4], torch.tensor([5])])
    losses = stage.loss(codes, mask, {"text": text(2)})
    predicted = logits[:, 0][valid[:, 0]][:, :6]
    torch.testing.assert_close(losses["ce_0"], F.cross_entropy(predicted, first))
    assert logits[:, 0, :, 6:].isneginf().all()
    # what stands on padding changes nothing
    other = torch.where(mask[:, None], codes, (codes + 1) % 5)
    assert torch.equal(stage.loss(other, mask, {"text": text(2)})["loss"], losses["loss"])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_stage_learns_clips_of_unequal_length_by_heart(pattern):
    stage = make(ends=True, pattern=pattern)
    lengths = torch.tensor([1, 4, 6, 10])
    mask = torch.arange(12) < lengths[:, None]
    codes = codes_of(UNEVEN, 4, 12)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=8e-3)
    for _ in range(90):
        loss = stage.loss(codes, mask, {"text": text(4)})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for options in ({"use_cache": True}, {"use_cache": False}):
        steps = []
        options |= {"sampling": GREEDY, "progress": lambda *at, steps=steps: steps.append(at)}
        made = stage.generate(pairs(4), 12, seeds=range(4), **options)
        assert made.lengths.tolist() == lengths.tolist()
        assert torch.equal(made.values, codes.masked_fill(~mask[:, None], 0))
        assert len(steps) < steps[-1][1]  # it stops when the last sample has ended


def test_ids_that_are_not_there_are_never_drawn():
    stage = make(sampling=Sampling(top_k=None, guidance=3.0))
    stage.output_heads.weight.data.mul_(0.1)
    codes = stage.generate(pairs(8), 40, seeds=range(8)).values
    assert [int(codes[:, k].max()) for k in range(3)] == [4, 15, 8]
    assert codes.min() == 0


def test_a_reserved_end_is_used_and_never_comes_back():
    stage = make(RESERVED, ends=True, sampling=Sampling(top_k=None, guidance=1.0))
    assert stage.output_heads.out_features == 10  # no id more
    made = stage.generate(pairs(16), 10, seeds=range(16))
    assert made.values[:, 0].max() < 5
    assert 1 <= int(made.lengths.min()) < 10
    never = make(RESERVED, sampling=Sampling(top_k=None, guidance=1.0)).generate(pairs(16), 10, seeds=range(16))
    assert never.whole
    assert never.values[:, 0].max() < 5
    # a sample ends where it ends whatever is around it
    alone = stage.generate(
        {"text": tuple(Condition(c.values[3:4], c.mask[3:4]) for c in pairs(16)["text"])}, 10, seeds=[3]
    )
    assert alone.lengths[0] == made.lengths[3]
    assert torch.equal(alone.values[0], made.values[3])


def test_a_prefix_is_kept_by_a_stage_that_ends():
    stage = make(ends=True, sampling=Sampling(top_k=None, guidance=1.0))
    prefix = codes_of(UNEVEN, 4, 5)
    made = stage.generate(pairs(4), 30, seeds=range(4), prefix=prefix)
    assert torch.equal(made.values[..., :5], prefix)
    assert made.lengths.min() >= 5


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="no other may precede it"):
        make(ends=True, delays=(2, 0, 1))
    with pytest.raises(ValueError, match="2 codebooks have as many cardinalities"):
        RepresentationSpec(16000, 1, 50.0, 2, (4, 4, 4))
    with pytest.raises(ValueError, match="how many frames a clip has at most"):
        RepresentationSpec(16000, 1, None, 2, 4)
    with pytest.raises(ValueError, match="must be one of the first codebook"):
        replace(RESERVED, end=6)


def test_side_outputs_are_the_states_that_predict_each_frame():
    stage = make().eval()
    codes, mask = codes_of(UNEVEN, 2, 6), torch.arange(6) < torch.tensor([[6], [4]])
    with torch.no_grad():
        hidden = stage.compute_outputs(codes, mask, {"text": text(2)})["hidden"]
        logits, _ = stage.logits(codes, {"text": text(2)}, mask)
        first = hidden.values @ stage.output_heads.weight[:5].T
    torch.testing.assert_close(first[mask], logits[:, 0, :, :5][mask])
    assert str(stage.side_outputs["hidden"]) == "32-d at 50 Hz"
    assert torch.equal(hidden.mask, mask)
    assert not hidden.values[~mask].any()
