"""Kernels for generation on CPUs: PyTorch's numbers, and the same bits for a sample in every batch."""

import os
import select
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.resources import files
from itertools import product

import pytest
import torch
from torch import nn

from partita.layers import native_library
from partita.layers.lowered import lowered
from partita.layers.native_decoder import DecoderState, has_native_layers
from partita.layers.native_linear import NativeLinear
from partita.layers.transformer_blocks import BlockConfig, Transformer

ROUNDING = {"fp32": 2e-6, "bf16": 4e-3, "int8": 1.2e-2}
"""Usual error of products relative to their size."""

BLOCKS = {
    "musicgen": ({}, "sinusoidal"),
    "rotary": ({"norm": "rms", "activation": "swiglu", "qk_norm": True}, "rotary"),
    "odd": ({"feed_forward": 3.1, "activation": "swiglu"}, "rotary"),
    "wide": ({"feed_forward": 1.7}, "sinusoidal"),
    "relative": ({}, "relative"),
}


@pytest.fixture(autouse=True)
def _compiled():
    assert native_library.native_library() is not None, "there is no C compiler: install one to run these tests"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 300), (64, 8), (70, 5), (3, 1)])
def test_a_layer_is_that_of_pytorch(precision, inputs, outputs):
    linear = nn.Linear(inputs, outputs, bias=outputs != 300)
    x = torch.randn(5, 3, inputs) * torch.tensor([1e-3, 1.0, 30.0, 1e4, 1.0])[:, None, None]
    exact, made = linear(x), NativeLinear(linear, precision)(x)
    assert made.shape == exact.shape
    weight = linear.weight.abs()
    bound = x.abs() @ weight.T * {"fp32": 2e-6, "bf16": 2**-8, "int8": 1e-5}[precision]
    if precision == "int8":  # half a step of each factor
        steps, weight_steps = x.abs().amax(-1, keepdim=True) / 254, weight.amax(1, keepdim=True) / 254
        bound = bound + steps * weight.sum(1) + x.abs().sum(-1, keepdim=True) * weight_steps.T
        bound = bound + inputs * steps * weight_steps.T
    assert ((made - exact).abs() <= bound + 1e-7).all()
    silence = torch.zeros(2, inputs)
    assert torch.equal(NativeLinear(linear, precision)(silence), linear(silence))


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_row_does_not_depend_on_the_others(precision):
    linear = NativeLinear(nn.Linear(1030, 77), precision)
    x = torch.randn(11, 1030) * 10.0 ** torch.arange(-5, 6)[:, None]
    assert torch.equal(linear(x), torch.cat([linear(row) for row in x.split(1)]))


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_hidden(precision, number):
    linear = nn.Linear(64, 8)
    x = torch.randn(2, 64)
    x[1, 3] = number
    made = NativeLinear(linear, precision)(x)
    assert made[0].isfinite().all()
    assert not made[1].isfinite().any()
    with torch.no_grad():
        linear.weight[2, 5] = number
    assert NativeLinear(linear, precision)(x[:1]).isfinite()[0].tolist() == [i != 2 for i in range(8)]


def network(kind, cross=True, width=48, depth=2):
    config, positions = BLOCKS[kind]
    torch.manual_seed(1)
    made = Transformer(width, depth, 4, block=BlockConfig(**config), positions=positions, cross=cross).eval()
    for norm in made.modules():
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
            norm.weight.normal_(1, 0.2)
            if isinstance(norm, nn.LayerNorm):
                norm.bias.normal_(0, 0.2)
    if positions == "relative":
        made.relative.biases.weight.normal_()
    return made


def inputs(batch=3, total=9, prefix=4, length=5, width=48):
    """A sequence with padding in its prefix and in what it attends to; one sample attends to nothing."""
    torch.manual_seed(2)
    mask = torch.ones(batch, total, dtype=torch.bool)
    mask[1, 1:prefix] = mask[2, :2] = False
    cross_mask = torch.ones(batch, length, dtype=torch.bool)
    cross_mask[0, 2:] = cross_mask[1] = False
    ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    return torch.randn(batch, total, width), ids, mask, torch.randn(batch, length, width), cross_mask


def stepwise(layers, x, ids, mask, cross, cross_mask, pieces=(4, 1, 1, 3)):
    state = DecoderState(layers, layers.positions(ids), x.shape[1], mask=mask, cross=cross, cross_mask=cross_mask)
    return torch.cat([state(piece) for piece in x.split(pieces, dim=1)], dim=1)


@pytest.mark.parametrize(("kind", "cross"), product(BLOCKS, (True, False)))
def test_steps_are_those_of_the_network(kind, cross):
    layers, (x, ids, mask, source, cross_mask) = network(kind, cross), inputs()
    if not cross:
        source = cross_mask = None
    whole = layers(x, layers.positions(ids), mask=mask, cross=source, cross_mask=cross_mask)
    made = stepwise(lowered(layers, "fp32", stepwise=True), x, ids, mask, source, cross_mask)
    torch.testing.assert_close(made[mask], whole[mask], atol=1e-5, rtol=1e-5)
    assert made.isfinite().all()


def test_without_padding_positions_are_shared():
    layers, (x, *_) = network("rotary", cross=False), inputs()
    ids = torch.arange(x.shape[1])[None]
    whole = layers(x, layers.positions(ids))
    made = stepwise(lowered(layers, "fp32", stepwise=True), x, ids, None, None, None)
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "precision"), product(BLOCKS, ROUNDING))
def test_a_sample_has_the_same_bits_in_every_batch_and_padding(kind, precision):
    layers, (x, ids, mask, cross, cross_mask) = lowered(network(kind), precision, stepwise=True), inputs()
    batch = stepwise(layers, x, ids, mask, cross, cross_mask)
    for i in range(len(x)):
        own, known = mask[i], cross_mask[i]
        alone = stepwise(
            layers,
            *(t[i : i + 1, own] for t in (x, ids, mask)),
            *((cross[i : i + 1, known], cross_mask[i : i + 1, known]) if known.any() else (cross[:1], cross_mask[1:2])),
            pieces=[int(own[:4].sum()), 2, 3],
        )
        assert torch.equal(batch[i, own], alone[0])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_steps_are_nearly_those_of_the_network(precision):
    layers, (x, ids, mask, cross, cross_mask) = network("musicgen", width=256), inputs(width=256)
    whole = layers(x, layers.positions(ids), mask=mask, cross=cross, cross_mask=cross_mask)
    made = stepwise(lowered(layers, precision, stepwise=True), x, ids, mask, cross, cross_mask)
    error = (made - whole)[mask].norm() / whole[mask].norm()
    assert 0 < error < 3 * ROUNDING[precision]


@pytest.mark.parametrize("precision", ROUNDING)
def test_a_place_without_numbers_does_not_come_back_as_numbers(precision):
    layers, (x, ids, mask, cross, cross_mask) = lowered(network("musicgen"), precision, stepwise=True), inputs()
    x[0, 5] = torch.nan
    made = stepwise(layers, x, ids, mask, cross, cross_mask)
    assert made[0, :5].isfinite().all()
    assert made[0, 5:].isnan().all()
    assert made[1:].isfinite().all()


def test_other_layers_are_left_to_pytorch():
    layers = network("musicgen")
    assert has_native_layers(lowered(layers, "int8", stepwise=True))
    assert not has_native_layers(layers)
    nn.utils.parametrizations.weight_norm(layers.blocks[1].feed_forward.contract)
    assert not has_native_layers(lowered(layers, "fp32", stepwise=True))


def test_threads_change_nothing(monkeypatch):
    layers, given = network("musicgen", width=256), inputs(width=256)
    monkeypatch.setattr("partita.layers.native_linear.LEAST_WORK", 0)
    layers, made, before = lowered(layers, "int8", stepwise=True), [], torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        made.append(stepwise(layers, *given))
    torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_a_full_cache_is_refused():
    layers, (x, ids, mask, cross, cross_mask) = lowered(network("musicgen"), "fp32", stepwise=True), inputs()
    state = DecoderState(layers, layers.positions(ids), 9, mask=mask, cross=cross, cross_mask=cross_mask)
    state(x)
    with pytest.raises(ValueError, match="holds 9 places, not 10"):
        state(x[:, :1])


def test_a_long_prefix_is_computed_in_parts(monkeypatch):
    layers, given = lowered(network("odd"), "int8", stepwise=True), inputs()
    whole = stepwise(layers, *given, pieces=[9])
    monkeypatch.setattr("partita.layers.native_decoder.MOST_ROWS", 7)
    assert torch.equal(stepwise(layers, *given, pieces=[9]), whole)


def library_in_a_new_process(folder, **environment):
    code = (
        "from partita.layers.native_library import native_library\n"
        "print(native_library() is not None, native_library() is native_library())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PARTITA_CACHE": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[0] == "True", result.stderr


def fake_compiler(folder, script):
    for name in ("cc", "gcc", "clang"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_without_a_working_compiler_there_are_no_kernels(tmp_path):
    there, said = library_in_a_new_process(tmp_path / "none", PATH=str(tmp_path), CC="")
    assert not there
    assert "install a C compiler" in said
    path = fake_compiler(tmp_path, 'echo "no such flag" >&2; exit 1')
    there, said = library_in_a_new_process(tmp_path / "broken", PATH=path, CC="")
    assert not there
    assert "install a C compiler" in said
    assert not list((tmp_path / "broken" / "kernels").iterdir())


def test_a_compiler_that_cannot_be_started_gives_way_to_the_next(tmp_path):
    path = fake_compiler(tmp_path, "exit 1")
    for name in ("cc", "gcc", "clang"):
        (tmp_path / name).write_bytes(b"\x7fELF nonsense")
    there, said = library_in_a_new_process(tmp_path / "none", PATH=path, CC="")
    assert not there
    assert "install a C compiler" in said
    assert library_in_a_new_process(tmp_path / "next", CC=str(tmp_path / "cc")) == (True, "")


def test_what_a_wrong_compiler_writes_does_not_stay(tmp_path):
    script = 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'
    there, said = library_in_a_new_process(tmp_path / "c", PATH=fake_compiler(tmp_path, script), CC="")
    assert not there
    assert "install a C compiler" in said
    assert not list((tmp_path / "c" / "kernels").iterdir())  # a compiler that is installed now is used


@pytest.mark.parametrize(
    "writes", ["", "echo >", ": >", "mkdir", "ln -s /etc/passwd", 'head -c 20000 "$WHOLE" >', 'cp "$OTHER"']
)
def test_a_library_that_cannot_be_loaded_is_refused(tmp_path, monkeypatch, writes):
    """One that is cut short would end the process that loads it, and another one lacks the functions."""
    monkeypatch.setenv("WHOLE", native_library.native_library()._name)
    monkeypatch.setenv("OTHER", torch._C.__file__)
    (tmp_path / "wrong").write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{writes or "true"} "$2"\n')
    (tmp_path / "wrong").chmod(0o755)
    assert not native_library._compiles(str(tmp_path / "wrong"), tmp_path / "made.so")


def test_a_compiler_that_hangs_is_ended_with_its_processes(tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    (tmp_path / "slow").write_text(f"#!/bin/sh\nsleep 600 & echo $! >> {pids}\nwait\n")
    (tmp_path / "slow").chmod(0o755)
    monkeypatch.setattr(native_library, "LONGEST", 3)
    assert not native_library._compiles(str(tmp_path / "slow"), tmp_path / "made.so")
    (pid,) = map(int, pids.read_text().split())  # it is not tried with other flags
    with suppress(ProcessLookupError):
        assert select.select([os.pidfd_open(pid)], [], [], 10)[0], "it still runs"


def test_a_folder_in_which_no_program_may_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path))
    found = os.statvfs_result((0,) * 8 + (os.ST_NOEXEC, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    with pytest.warns(UserWarning, match=r"allows no programs.*set PARTITA_CACHE to another folder"):
        assert native_library.native_library.__wrapped__() is None


def test_damaged_kernels_are_compiled_again(tmp_path, monkeypatch):
    assert library_in_a_new_process(tmp_path) == (True, "")
    (made,) = (tmp_path / "kernels").iterdir()
    made.write_bytes(made.read_bytes()[:1000])
    assert library_in_a_new_process(tmp_path) == (True, "")
    assert len(list((tmp_path / "kernels").iterdir())) <= 2


def test_kernels_that_others_could_have_written_are_not_loaded(tmp_path):
    assert library_in_a_new_process(tmp_path) == (True, "")
    (tmp_path / "kernels").chmod(0o777)
    there, said = library_in_a_new_process(tmp_path)
    assert not there
    assert "other users may write" in said


def test_the_environment_turns_them_off(tmp_path):
    assert library_in_a_new_process(tmp_path, PARTITA_NATIVE="0") == (False, "")


def test_a_folder_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("")
    there, said = library_in_a_new_process(tmp_path / "file")
    assert not there
    assert "PARTITA_CACHE" in said


UNDEFINED = """
import ctypes, sys
import torch
from partita.layers import lowered, native_decoder, native_library, native_linear
from partita.layers.transformer_blocks import BlockConfig, Transformer

library = native_library.declared(ctypes.CDLL(sys.argv[1]))
for module in (lowered, native_decoder, native_library, native_linear):
    module.native_library = lambda: library
torch.set_grad_enabled(False)
for activation in ("gelu", "swiglu"):
    network = Transformer(18, 1, 3, cross=True, block=BlockConfig(activation=activation)).eval()
    for precision in ("fp32", "bf16", "int8"):
        layers = lowered.lowered(network, precision, stepwise=True)
        for size in (1.0, 1e-37, 1e-41, 1e38, float("inf"), float("nan")):
            x, cross = torch.randn(2, 3, 18), torch.randn(2, 4, 18)
            x[0] *= min(size, 1.0)
            x[0, :, 4] = 0
            x[1, 0, 2] = cross[1, 1, 5] = size
            positions = network.positions(torch.arange(3)[None])
            native_linear.NativeLinear(torch.nn.Linear(18, 7), precision)(x)
            native_decoder.DecoderState(layers, positions, 3, cross=cross)(x)
"""


@pytest.mark.parametrize("processor", ["native", "any"])
def test_kernels_do_nothing_undefined_whatever_the_numbers(tmp_path, processor):
    """They are compiled so that whatever C leaves undefined, such as converting NaN to an integer, ends the process."""
    source = files("partita.layers") / "csrc" / native_library.SOURCES[-1]
    checks = ["-fsanitize=undefined,float-cast-overflow", "-fsanitize-undefined-trap-on-error", "-O1", "-w"]
    flags = [*native_library.FLAGS, *checks, *(["-march=native"] if processor == "native" else [])]
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    made = tmp_path / "kernels.so"
    subprocess.run([compiler, *flags, str(source), "-o", str(made), "-lm"], check=True)
    subprocess.run([sys.executable, "-c", UNDEFINED, str(made)], check=True)
