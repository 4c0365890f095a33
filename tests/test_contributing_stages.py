"""The worked examples of CONTRIBUTING.md on stages and the networks they run on do what it says."""

import pytest
import torch
import yaml

import partita
from partita.core.part import Part
from partita.recipe.plan import load_recipe
from partita.training.training import train
from worked_examples import FEW, NARROW, SHORT, block_of, blocks, define, example, fit, preset_of, trained


def test_a_kind_of_stage_goes_through_everything(tmp_path):
    """Registered, put into a mixed chain by a recipe, trained, saved, loaded, over several windows, told a story."""
    define(example("python", "OnePass"))
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "one-pass" in block))
    few = {"steps": 3, "batch_size": 2, "crop": 0.6, "validation_examples": 2}
    recipe["tokenizers"] = {"acoustic": {"autoencoder": NARROW, "fit": few}, "semantic": {"fit": few}}
    network = {"width": 32, "depth": 1}
    recipe["stages"]["semantic"] = {"window": 1.2, "generator": {"backbone": network, "fit": few}}
    recipe["stages"]["acoustic"]["generator"]["fit"] = few
    recipe["stages"]["acoustic"]["window"] = 0.6
    recipe |= {"data": {"limit": 12}, "trainer": {"logger": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    system = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert {n: g.fusion for n, g in system.stages["acoustic"].given.items()} == {"text": "cross", "semantic": "add"}
    prompts = ["organ", partita.Story([(0, "organ"), (0.8, "flute")])]
    audio = system.generate(prompts, duration=2, guidance=2.0, sampling={"top_k": 10})
    assert audio.shape == (2, 1, 32000)
    system.save(tmp_path / "export")
    for folder in ("run", "export"):
        again = partita.load(tmp_path / folder).generate(prompts, duration=2, guidance=2.0, sampling={"top_k": 10})
        assert torch.equal(again, audio)
    alone = Part.load(tmp_path / "export" / "stages" / "acoustic")
    assert alone.registered_name == "one-pass"


def test_the_kind_of_stage_learns(tmp_path):
    from partita.core.contracts import Condition, Given, RepresentationSpec
    from partita.generators.base import NO_DROPOUT

    stage_class = define(example("python", "OnePass").replace('"one-pass"', '"one-pass-again"'))["OnePass"]
    given = RepresentationSpec(16000, 1, 25.0, 1, 8).as_condition()
    target = RepresentationSpec(16000, 1, 50.0, 2, 8)
    stage = stage_class(target, {"semantic": Given(given, "add")}, condition_dropout=NO_DROPOUT)
    semantic = torch.randint(8, (4, 1, 8))
    codes = torch.randint(8, (4, 2, 16))
    condition = Condition.of(semantic, torch.ones(4, 8, dtype=torch.bool))
    fit(stage, lambda: (codes, torch.ones(4, 16, dtype=torch.bool), {"semantic": condition}), steps=300, lr=3e-3)
    sampling = stage.changed_sampling({"temperature": 0.0, "guidance": 1.0})
    made = stage.generate({"semantic": (condition, condition.absent())}, 16, seeds=range(4), sampling=sampling).values
    assert (made == codes).float().mean() >= 0.99


def test_a_backbone(tmp_path):
    """A recipe names it, it is trained, saved, loaded and generates; what it cannot is refused by name."""
    define(block_of("src/generators/backbones/gru.py"))
    preset_of(tmp_path, "recipes/backbone/gru.yaml")
    recipe = {"base": "chorales-tiny", **SHORT, "stages": {"acoustic": {"window": 0.6, "generator": {"fit": FEW}}}}
    taken = "stages.acoustic.generator.backbone=gru"
    with pytest.raises(partita.PartitaError, match=r"stages\.acoustic\.given\.text.*'cross' with the backbone gru"):
        trained(tmp_path, recipe, taken)
    system = trained(tmp_path, recipe, taken, "stages.acoustic.given=[text]")
    assert system.stages["acoustic"].given["text"].fusion == "prepend"
    audio = system.generate(["organ", "flute"], duration=1.4, seed=3)
    assert audio.shape == (2, 1, 22400)
    assert torch.equal(partita.load(tmp_path / "run").generate(["organ", "flute"], duration=1.4, seed=3), audio)


def test_a_backbone_generates_the_same_with_its_state(monkeypatch):
    """Whatever its conditions are padded with; and it learns a few clips by heart."""
    from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
    from partita.generators.autoregressive import Autoregressive
    from partita.generators.base import NO_DROPOUT
    from partita.layers.sampling import Sampling

    gru = define(block_of("src/generators/backbones/gru.py").replace('"gru"', '"gru-again"'))["GRU"]
    target = RepresentationSpec(16000, 1, 50.0, 2, 8)
    given = {"text": Given(ConditionSpec(dim=4), "prepend")}
    stage = Autoregressive(target, given, backbone=gru(width=32, depth=2), condition_dropout=NO_DROPOUT)
    mask = torch.arange(3) < torch.tensor([[3], [1], [2], [3]])
    text, codes = Condition(torch.randn(4, 3, 4), mask), torch.randint(8, (4, 2, 12))
    pairs, greedy = {"text": (text, text.absent())}, Sampling(temperature=0, guidance=1.0)
    guided = [
        stage.generate(pairs, 12, seeds=range(4), use_cache=use_cache).values for use_cache in (True, False)
    ]  # under the guidance of the stage, so that one batch holds conditions and none
    assert torch.equal(*guided)
    fit(stage, lambda: (codes, torch.ones(4, 12, dtype=torch.bool), {"text": text}), steps=150, lr=1e-2)
    assert torch.equal(stage.generate(pairs, 12, seeds=range(4), sampling=greedy).values, codes)


def test_a_denoiser(tmp_path):
    define(block_of("src/generators/denoisers/convolutional.py"))
    preset_of(tmp_path, "recipes/denoiser/convolutional.yaml")
    recipe = {"base": "chorales-flow-tiny", **SHORT, "stages": {"acoustic": {"window": 0.6, "generator": {"fit": FEW}}}}
    changes = ["stages.acoustic.generator.denoiser=convolutional", "stages.acoustic.generator.sampling.steps=4"]
    system = trained(tmp_path, recipe, *changes, "stages.acoustic.given={text: modulate}")
    audio = system.generate(["organ"], duration=1.4)
    assert audio.shape == (1, 1, 22400)
    again = partita.load(tmp_path / "run").generate(["organ"], duration=1.4)
    torch.testing.assert_close(again, audio, atol=1e-6, rtol=0)  # where data lie in memory may change the rounding


def test_a_denoiser_learns(tmp_path):
    """Latents that one condition decides, of clips of another length in training."""
    from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
    from partita.generators.base import NO_DROPOUT
    from partita.generators.diffusion import Diffusion
    from partita.layers.guidance import Term

    source = block_of("src/generators/denoisers/convolutional.py").replace('"convolutional"', '"convolutional-again"')
    network = define(source)["Convolutional"](width=32, depth=4)
    given = {"chroma": Given(ConditionSpec(dim=2, frame_rate=25.0), "concat")}
    target = RepresentationSpec(16000, 1, 50.0, dim=2)
    stage = Diffusion(target, given, denoiser=network, condition_dropout=NO_DROPOUT)

    def clips(batch, frames):
        chroma = torch.randn(batch, frames // 2, 2)
        condition = Condition(chroma, torch.ones(batch, frames // 2, dtype=torch.bool))
        return 3 * chroma.mT.repeat_interleave(2, -1) + 1, {"chroma": (condition, condition.absent())}

    def batch():
        latents, pairs = clips(16, 16)
        return latents, torch.ones(16, 16, dtype=torch.bool), {"chroma": pairs["chroma"][0]}

    fit(stage, batch, steps=200, lr=5e-3)
    latents, pairs = clips(16, 14)
    made = stage.generate(pairs, 14, seeds=range(16), guidance=[Term(None, 1.0)]).values
    error = (made - latents).square().mean(-1) / latents.var()
    assert error.mean() < 0.3


def test_a_checkpoint_format(tmp_path):
    """The logits are those of transformers, under random weights; other sizes and settings are refused by name."""
    from partita.core.contracts import RepresentationSpec
    from partita.generators.autoregressive import Autoregressive
    from partita.generators.backbones.transformer import Transformer
    from partita.layers.transformer_blocks import BlockConfig

    transformers = pytest.importorskip("transformers")
    define(block_of("src/generators/checkpoints/llama.py"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=26, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)

    def stage(depth=2, norm="rms"):
        block = BlockConfig(feed_forward=3, activation="swiglu", norm=norm)
        backbone = Transformer(width=32, depth=depth, num_heads=4, positions="rotary", block=block)
        return Autoregressive(RepresentationSpec(32000, 1, 50.0, 1, 24), {}, backbone=backbone).eval()

    loaded, codes = stage(), torch.randint(24, (2, 1, 9))
    loaded.load_weights(tmp_path)
    with torch.no_grad():
        logits, _ = loaded.logits(codes, {})
        expected = model(torch.cat([torch.full((2, 1), 24), codes[:, 0]], dim=1)).logits
    torch.testing.assert_close(logits[:, 0], expected[:, :9, :24], rtol=0, atol=1e-4)
    with pytest.raises(partita.PartitaError, match="Llama has rotary positions"):
        stage(norm="layer").load_weights(tmp_path)
    with pytest.raises(partita.PartitaError, match=r"model.layers.2.*is missing: set the sizes of autoregressive"):
        stage(depth=3).load_weights(tmp_path)


def test_a_plan(tmp_path):
    """Trained in a chain, as long as it comes out; and what comes after depends on it."""
    dynamics = define(block_of("src/tokenizers/dynamics.py"))["Dynamics"]
    loud = torch.tensor([0.5] * 3200 + [0.005] * 1600 + [0.5] * 17600)[None, None]
    # -6 dB are level 4 (5 - 6 / 8, rounded), and -46 dB level 0; 0.2 s, 0.1 s, and 1.1 s in two
    assert dynamics().encode(loud)[0, :, :5].tolist() == [[4, 0, 4, 4, 6], [1, 0, 9, 0, 0]]
    recipe = yaml.safe_load(block_of("recipes/planned.yaml"))
    recipe["tokenizers"]["acoustic"] = SHORT["tokenizers"]["acoustic"]
    for stage in recipe["stages"].values():
        stage["window"] = 0.6
        stage["generator"] = stage.get("generator", {}) | {"fit": FEW}
    recipe |= {name: SHORT[name] for name in ("data", "trainer")}
    system = trained(tmp_path, recipe)
    plan, acoustic = system.stages["plan"], system.stages["acoustic"]
    assert plan.target.cardinalities == (7, 10)
    assert str(acoustic.given["plan:hidden"].spec) == "256-d"
    made = system.generate_representations(["organ", "flute"], duration=0.8, seed=1)
    assert made["plan"].values.shape == (2, 2, 64)
    assert made["acoustic"].whole
    assert system.decode(made).shape == (2, 1, 12800)
    again = partita.load(tmp_path / "run").generate_representations(["organ", "flute"], duration=0.8, seed=1)
    assert all(torch.equal(again[name].values, made[name].values) for name in made)
    with torch.no_grad():
        plan.output_heads.weight.neg_()
        plan.embeddings.weight.mul_(3)
    other = system.generate_representations(["organ", "flute"], duration=0.8, seed=1)
    assert not torch.equal(other["acoustic"].values, made["acoustic"].values)


def test_a_plan_is_learned_with_its_end():
    from partita.core.contracts import Condition, ConditionSpec, Given
    from partita.generators.autoregressive import Autoregressive
    from partita.generators.backbones.transformer import Transformer
    from partita.generators.base import NO_DROPOUT
    from partita.layers.sampling import Sampling

    source = block_of("src/tokenizers/dynamics.py").replace('"dynamics"', '"dynamics-again"')
    spec = define(source)["Dynamics"](longest=12).spec
    stage = Autoregressive(
        spec,
        {"text": Given(ConditionSpec(dim=4), "cross")},
        backbone=Transformer(width=32, depth=2, num_heads=4),
        ends=True,
        condition_dropout=NO_DROPOUT,
    )
    lengths = torch.tensor([3, 5, 9, 1])
    mask = torch.arange(12) < lengths[:, None]
    events = torch.stack([torch.randint(6, (4, 12)), torch.randint(10, (4, 12))], 1)
    events[:, 0] = events[:, 0].masked_fill(~mask, spec.end)
    assert torch.equal(spec.present(events, torch.full((4,), 16000), 16000), mask)
    text = Condition(torch.randn(4, 2, 4), torch.ones(4, 2, dtype=torch.bool))
    fit(stage, lambda: (events, mask, {"text": text}), steps=150, lr=5e-3)
    pairs, greedy = {"text": (text, text.absent())}, Sampling(temperature=0, guidance=1.0)
    made = stage.generate(pairs, 12, seeds=range(4), sampling=greedy, outputs=["hidden"])
    assert made.lengths.tolist() == lengths.tolist()
    assert torch.equal(made.values, events.masked_fill(~mask[:, None], 0))  # the reserved id reaches no one
    # the states are those of the same events in training
    stage.eval()
    with torch.no_grad():
        taught = stage.compute_outputs(events, mask, {"text": text})["hidden"]
    torch.testing.assert_close(made.outputs["hidden"].values, taught.values)
    assert torch.equal(made.outputs["hidden"].mask, mask)
