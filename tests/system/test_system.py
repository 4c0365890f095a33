import subprocess
import sys

import numpy as np
import pytest
import torch

import partita
from partita.recipe.plan import load_recipe
from partita.system.system import System

CODES = torch.zeros(1, 1, 10, dtype=torch.long)


@pytest.fixture
def system(toy_recipe):
    return System(load_recipe(toy_recipe))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"prompts": []}, "list with one prompt"),
        ({"prompts": {"text": 100}}, "list with one prompt"),
        ({"prompts": {"tempo": [100]}}, "nothing in this system reads 'tempo'"),
        ({"prompts": ["a", "b"], "seed": [1]}, "2 prompts, but 1 seeds"),
        ({"seed": 1.5}, "whole number"),
        ({"duration": "1"}, "more than 0 seconds"),
        ({"duration": float("nan")}, "more than 0 seconds"),
        (
            {"prompts": [partita.Story([(0, "a"), (2, "b")])], "duration": 1.5},
            "starts at 2 s, but the clip ends at 1.5 s",
        ),
        ({"negative": []}, "negative: text takes a list"),
        ({"guidance": []}, "guidance must be a number"),
        ({"sampling": ["temperature=1"]}, "sampling must be a mapping"),
        ({"sampling": {"mian": {"temperature": 1.0}}}, "no stage is called 'mian': did you mean 'main'"),
        ({"sampling": {"main": {"temprature": 1.0}}}, "sampling of main: temprature"),
        ({"continuation": 3}, r"must have the shape \[T\], \[C, T\] or"),
        ({"continuation": object()}, "a path, an array or a tensor, not object"),
        ({"continuation": "nowhere.wav"}, "nowhere.wav"),
        ({"continuation": torch.zeros(1, 1, 0)}, r"not \[1, 1, 0\]"),
        ({"transition": 1.0}, "shorter than the window"),
        ({"transition": -1}, "0 or more seconds"),
        ({"negative": ["a", "b"]}, "negative takes 1 prompts"),
        ({"negative": ["a"], "guidance": 1.0}, "no stage uses guidance: set guidance above 1"),
        ({"negative": ["a"], "guidance": {"main": 1}}, "no stage uses guidance"),
        ({"guidance": 1e30}, "guidance must be between ±1e.06, not 1e.30"),
        ({"splice": "no"}, "splice must be true or false, not 'no'"),
        ({"guidance": float("nan")}, "guidance must be a number"),
        ({"guidance": [(1.0, ["text"])]}, "guidance must be a number"),
        ({"sampling": {"temprature": 1}}, "'temperature'"),
        ({"continuation": torch.zeros(2, 1, 100)}, r"one recording, or one per clip \(1\), not 2"),
        ({"continuation": torch.zeros(100, 2)}, r"100 channels of 2 samples: transpose it"),
        ({"continuation": torch.zeros(1, 1, 4000)}, "set a longer duration"),
        ({"continuation": {}}, "needs the start of everything that is generated, also of acoustic"),
        ({"continuation": {"acustic": CODES}}, "no stage generates 'acustic': did you mean 'acoustic'"),
        ({"continuation": {"acoustic": CODES[0]}}, r"acoustic takes codes \[1, 1, frames\], not \[1, 10\]"),
        ({"continuation": {"acoustic": object()}}, "acoustic takes a tensor, not object"),
        ({"continuation": {"acoustic": CODES.to_sparse()}}, "acoustic takes a dense tensor"),
        ({"continuation": {"acoustic": CODES.to("meta")}}, "acoustic takes a dense tensor"),
        ({"continuation": {"acoustic": [1]}}, r"acoustic takes codes .*, not \[1\]"),
        ({"continuation": {"acoustic": CODES.repeat(2, 1, 1)}}, r"of one clip or of each \(1\), not of 2"),
        ({"continuation": {"acoustic": CODES.repeat(1, 1, 4)}}, "set a longer duration"),
        ({"continuation": {"acoustic": CODES.float()}}, "codes of acoustic must be whole numbers, not torch.float32"),
        ({"continuation": {"acoustic": CODES.bool()}}, "must be whole numbers, not torch.bool"),
        ({"continuation": {"acoustic": CODES + 16}}, "codes of acoustic must be from 0 to 15"),
    ],
)
def test_what_cannot_be_generated_is_one_message(system, arguments, word):
    with pytest.raises(partita.PartitaError, match=word):
        system.generate(**{"prompts": ["tone 1"], **arguments})


def test_what_can_be_generated(system):
    clip = system.generate("tone 1", duration=0.5, guidance=2.0, sampling={"temperature": 0.0})
    assert clip.shape == (1, 1, system.sample_rate // 2)
    terms = [partita.Term(None, 2.0), partita.Term((), -1.0)]
    assert torch.equal(system.generate(["tone 1"], duration=0.5, guidance=terms), clip)
    assert system.generate(None, seed=[1, 2], duration=0.5).shape[0] == 2
    heard = np.zeros((1, 1, 1000), np.float32)
    assert system.generate(["tone 1"], duration=0.5, continuation=heard).shape == clip.shape


def test_outlining_leaves_libraries_as_they_are():
    """A codec that imports torchaudio while it is outlined; in a process that has not imported it before."""
    script = (
        "import partita; changes = ['tokenizers.acoustic=encodec-24khz'];"
        "partita.System.outline(partita.load_recipe('chorales-tiny', changes));"
        "from torchaudio.compliance import kaldi; assert not kaldi.EPSILON.is_meta"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
