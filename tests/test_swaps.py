"""The promise of the zoo: whatever parts are put together either train and generate, or are refused with the reason."""

from functools import cache

import pytest
import yaml
from transformers import AutoTokenizer

import partita
from partita.conditioners.clap import CLAP, RobertaShape
from partita.core.registry import lookup, names
from partita.recipe.compose import preset_values
from partita.recipe.plan import load_recipe
from partita.recipe.recipe_files import presets
from partita.system.system import System
from partita.tokenizers.base import Tokenizer
from partita.tokenizers.transformers_codec import TransformersCodec
from partita.training.training import train
from toys import ToySongs

DATA = ToySongs.registered_name
TEXTS = ["tone 1", "tone 2", "flute"]


NARROW = {
    "autoregressive-tiny": {"backbone": {"width": 32, "depth": 1}},
    "dac-tiny": {"autoencoder": {"encoder_width": 4, "decoder_width": 32}},
    "diffusion-tiny": {"denoiser": {"width": 32, "depth": 1}},
    "soundstream-tiny": {"autoencoder": {"network": {"width": 4}}},
    "spectral-tiny": {
        "autoencoder": {"encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1}
    },
    "lookup": {"num_embeddings": 64},
    "mulan-tiny": {
        "window": 0.4,
        "audio_tower": {"width": 16, "depth": 1},
        "text_tower": {"width": 16, "depth": 1, "num_heads": 2},
    },
    "semantic-best-rq-tiny": {
        "features": {"preset": "best-rq-tiny", "fit": {"steps": 2, "batch_size": 2, "crop": 0.4}},
    },
}
"""Presets that are made narrower still: nothing here depends on what they learn."""


MIMI = {"hidden_size": 16, "num_filters": 4, "upsampling_ratios": [8, 6, 5], "upsample_groups": 16, "codebook_size": 16}
MIMI |= {"num_hidden_layers": 1, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
"""A narrow Mimi of 50 frames per second."""


def own(family):
    return [name for name in names(family) if not name.startswith("toy")]


@cache
def smallest(family, name):
    """The presets of a part that are called tiny, or its bare name."""
    return [p for p in presets(family) if preset_values(family, p)["name"] == name and p.endswith("-tiny")] or [name]


@pytest.fixture(scope="module")
def slot(tmp_path_factory, t5_checkpoint):
    """Makes the smallest slot of a part; frozen parts get random weights in the real format."""
    t5 = {"feed_forward_width": 24, "width": 16, "depth": 2, "num_heads": 2, "head_width": 8, "vocabulary": 64}
    words, clap = t5_checkpoint("relu", TEXTS), tmp_path_factory.mktemp("clap")
    words_tower = {"width": 16, "depth": 1, "num_heads": 2, "vocabulary": 64}
    towers = {"width": 8, "depths": [1, 1, 1, 1], "dim": 8}
    joint = CLAP(**towers, text=RobertaShape(**words_tower))
    joint.tokenizer = AutoTokenizer.from_pretrained(words)
    joint.save(clap)
    embedding = {"name": "clap", "weights": str(clap), "text": words_tower, **towers}
    few = {"steps": 2, "batch_size": 2, "crop": 0.4, "validation_examples": 2}
    melodies = {"preset": "melody-embedding-tiny", "audio_tower": {"width": 4, "hidden": 8}, "fit": None}
    recipe = {"tokenizers": {"mels": "log-mel"}, "conditioners": {"melody": melodies}, "data": DATA}
    (melody := tmp_path_factory.mktemp("melody")).joinpath("recipe.yaml").write_text(yaml.safe_dump(recipe))
    System(load_recipe(melody / "recipe.yaml")).conditioners["melody"].save(melody / "weights")
    mimi = {"model_type": "mimi", "config": MIMI, "num_codebooks": 2}
    TransformersCodec(**mimi).save(codec := tmp_path_factory.mktemp("mimi") / "weights")
    frozen = {
        "clap": embedding,
        "transformers-codec": {"name": "transformers-codec", "weights": str(codec), **mimi},
        "quantized": {
            "name": "quantized",
            "embedding": embedding | {"inputs": ["audio", "text"]},
            "num_codebooks": 2,
            "cardinality": 4,
            "samples": 4,
            "fit": few,
        },
        "melody-embedding": melodies | {"weights": str(melody / "weights")},  # the data has no covers to train it on
        "t5": {"preset": "t5-small", "weights": str(words), "shape": t5},
    }

    def make(family, name):
        if name in frozen:
            return frozen[name]
        fit = few | {"precision": "32-true"}
        preset = smallest(family, name)[0]
        cls = lookup(family, preset_values(family, preset)["name"])
        return {"preset": preset} | NARROW.get(preset, {}) | ({} if cls.weightless else {"fit": fit})

    return make


@pytest.fixture
def chain(tmp_path):
    """Composes a recipe from slots, checks it, trains it, and generates two windows with the loaded result."""

    def chain(tokenizers, conditioners, stages):
        recipe = {
            "tokenizers": tokenizers,
            "conditioners": conditioners,
            "stages": stages,
            "data": DATA,
            "trainer": {"logger": False},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        plan = load_recipe(tmp_path / "recipe.yaml")
        System.outline(plan)
        train(plan, tmp_path / "run")
        system = partita.load(tmp_path / "run")
        sampling = {"steps": 2} if any(hasattr(stage.sampling, "steps") for stage in system.stages.values()) else {}
        audio = system.generate(
            ["tone 1", None] if conditioners else None, seed=[1, 2], duration=0.6, sampling=sampling
        )
        spec = system.output.spec
        assert audio.shape[:2] == (2, spec.channels)
        assert abs(audio.shape[-1] - 0.6 * spec.sample_rate) <= spec.sample_rate / spec.frame_rate
        assert audio.isfinite().all()

    return chain


def representations():
    """Every tokenizer, and the latents of those that have them, with whether it consists of codes."""
    for name in own("tokenizer"):
        cls = lookup("tokenizer", name)
        if cls.decode is Tokenizer.decode:  # it only measures: nothing makes audio of what it yields
            continue
        for preset in smallest("tokenizer", name):
            yield preset, name not in CONTINUOUS
            if cls.encode_latents is not Tokenizer.encode_latents:
                yield f"{preset}/latents", False


CONTINUOUS = {"log-mel"}
KINDS = own("generator")


def kind_for(discrete):
    """The kind of stage that generates codes, or latents."""
    return next(kind for kind in KINDS if lookup("generator", kind).discrete == discrete)


@pytest.mark.parametrize(("representation", "discrete"), representations())
def test_representation_times_conditioner_times_stage(representation, discrete, slot, chain):
    """A first stage generates it from every conditioner; each kind of stage goes on from it, at another rate."""
    tokenizer, conditioners = representation.split("/")[0], own("conditioner")
    tokenizers = {"codec": slot("tokenizer", "spectral-tiny")}
    if tokenizer == "spectral-tiny":  # a second one of the same kind, then
        tokenizer, representation = "other", representation.replace("spectral-tiny", "other")
    tokenizers[tokenizer] = slot("tokenizer", "spectral-tiny" if tokenizer == "other" else tokenizer)
    generator = slot("generator", kind_for(discrete))
    stages = {"first": {"generator": generator, "target": representation, "given": conditioners, "window": 0.3}}
    earlier = [representation]
    for kind in KINDS:
        target = "codec" if lookup("generator", kind).discrete else "codec/latents"
        given = [*conditioners, *earlier]
        stages[kind] = {"generator": slot("generator", kind), "target": target, "given": given, "window": 0.4}
        earlier.append(target)
    chain(tokenizers, {name: slot("conditioner", name) for name in conditioners}, stages)


@pytest.mark.parametrize(("representation", "discrete"), representations())
def test_a_stage_of_the_other_kind_is_refused(representation, discrete, slot, chain):
    tokenizer, kind = representation.split("/")[0], kind_for(not discrete)
    stage = {"generator": slot("generator", kind), "target": representation, "window": 0.4}
    wanted, got = ("latents", "codes") if discrete else ("codes", "latents")
    with pytest.raises(partita.PartitaError, match=rf"{kind} generates {wanted}, but {representation} is .*{got}"):
        chain({tokenizer: slot("tokenizer", tokenizer)}, {}, {"main": stage})
