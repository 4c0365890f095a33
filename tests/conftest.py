import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import toys  # noqa: F401  (registers the toy parts)

TOY_RECIPE = """# the smallest system
tokenizers:
  acoustic: {name: toy-codec, fit: {steps: 6, batch_size: 2, crop: 0.5, checkpoint_every: 2}}
conditioners:
  text: toy-letters
stages:
  main:
    generator:
      name: toy-bigram
      dropout: 0.2
      fit: {steps: 8, batch_size: 2, ema: 0.9, checkpoint_every: 3, validate_every: 4, validation_examples: 2}
    target: acoustic
    given: [text]
    window: 1.0
data: toy-sines
"""


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Parsed scores go to a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARTITA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def toy_recipe(tmp_path):
    """The path of a recipe of toy parts, alone in its folder."""
    path = tmp_path / "recipes" / "toy.yaml"
    path.parent.mkdir()
    path.write_text(TOY_RECIPE)
    return path
