"""Truth is integer arithmetic: a frame is a whole number of samples."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partita.core.contracts import RepresentationSpec
from partita.core.rates import at_least, begun_frames, exact, nearest, whole_frames

SIZES = [(16000, 320), (16000, 640), (24000, 320), (24000, 480), (32000, 640), (44100, 512), (44100, 882), (48000, 320)]
sample_rates = st.sampled_from([8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000])
hops = st.integers(1, 4096)


@given(sample_rate=sample_rates, hop=hops)
def test_a_rate_stands_for_its_fraction(sample_rate, hop):
    assert exact(sample_rate / hop) == Fraction(sample_rate, hop)


@pytest.mark.parametrize(("sample_rate", "hop"), SIZES)
def test_exact_lengths_hold_exactly_their_frames(sample_rate, hop):
    """Floating point takes a frame from 73 of 1,500 at 16 kHz, and in single precision adds one to 1,200 at 24 kHz."""
    spec = RepresentationSpec(sample_rate, 1, sample_rate / hop, dim=1)
    counts = torch.arange(1, 1501)
    for samples, count in zip((counts * hop).tolist(), counts.tolist(), strict=True):
        assert spec.whole_frames(samples, sample_rate) == spec.begun_frames(samples, sample_rate) == count
        assert spec.frames(samples / sample_rate) == count
    assert torch.equal(spec.begun_frames(counts * hop, sample_rate), counts)
    assert torch.equal(spec.begun_frames(counts * hop + 1, sample_rate), counts + 1)
    assert torch.equal(spec.whole_frames(counts * hop - 1, sample_rate), counts - 1)


@given(sample_rate=sample_rates, own_rate=sample_rates, hop=hops, samples=st.integers(0, 2**31))
def test_samples_at_another_rate(sample_rate, own_rate, hop, samples):
    frames = Fraction(samples * own_rate, sample_rate * hop)
    assert whole_frames(samples, sample_rate, own_rate / hop) == math.floor(frames)
    assert begun_frames(samples, sample_rate, own_rate / hop) == math.ceil(frames)
    assert int(begun_frames(torch.tensor(samples), sample_rate, own_rate / hop)) == math.ceil(frames)


@given(frames=st.integers(0, 100_000), sample_rate=sample_rates, hop=hops)
def test_times_of_frames_are_those_frames(frames, sample_rate, hop):
    seconds = frames * hop / sample_rate
    assert nearest(seconds, sample_rate / hop) == frames
    assert at_least(seconds, sample_rate / hop) == frames


@given(tenths=st.integers(0, 6000), rate=st.sampled_from([12.5, 25, 50, 75, 150]))
def test_decimal_times_are_decimal(tenths, rate):
    assert at_least(tenths / 10, rate) == math.ceil(Fraction(tenths, 10) * Fraction(rate))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="finite"):
        exact(number)
