import pytest
import torch

from partita.layers.patterns import Pattern

# Hand-written: letters are codebooks, digits are frames, a dot is the special id.
TABLES = {
    "delay": """
        . a0 a1 a2 .  .  .
        . .  b0 b1 b2 .  .
        . .  .  c0 c1 c2 .
        . .  .  .  d0 d1 d2""",
    "parallel": """
        . a0 a1 a2
        . b0 b1 b2
        . c0 c1 c2
        . d0 d1 d2""",
    "flatten": """
        . a0 .  .  .  a1 .  .  .  a2 .  .  .
        . .  b0 .  .  .  b1 .  .  .  b2 .  .
        . .  .  c0 .  .  .  c1 .  .  .  c2 .
        . .  .  .  d0 .  .  .  d1 .  .  .  d2""",
    "partial_flatten": """
        . a0 .  a1 .  a2 .
        . .  b0 .  b1 .  b2
        . .  c0 .  c1 .  c2
        . .  d0 .  d1 .  d2""",
    "coarse_first": """
        . a0 a1 a2 .  .  .
        . .  .  .  b0 b1 b2
        . .  .  .  c0 c1 c2
        . .  .  .  d0 d1 d2""",
    "musiclm": """
        . a0 .  a1 .  a2 .  .  .  .  .  .  .
        . .  b0 .  b1 .  b2 .  .  .  .  .  .
        . .  .  .  .  .  .  c0 .  c1 .  c2 .
        . .  .  .  .  .  .  .  d0 .  d1 .  d2""",
}
SPECIAL = 99


def codes_of(codebooks, frames):
    """Codes whose tens are the codebook and whose ones are the frame."""
    return (torch.arange(codebooks)[:, None] * 10 + torch.arange(frames))[None]


def table(text):
    def code(cell):
        return SPECIAL if cell == "." else (ord(cell[0]) - ord("a")) * 10 + int(cell[1:])

    return torch.tensor([[code(cell) for cell in line.split()] for line in text.strip().splitlines()])[None]


@pytest.mark.parametrize("name", TABLES)
def test_layout_is_the_one_of_the_literature(name):
    layout = Pattern.named(name, 4).layout(3)
    expected = table(TABLES[name])
    assert torch.equal(layout.build(codes_of(4, 3), SPECIAL), expected)
    assert torch.equal(layout.valid, expected[0] != SPECIAL)


def test_stereo_delays_share_a_step_for_left_and_right():
    layout = Pattern.named("delay", 4, (0, 0, 1, 1)).layout(2)
    expected = table("""
        . a0 a1 .
        . b0 b1 .
        . .  c0 c1
        . .  d0 d1""")
    assert torch.equal(layout.build(codes_of(4, 2), SPECIAL), expected)


def test_coarse_first_takes_delays_of_its_own():
    layout = Pattern.named("coarse_first", 3, (0, 0, 1)).layout(2)
    expected = table("""
        . a0 a1 .  .  .
        . .  .  b0 b1 .
        . .  .  .  c0 c1""")
    assert torch.equal(layout.build(codes_of(3, 2), SPECIAL), expected)


def test_musiclm_takes_an_odd_number_of_codebooks():
    layout = Pattern.named("musiclm", 3).layout(2)
    expected = table("""
        . a0 .  a1 .  .  .
        . .  b0 .  b1 .  .
        . .  .  .  .  c0 c1""")
    assert torch.equal(layout.build(codes_of(3, 2), SPECIAL), expected)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("codebooks", "frames"), [(1, 1), (1, 7), (4, 1), (5, 9), (12, 6)])
def test_there_and_back(name, codebooks, frames):
    layout = Pattern.named(name, codebooks).layout(frames)
    codes = torch.randint(0, 50, (3, codebooks, frames))
    sequence = layout.build(codes, SPECIAL)
    assert torch.equal(layout.revert(sequence), codes)
    assert (sequence[:, :, 0] == SPECIAL).all()
    assert (sequence != SPECIAL).sum() == codes.numel()


@pytest.mark.parametrize("name", TABLES)
def test_each_code_is_predicted_from_the_step_before_it(name):
    layout = Pattern.named(name, 4).layout(3)
    hidden = torch.arange(layout.length - 1.0)[None, :, None]
    predicted = layout.predicted(hidden)[0, :, :, 0]
    for codebook, row in enumerate(table(TABLES[name])[0]):
        for frame in range(3):
            assert row[int(predicted[codebook, frame]) + 1] == codebook * 10 + frame


def test_padding_frames_look_like_the_end_of_the_clip():
    pattern = Pattern.named("delay", 3)
    codes = codes_of(3, 5)
    present = torch.tensor([[True, True, True, False, False]])
    short = pattern.layout(3).build(codes[:, :, :3], SPECIAL)
    padded = pattern.layout(5).build(codes, SPECIAL, present)
    assert torch.equal(padded[:, :, : short.shape[2]], short)
    assert (padded[:, :, short.shape[2] :] == SPECIAL).all()


def test_what_only_its_delay_puts_past_the_end():
    """As in audiocraft's patterns, which keep the steps up to that of the last frame without delay."""
    assert Pattern.named("delay", 4).layout(5).timely.sum(1).tolist() == [5, 4, 3, 2]
    assert Pattern.named("delay", 4).layout(2).timely.sum(1).tolist() == [2, 1, 0, 0]
    assert Pattern.named("delay", 4, (0, 0, 1, 1)).layout(3).timely.tolist() == [[1, 1, 1]] * 2 + [[1, 1, 0]] * 2
    for name in ("parallel", "flatten", "partial_flatten", "coarse_first", "musiclm"):
        assert Pattern.named(name, 4).layout(3).timely.all()
    assert Pattern.named("coarse_first", 3, (0, 0, 1)).layout(4).timely.sum(1).tolist() == [4, 4, 3]


def test_newest_frame_of_a_step():
    assert Pattern.named("delay", 3).layout(3).newest.tolist() == [0, 0, 1, 2, 2, 2]
    assert Pattern.named("flatten", 2).layout(2).newest.tolist() == [0, 0, 0, 1, 1]


def test_a_layout_first_made_in_inference_mode_still_trains():
    pattern = Pattern.named("delay", 2, (0, 3))
    with torch.inference_mode():
        pattern.layout(11)
    hidden = torch.randn(1, pattern.layout(11).length - 1, 4, requires_grad=True)
    pattern.layout(11).predicted(hidden).sum().backward()
    assert hidden.grad is not None


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"no pattern is called 'zigzag'.*delay"):
        Pattern.named("zigzag", 4)
    with pytest.raises(ValueError, match="delays has 3 values for 4 codebooks"):
        Pattern.named("delay", 4, (0, 1, 2))
    with pytest.raises(ValueError, match="count from 0"):
        Pattern.named("delay", 2, (0, -1))
    with pytest.raises(ValueError, match="at least one frame"):
        Pattern.named("delay", 2).layout(0)
