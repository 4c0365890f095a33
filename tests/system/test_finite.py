"""What is not a number is refused where it arises, and named."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import partita
from partita.recipe.plan import load_recipe
from partita.system.system import System

RECIPE = """
tokenizers:
  codec:
    name: codec
    sample_rate: 4000
    dim: 4
    autoencoder: {preset: stft-convnext-tiny, frame_rate: 10, encoder_width: 8, decoder_width: 8, decoder_depth: 1}
    discriminator: multi-scale
    bottleneck: {name: rvq, num_codebooks: 2, cardinality: 8}
conditioners: {words: {name: lookup, dim: 8}}
stages:
  sketch: {generator: STAGE, target: TARGET, given: [words], window: 1.0}
data: toy-sines
"""
STAGES = {
    "codec": "{name: autoregressive, backbone: {name: transformer, width: 16, depth: 1, num_heads: 2}}",
    "codec/latents": (
        "{name: diffusion, denoiser: {name: dit, width: 16, depth: 1, num_heads: 2}, sampling: {steps: 3}}"
    ),
}


@pytest.fixture(params=list(STAGES))
def system(request, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("TARGET", request.param).replace("STAGE", STAGES[request.param]))
    return System(load_recipe(path))


def spoil(part, value):
    """Set one weight of each of its tensors."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("folder", "who"),
    [
        ("stages/sketch", "the stage sketch"),
        ("conditioners/words", "the conditioner words"),
        ("tokenizers/codec", "the tokenizer codec"),
    ],
)
def test_a_result_that_is_no_number_is_refused_and_its_maker_named(system, folder, who, value):
    assert system.generate(["flute"]).isfinite().all()
    spoil(system.parts[folder], value)
    if folder.startswith("conditioners"):  # whichever of its embeddings the word has
        torch.nn.init.constant_(system.parts[folder].embeddings.weight, value)
    with pytest.raises(partita.PartitaError, match=f"{who} .*not finite numbers"):
        system.generate(["flute"])


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_audio_to_continue_that_is_no_number_is_refused(system, value):
    audio = torch.zeros(1, 1, 1000)
    audio[..., 500] = value
    with pytest.raises(partita.PartitaError, match="the audio holds samples that are not finite"):
        system.generate(["flute"], continuation=audio)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers_are_refused_when_they_are_loaded(saved_toy, tmp_path, value):
    system = partita.load(saved_toy)
    system.save(tmp_path / "system")
    file = tmp_path / "system" / "stages" / "main" / "model.safetensors"
    state = load_file(file)
    state["head.weight"] = state["head.weight"].double()
    state["head.weight"][0, 0] = value
    save_file(state, file)
    with pytest.raises(partita.PartitaError, match=r"stages/main.*1 of these weights .* not finite .*head.weight"):
        partita.load(tmp_path / "system")
