import logging

import pytest

import evaluation_toys
from partita.recipe.plan import load_recipe
from partita.system.system import System


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing spectrograms takes most of an evaluation as small as these: one test sees that they are there."""
    if "real_clips" not in request.node.name:
        media = {"audio": "data:", "image": "data:"}
        monkeypatch.setattr(
            "partita.evaluation.evaluation_page.clip_media", lambda clip, rate, caption: media | {"caption": caption}
        )


@pytest.fixture
def run(toy_recipe, tmp_path):
    """A saved system with random weights."""
    System(load_recipe(toy_recipe)).save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def other(toy_recipe, tmp_path):
    """Makes a saved system of the toy recipe with some slots changed."""

    def make(*overrides):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        System(load_recipe(toy_recipe, overrides)).save(folder)
        return folder

    return make


@pytest.fixture
def joint(tmp_path):
    """A slot of the joint conditioner with its weights."""
    evaluation_toys.ToyJoint().save(tmp_path / "joint")
    return f"{{name: toy-joint, weights: {tmp_path / 'joint'}}}"


@pytest.fixture
def singer(other, joint):
    """A system that does as it is told."""
    return other("tokenizers.acoustic.hop=1", f"conditioners.text={joint}", "stages.main.generator={name: toy-singer}")


@pytest.fixture
def logged(caplog):
    """Lines that are logged from here on."""
    caplog.set_level(logging.INFO, logger="partita")

    def lines():
        return [record.getMessage() for record in caplog.records]

    return lines
