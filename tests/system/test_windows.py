from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.system.windows import common_grid, windows

sizes = {
    "total": st.integers(1, 300),
    "window": st.integers(1, 60),
    "overlap": st.integers(0, 80),
    "known": st.integers(0, 100),
    "grid": st.integers(1, 8),
}


def made_of(total, window, overlap, **options):
    """The windows, each of which must make a frame at least."""
    return list(islice(windows(total, window, overlap, **options), total + 1))


@given(**sizes, change=st.integers(0, 320), transition=st.none() | st.integers(0, 80))
def test_windows_cover_everything_once_and_never_see_too_much(total, window, overlap, known, grid, change, transition):
    begin = known
    for start, from_, stop in made_of(
        total, window, overlap, known=known, grid=grid, changes=[change], transition=transition
    ):
        assert 0 <= start <= from_ == known < stop <= total
        assert stop - start <= window
        assert not from_ < change < stop
        if transition is not None and change in range(begin, from_ + 1):
            assert start >= min(change, from_) - transition
        known = stop
    assert known >= total


@given(**sizes)
def test_the_overlap_is_what_was_asked_for_or_more(total, window, overlap, known, grid):
    """Unless there is not so much yet, or a window would have no room for a new frame."""
    for start, from_, _ in made_of(total, window, overlap, known=known, grid=grid):
        assert from_ - start >= min(overlap, from_, window - 1)


@given(**sizes)
def test_windows_are_full_where_they_can_be(total, window, overlap, known, grid):
    """All but the first and the last; on a grid of one the last, too."""
    made = made_of(total, window, overlap, known=known, grid=grid)
    assert all(stop - start == window for start, _, stop in made[1:-1])
    if len(made) > 1 and grid == 1:
        assert made[-1].stop - made[-1].start == min(window, total)


@given(**sizes)
def test_windows_start_on_the_grid_where_the_overlap_allows(total, window, overlap, known, grid):
    for start, from_, _ in made_of(total, window, overlap, known=known, grid=grid):
        latest, earliest = from_ - min(overlap, from_, window - 1), max(0, from_ - window + 1)
        assert start % grid == 0 or not any(place % grid == 0 for place in range(earliest, latest + 1))


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_a_short_overlap_does_not_vanish_on_a_grid(overlap):
    made = made_of(60, 20, overlap, grid=4)
    assert all(later.start <= earlier.stop - overlap for earlier, later in pairwise(made))
    assert all(start % 4 == 0 for start, _, _ in made)


@pytest.mark.parametrize("transition", [1, 2, 3])
def test_a_short_transition_does_not_vanish_on_a_grid(transition):
    made = made_of(60, 20, 8, grid=4, changes=[32], transition=transition)
    (after,) = (window for window in made if window.known == 32)
    assert after.start == 32 - transition


def test_an_overlap_as_long_as_the_window_ends():
    assert made_of(12, 4, 4) == made_of(12, 4, 3)
    assert len(made_of(12, 1, 5)) == 12


@pytest.mark.parametrize("wrong", [{"window": 0}, {"overlap": -1}, {"grid": 0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot make windows"):
        list(windows(10, **({"window": 4, "overlap": 2} | wrong)))


def test_windows_begin_where_what_is_given_begins():
    assert all(start % 4 == 0 for start, _, _ in windows(401, 100, 49, grid=4))
    assert common_grid(44100 / 2048, [44100 / 1024], 50) == 1
    assert common_grid(43.06640625, [21.533203125], 50) == 2
    assert common_grid(44100 / 1000, [44100 / 3000], 50) == 3


def test_where_not_all_frames_can_begin_with_a_window_the_longest_do():
    """At 25 Hz, frames at 12.5 and 1 Hz begin together every 50 frames; those at 1 Hz every 25."""
    assert [common_grid(25.0, [12.5, 1.0], longest) for longest in (60, 30, 20)] == [50, 25, 1]
    assert common_grid(25.0, [], 30) == 1
