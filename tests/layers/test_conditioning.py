from fractions import Fraction

import pytest
import torch

from partita.core.contracts import Condition, ConditionSpec, Given
from partita.layers.conditioning import Conditioning, _interpolate


def embeddings(batch=2, length=3, dim=5, lengths=None):
    mask = torch.arange(length) < torch.tensor(lengths or [length] * batch)[:, None]
    return Condition(torch.randn(batch, length, dim), mask)


def test_conditions_are_sorted_by_entry_and_joined_in_order():
    given = {
        "text": Given(ConditionSpec(dim=5), "cross"),
        "style": Given(ConditionSpec(dim=7), "prepend"),
        "lyrics": Given(ConditionSpec(dim=3), "cross"),
    }
    layer = Conditioning(given, 8, 50.0)
    conditions = {
        "text": embeddings(lengths=[1, 3]),
        "style": embeddings(dim=7, length=2),
        "lyrics": embeddings(dim=3, length=4, lengths=[4, 2]),
    }
    context = layer(conditions, 10)
    assert context.prefix.shape == (2, 2, 8)
    assert context.cross.shape == (2, 7, 8)
    assert context.cross_mask.tolist() == [
        [True, False, False, True, True, True, True],
        [True, True, True, True, True, False, False],
    ]
    assert context.added is None
    assert (context.cross[~context.cross_mask] == 0).all()
    torch.testing.assert_close(context.cross[:, 3:7][0], layer.projections["lyrics"](conditions["lyrics"].values[0]))


def test_codes_are_interleaved_frame_by_frame_each_with_its_own_embeddings():
    layer = Conditioning({"coarse": Given(ConditionSpec(num_codebooks=2, cardinality=10), "prepend")}, 4, 50.0)
    codes = torch.tensor([[[3, 4, 5], [3, 7, 8]]])
    context = layer({"coarse": Condition(codes, torch.tensor([[True, True, False]]))}, 10)
    rows = layer.projections["coarse"].weight
    expected = rows[torch.tensor([3, 13, 4, 17, 5, 18])]
    expected = expected * torch.tensor([1, 1, 1, 1, 0, 0])[:, None]
    torch.testing.assert_close(context.prefix[0], expected)
    assert context.prefix_mask.tolist() == [[True, True, True, True, False, False]]


def test_added_codes_are_summed_per_frame_and_take_the_nearest():
    spec = ConditionSpec(num_codebooks=2, cardinality=10, frame_rate=25.0)
    layer = Conditioning({"semantic": Given(spec, "add")}, 4, 50.0)
    context = layer({"semantic": Condition(torch.tensor([[[1, 2], [3, 4]]]), torch.ones(1, 2, dtype=torch.bool))}, 4)
    rows = layer.projections["semantic"].weight
    first, second = rows[1] + rows[13], rows[2] + rows[14]
    torch.testing.assert_close(context.added[0], torch.stack([first, first, second, second]))


def ramp(length):
    """A condition whose value at each frame is the time of that frame's center, in its own frames."""
    return (torch.arange(length) + 0.5)[None, :, None], torch.ones(1, length, dtype=torch.bool)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_interpolation_is_linear_in_time(ratio):
    values, mask = ramp(12)
    frames = int(12 / ratio)
    out = _interpolate(values, mask, Fraction(ratio), frames, nearest=False)[0, :, 0]
    expected = ((torch.arange(frames) + 0.5) * ratio).clamp(0.5, 11.5)
    torch.testing.assert_close(out, expected)


def test_masked_neighbors_do_not_fade_a_condition_out():
    values = torch.tensor([[[2.0], [2.0], [9.0], [9.0]]])
    values.requires_grad_()
    mask = torch.tensor([[True, True, False, False]])
    out = _interpolate(values, mask, Fraction(1, 2), 8, nearest=False)[0, :, 0]
    assert out.tolist() == [2.0] * 4 + [0.0] * 4
    out.sum().backward()
    assert values.grad.flatten().tolist() == [2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("nearest", [True, False])
def test_nothing_is_added_past_the_end(nearest):
    values, mask = ramp(2)
    out = _interpolate(values, mask, Fraction(1), 5, nearest=nearest)[0, :, 0]
    assert out[:2].tolist() == [0.5, 1.5]
    assert out[2:].tolist() == [0.0] * 3


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="text is not aligned in time: it cannot enter by add"):
        Conditioning({"text": Given(ConditionSpec(dim=5), "add")}, 8, 50.0)
    with pytest.raises(ValueError, match="neither its width nor its codebooks"):
        Conditioning({"text": Given(ConditionSpec(), "cross")}, 8, 50.0)


def mean_mask(batch, length):
    return Condition(torch.randn(batch, length, 4), torch.arange(length) < torch.tensor([[length], [2]]))


def test_what_modulates_is_the_mean_of_what_is_there():
    layer = Conditioning({"style": Given(ConditionSpec(dim=4), "modulate")}, 8, 50.0)
    condition = mean_mask(2, 5)
    pooled = layer({"style": condition}, 10).pooled
    expected = layer.projections["style"](condition.values[1, :2]).mean(0)
    torch.testing.assert_close(pooled[1], expected)
    absent = layer({"style": condition.absent()}, 10).pooled
    assert torch.equal(absent, torch.zeros_like(absent))


def test_channels_side_by_side_are_projections_added():
    spec = ConditionSpec(dim=4, frame_rate=25.0)
    layers = [Conditioning({"chroma": Given(spec, fusion)}, 8, 50.0) for fusion in ("add", "concat")]
    layers[1].load_state_dict(layers[0].state_dict())
    condition = Condition(torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool))
    added, concatenated = (layer({"chroma": condition}, 12).added for layer in layers)
    assert torch.equal(added, concatenated)


def test_a_prefix_knows_the_frames_it_belongs_to():
    given = {
        "text": Given(ConditionSpec(dim=4), "prepend"),
        "coarse": Given(ConditionSpec(num_codebooks=2, cardinality=5, frame_rate=25.0), "prepend"),
    }
    conditions = {
        "text": Condition(torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)),
        "coarse": Condition(torch.zeros(1, 2, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)),
    }
    context = Conditioning(given, 8, 50.0)(conditions, 4)
    # the center of a frame at 25 Hz lies between two frames at 50 Hz
    assert context.prefix_frames.tolist() == [-1, -1, -1, 0.5, 0.5, 2.5, 2.5]


def test_what_is_attended_to_knows_its_time():
    given = {"coarse": Given(ConditionSpec(dim=4, frame_rate=25.0), "cross")}
    condition = Condition(torch.ones(1, 3, 4), torch.tensor([[True, True, False]]))
    cross = Conditioning(given, 8, 50.0)({"coarse": condition}, 6).cross
    assert not torch.allclose(cross[0, 0], cross[0, 1])
    assert torch.equal(cross[0, 2], torch.zeros(8))


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("ratio", ["2", "4", "2/3", "1", "1/2", "5/3"])
def test_padding_after_a_condition_changes_nothing(ratio, nearest):
    values = torch.randn(1, 3, 2)
    mask = torch.ones(1, 3, dtype=torch.bool)
    padded = torch.cat([values, torch.full((1, 4, 2), 9.0)], 1)
    longer = torch.arange(7)[None] < 3
    expected = _interpolate(values, mask, Fraction(ratio), 6, nearest)
    assert torch.equal(_interpolate(padded, longer, Fraction(ratio), 6, nearest), expected)
