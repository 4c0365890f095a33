"""Embedders, and the statistics of reference clips that are kept for later evaluations."""

from dataclasses import replace

import torch

import toys
from evaluation_toys import EMBEDDED, ToyJoint, scored
from partita.evaluation.embedders import read_embedder, read_reference
from partita.evaluation.evaluate import evaluate
from partita.storage.cache import default_cache_dir


def test_nothing_is_embedded_twice(run):
    EMBEDDED.clear()
    evaluate(run, options=scored(fad={"embeddings": ["toy-listener"]}, kld={"classifiers": ["toy-listener"]}))
    assert sum(EMBEDDED) == 3 * 5 + 6 + 1  # generated, real and coded clips, the reference, and the fingerprint's noise


def test_the_reference_is_embedded_once_for_all_systems(run, other, lines):
    options = replace(scored(fad={"embeddings": ["toy-listener"]}), seed=11)
    first = evaluate(run, options=options)
    EMBEDDED.clear()
    second = evaluate(other("seed=5"), options=options)
    assert sum(EMBEDDED) == 3 * 5 + 1
    assert any("read from the cache" in line for line in lines)
    rows = [results["metrics"]["FAD (toy-listener)"] for results in (first, second)]
    assert rows[0]["real"] == rows[1]["real"]


def kept():
    return set((default_cache_dir() / "references").glob("reference-*.safetensors"))


def frames_of(path):
    return path.with_name(path.name.replace("reference", "frames"))


def test_statistics_of_other_clips_or_weights_are_never_taken(tmp_path, lines):
    """Whatever is changed has a file of its own, and a file that says something else is not believed."""

    def slot(gain):
        ToyJoint(gain=gain).save(tmp_path / str(gain))
        return f"{{name: toy-joint, weights: {tmp_path / str(gain)}}}"

    def clips(number=4, seconds=1.0, seed=0, tones=8):
        source = toys.ToySines(pieces=tones)
        read = {"seconds": seconds, "sample_rate": 4000, "channels": 1}
        return [source.read("test", i % tones, seed=seed + i, **read).audio for i in range(number)]

    cases = [
        (slot(1.0), clips()),
        (slot(1.0), clips(5)),
        (slot(1.0), clips(seconds=0.5)),
        (slot(1.0), clips(seed=9)),
        (slot(1.0), clips(tones=3)),
        ("toy-listener", clips()),
        ("{name: toy-listener, labels: 5}", clips()),
        (slot(0.0), clips()),
    ]
    before, found, files = kept(), [], []
    for text, audio in cases:
        there = kept()
        found.append(read_reference(read_embedder(text), audio, 4000))
        (new,) = kept() - there
        files.append(new)
    assert len(kept() - before) == len(cases)
    # the same at another rate are other clips, too
    read_reference(read_embedder("toy-listener"), clips(), 8000)
    assert len(kept() - before) == len(cases) + 1
    again = read_reference(read_embedder(cases[0][0]), cases[0][1], 4000)
    assert torch.equal(again[0].moment, found[0][0].moment)
    assert torch.equal(again[1].frames, found[0][1].frames)
    assert lines == ["the statistics of the real clips in toy-joint weights=1.0 are read from the cache"]
    for first, other in ((files[0], files[3]), (frames_of(files[0]), frames_of(files[3]))):
        for wrong in (other.read_bytes(), b"not a file", first.read_bytes()[:-100]):
            first.write_bytes(wrong)
            lines.clear()
            again = read_reference(read_embedder(cases[0][0]), cases[0][1], 4000)
            assert torch.equal(again[0].moment, found[0][0].moment)
            assert torch.equal(again[1].frames, found[0][1].frames)
            assert "computed again" in lines[0]


def test_the_same_name_with_other_weights_is_another_embedder(tmp_path):
    """The fingerprint goes by what is loaded, not by where it lies."""
    slot = f"{{name: toy-joint, weights: {tmp_path / 'weights'}}}"
    prints = []
    for gain in (1.0, 2.0, 1.0):
        ToyJoint(gain=gain).save(tmp_path / "weights")
        prints.append(read_embedder(slot).fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_a_cache_that_cannot_be_written_is_no_obstacle(run, monkeypatch, tmp_path, lines):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "file" / "cache"))
    read_reference(read_embedder("toy-listener"), [torch.randn(1, 4000) for _ in range(3)], 4000)
    assert "PARTITA_CACHE" in lines[0]


def test_frames_that_reach_beyond_a_clip_are_not_compared():
    embedder = read_embedder("log-mel-16khz")
    assert [embedder(torch.zeros(1, 1, n), 16000).shape[1] for n in (100, 16000, 16100, 16319)] == [1, 50, 50, 50]
