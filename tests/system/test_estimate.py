"""Estimates of training steps, against steps that were really taken."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from partita.core.console import written
from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.core.fit import Fit
from partita.core.hardware import HARDWARE, Hardware, measured
from partita.errors import PartitaError
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.denoisers.dit import DiT
from partita.generators.diffusion import Diffusion
from partita.recipe.plan import load_recipe
from partita.system.estimate import Step, estimate
from partita.system.forecast import forecast
from partita.system.system import System

LARGE = ["stages.acoustic.generator=musicgen-large", "tokenizers.acoustic=encodec-48khz"]
TEXT = {"text": Given(ConditionSpec(dim=12), "cross")}
CODES = RepresentationSpec(4000, 1, 50.0, 4, 100)
LATENTS = RepresentationSpec(4000, 1, 50.0, dim=8)


def stage(kind, checkpointing, precision, batch=3):
    sizes = {"width": 32, "depth": 5, "num_heads": 2}
    if kind == "codes":
        made = Autoregressive(CODES, TEXT, backbone=Transformer(**sizes), checkpointing=checkpointing)
    else:
        made = Diffusion(LATENTS, TEXT, denoiser=DiT(**sizes), checkpointing=checkpointing)
    made.fit_options = Fit(batch_size=batch, precision=precision)
    return made.train()


def kept_and_operations(made, seconds):
    """Bytes that a real step keeps for its backward pass, and the operations of its forward pass."""
    fit, frames = made.fit_options, round(50 * seconds)
    text = Condition(torch.randn(fit.batch_size, 64, 12), torch.ones(fit.batch_size, 64, dtype=torch.bool))
    shape = (fit.batch_size, 4 if made.discrete else 8, frames)
    target = torch.randint(100, shape) if made.discrete else torch.randn(shape)
    kept, own = {}, {p.untyped_storage().data_ptr() for p in made.parameters()}

    def keep(value):
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    half = torch.autocast("cpu", torch.bfloat16, enabled=fit.precision != "32-true")
    mask = torch.ones(fit.batch_size, frames, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), half:
        loss = made.loss(target, mask, {"text": text})["loss"]
    assert loss.isfinite()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), half:
        made.loss(target, mask, {"text": text})  # matrix products also in attention, all of which are counted
    return sum(kept.values()), counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_activations_and_operations_are_those_of_a_real_step(kind, precision, checkpointing):
    made = stage(kind, checkpointing, precision)
    kept, operations = kept_and_operations(made, 4.0)
    step = estimate(made, 4.0)
    if checkpointing:  # a block is kept while it is recomputed
        whole, _ = kept_and_operations(stage(kind, False, precision), 4.0)
        kept += (whole - kept) / 5
        assert step.operations == pytest.approx(4 * operations)
    else:
        assert step.operations == pytest.approx(3 * operations)
    assert step.activations == pytest.approx(kept, rel=0.05 if checkpointing else 0.02)
    assert step.forward == pytest.approx(operations, rel=0.01)
    assert made.training
    assert made.backbone.training if kind == "codes" else made.denoiser.training


def test_the_size_is_estimated_without_memory():
    """MusicGen-large with its published batch of 192 clips of 30 s, on the meta device."""
    made = System.outline(load_recipe("music-44khz-stereo", [*LARGE, "stages.acoustic.window=30"])).stages["acoustic"]
    step = estimate(made, 30.0)
    assert step.trained == pytest.approx(3.25e9, rel=0.02)
    tokens = 30 * made.target.frame_rate
    # two operations per token and weight: of 48 blocks without the keys and values of the text, and of the output
    products = 2 * tokens * (48 * 14 * 2048**2 + made.codebooks.predicted * 2048)
    # the same for the keys and values, and two per pair of places and number of the width, for scores and for sums
    attention = 48 * 2048 * (2 * 64 * 2 * 2048 + 4 * tokens * (tokens + 64))
    assert step.forward == pytest.approx(192 * (products + attention), rel=0.005)
    assert step.memory() == 4 * (2 * step.trained + step.state) + step.activations
    assert step.state == 3 * step.trained  # Adam's two averages, and averaged weights


STEP = Step(
    trained=1000, state=2000, largest_block=100, activations=5000, forward=10**9, recomputed=0, batches=2,
    precision="bf16-mixed", moved=10_000,
)  # fmt: skip
DEVICE = Hardware("toy", 1e12, 1e11, 1e6, 1e6, 1e3, 1e2, share=0.5, single_share=0.25)


def test_memory_is_divided_by_fsdp2_and_the_same_under_ddp():
    assert STEP.memory() == 4 * 4000 + 5000
    assert STEP.memory(4) == STEP.memory()
    assert STEP.memory(4, sharded=True) == 4 * (1000 + 300) + 5000


def test_the_slower_of_computation_and_communication_counts():
    computed = 2 * 3e9 / (1e12 * 0.5)
    assert STEP.seconds(DEVICE) == pytest.approx(computed + 0.01)
    assert replace(STEP, precision="32-true").seconds(DEVICE) == pytest.approx(2 * 3e9 / (1e11 * 0.25) + 0.01)
    assert STEP.communicated(4) == 2 * 4 * 1000 * 3 / 4
    assert STEP.seconds(DEVICE, 4) == pytest.approx(6.0 + 0.01)  # 6,000 bytes over the link
    # 7,500 bytes pass each machine, over the network of its 8 devices
    assert STEP.seconds(DEVICE, 16) == pytest.approx(7500 / 800 + 0.01)
    fast = replace(DEVICE, network=1e5)
    assert STEP.seconds(fast, 16) == pytest.approx(7500 / 1000 + 0.01)  # over the links inside a machine
    assert STEP.seconds(DEVICE, 4, sharded=True) == pytest.approx(18.0 + 0.01 / 4)  # weights twice in both batches


def test_muon_and_accumulation_are_counted():
    made = stage("codes", False, "32-true")
    adamw = estimate(made, 1.0)
    made.fit_options = Fit(batch_size=3, optimizer="muon", accumulate=4, ema=0.9)
    muon = estimate(made, 1.0)
    hidden = sum(p.numel() for p in made.backbone.layers.blocks.parameters() if p.dim() == 2)
    assert muon.state == adamw.state - hidden + adamw.trained
    assert muon.operations == 4 * adamw.operations
    assert muon.activations == adamw.activations


def test_a_codec_is_estimated_and_k_means_is_not():
    system = System.outline(load_recipe("chorales-hierarchical-tiny"))
    codec = estimate(system.tokenizers["acoustic"], 1.0)
    assert codec.trained == sum(p.numel() for p in system.tokenizers["acoustic"].parameters())
    assert codec.forward > 0 < codec.activations
    assert estimate(system.tokenizers["semantic"], 1.0) is None


def test_the_forecast_says_what_does_not_fit_and_why():
    system = System.outline(load_recipe("music-44khz-stereo", LARGE))
    one = render(forecast(system, devices=1, hardware="a100"))
    assert "stages/acoustic does not fit" in one
    options = "stages.acoustic.generator"
    assert f"lower {options}.fit.batch_size and raise {options}.fit.accumulate" in one
    kept = System.outline(load_recipe("music-44khz-stereo", [*LARGE, f"{options}.checkpointing=false"]))
    assert f"set {options}.checkpointing=true" in render(forecast(kept, devices=1, hardware="a100"))
    system = System.outline(load_recipe("music-44khz-stereo", [*LARGE, "stages.acoustic.generator.fit.batch_size=1"]))
    assert "set trainer.strategy=fsdp2" in render(forecast(system, devices=64, hardware="4090"))
    assert "does not fit" not in render(forecast(system, devices=64, hardware="4090", strategy="fsdp2"))


def test_the_forecast_sums_the_prices_of_all_parts():
    steps = [f"{part}.fit.steps=100000000" for part in ("tokenizers.acoustic", "stages.acoustic.generator")]
    printed = render(forecast(System.outline(load_recipe("chorales-tiny", steps)), devices=8, hardware="a100"))
    prices = [int(price.replace(",", "")) for price in re.findall(r"\$([\d,]+)", printed)]
    assert len(prices) == 3  # of the codec, of the stage, and of both
    assert abs(sum(prices[:2]) - prices[2]) <= 2


def test_only_stages_are_divided_by_fsdp2():
    system = System.outline(load_recipe("chorales-tiny"))

    def rows(strategy):
        printed = render(forecast(system, devices=8, hardware="a100", strategy=strategy)).splitlines()
        return [next(line for line in printed if line.startswith(key)) for key in ("tokenizers/acoustic", "stages/")]

    (codec, stage), (same, shared) = rows("ddp"), rows("fsdp2")
    assert codec == same
    assert stage != shared


def test_the_forecast_tells_what_fsdp2_refuses_and_how_many_examples_there_are():
    half = ["stages.acoustic.generator.fit.precision=16-mixed"]
    system = System.outline(load_recipe("chorales-tiny", half))
    two = render(forecast(system, devices=2, hardware="a100", strategy="fsdp2"))
    assert "cannot be trained by fsdp2 in 16-mixed" in two
    assert "every device has fit.batch_size examples" in two
    one = render(forecast(system, devices=1, hardware="a100"))
    assert "16-mixed" not in one
    assert "every device" not in one
    other = System.outline(load_recipe("chorales-tiny", [*half, "trainer.precision=bf16-mixed"]))
    assert "16-mixed" not in render(forecast(other, devices=2, hardware="a100", strategy="fsdp2"))


def test_unknown_hardware_is_refused():
    system = System.outline(load_recipe("chorales-tiny"))
    with pytest.raises(PartitaError, match=r"no figures for the hardware 'a10'.*did you mean 'a100'"):
        forecast(system, hardware="a10")
    with pytest.raises(PartitaError) as refused:
        forecast(system, hardware="b200")
    assert str(refused.value).count("choose from") == 1


def test_the_forecast_says_how_many_examples_a_step_has_on_all_devices():
    changes = [*LARGE, "stages.acoustic.generator.fit.batch_size=24", "stages.acoustic.generator.fit.accumulate=2"]
    system = System.outline(load_recipe("music-44khz-stereo", changes))
    many = render(forecast(system, devices=64, hardware="h100"))
    assert "a step of stages/acoustic has 3,072 examples: 24 × 2 on each of 64 devices" in many
    assert "examples" not in render(forecast(system, devices=1, hardware="h100"))


def test_large_figures_of_a_forecast_are_written_out():
    changes = ["stages.acoustic.generator.fit.batch_size=4000", "stages.acoustic.generator.fit.steps=1000000"]
    text = render(forecast(System.outline(load_recipe("chorales-tiny", [*LARGE, *changes])), hardware="l4"))
    assert re.search(r", \$\d{1,3}(,\d{3})+", text)
    assert re.search(r"\d,\d{3} GB", text)
    assert not re.search(r"\de\+\d", text)


def test_this_processor_is_measured():
    here = measured()
    assert 1e8 < here.single < 1e14
    assert 1e8 < here.half < 1e14
    assert here.bandwidth > 1e7
    if (info := Path("/proc/meminfo")).exists():
        total = next(int(line.split()[1]) for line in info.read_text().splitlines() if line.startswith("MemTotal"))
        assert here.memory == pytest.approx(total * 1024, rel=0.05)
    assert all(one.half > one.single and one.memory for one in HARDWARE.values())


def render(thing):
    """A printed table as text."""

    return written(thing)


@pytest.mark.parametrize("devices", ["'2'", "'0,1'", "[0, 1]", "2"])
def test_the_forecast_counts_devices_however_they_are_written(devices):
    system = System.outline(load_recipe("music-44khz-stereo", [*LARGE, f"trainer.devices={devices}"]))
    assert render(forecast(system, hardware="h100")) == render(forecast(system, devices=2, hardware="h100"))
