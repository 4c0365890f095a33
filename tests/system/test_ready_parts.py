"""Single parts with weights, and codecs that take audio as people have it."""

import json

import numpy as np
import pytest
import soundfile
import torch

import partita


@pytest.fixture
def codec(saved_toy):
    return partita.load_part(saved_toy / "tokenizers" / "acoustic")


def test_saved_parts_and_presets_are_loaded_with_their_weights(saved_toy):
    system = partita.load(saved_toy)
    for folder, part in system.parts.items():
        alone = partita.load_part(saved_toy / folder)
        assert type(alone) is type(part)
        assert not alone.training
        expected, found = part.exported_state(), alone.exported_state()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for name in ("log-mel-16khz", "tokenizer/log-mel-16khz", {"preset": "log-mel-16khz"}):
        assert partita.load_part(name).spec.sample_rate == 16000


def test_what_is_no_part_is_one_message(saved_toy, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": "other"}))
    (tmp_path / "file").touch()
    for source, word in (
        (saved_toy, "holds a whole system.*tokenizers/acoustic"),
        (tmp_path, "is not a saved part"),
        (tmp_path / "file", "a saved part is a folder"),
        (tmp_path / "none", "there is no folder"),
        ("encodec-24kz", "did you mean 'encodec-24khz'"),
        ("soundstream-tiny", "has no weights"),
    ):
        with pytest.raises(partita.PartitaError, match=word):
            partita.load_part(source)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("rate", [4000, 11025, 44100])
def test_codecs_take_files_and_arrays_of_any_rate_and_channels(codec, tmp_path, rate, channels):
    time = np.arange(2 * rate) / rate
    sound = np.repeat(0.5 * np.sin(2 * np.pi * 5 * time)[None], channels, 0).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", sound.T, rate, subtype="FLOAT")
    codes = [
        codec.encode_audio(tmp_path / "sound.wav"),
        codec.encode_audio(str(tmp_path / "sound.wav")),
        codec.encode_audio(sound, rate),
        codec.encode_audio(torch.from_numpy(sound)[None], rate),
        codec.encode_audio(partita.Excerpt(sound, sample_rate=rate, seconds=2)),
    ]
    expected = codec.encode(0.5 * torch.sin(2 * torch.pi * 5 * torch.arange(8000) / 4000)[None, None])
    for found in codes:
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1
    audio = codec.decode_audio(codes[0])
    assert audio.shape == (1, 1, 8000)
    assert torch.equal(codec.decode_audio(codes[0][0].numpy()), audio)
    assert codec.decode_audio(codes[0], sample_rate=rate, channels=channels).shape == (1, channels, 2 * rate)


@pytest.mark.parametrize(
    ("use", "word"),
    [
        (lambda c: c.encode_audio(np.zeros(100)), "pass it, as in sample_rate=44100"),
        (lambda c: c.encode_audio(np.zeros((100, 2)), 44100), r"transpose it with \.T"),
        (lambda c: c.encode_audio("nowhere.wav"), "there is no such file"),
        (lambda c: c.decode_audio(torch.zeros(3, dtype=torch.long)), r"have K = 1, unlike \[3\]"),
        (lambda c: c.decode_audio(torch.zeros(1, 2, 3, dtype=torch.long)), r"unlike \[1, 2, 3\]"),
        (lambda c: c.decode_audio(torch.zeros(1, 1, 3)), "whole numbers"),
        (lambda c: c.decode_audio(torch.full((1, 1, 3), 16)), r"lie in \[0, 16\)"),
        (lambda c: c.decode_audio("codes"), "not str"),
    ],
)
def test_wrong_shapes_and_types_are_one_message(codec, use, word):
    with pytest.raises(partita.PartitaError, match=word):
        use(codec)
