import shutil
from pathlib import Path

import pytest

import evaluation_toys
from partita.recipe.plan import load_recipe
from partita.system.system import System


@pytest.fixture
def pictures():
    """Requested by tests that see that spectrograms and curves are there."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing them takes most of an evaluation as small as these."""
    if "pictures" in request.fixturenames:
        return
    media = {"audio": "data:", "image": "data:"}
    for page in ("evaluation_page", "ablation_page"):
        monkeypatch.setattr(
            f"partita.evaluation.{page}.clip_media", lambda clip, rate, caption: media | {"caption": caption}
        )
    monkeypatch.setattr("partita.evaluation.ablation_page.bands_figure", lambda lines, name: None)
    monkeypatch.setattr("partita.evaluation.ablation_page.png", lambda figure: b"")


@pytest.fixture
def run(saved_toy, tmp_path):
    """A saved system with random weights, in a folder of its own."""
    return Path(shutil.copytree(saved_toy, tmp_path / "run"))


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
    """A system that sings what its prompt says."""
    return other("tokenizers.acoustic.hop=1", f"conditioners.text={joint}", "stages.main.generator={name: toy-singer}")
