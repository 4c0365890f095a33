"""Every registered part keeps its contract, as its smallest preset says but smaller still."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import partita
from partita.core.contracts import (
    ALIGNED_FUSIONS,
    Clip,
    Condition,
    ConditionSpec,
    Given,
    RepresentationSpec,
    StageBatch,
)
from partita.core.part import Part
from partita.core.part_key import PartKey
from partita.core.registry import lookup, names
from partita.core.schema import arguments as arguments_of
from partita.core.schema import build, part_arguments
from partita.data.fields.base import field
from partita.recipe.compose import compose, preset_values
from partita.recipe.plan import PART_KEYS, load_recipe
from partita.recipe.recipe_files import presets
from partita.system.system import System
from partita.tokenizers.base import Tokenizer
from partita.training.fit_data import FitData
from partita.training.training import train
from toys import told


def expanded(family, preset):
    """The class a preset names and the arguments it gives, facts excepted."""
    if family == "generator":
        slot = compose("chorales-tiny", [f"stages.acoustic.generator={preset}"]).values["stages"]["acoustic"][
            "generator"
        ]
    else:
        slot = compose("chorales-tiny", [f"{family}s.part={preset}"]).values[f"{family}s"]["part"]
    return lookup(family, slot["name"]), own_arguments(family, slot)


def own_arguments(family, slot):
    """The arguments of a slot's part; those that are parts themselves as a saved part holds them."""
    arguments = {k: v for k, v in slot.items() if k not in PART_KEYS}
    for name, inner in part_arguments(lookup(family, slot["name"])).items():
        if name not in arguments:
            continue
        values = arguments[name]
        arguments[name] = {"family": inner, "name": values["name"], "arguments": own_arguments(inner, values)}
    return arguments


SMALL = {
    "audio-spectrogram-transformer": {"width": 16, "feed_forward_width": 24, "depth": 1, "num_heads": 2},
    "panns": {"width": 2, "labels": 5},
    "passt": {"width": 16, "depth": 1, "num_heads": 2, "labels": 5},
    "vggish": {"width": 2, "hidden": 16},
    "hubert": {
        "network": {
            "width": 16,
            "feed_forward_width": 24,
            "num_heads": 2,
            "convolution_width": 8,
            "position_kernel": 16,
            "position_groups": 2,
        },
    },
    "transformers-codec": {
        "config": {
            "hidden_size": 16,
            "num_filters": 4,
            "upsampling_ratios": [4, 3],
            "upsample_groups": 16,
            "num_hidden_layers": 1,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "num_codebooks": 3,
    },
    "w2v-bert": {"layer": 1, "network": {"width": 16, "feed_forward_width": 24, "num_heads": 2, "kernel": 3}},
}
"""What makes those small that have no preset called tiny, because nobody trains them here."""
NETWORK = {"width": 32, "depth": 1}
"""The size of the network of a stage."""


def tiny(family, name):
    """The presets of a part that are called tiny."""
    own = [preset for preset in presets(family) if preset_values(family, preset)["name"] == name]
    return [preset for preset in own if preset.endswith("-tiny")]


def smallest(family, name):
    """A part's class and the arguments of its smallest preset, one that is called tiny where there is one, shrunk."""
    preset = next(iter(tiny(family, name)), name if name in presets(family) else None)
    cls, arguments = expanded(family, preset) if preset else (lookup(family, name), {})
    if family == "generator":
        for slot in part_arguments(cls).keys() & arguments.keys():
            known = arguments_of(lookup(arguments[slot]["family"], arguments[slot]["name"]))
            arguments[slot]["arguments"] |= {key: size for key, size in NETWORK.items() if key in known}
        if "steps" in arguments["sampling"]:
            arguments["sampling"] = {**arguments["sampling"], "steps": 4}
    return cls, arguments | SMALL.get(name, {})


TEXTS = ["a slow chorale for church organ", None, "harp"]
VALUES = {"tempo": 90.0, "seconds_start": 4.0, "seconds_total": 60.0, "key": "G minor", "instruments": ["harp"]}
"""Values of fields that are neither text nor audio."""
TOKENIZERS = [
    preset for name in names("tokenizer") if not name.startswith("toy") for preset in tiny("tokenizer", name) or [name]
]
CONDITIONERS = [
    name
    for name in names("conditioner")
    if (name == "toy-letters" or not name.startswith("toy")) and lookup("conditioner", name).trainable
]
GENERATORS = [name for name in names("generator") if not name.startswith("toy")]
TARGET = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, num_codebooks=3, cardinality=11)
LATENTS = RepresentationSpec(sample_rate=16000, channels=1, frame_rate=50.0, dim=3)
GIVEN = {"text": Given(ConditionSpec(dim=6), "cross")}


def round_trip(part, folder):
    part.eval().save(folder)
    again = Part.load(folder)
    assert type(again) is type(part)
    assert all(
        torch.equal(a, b) for a, b in zip(again.exported_state().values(), part.exported_state().values(), strict=True)
    )
    return again


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer(name, tmp_path):
    cls, arguments = smallest("tokenizer", name)
    tokenizer = build(cls, arguments).eval()
    spec = tokenizer.spec
    samples = int(spec.sample_rate * 0.25) + 3
    audio = torch.rand(2, spec.channels, samples) - 0.5
    encoded = tokenizer.encode(audio)
    frames = math.ceil(samples * spec.frame_rate / spec.sample_rate - 1e-9)
    if spec.discrete:
        assert encoded.shape == (2, spec.num_codebooks, frames)
        assert encoded.dtype == torch.int64
        assert 0 <= encoded.min() <= encoded.max() < spec.cardinality
    else:
        assert encoded.shape == (2, spec.dim, frames)
    assert torch.equal(tokenizer.encode(audio), encoded)
    again = round_trip(tokenizer, tmp_path)
    assert torch.equal(again.encode(audio), encoded)
    features = getattr(tokenizer, "features", None)
    last = features if isinstance(features, Tokenizer) else tokenizer  # that of clusters decodes their centers
    if type(last).decode is Tokenizer.decode:  # it cannot, and says so
        with pytest.raises(NotImplementedError, match=f"{last.registered_name} cannot"):
            tokenizer.decode(encoded)
    else:
        decoded = tokenizer.decode(encoded)
        assert decoded.shape == (2, spec.channels, round(frames * spec.sample_rate / spec.frame_rate))
        assert decoded.dtype == torch.float32
        assert torch.isfinite(decoded).all()
        assert torch.equal(again.decode(encoded), decoded)
    if spec.discrete and spec.num_codebooks > 1:
        tokenizer.set_num_codebooks(1)
        assert tokenizer.spec.num_codebooks == 1
        assert torch.equal(tokenizer.encode(audio), encoded[:, :1])
        with pytest.raises(ValueError, match="codebooks"):
            tokenizer.set_num_codebooks(10_000)


TRAINED = [
    (family, name)
    for family, own in (
        ("tokenizer", TOKENIZERS),
        ("conditioner", [*CONDITIONERS, "toy-contrast"]),
        ("generator", GENERATORS),
    )
    for name in own
    if smallest(family, name)[0].trainable and not getattr(smallest(family, name)[0], "trained_with_stage", False)
]
"""Every part with a training of its own."""


def batches_for(part, kind):
    """Two batches of two, of what a part says that it is trained on."""
    if kind == "audio":
        rate, channels = part.audio_format
        return DataLoader([{"audio": torch.rand(channels, rate // 2) - 0.5} for _ in range(4)], batch_size=2)
    if kind == "clips":
        rate, channels = part.audio_format or (8000, 1)
        audio = torch.rand(8, channels, rate // 2) - 0.5
        clips = [Clip({"text": f"tone {i}", "cover": audio[4 + i]}, 0.5, audio[i], rate) for i in range(4)]
        return DataLoader(clips, batch_size=2, collate_fn=part.prepare)
    draw = torch.Generator().manual_seed(0)
    made = torch.randint(0, 11, (2, 3, 12)) if part.discrete else torch.randn(2, 3, 12)
    batch = StageBatch(made, torch.ones(2, 12, dtype=torch.bool), conditions(2, draw))
    return DataLoader([batch, batch], batch_size=None)


@pytest.mark.parametrize(("family", "name"), TRAINED)
def test_a_part_trains_alone_on_what_it_declares(family, name, tmp_path):
    cls, arguments = smallest(family, name)
    facts = {"target": TARGET if cls.discrete else LATENTS, "given": GIVEN} if family == "generator" else {}
    part = build(cls, arguments | facts)
    before = {k: v.clone() for k, v in part.state_dict().items()}
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(part, batches_for(part, cls.training_input))
    assert any(not torch.equal(v, before[k]) for k, v in part.state_dict().items())


@pytest.mark.parametrize("key", ["tokenizers/acoustic", "conditioners/text", "stages/main"])
def test_every_family_trains_alone_on_the_data_of_its_recipe(key, toy_recipe, tmp_path):
    """Lightning's trainer takes a part and its data, however the part is trained; nothing else is needed."""
    system = System(load_recipe(toy_recipe, ["conditioners.text=toy-contrast"]))
    part = system.parts[key]
    before = {k: v.clone() for k, v in part.state_dict().items()}
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(part, FitData(system, PartKey(key)))
    assert any(not torch.equal(v, before[k]) for k, v in part.state_dict().items())
    assert trainer.global_step == 2


def test_a_conditioner_trains_through_a_recipe_and_then_the_stage_that_is_given_it(lines, toy_recipe, tmp_path):
    recipe = load_recipe(
        toy_recipe, ["conditioners.text={name: toy-contrast, fit: {steps: 3, batch_size: 2, crop: 0.5}}"]
    )
    system = train(recipe, tmp_path / "run")
    order = [line.split(":")[0] for line in lines if " steps of " in line]
    assert order == ["tokenizers/acoustic", "conditioners/text", "stages/main"]
    untrained = System(recipe).conditioners["text"]
    trained = Part.load(tmp_path / "run" / "conditioners" / "text")
    assert not torch.equal(trained.embedding.weight, untrained.embedding.weight)
    assert torch.equal(trained.embedding.weight, system.conditioners["text"].embedding.weight)
    assert not system.stages["main"].joint
    lines.clear()
    train(recipe, tmp_path / "run")
    assert "conditioners/text: trained already" in lines


def test_a_recipe_may_hold_a_conditioner_alone(tmp_path):
    fit = "{steps: 2, batch_size: 2, crop: 0.5}"
    recipe = f"tokenizers: {{}}\nconditioners: {{text: {{name: toy-contrast, fit: {fit}}}}}\ndata: toy-sines\n"
    (tmp_path / "alone.yaml").write_text(recipe)
    partita.train(tmp_path / "alone.yaml", tmp_path / "run", progress=False)
    assert partita.load(tmp_path / "run").conditioners["text"].inputs == ("audio", "text")


@pytest.mark.parametrize("name", CONDITIONERS)
def test_conditioner(name, tmp_path):
    cls, arguments = smallest("conditioner", name)
    conditioner = build(cls, arguments).eval()
    clips = read_by(conditioner)
    prepared = conditioner.prepare(clips)
    assert all(len(tensor) == 3 for tensor in prepared.values())
    condition = conditioner(prepared)
    length = condition.mask.shape[1]
    spec = conditioner.spec
    assert condition.values.shape == ((3, length, spec.dim) if spec.dim else (3, spec.num_codebooks, length))
    assert condition.mask.shape == (3, length)
    assert condition.mask.dtype == torch.bool
    null = conditioner.null(condition)
    assert null.values.shape == condition.values.shape
    assert torch.equal(null.values[1], condition.values[1])
    assert torch.equal(null.mask[1], condition.mask[1])
    assert not torch.equal(null.values[0], condition.values[0])
    again = round_trip(conditioner, tmp_path)
    assert torch.equal(again(again.prepare(clips)).values, condition.values)


def read_by(conditioner):
    """Clips that a conditioner can read, the second one without anything that it reads."""
    if "text" in conditioner.inputs:
        return told(TEXTS)
    if not conditioner.reads_audio:
        return [Clip({n: VALUES[n] for n in conditioner.inputs} if text else {}, 1.0) for text in TEXTS]
    rate, channels = conditioner.audio_format
    heard = next(name for name in conditioner.inputs if field(name).kind == "audio")
    recordings = [None if text is None else torch.rand(channels, rate) - 0.5 for text in TEXTS]
    if heard == "audio":
        return [Clip({}, 1.0, recording, rate) for recording in recordings]
    return [Clip({heard: recording}, 1.0, sample_rate=rate) for recording in recordings]


def conditions(batch, generator):
    values = torch.randn(batch, 4, 6, generator=generator)
    mask = torch.arange(4) < torch.arange(batch)[:, None] % 4 + 1
    condition = Condition(values, mask)
    return {"text": (condition, Condition(torch.zeros_like(values), torch.zeros_like(mask)))}


@pytest.mark.parametrize("name", GENERATORS)
def test_generator(name, tmp_path):
    cls, arguments = smallest("generator", name)
    target = TARGET if cls.discrete else LATENTS
    stage = build(cls, {**arguments, "target": target, "given": GIVEN})
    draw = torch.Generator().manual_seed(0)
    made = torch.randint(0, 11, (5, 3, 12), generator=draw) if cls.discrete else torch.randn(5, 3, 12, generator=draw)
    pairs = conditions(5, draw)
    batch = StageBatch(made, torch.ones(5, 12, dtype=torch.bool), pairs)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    for _ in range(3):  # layers that start at zero hide others from the first steps
        losses = stage.loss(batch.target, batch.mask, stage.drop(stage.resolve(batch)))
        losses["loss"].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in stage.parameters())
    stage.eval()
    generated = stage.generate(pairs, 12, seeds=range(5)).values
    assert generated.shape == made.shape
    if cls.discrete:
        assert 0 <= generated.min() <= generated.max() < 11
    else:
        assert generated.isfinite().all()
    for i in (0, 3):
        alone = {n: tuple(Condition(c.values[i : i + 1], c.mask[i : i + 1]) for c in pair) for n, pair in pairs.items()}
        torch.testing.assert_close(stage.generate(alone, 12, seeds=[i]).values[0], generated[i], rtol=1e-3, atol=1e-3)
    prompted = stage.generate(pairs, 12, seeds=range(5), prefix=made[:, :, :5]).values
    torch.testing.assert_close(prompted[:, :, :5], made[:, :, :5])
    again = round_trip(stage, tmp_path)
    assert torch.equal(again.generate(pairs, 12, seeds=range(5)).values, generated)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_takes_what_it_is_given_in_every_way_it_names(name):
    cls, arguments = smallest("generator", name)
    target = TARGET if cls.discrete else LATENTS
    draw = torch.Generator().manual_seed(0)
    specs = {
        "text": ConditionSpec(dim=6),
        "chroma": ConditionSpec(dim=6, frame_rate=25.0),
        "coarse": RepresentationSpec(16000, 1, 12.5, 2, 7).as_condition(),
        "tokens": ConditionSpec(num_codebooks=2, cardinality=7),
    }
    for name_given, spec in specs.items():
        aligned = spec.frame_rate is not None
        length = int(12 * spec.frame_rate / 50) if aligned else 4
        values = (
            torch.randn(2, length, 6, generator=draw) if spec.dim else torch.randint(7, (2, 2, length), generator=draw)
        )
        pair = (condition := Condition(values, torch.ones(2, length, dtype=torch.bool)), condition.absent())
        ways = [fusion for fusion in cls.fusions if aligned or fusion not in ALIGNED_FUSIONS]
        assert cls.default_fusion(spec) in ways
        for fusion in ways:
            stage = build(cls, {**arguments, "target": target, "given": {name_given: Given(spec, fusion)}})
            made = stage.eval().generate({name_given: pair}, 12, seeds=[0, 1]).values
            assert made.shape == (2, 3, 12)
    with pytest.raises(ValueError, match="cannot enter by 'telepathy'"):
        build(cls, {**arguments, "target": target, "given": {"text": Given(specs["text"], "telepathy")}})


@pytest.mark.parametrize("family", ["tokenizer", "conditioner", "generator"])
def test_every_preset_builds_without_allocating(family):
    for name in presets(family):
        cls, arguments = expanded(family, name)
        spec = {"target": TARGET if cls.discrete else LATENTS, "given": GIVEN} if family == "generator" else {}
        with torch.device("meta"):
            part = build(cls, arguments | spec)
        assert all(p.is_meta for p in part.parameters()), name


def test_weights_of_another_part_are_refused_with_the_differences(tmp_path):
    small, large = (build(lookup("conditioner", "lookup"), {"dim": dim}) for dim in (4, 8))
    small.save(tmp_path)
    with pytest.raises(Exception, match=r"1 of another shape: .*\[4096, 4\] instead of \[4096, 8\]"):
        large.load_weights(tmp_path)


CODEC_SLOTS = {"autoencoder": "stft-convnext", "bottleneck": "rvq", "discriminator": "multi-scale"}
"""What a codec is made of, and what fills the slots that a test is not about."""
CODEC_COMPONENTS = [(family, name) for family in CODEC_SLOTS for name in names(family) if not name.startswith("toy")]


def component(family, name):
    """A component at its smallest, as a saved part holds it."""
    values = preset_values(family, (tiny(family, name) or [name])[0])
    return {"family": family, "name": name, "arguments": {k: v for k, v in values.items() if k != "name"}}


def codec_with(family, name, **options):
    slots = {slot: component(slot, name if slot == family else default) for slot, default in CODEC_SLOTS.items()}
    return build(lookup("tokenizer", "codec"), {"sample_rate": 16000, "dim": 8} | slots | options)


@pytest.mark.parametrize(("family", "name"), CODEC_COMPONENTS)
def test_a_component_of_a_codec(family, name, tmp_path):
    codec = codec_with(family, name, channels=2).eval()
    spec, hop = codec.spec, codec.autoencoder.hop
    audio = torch.rand(2, 2, 3 * hop + 5) - 0.5
    encoded = codec.encode(audio)
    assert encoded.shape == (2, spec.num_codebooks if spec.discrete else spec.dim, 4)
    assert torch.equal(codec.encode(audio), encoded)
    if spec.discrete:
        assert encoded.dtype == torch.int64
        assert 0 <= encoded.min() <= encoded.max() < spec.cardinality
    decoded = codec.decode(encoded)
    assert decoded.shape == (2, 2, 4 * hop)
    assert decoded.isfinite().all()
    assert codec.encode_latents(audio).shape == (2, 8, 4)
    again = round_trip(codec, tmp_path)
    assert torch.equal(again.decode(again.encode(audio)), decoded)
    if codec.autoencoder.causal:
        later = audio.clone()
        later[..., 2 * hop :] += 1
        changed = codec.encode_latents(later) - codec.encode_latents(audio)
        assert changed[..., :2].abs().max() < 1e-5 < changed[..., 2:].abs().max()


@pytest.mark.parametrize(("family", "name"), CODEC_COMPONENTS)
def test_a_component_of_a_codec_learns_in_every_weight(family, name):
    codec = codec_with(family, name).train()
    codec.step.fill_(1_000_000)  # past any warm-up
    audio = torch.rand(4, 1, 8000) - 0.5
    _, estimate, losses = codec.reconstruct({"audio": audio})
    assert estimate.shape == audio.shape
    judgments = codec.discriminator(estimate)
    pulls = [estimate, *losses.values(), *(t for scores, features in judgments for t in (scores, *features))]
    torch.stack([(pull * torch.randn_like(pull)).sum() for pull in pulls]).sum().backward()
    still = [n for n, p in codec.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still


@pytest.mark.parametrize(("family", "name"), CODEC_COMPONENTS)
def test_a_component_of_a_codec_is_in_one_codec_alone(family, name):
    taken = getattr(codec_with(family, name), family)
    with pytest.raises(ValueError, match=f"this {name} is in a part already"):
        taken.claim()


@pytest.mark.parametrize("family", CODEC_SLOTS)
def test_every_preset_of_a_component_of_a_codec_builds_without_allocating(family):
    for preset in presets(family):
        tree = compose("chorales-tiny", [f"tokenizers.part={{preset: soundstream-24khz, {family}: {preset}}}"])
        with torch.device("meta"):
            codec = build(lookup("tokenizer", "codec"), own_arguments("tokenizer", tree.values["tokenizers"]["part"]))
        assert all(p.is_meta for p in codec.parameters()), preset
