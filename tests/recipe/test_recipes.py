"""Every small packaged recipe, shrunk, trains two steps and generates; so do its one-word variants."""

import json

import pytest
import torch

import partita
from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe, load_recipe
from partita.recipe.recipe_files import recipes
from partita.training.training import train

NARROW = {
    "transformer": {"width": 32, "depth": 1},
    "dit": {"width": 32, "depth": 1},
    "stft-convnext": {"encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1},
    "seanet": {"network": {"width": 4}},
    "pitch-classes": {"width": 4, "hidden": 8},
}
"""Smaller sizes of networks."""
FEW = {
    "kmeans": {"cardinality": 4, "updates": 1, "reservoir": 64},
    "quantized": {"num_codebooks": 2, "cardinality": 2, "samples": 4},
}
"""Clusters that a few clips fill."""
SMALL_T5 = "shape: {width: 16, feed_forward_width: 24, depth: 2, num_heads: 2, head_width: 8, vocabulary: 64}"


def narrow(values):
    """Give all networks of a recipe smaller sizes."""
    for inner in values.values():
        if isinstance(inner, dict):
            for key, size in (NARROW | FEW).get(inner.get("name"), {}).items():
                inner[key] = {**inner[key], **size} if isinstance(size, dict) else size
            narrow(inner)


def trained(values):
    """The slots of a recipe, also inside others, that have training options."""
    for inner in values.values():
        if isinstance(inner, dict):
            yield from [inner] if "fit" in inner else []
            yield from trained(inner)


def shrunk(recipe, *overrides):
    """The plan of a recipe of small networks, at two steps per part on a few pieces."""
    tree = compose(recipe, [*overrides, "data.limit=12", "trainer.logger=csv"])
    narrow(tree.values)
    for stage in tree.values["stages"].values():
        stage["window"] = 0.6
    for slot in trained(tree.values):
        if slot.get("weights") is None:
            slot["fit"] = {**slot.get("fit", {}), "steps": 2, "batch_size": 2, "crop": 0.6, "validation_examples": 2}
    return check_recipe(tree)


@pytest.mark.parametrize("recipe", [r for r in recipes() if r.endswith("-tiny") and "stages" in compose(r).values])
def test_recipe(recipe, tmp_path):
    system = train(shrunk(recipe), tmp_path / "run")
    loaded = partita.load(tmp_path / "run")
    for made in (system, loaded):
        texts = ["a slow chorale for church organ", "flute"] if "text" in made.inputs else None
        audio = made.generate(texts, duration=0.4, seed=[1, 2])
        spec = made.output.spec
        assert audio.shape == (2, spec.channels, round(0.4 * spec.sample_rate))
        assert audio.isfinite().all()


@pytest.mark.parametrize(
    "override", ["tokenizers.acoustic=soundstream-tiny", "conditioners.text={name: lookup, dim: 32}"]
)
def test_another_part_is_one_word(override, tmp_path):
    system = train(shrunk("chorales-tiny", override), tmp_path)
    assert system.generate(["flute"], duration=0.4).shape[:2] == (1, 1)


def test_a_pretrained_codec_and_text_encoder_take_the_place_of_trained_ones(tmp_path, t5_checkpoint, narrow_encodec):
    text = t5_checkpoint("relu", ["a slow chorale for flute"])
    swapped = shrunk(
        "chorales-tiny",
        f"tokenizers.acoustic={json.dumps(narrow_encodec)}",
        f"conditioners.text={{preset: t5-small, weights: {text}, {SMALL_T5}}}",
    )
    system = train(swapped, tmp_path / "run")
    audio = system.generate(["flute", None], duration=0.4, seed=3)
    assert audio.shape == (2, 1, 30 * 320)
    assert torch.equal(partita.load(tmp_path / "run").generate(["flute", None], duration=0.4, seed=3), audio)


def test_presets_without_weights_here_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    slot = f"{{preset: t5-base, {SMALL_T5}}}"
    with pytest.raises(partita.PartitaError, match=r"google-t5/t5-base"):
        train(load_recipe("chorales-tiny", [f"conditioners.text={slot}", "data.limit=12"]), tmp_path)
