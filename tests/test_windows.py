from hypothesis import given
from hypothesis import strategies as st

from partita.windows import common_grid, windows


@given(
    total=st.integers(1, 300),
    window=st.integers(1, 60),
    share=st.floats(0, 0.99),
    known=st.integers(0, 100),
    grid=st.integers(1, 8),
    change=st.integers(0, 320),
    transition=st.none() | st.integers(0, 40),
)
def test_windows_cover_everything_once_and_never_see_too_much(total, window, share, known, grid, change, transition):
    overlap, begin = int(window * share), known
    made = list(windows(total, window, overlap, known=known, grid=grid, changes=[change], transition=transition))
    for start, from_, stop in made:
        assert 0 <= start <= from_ == known < stop <= total
        assert stop - start <= window
        assert not from_ < change < stop
        if transition is not None and change in range(begin, from_ + 1):
            assert start >= min(change, from_) - transition
        known = stop
    assert known >= total


def test_windows_begin_where_what_is_given_begins():
    assert all(start % 4 == 0 for start, _, _ in windows(401, 100, 49, grid=4))
    assert common_grid(44100 / 2048, [44100 / 1024]) == 1
    assert common_grid(43.06640625, [21.533203125]) == 2
