"""Conditions of MusiConGen: in the prefix and frame by frame at once, and added again further inside."""

import math

import pytest
import torch
from torch.nn import functional as F

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.base import Generator
from partita.layers import compiled
from partita.layers.conditioning import Prefix
from partita.layers.guidance import Term
from partita.layers.lowered import lowered
from partita.layers.sampling import Sampling

TARGET = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, num_codebooks=1, cardinality=9)
CHORDS = ConditionSpec(dim=12, frame_rate=50.0)
WIDTH, HEADS, DEPTH, FRAMES = 16, 2, 7, 10


def stage(given, *, positions="sinusoidal", depth=DEPTH, every=2, below=5, **options):
    torch.manual_seed(0)
    backbone = Transformer(
        width=WIDTH, depth=depth, num_heads=HEADS, positions=positions, again_every=every, again_below=below
    )
    made = Autoregressive(TARGET, given, backbone=backbone, pattern="parallel", **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def harmony(batch=2, frames=FRAMES):
    values = (torch.rand(batch, frames, 12, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    return Condition(values, torch.ones(batch, frames, dtype=torch.bool))


def by_hand(made, codes, chords, picked, again):
    """The logits of MusiConGen's forward pass, written out: prefix, sum, and sum again at the blocks ``again``."""
    state = made.state_dict()
    projected = chords @ state["conditioning.projections.chords.weight"].T
    projected = projected + state["conditioning.projections.chords.bias"]
    special = torch.full_like(codes[:, :1], 9)
    x = state["embeddings.weight"][torch.cat([special, codes[:, :-1]], 1)] + projected
    x = torch.cat([projected[:, picked], x], 1)
    inner = torch.cat([torch.zeros(len(codes), len(picked), WIDTH), projected], 1)
    total, half = x.shape[1], WIDTH // 2
    angles = torch.arange(total)[:, None] / 10000 ** (torch.arange(half) / (half - 1))
    x = x + torch.cat([angles.cos(), angles.sin()], 1)
    for index in range(DEPTH):
        if index in again:
            x = x + inner
        block = f"backbone.layers.blocks.{index}."

        def norm(x, name):
            return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

        qkv = norm(x, block + "self_norm") @ state[block + "self_attention.query_key_value.weight"].T
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(WIDTH / HEADS)
        scores = scores.masked_fill(torch.ones(total, total).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ state[block + "self_attention.output.weight"].T
        hidden = F.gelu(norm(x, block + "feed_forward_norm") @ state[block + "feed_forward.expand.weight"].T)
        x = x + hidden @ state[block + "feed_forward.contract.weight"].T
    x = norm(x, "backbone.layers.norm")
    return (x @ state["output_heads.weight"].T)[:, len(picked) :]


def test_the_forward_pass_is_that_of_musicongen():
    made = stage({"chords": Given(CHORDS, "prepend+add")}, plain_prefix=True, prefix=Prefix({"chords": 4}))
    codes, chords = torch.randint(9, (2, 1, FRAMES)), harmony()
    with torch.no_grad():
        logits, _ = made.logits(codes, {"chords": chords})
        # 10 frames thinned to 4: round(i · 10 / 4), halves up
        expected = by_hand(made, codes[:, 0], chords.values, [0, 3, 5, 8], again=(2, 4))
        once = by_hand(made, codes[:, 0], chords.values, [0, 3, 5, 8], again=())
    torch.testing.assert_close(logits[:, 0, :, :9], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(once, expected, atol=0.1)


def test_the_places_of_the_published_prefix():
    """235 of 1500 frames, at round(i · 1500 / 235)."""
    given = {"chords": Given(CHORDS, "prepend+add")}
    made = stage(given, plain_prefix=True, prefix=Prefix({"chords": 235}))
    values = torch.arange(1500.0)[None, :, None].expand(1, 1500, 12) / 1500
    context = made.conditioning({"chords": Condition(values, torch.ones(1, 1500, dtype=torch.bool))}, 1500)
    expected = context.added[:, [round(i * 1500 / 235) for i in range(235)]]
    torch.testing.assert_close(context.prefix, expected)
    assert context.prefix.shape == (1, 235, WIDTH)


def test_the_blocks_of_the_published_size():
    assert Transformer(depth=48, again_every=4, again_below=36).again_blocks == {4, 8, 12, 16, 20, 24, 28, 32}
    assert Transformer(depth=5, again_every=2).again_blocks == {2, 4}
    assert not Transformer(depth=3).adds_again
    for wrong in ({"again_every": -1}, {"again_below": -1}):
        with pytest.raises(ValueError, match="at least 0"):
            Transformer(**wrong)


GIVENS = {
    "chords": {"chords": Given(CHORDS, "add")},
    "both ways": {"chords": Given(CHORDS, "prepend+add"), "text": Given(ConditionSpec(dim=3), "prepend")},
    "cross": {"text": Given(ConditionSpec(dim=3), "cross"), "chords": Given(CHORDS, "add+cross")},
}


def pairs_for(given):
    chords = harmony()
    chords.mask[1, 6:] = False
    text = Condition(torch.randn(2, 3, 3), torch.tensor([[True] * 3, [True, False, False]]))
    pairs = {"chords": (chords, chords.absent()), "text": (text, text.absent())}
    return {name: pairs[name] for name in given}


def steps(made, pairs, monkeypatch, **options):
    """The logits of each step of generation, the codes being all zero."""
    seen = []

    def draw(self, logits, noise):
        seen.append(logits.clone())
        return torch.zeros(logits.shape[:-1], dtype=torch.long)

    monkeypatch.setattr(Sampling, "draw", draw)
    made.generate(pairs, FRAMES, seeds=range(2), guidance=[Term(None, 1.0)], **options)
    return torch.stack(seen, 2)[..., :9]


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "relative"])
@pytest.mark.parametrize("given", GIVENS.values(), ids=GIVENS)
def test_steps_from_the_cache_are_those_of_the_whole_sequence(given, positions, monkeypatch):
    """With PyTorch's operators, the kernels written in C, and compiled steps."""
    made, pairs = stage(given, positions=positions), pairs_for(given)
    with torch.no_grad():
        logits, _ = made.logits(
            torch.zeros(2, 1, FRAMES, dtype=torch.long), {name: condition for name, (condition, _) in pairs.items()}
        )
    for use_cache in (True, False):
        found = steps(made, pairs, monkeypatch, use_cache=use_cache)
        torch.testing.assert_close(found, logits[..., :9], rtol=1e-4, atol=1e-4)
    native = lowered(made, "fp32", stepwise=True)
    torch.testing.assert_close(steps(native, pairs, monkeypatch), logits[..., :9], rtol=1e-3, atol=1e-3)
    torch.compiler.reset()  # what other tests compiled does not count
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    fixed = lowered(made, "fp32", prepare=Generator.compile_steps)
    torch.testing.assert_close(steps(fixed, pairs, monkeypatch), logits[..., :9], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("places", "message"),
    [({"text": 4}, "'text', which is not given by prepend"), ({"chords": 0}, "must be at least 1")],
)
def test_prefix_places_of_nothing_are_refused(places, message):
    given = {"chords": Given(CHORDS, "prepend"), "text": Given(ConditionSpec(dim=3), "cross")}
    with pytest.raises(ValueError, match=message):
        stage(given, prefix=Prefix(places))


def test_each_of_several_fusions_is_checked():
    with pytest.raises(ValueError, match="chords cannot enter by 'telepathy' here"):
        stage({"chords": Given(CHORDS, "add+telepathy")})
    with pytest.raises(ValueError, match="text is not aligned in time: it cannot enter by add"):
        stage({"text": Given(ConditionSpec(dim=3), "cross+add")})
