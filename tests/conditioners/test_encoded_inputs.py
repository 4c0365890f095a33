"""What stages are given for texts and recordings, from Python."""

import numpy as np
import pytest
import soundfile
import torch
from joint_toys import RATE, minute, tone

import partita
from partita.conditioners.quantized import Quantized


@pytest.fixture
def codes():
    return Quantized(embedding=minute(), num_codebooks=2, cardinality=4, samples=4).eval()


def test_texts_and_recordings_become_the_codes_of_their_embeddings(codes, tmp_path):
    texts = ["a slow flute", "a fast harp"]
    expected = codes.encode(codes.embedding.embed_text(texts)[:, None])
    made = partita.encode_inputs(codes, text=texts)
    assert torch.equal(made.values, expected)
    assert made.mask.all()
    assert torch.equal(partita.encode_inputs(codes, text=texts[0]).values, expected[:1])
    audio = tone(3)
    soundfile.write(tmp_path / "tone.wav", audio[0].numpy(), RATE, subtype="FLOAT")
    expected = codes.encode(codes.embedding.embed_audio(audio[None]))
    for sound in (tmp_path / "tone.wav", partita.Excerpt(audio.numpy(), sample_rate=RATE)):
        assert torch.equal(partita.encode_inputs(codes, audio=sound).values, expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"txt": "a"}, "does not read 'txt': did you mean 'text'"),
        ({"audio": np.zeros(10)}, "audio: an array has no sample rate of its own"),
        ({"audio": "nowhere.wav"}, "nowhere.wav: there is no such file"),
        ({}, "at least one"),
        ({"text": []}, "at least one"),
        ({"text": ["a"], "audio": ["b.wav", "c.wav"]}, "a value for each clip"),
        ({"text": 3}, "text cannot be 3"),
        ({"text": "a", "seconds": 0}, "seconds must be above 0"),
        ({"text": "a", "seconds": "10"}, "seconds must be above 0"),
    ],
)
def test_what_is_no_input_is_one_message(codes, inputs, message):
    with pytest.raises(partita.PartitaError, match=message):
        partita.encode_inputs(codes, **inputs)
