"""The style conditioner: the published arithmetic, streams, excerpts of all lengths, and that a stage follows it."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import partita
from partita.conditioners.style import ExcerptLength, Style, StyleNetwork
from partita.core.contracts import Clip, Given, RepresentationSpec
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.base import NO_DROPOUT, StageBatch
from partita.recipe.plan import load_recipe
from partita.system.system import System
from partita.tokenizers.base import Tokenizer
from partita.tokenizers.bottlenecks.rvq import RVQ
from partita.tokenizers.log_mel import LogMel

RATE = 8000


class Digits(Tokenizer):
    """Two codebooks: the two octal digits of the first sample of each frame, 20 frames per second."""

    trainable, weightless, registered_name = False, True, "digits"
    spec = RepresentationSpec(RATE, 1, 20.0, 2, 8)

    def encode(self, audio):
        value = (audio[:, 0, ::400] * 64).long().clamp(0, 63)
        return torch.stack([value // 8, value % 8], dim=1)


def style(features=None, **options):
    network = StyleNetwork(width=16, depth=options.pop("depth", 2), num_heads=2)
    arguments = {"network": network, "length": ExcerptLength(0.5, 1.5, 1.0), "stride": 3, "streams": 2}
    made = Style(
        features=features or LogMel(sample_rate=RATE, bands=20),
        bottleneck=RVQ(num_codebooks=4, cardinality=8, codebook_choices=(1, 2, 3, 4), dropout=0.0, warmup_steps=0),
        **arguments | options,
    )
    made.mean.normal_()
    made.variance.uniform_(0.5, 2.0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def clip(audio, **fields):
    recording = {} if audio is None else {"excerpt": audio}
    return Clip(recording | fields, 2.0, sample_rate=RATE)


def plain(made, audio, streams):
    """What the published conditioner computes (audiocraft, ``StyleConditioner``), written down for one excerpt."""
    if isinstance(made.features, Digits):
        first, second = made.features.encode(audio[None])[0]
        x = made.embeddings[0].weight[first] + made.embeddings[1].weight[second]
    else:
        x = F.linear(made.features.encode(audio[None])[0].T, made.projection.weight, made.projection.bias)
    half = made.width // 2
    angles = torch.arange(len(x))[:, None] / 10_000 ** (torch.arange(half) / (half - 1))
    x = x + torch.cat([angles.cos(), angles.sin()], dim=1)
    for block in made.transformer.blocks:
        normal = F.layer_norm(x, x.shape[1:], block.self_norm.weight, block.self_norm.bias)
        query, key, value = F.linear(normal, block.self_attention.query_key_value.weight).chunk(3, dim=1)
        heads = []
        for q, k, v in zip(*(part.chunk(2, dim=1) for part in (query, key, value)), strict=True):
            heads.append((q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v)
        x = x + F.linear(torch.cat(heads, dim=1), block.self_attention.output.weight)
        normal = F.layer_norm(x, x.shape[1:], block.feed_forward_norm.weight, block.feed_forward_norm.bias)
        x = x + F.linear(F.gelu(F.linear(normal, block.feed_forward.expand.weight)), block.feed_forward.contract.weight)
    x = (x - made.mean) / (made.variance + 1e-5).sqrt()
    rest, total = x, torch.zeros_like(x)
    for codebook in made.bottleneck.codebooks[:streams]:
        entries = codebook[torch.cdist(rest, codebook).argmin(1)]
        rest, total = rest - entries, total + entries
    return total[:: made.stride]


@pytest.mark.parametrize("features", [None, Digits()])
@pytest.mark.parametrize("streams", [1, 3, 4])
def test_it_computes_what_the_published_one_does(features, streams):
    made, audio = style(features), torch.rand(1, RATE)
    condition = made(made.prepare([clip(audio, style_streams=streams)]))
    torch.testing.assert_close(condition.values[0], plain(made, audio, streams), atol=2e-5, rtol=1e-5)
    assert condition.mask.all()


def test_a_clip_has_the_same_condition_in_any_batch():
    made = style()
    recordings = [torch.rand(1, 4 * RATE), torch.rand(1, RATE // 5), None, torch.rand(1, 7), torch.rand(1, RATE)]
    streams = [1, None, 2, 4, None]
    clips = [clip(a, **({} if n is None else {"style_streams": n})) for a, n in zip(recordings, streams, strict=True)]
    together = made(made.prepare(clips))
    for row, one in enumerate(clips):
        alone = made(made.prepare([one]))
        length = int(together.mask[row].sum())
        assert length == int(alone.mask.sum()) == (0 if one.fields.get("excerpt") is None else length)
        torch.testing.assert_close(together.values[row, :length], alone.values[0, :length], atol=1e-5, rtol=0)
        assert not together.values[row, length:].any()
    assert together.mask.sum(1).tolist() == [
        17,
        4,
        0,
        1,
        17,
    ]  # 50, 10, 0, 1 and 50 frames, of which every third is kept


def test_the_middle_of_a_recording_is_heard():
    made, audio = style(), torch.rand(1, 3 * RATE)
    other = torch.rand(1, 3 * RATE)
    other[:, RATE : 2 * RATE] = audio[:, RATE : 2 * RATE]
    first, second = (made(made.prepare([clip(a)])).values for a in (audio, other))
    assert torch.equal(first, second)


def test_excerpts_of_training_are_drawn():
    made, audio = style().train(), torch.arange(3.0 * RATE)[None] / (3 * RATE)
    lengths, starts = set(), set()
    for seed in range(40):
        clips = [Clip({"excerpt": audio}, 2.0, sample_rate=RATE, seed=seed + 1000 * row) for row in range(2)]
        prepared, again = made.prepare(clips), made.prepare(clips)
        assert torch.equal(prepared["audio"], again["audio"])
        first, second = prepared["lengths"].tolist()
        assert first == second  # one length for all of a batch
        assert 0.5 * RATE <= first <= 1.5 * RATE
        lengths.add(first)
        starts |= set((prepared["audio"][:, 0, 0] * 3 * RATE).round().int().tolist())
    assert len(lengths) > 30
    assert len(starts) > 60
    assert min(starts) < 0.3 * RATE
    assert max(starts) > 1.4 * RATE


def test_more_streams_leave_more_of_the_excerpt():
    """Codebooks follow the frames in training; the error then falls with every stream in use."""
    torch.manual_seed(0)
    made = style(depth=0, stride=1).train()
    audio = torch.randn(16, 1, RATE)
    for step in range(60):
        made(
            made.prepare(
                [Clip({"excerpt": a}, 2.0, sample_rate=RATE, seed=100 * step + i) for i, a in enumerate(audio)]
            )
        )
    made.eval()
    hidden, mask = made._heard(audio, torch.full((16,), RATE))
    exact = made._normalized(hidden[mask]).detach()
    errors = []
    for streams in (1, 2, 3, 4):
        clips = [clip(a, style_streams=streams) for a in audio]
        errors.append(float((made(made.prepare(clips)).values.detach().flatten(0, 1) - exact).square().mean()))
    assert all(later < 0.95 * earlier for earlier, later in pairwise(errors))


def test_a_stage_follows_the_style():
    """Four pitches of an excerpt decide four sequences; the conditioner learns with the stage."""
    torch.manual_seed(0)
    made = style(stride=10).train()
    made.features.requires_grad_(False)
    target = RepresentationSpec(RATE, 1, 25.0, 1, 4)
    backbone = Transformer(width=32, depth=1, num_heads=2)
    stage = Autoregressive(
        target, {"style": Given(made.spec, "prepend")}, backbone=backbone, condition_dropout=NO_DROPOUT
    )
    stage.joint["style"] = made
    tones = torch.sin(
        torch.arange(2 * RATE) * 2 * math.pi / RATE * torch.tensor([[[220.0]], [[440.0]], [[880.0]], [[1760.0]]])
    )
    codes = torch.arange(4)[:, None, None].expand(4, 1, 6)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    before = made.projection.weight.clone()
    for step in range(120):
        clips = [Clip({"excerpt": t}, 2.0, sample_rate=RATE, seed=10 * step + i) for i, t in enumerate(tones)]
        batch = StageBatch(codes, torch.ones(4, 6, dtype=torch.bool), {"style": made.prepare(clips)})
        loss = stage.loss(batch.target, batch.mask, stage.drop(stage.resolve(batch)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.equal(before, made.projection.weight)
    made.eval()
    condition = made(made.prepare([clip(t[:, :RATE], style_streams=1) for t in tones]))
    sampling = stage.changed_sampling({"temperature": 0.0, "guidance": 1.0})
    drawn = stage.generate({"style": (condition, condition.absent())}, 6, seeds=range(4), sampling=sampling).values
    assert (drawn == codes).float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 5}, "streams must be from 1 to the 4 codebooks"),
        ({"stride": 0}, "must be at least 1"),
        ({"inputs": ("style_streams",)}, "one field of audio, not style_streams"),
        ({"inputs": ("excerpt", "audio")}, "one field of audio"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        style(**options)


def test_wrong_lengths_are_named():
    with pytest.raises(ValueError, match=r"an excerpt lasts .* not shortest 2, longest 1.5 and seconds 1"):
        ExcerptLength(2.0, 1.5, 1.0)
    with pytest.raises(ValueError, match="at most 60 seconds"):
        ExcerptLength(seconds=1e9)


def test_too_many_streams_are_named():
    made = style()
    with pytest.raises(ValueError, match="the style has 4 streams, not 5"):
        made.prepare([clip(torch.rand(1, 100), style_streams=5)])


@pytest.fixture(scope="module")
def system():
    tiny = {"name": "style", "features": {"name": "log-mel"}, "network": {"width": 16, "depth": 1, "num_heads": 2}}
    tiny["bottleneck"] = {"name": "rvq", "num_codebooks": 4, "cardinality": 8}
    changes = [
        f"conditioners.style={tiny}".replace("'", ""),
        "stages.acoustic.generator.backbone={width: 16, depth: 1, num_heads: 2}",
        "stages.acoustic.window=1",
        "tokenizers.acoustic.autoencoder={encoder_width: 8, encoder_depth: 1, decoder_width: 16, decoder_depth: 1}",
    ]
    made = System(load_recipe("musicgen-style-tiny", changes))
    for part in made.parts.values():
        part.eval()
    return made


def test_a_system_takes_a_style(system, tmp_path):
    heard = torch.rand(1, 16000) - 0.5
    sampling = {"temperature": 0.0}

    def codes(**options):
        found = system.generate_representations(["a flute"], duration=0.4, sampling=sampling, **options)
        return found["acoustic"].values

    first = codes(style=heard)
    assert torch.equal(first, codes(style=heard, style_streams=3))  # the number of the recipe
    by_field = system.generate_representations(
        {"text": ["a flute"], "excerpt": [heard], "style_streams": [3]}, duration=0.4, sampling=sampling
    )
    assert torch.equal(first, by_field["acoustic"].values)
    for given, message in (
        ({"style_streams": 9}, "the style has 4 streams, not 9"),
        ({"style_streams": 0}, "style_streams"),
        ({"style": "nowhere.wav"}, "nowhere.wav"),
    ):
        with pytest.raises(partita.PartitaError, match=message):
            codes(**{"style": heard} | given)
    with pytest.raises(partita.PartitaError, match="the style is given twice"):
        system.generate({"text": ["a"], "excerpt": [heard]}, style=heard, duration=0.4)


def test_samples_without_a_style_have_plain_guidance(system):
    """A text alone is not pushed by both scales, whatever else is in its batch."""
    sampling = {"temperature": 0.0, "guidance": 3.0}
    prompts = {"text": ["a flute", "a flute"], "excerpt": [torch.rand(1, 16000) - 0.5, None]}
    options = {"duration": 0.4, "seed": [1, 2]}
    stage = system.stages["acoustic"]
    assert (stage.sampling.inner, stage.sampling.inner_guidance) == (("style",), 2.0)
    mixed = system.generate_representations(prompts, sampling=sampling, **options)["acoustic"].values
    plain_guidance = {"duration": 0.4, "seed": [2], "sampling": sampling | {"inner_guidance": 1.0}}
    alone = system.generate_representations(["a flute"], **plain_guidance)["acoustic"].values
    assert torch.equal(mixed[1:], alone)
    number = system.generate_representations(prompts, guidance=3.0, sampling={"temperature": 0.0}, **options)
    assert torch.equal(number["acoustic"].values, mixed)  # a number is the outer scale


def test_double_guidance_is_the_published_sum():
    from partita.core.contracts import Condition
    from partita.layers.guidance import combine, conditions_of, double_weights

    style_mask = torch.tensor([[True], [False]])
    conditions = {
        "text": Condition(torch.ones(2, 1, 1), torch.ones(2, 1, dtype=torch.bool)),
        "style": Condition(torch.ones(2, 1, 1) * style_mask[..., None], style_mask),
    }
    terms, weights = double_weights((3.0, 5.0), ("style",), conditions)
    pairs = {name: (one, one.absent()) for name, one in conditions.items()}
    assert conditions_of(terms, pairs)["text"].mask[:, 0].tolist() == [True, True, False, False, False, False]
    both, inner, none = torch.randn(3, 2, 4)
    made = combine(torch.cat([both, inner, none]), terms, weights)
    expected = none + 3 * (inner + 5 * (both - inner) - none)
    torch.testing.assert_close(made[0], expected[0])
    torch.testing.assert_close(made[1], (none + 3 * (both - none))[1])
