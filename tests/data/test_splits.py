"""Splits stay what they are."""

import pytest

from partita.data.splits import check_fractions, split_names

NAMES = [f"bach/bwv{i}" for i in range(250, 439)]
PINNED = {250: "train", 291: "validation", 255: "test"}


def test_disjoint_complete_and_about_as_large_as_asked():
    splits = split_names(NAMES, 0.2, 0.1)
    assert sorted(name for names in splits.values() for name in names) == sorted(NAMES)
    assert 0.1 < len(splits["validation"]) / len(NAMES) < 0.3
    assert 0.04 < len(splits["test"]) / len(NAMES) < 0.16


def test_names_stay_where_they_are():
    # Pinned: these must never change, or results of different versions could not be compared.
    splits = split_names(NAMES, 0.05, 0.05)
    where = {name: split for split, names in splits.items() for name in names}
    assert [where[f"bach/bwv{i}"] for i in PINNED] == list(PINNED.values())
    fewer = split_names(NAMES[::2], 0.05, 0.05)
    assert all(where[name] == split for split, names in fewer.items() for name in names)


def test_of_three_every_split_gets_one():
    for count in (3, 4, 5, 8):
        splits = split_names([f"song{i}.wav" for i in range(count)], 0.05, 0.05)
        assert all(splits.values())
    assert split_names(["a", "b"], 0.5, 0.4) == {"train": ["a", "b"], "validation": [], "test": []}
    assert not split_names(NAMES[:5], 0.0, 0.1)["validation"]
    assert split_names(NAMES[:3], 0.01, 0.98)["train"]


def test_a_name_that_goes_moves_no_other_without_need():
    for start in range(200):
        names = [f"take {start}-{i}.wav" for i in range(5 + start % 20)]
        before = {name: split for split, members in split_names(names, 0.05, 0.05).items() for name in members}
        for gone in names:
            rest = split_names([name for name in names if name != gone], 0.05, 0.05)
            moved = [before[name] for split, members in rest.items() for name in members if before[name] != split]
            needed = list(before.values()).count(before[gone]) == 1 and before[gone] != "train"
            assert moved == (["train"] if needed else [])


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.2)])
def test_fractions_that_leave_nothing(validation, test):
    with pytest.raises(ValueError, match="fractions"):
        check_fractions(validation, test)
