"""The precision and the compilation of generation, from Python and from the command line."""

import pytest
import torch

import partita
import toys
from command_line import run
from partita.generators.autoregressive import Autoregressive
from partita.layers import compiled, lowered
from partita.layers.static_decoder import StaticState
from partita.recipe.plan import load_recipe
from partita.system import checked_request
from partita.system.system import System

RECIPE = """
tokenizers: {acoustic: {name: toy-codec}}
conditioners: {text: {name: toy-letters}}
stages:
  main:
    target: acoustic
    given: [text]
    window: 1.0
    generator: {name: autoregressive, backbone: {name: transformer, width: 64, depth: 2, num_heads: 4}}
data: toy-sines
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("precision")
    (path / "toy.yaml").write_text(RECIPE)
    assert toys.ToyCodec.registered_name in RECIPE
    torch.manual_seed(0)
    System(load_recipe(path / "toy.yaml")).save(path / "system")
    return path / "system"


def test_stages_generate_in_the_precision_that_is_asked_for(folder, monkeypatch):
    system, precisions = partita.load(folder), []
    real = Autoregressive.generate

    def generate(stage, *arguments, **options):
        precisions.append(stage.output_heads.precision)
        return real(stage, *arguments, **options)

    monkeypatch.setattr(Autoregressive, "generate", generate)
    exact = system.generate(["tone 1", "tone 2"], seed=1)
    assert torch.equal(exact, system.generate(["tone 1", "tone 2"], seed=1, precision="fp32"))
    small = system.generate(["tone 1", "tone 2"], seed=1, precision="int8")
    assert precisions == ["fp32", "fp32", "int8"]
    assert torch.equal(small[1:], system.generate(["tone 2"], seed=2, precision="int8"))
    assert torch.equal(exact, system.generate(["tone 1", "tone 2"], seed=1))


def test_without_kernels_the_operators_of_pytorch_generate_the_same(folder, monkeypatch):
    ours = partita.load(folder).generate(["tone 1", "tone 2"], seed=1)
    monkeypatch.setattr(lowered, "native_library", lambda: None)
    kinds = set()
    real = Autoregressive.generate
    monkeypatch.setattr(
        Autoregressive, "generate", lambda stage, *a, **o: kinds.add(type(stage.output_heads)) or real(stage, *a, **o)
    )
    torch.testing.assert_close(partita.load(folder).generate(["tone 1", "tone 2"], seed=1), ours)
    assert kinds == {torch.nn.Linear}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_clip_has_the_same_samples_alone_and_in_a_batch(precision):
    torch.manual_seed(0)
    system = System(load_recipe("chorales-tiny", ["conditioners.text={name: lookup, dim: 32}"]))
    prompts = ["organ", "a slow chorale in G minor for flute and harp", "", "lively strings"]
    batch = system.generate(prompts, duration=1, seed=[3, 4, 5, 6], precision=precision)
    for i, prompt in enumerate(prompts):
        assert torch.equal(batch[i : i + 1], system.generate([prompt], duration=1, seed=3 + i, precision=precision))


def test_an_unknown_precision_is_refused(folder, monkeypatch, capfd):
    with pytest.raises(
        partita.PartitaError, match=r"precision must be one of fp32, bf16, int8, auto, not 'int88'.*int8"
    ):
        partita.load(folder).generate("tone 1", precision="int88")
    status, text = run("generate", folder, "tone 1", "--precision", "fp23", monkeypatch=monkeypatch, capfd=capfd)
    assert (status, "fp32, bf16, int8, auto" in text, "Traceback" in text) == (2, True, False)


def test_the_command_line_passes_it_on(folder, tmp_path, monkeypatch, capfd):
    names = [tmp_path / "fp32.wav", tmp_path / "int8.wav"]
    for name in names:
        status, text = run(
            *("generate", folder, "tone 1", "-o", name, "--precision", name.stem), monkeypatch=monkeypatch, capfd=capfd
        )
        assert status == 0, text
    assert names[0].read_bytes() != names[1].read_bytes()


def test_stages_are_compiled_on_gpus_only(folder, tmp_path, monkeypatch, capfd):
    refused = r"compile is only for CUDA GPUs, but this system is on cpu.*kernels of their own.*device=cuda"
    with pytest.raises(partita.PartitaError, match=refused):
        partita.load(folder).generate("tone 1", compile=True)
    with pytest.raises(partita.PartitaError, match=refused):
        partita.load(folder).stream("tone 1", compile=True)
    with pytest.raises(partita.PartitaError, match="compile must be true or false, not 'no'"):
        partita.load(folder).generate("tone 1", compile="no")
    made = tmp_path / "made.wav"
    status, text = run("generate", folder, "tone 1", "-o", made, "--compile", monkeypatch=monkeypatch, capfd=capfd)
    assert (status, "CUDA GPUs" in text, "Traceback" in text, made.exists()) == (2, True, False, False)


def test_compile_needs_a_package(folder, monkeypatch):
    system = partita.load(folder)
    monkeypatch.setattr(System, "device", torch.device("cuda"))
    monkeypatch.setattr(checked_request, "find_spec", lambda name: None)
    with pytest.raises(partita.PartitaError, match="compile needs the package triton"):
        system.generate("tone 1", compile=True)


def test_compiled_stages_generate_the_same(folder, monkeypatch):
    """With the check of the device and the compiler itself left out, which are all that a GPU would change."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(checked_request, "_check_compile", lambda *_: None)
    monkeypatch.setattr(lowered, "native_library", lambda: None)
    states = []
    real = StaticState._begin
    monkeypatch.setattr(StaticState, "_begin", lambda state, x: states.append(state.capacity) or real(state, x))
    system = partita.load(folder)
    ordinary = system.generate(["tone 1", "tone 2"], duration=1.5, seed=1)
    assert not states
    made = system.generate(["tone 1", "tone 2"], duration=1.5, seed=1, compile=True)
    assert len(states) == 2  # one per window
    torch.testing.assert_close(made, ordinary)
    chunks = list(system.stream(["tone 1", "tone 2"], duration=1.5, seed=1, compile=True))
    assert len(states) == 4
    torch.testing.assert_close(torch.cat(chunks, dim=2), ordinary, rtol=0, atol=1e-4)
