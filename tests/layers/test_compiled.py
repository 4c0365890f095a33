"""Compiled steps and blocks: the numbers of the ordinary ones, and as few compilations as possible.

There is no GPU here: PyTorch traces and functionalizes the steps, and a stand-in records them.
"""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.errors import PartitaError
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.base import SequenceContext
from partita.generators.backbones.transformer import Transformer
from partita.generators.base import Generator
from partita.generators.denoisers.dit import DiT
from partita.generators.diffusion import Diffusion
from partita.layers import compiled, lowered, static_decoder
from partita.layers.guidance import classifier_free, nested_guidance
from partita.layers.sampling import Sampling
from partita.layers.static_decoder import StaticState
from partita.layers.transformer_blocks import BlockConfig
from partita.layers.transformer_blocks import Transformer as Layers

CODES = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, num_codebooks=3, cardinality=16)
LATENTS = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=25.0, dim=8)
GIVEN = {
    "text": Given(ConditionSpec(dim=8), "cross"),
    "style": Given(ConditionSpec(dim=6), "prepend"),
    "chroma": Given(ConditionSpec(dim=4, frame_rate=12.5), "add"),
}
BLOCKS = {
    "musicgen": ({}, "sinusoidal"),
    "rotary": ({"norm": "rms", "activation": "swiglu", "qk_norm": True}, "rotary"),
    "relative": ({}, "relative"),
}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


class Counting:
    """A backend that counts its compilations, of graphs that are traced down to PyTorch's operators."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return aot_eager(graph, inputs)


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    made = Counting()
    monkeypatch.setattr(compiled, "BACKEND", made)
    torch.compiler.reset()
    return made


def small(kind, width=32):
    config, positions = BLOCKS[kind]
    return Transformer(width=width, depth=2, num_heads=4, positions=positions, block=BlockConfig(**config))


def stage(names=("text",), kind="musicgen"):
    torch.manual_seed(0)
    return Autoregressive(CODES, {name: GIVEN[name] for name in names}, backbone=small(kind)).eval()


def ready(whole, precision="fp32"):
    return lowered.lowered(whole, precision, prepare=Generator.compile_steps)


def pairs(made, batch, length=6):
    """Random pairs (condition, null), of another length in each sample."""
    draw, found = torch.Generator().manual_seed(1), {}
    for name, given in made.given.items():
        mask = torch.arange(length) < (torch.arange(batch) % length + 1)[:, None]
        values = torch.randn(batch, length, given.spec.dim, generator=draw)
        found[name] = (Condition(values, mask), Condition(torch.zeros_like(values), torch.zeros_like(mask)))
    return found


def codes(made, frames=8, seeds=(3, 4), **options):
    with torch.inference_mode():
        return made.generate(pairs(made, len(seeds)), frames, seeds=seeds, **options).values


def sequence(batch=3, total=9, prefix=4, length=5, width=32):
    """A sequence with padding in its prefix and in what it attends to; one sample attends to nothing."""
    draw = torch.Generator().manual_seed(2)
    mask = torch.ones(batch, total, dtype=torch.bool)
    mask[1, 1:prefix] = mask[2, :2] = False
    cross_mask = torch.ones(batch, length, dtype=torch.bool)
    cross_mask[0, 2:] = cross_mask[1] = False
    ids = (mask.long().cumsum(1) - 1).clamp(min=0)
    cross = torch.randn(batch, length, width, generator=draw)
    return torch.randn(batch, total, width, generator=draw), (ids, mask, cross, cross_mask)


def layers(kind, cross=True):
    config, positions = BLOCKS[kind]
    torch.manual_seed(1)
    made = Layers(32, 2, 4, block=BlockConfig(**config), positions=positions, cross=cross).eval()
    if kind == "relative":
        torch.nn.init.normal_(made.relative.biases.weight)
    return made


@torch.inference_mode()
def hidden(made, x, context, pieces=(4, 1, 1, 3)):
    ids, mask, cross, cross_mask = context
    state = StaticState(made, made.positions(ids), x.shape[1], mask=mask, cross=cross, cross_mask=cross_mask)
    return torch.cat([state(piece) for piece in x.split(pieces, dim=1)], dim=1)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("pieces", [(4, 1, 1, 3), (1,) * 9])
def test_hidden_states_are_those_of_the_whole_sequence(kind, pieces):
    made, (x, context) = layers(kind), sequence()
    ids, mask, cross, cross_mask = context
    with torch.no_grad():
        whole = made(x, made.positions(ids), mask=mask, cross=cross, cross_mask=cross_mask)
    for _ in range(2):  # in new memory, and in memory that has been used
        torch.testing.assert_close(hidden(made, x, context, pieces), whole, **EXACT)
    alone, (x, (ids, *_)) = layers(kind, cross=False), sequence()
    with torch.no_grad():
        whole = alone(x[:1], alone.positions(ids[:1]))
    torch.testing.assert_close(hidden(alone, x[:1], (ids[:1], None, None, None), pieces), whole, **EXACT)


CASES = {
    "nothing": {"names": ()},
    "cross": {"names": ("text",)},
    "prepend": {"names": ("style",)},
    "everything": {"names": tuple(GIVEN)},
    "unguided": {"names": ("text",), "guidance": classifier_free(1.0)},
    "nested": {"names": ("text", "style"), "guidance": nested_guidance(("style",), 3.0, 2.0)},
    "continuation": {"names": ("text",), "prefix": torch.randint(16, (2, 3, 5))},
    "greedy": {"names": tuple(GIVEN), "sampling": Sampling(temperature=0)},
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("case", CASES)
def test_a_stage_draws_the_codes_of_ordinary_steps(case, kind, backend):
    options = dict(CASES[case])
    whole = stage(options.pop("names"), kind)
    made = ready(whole)
    assert torch.equal(codes(made, **options), codes(whole, **options))
    assert backend.count == 1
    assert (made.backbone.compiled, whole.backbone.compiled) == (True, False)


def test_other_durations_windows_and_texts_share_a_compiled_step(backend):
    whole = stage()
    made, given = ready(whole), pairs(whole, 2, 6)
    longer = pairs(whole, 2, 11)
    with torch.inference_mode():
        for conditions, frames in ((given, 8), (given, 12), (longer, 30)):
            first = made.generate(conditions, frames, seeds=(3, 4)).values
            options = {"seeds": (5, 6), "prefix": first[..., -4:]}
            second = made.generate(conditions, frames, **options).values
            assert torch.equal(first, whole.generate(conditions, frames, seeds=(3, 4)).values)
            assert torch.equal(second, whole.generate(conditions, frames, **options).values)
    assert backend.count == 1
    codes(made, seeds=(3, 4, 5))  # but another number of samples has another shape
    assert backend.count == 2


def test_more_shapes_are_compiled_than_pytorch_allows_by_accident(backend, monkeypatch):
    monkeypatch.setattr(static_decoder, "CAPACITY_MULTIPLE", 1)
    made = ready(stage(()))
    with torch._dynamo.config.patch(recompile_limit=1), compiled.compiling():
        for frames in (2, 3, 4):
            codes(made, frames)
    assert backend.count == 3


def test_a_sequence_does_not_see_what_was_in_its_memory():
    made, (x, context) = layers("rotary"), sequence()
    first = hidden(made, x, context)
    assert hidden(made, torch.full_like(x, torch.nan), context).isnan().all()
    assert torch.equal(hidden(made, x, context), first)
    ids, mask, cross, _ = context
    with torch.no_grad():
        whole = made(x, made.positions(ids), cross=cross)
    hidden(made, x, (ids, mask, torch.cat([cross, cross], dim=1), None))
    # neither the mask nor the longer text stay behind
    torch.testing.assert_close(hidden(made, x, (ids, None, cross, None)), whole, **EXACT)
    assert torch.equal(hidden(made, x, context), first)


def test_sequences_at_the_same_time_have_memories_of_their_own():
    made, (x, (ids, *_)) = layers("musicgen", cross=False), sequence()
    alone = [hidden(made, part, (ids[:1], None, None, None), (1,) * 9) for part in (x[:1], x[1:2])]
    states = [StaticState(made, made.positions(ids[:1]), 9) for _ in range(2)]
    with torch.inference_mode():
        steps = [[state(x[i : i + 1, n : n + 1]) for i, state in enumerate(states)] for n in range(9)]
    for made_alone, together in zip(alone, zip(*steps, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(together, dim=1), made_alone, **EXACT)


def test_memory_is_used_again_kept_for_few_shapes_and_freed_with_its_layers():
    made, (x, (ids, *_)) = layers("musicgen", cross=False), sequence()
    for _ in range(3):
        hidden(made, x, (ids, None, None, None))
    ((_, first),) = static_decoder._pools[made]._free
    kept = weakref.ref(first)
    del first
    for batch in range(1, 7):
        hidden(made, x[:1].expand(batch, -1, -1), (ids[:1], None, None, None), (9,))
    assert [shape.batch for shape, _ in static_decoder._pools[made]._free] == [3, 4, 5, 6]
    freed = weakref.ref(made)
    del made
    gc.collect()
    assert (kept(), freed()) == (None, None)


def test_a_memory_that_is_full_is_refused():
    made, (x, (ids, *_)) = layers("musicgen", cross=False), sequence()
    state = StaticState(made, made.positions(ids), 9)
    with torch.inference_mode():
        state(x)
        with pytest.raises(ValueError, match="holds 9 places, not 10"):
            state(x[:, :1])


@pytest.mark.parametrize("gradients", [torch.no_grad, torch.inference_mode])
def test_memory_serves_in_and_outside_of_inference_mode(gradients):
    made, (x, context) = layers("rotary"), sequence()
    first = hidden(made, x, context)
    with gradients():
        assert torch.equal(hidden.__wrapped__(made, x, context), first)


def test_recorded_steps_read_new_inputs_and_are_recorded_once_per_memory(monkeypatch):
    """A recording repeats its kernels on the same memory: the Python around them must not run again."""
    recordings = []

    def record(run, device):
        outputs = [run() for _ in range(compiled.WARM_UPS + 1)]
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        recordings.append(device.type)
        return lambda: run().clone()

    monkeypatch.setattr(compiled, "recorded", record)
    monkeypatch.setattr(compiled, "RECORDED", ("cpu",))
    whole = stage(tuple(GIVEN), "rotary")
    made = ready(whole)
    for frames in (8, 12):
        assert torch.equal(codes(made, frames), codes(whole, frames))
    assert recordings == ["cpu"]


class Cuda:
    """A stand-in for ``torch.cuda``, which notes what happens on which stream and what is captured."""

    def __init__(self):
        self.events, self.now = [], "current"

    def note(self, event):
        self.events.append((self.now, event))

    @contextmanager
    def on(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def replace(self, monkeypatch):
        current = SimpleNamespace(wait_stream=lambda other: self.note("wait for side"))
        side = SimpleNamespace(wait_stream=lambda other: self.events.append(("side", "wait for current")))
        graph = SimpleNamespace(replay=lambda: self.note("replay"))
        stand_ins = {
            "device": lambda device: nullcontext(),
            "Stream": lambda device: side,
            "current_stream": lambda: current,
            "stream": lambda stream: self.on("side"),
            "CUDAGraph": lambda: graph,
            "graph": lambda made, stream, capture_error_mode: self.on("capture"),
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)


def test_a_recording_is_made_after_warm_ups_and_outputs_are_copies(monkeypatch):
    cuda, memory = Cuda(), torch.zeros(3)
    cuda.replace(monkeypatch)

    def run():
        cuda.note("run")
        return memory

    freed = weakref.ref(run)
    replay = compiled.recorded(run, torch.device("cuda"))
    warm = [("side", "run")] * compiled.WARM_UPS
    assert cuda.events == [("side", "wait for current"), *warm, ("current", "wait for side"), ("capture", "run")]
    first = replay()
    memory.fill_(1)  # as the next replay does
    assert (first.tolist(), replay().tolist()) == ([0, 0, 0], [1, 1, 1])
    assert cuda.events[-2:] == [("current", "replay")] * 2
    del run
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_have_compiled_copies_of_their_own(precision, monkeypatch):
    monkeypatch.setattr(lowered, "has_bfloat16", lambda: True)  # also where it is slow
    whole = stage()
    made, ordinary = ready(whole, precision), lowered.lowered(whole, precision)
    assert made is ready(whole, precision)
    assert made is not ordinary
    assert type(made.output_heads) is type(ordinary.output_heads)
    assert torch.equal(codes(made), codes(ordinary))
    with torch.no_grad():
        whole.output_heads.weight.mul_(0.5)
    assert ready(whole, precision) is not made


def test_keys_and_values_have_the_dtype_of_ordinary_steps():
    made, (x, (ids, *_)) = layers("musicgen", cross=False), sequence()
    with torch.autocast("cpu", torch.bfloat16):
        hidden(made, x, (ids, None, None, None))
        cache = made.new_cache(9)
        with torch.inference_mode():
            made(x, made.positions(ids), cache=cache)
    (_, memory) = static_decoder._pools[made]._free[-1]
    assert memory.layers[0].keys.dtype == cache.layers[0]._memory.dtype == torch.bfloat16
    hidden(made, x, (ids, None, None, None))
    assert static_decoder._pools[made]._free[-1][1].layers[0].keys.dtype == torch.float32


def test_a_backbone_without_compiled_steps_generates_as_before():
    class Plain(Transformer):
        compile_steps = Generator.compile_steps
        networks = ()

    torch.manual_seed(0)
    whole = Autoregressive(CODES, {}, backbone=Plain(width=32, depth=1, num_heads=4)).eval()
    made = ready(whole)
    context = SequenceContext(torch.arange(4)[None])
    assert type(made.backbone.new_state(context)) is type(whole.backbone.new_state(context))
    assert torch.equal(codes(made), codes(whole))


@pytest.mark.parametrize("names", [(), ("text",)])
def test_compiled_blocks_denoise_as_ordinary_ones(names, backend):
    torch.manual_seed(0)
    given = {name: GIVEN[name] for name in names}
    whole = Diffusion(LATENTS, given, denoiser=DiT(width=32, depth=3, num_heads=4)).eval()
    for weight in whole.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)  # zero at the start
    made = ready(whole)
    for frames in (8, 8, 12):
        torch.testing.assert_close(codes(made, frames), codes(whole, frames), **EXACT)
    assert backend.count == 2  # one for each length, which all blocks share
    assert whole.denoiser.layers.blocks[0]._compiled_call_impl is None


def test_failures_of_the_compiler_are_explained(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with (
        pytest.raises(PartitaError, match=r"(?s)cannot compile.*no such compiler.*without compile"),
        compiled.compiling(),
    ):
        codes(ready(stage()))
    with pytest.raises(ZeroDivisionError), compiled.compiling():
        raise ZeroDivisionError
