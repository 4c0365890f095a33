"""The worked examples of CONTRIBUTING.md do what it says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

import partita
from partita.cli.list_parts import show
from partita.core import registry
from partita.core.console import out
from partita.core.contracts import Clip
from partita.core.part import Part
from partita.core.part_key import PartKey
from partita.data.folder import Folder
from partita.evaluation.evaluate import evaluate
from partita.evaluation.evaluation_options import Evaluation
from partita.generators.base import Generator
from partita.recipe.plan import load_recipe
from partita.training.condition_use import condition_use
from partita.training.fit_data import FitData
from partita.training.training import train

TEXT = (Path(partita.__file__).parent.parent / "CONTRIBUTING.md").read_text()


def blocks(language):
    return [part.split("```")[0] for part in TEXT.split(f"```{language}\n")[1:]]


def example(language, word):
    """The block of a worked example: the first with this word."""
    return next(block for block in blocks(language) if word in block)


def define(block):
    names = {"__name__": "example"}
    exec(compile(block, "example.py", "exec"), names)
    return names


def section(heading, language="python"):
    """The first block of code of a section."""
    text = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return text.split(f"```{language}\n")[1].split("```")[0]


def preset(recipe, heading, name):
    """Write the preset of a section beside a recipe."""
    path = recipe.parent / "conditioner" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(section(heading, "yaml"))


def test_a_conditioner(toy_recipe, tmp_path):
    define(example("python", "Tempo"))
    overrides = ["conditioners.tempo=tempo", "stages.main.given=[text, tempo]", "data={name: corpus, limit: 12}"]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    assert system.generate({"text": ["flute"], "tempo": [90]}, duration=0.2).shape == (1, 1, 800)
    with pytest.raises(partita.PartitaError, match="tempo: cannot be 'fast'; expected beats per minute"):
        system.generate({"text": ["flute"], "tempo": ["fast"]})


def test_a_field(tmp_path):
    define(section("Add a field"))
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    (tmp_path / "list.csv").write_text("file,energy\na.wav,0.25\n")
    source = Folder(str(tmp_path), "list.csv")
    example_read = source.read("train", 0, seed=0, seconds=0.5, sample_rate=8000, channels=1)
    assert example_read.fields["energy"] == 0.25
    (tmp_path / "list.csv").write_text("file,energy\na.wav,2\n")
    with pytest.raises(
        partita.PartitaError, match=r"list.csv line 2 \(a.wav\): energy cannot be '2'; expected a number"
    ):
        Folder(str(tmp_path), "list.csv").setup()


ALONE, OVER_TIME = "Add a conditioner that is trained on its own", "Add a condition that changes in time"


def test_a_conditioner_trained_alone_hears_in_training_and_is_told_in_generation(toy_recipe, tmp_path, monkeypatch):
    define(section(ALONE))
    preset(toy_recipe, ALONE, "alike")
    staged, resolve = [], Generator.resolve
    monkeypatch.setattr(Generator, "resolve", lambda self, batch: staged.append(batch) or resolve(self, batch))
    system = train(load_recipe(toy_recipe, ["conditioners.text=alike"]), tmp_path / "run")
    part = partita.load_part(tmp_path / "run" / "conditioners" / "text")
    # it tells which tone is which, in a phase that it never heard; by chance it would be one of eight
    captions = [f"tone {i}" for i in range(8)]
    tones = [torch.sin(torch.arange(2000) / 4000 * 2 * torch.pi * 100 * (1 + i) + 1)[None] / 2 for i in range(8)]
    said, sound = (
        part(part.prepare(clips)).values[:, 0].detach()
        for clips in (
            [Clip({"text": text}, 0.5) for text in captions],
            [Clip({}, 0.5, tone, 4000) for tone in tones],
        )
    )
    assert ((sound @ said.T).argmax(1) == torch.arange(8)).sum() >= 7
    assert not torch.allclose(said, sound)
    # the stage was trained on what is heard: the sound of each clip, not its caption
    condition = staged[0].given["text"][0].values[:, 0]
    assert (condition @ sound.T).max(1).values.min() > 0.95
    assert (condition[:, None] - said).norm(dim=-1).min() > 1e-3
    # and is given the embeddings of words or of sounds
    given, generate = [], system.stages["main"].generate
    monkeypatch.setattr(
        system.stages["main"],
        "generate",
        lambda pairs, *a, **o: given.append(pairs["text"][0]) or generate(pairs, *a, **o),
    )
    stereo = torch.nn.functional.interpolate(tones[3][None], scale_factor=2, mode="linear")[0].expand(2, -1)
    soundfile.write(tmp_path / "hum.wav", stereo.T.numpy(), 8000)
    hummed = {"text": [None, None, None, "tone 5"], "audio": [tmp_path / "hum.wav", tones[3], None, None]}
    hummed["audio"][2] = partita.Excerpt(stereo, sample_rate=8000)
    system.generate(hummed, duration=0.5)
    assert (given[-1].values[:3, 0] @ sound[3] > 0.98).all()
    torch.testing.assert_close(given[-1].values[3, 0], said[5])
    with pytest.raises(partita.PartitaError, match=r"audio: .*nowhere.wav: there is no such file"):
        system.generate({"audio": ["nowhere.wav"]})
    uses = condition_use(system, clips=4)
    assert [(use.condition, use.attribute) for use in uses] == [("text", None)]


def test_chords_over_time_across_windows_and_a_story(toy_recipe, tmp_path, monkeypatch):
    define(section(OVER_TIME))
    preset(toy_recipe, OVER_TIME, "chords")
    overrides = ["conditioners.chords=chords", "stages.main.given=[text, chords]", "data={name: corpus, limit: 12}"]
    system = train(load_recipe(toy_recipe, overrides), tmp_path / "run")
    part = system.conditioners["chords"]

    def vector(chord):
        return part(part.prepare([Clip({"chords": [(0.0, 1.0, chord)]}, 1.0)])).values[0, 0]

    calls, generate = [], system.stages["main"].generate

    def record(pairs, frames, *, prefix=None, **options):
        calls.append((frames, 0 if prefix is None else prefix.shape[-1], pairs["chords"]))
        return generate(pairs, frames, prefix=prefix, **options)

    monkeypatch.setattr(system.stages["main"], "generate", record)
    first, second = [(0, 0.6, "C:maj"), (0.6, 5, "G:7")], '[[0, 0.4, "A:min"], [0.4, 9, "F#:dim"]]'
    story = partita.Story([(0, first), (1.2, second)])
    sounding = [(0.6, "C:maj"), (1.2, "G:7"), (1.6, "A:min"), (2.4, "F#:dim")]  # what ends when
    for prompts, heard in (
        (story, None),
        ([*first[:1], (0.6, 1.2, "G:7"), (1.2, 1.6, "A:min"), (1.6, 9, "F#:dim")], 0.7),
    ):
        calls.clear()
        continuation = None if heard is None else torch.zeros(1, 1, int(heard * 4000))
        system.generate({"text": ["organ"], "chords": [prompts]}, duration=2.4, continuation=continuation)
        done, starts = 0 if heard is None else 28, []
        for frames, before, (condition, null) in calls:
            start = (done - before) / 40  # of the window, in seconds: the codes have 40 frames a second
            assert condition.values.shape[1] == frames / 4
            for position, value in enumerate(condition.values[0]):
                middle = start + (position + 0.5) / 10
                assert torch.equal(value, vector(next(chord for end, chord in sounding if middle < end)))
            assert condition.mask.all()
            assert torch.equal(null.values, part.embeddings.weight[0].expand_as(null.values))
            done += frames - before
            starts.append(start)
        assert len(starts) >= 3
        assert done == 96
    # in training as well, each frame has the chord in its middle
    data = FitData(system, PartKey("stages/main"))
    for clip in (data.validation_examples()[i] for i in range(2)):
        prepared = part.prepare([Clip(clip.fields, 1.0)])
        values = part(prepared).values[0]
        for start, end, chord in clip.fields["chords"]:
            middle = round((start + end) / 2 * 10 - 0.5)
            if end - start > 0.2:
                assert torch.equal(values[middle], vector(chord))
    with pytest.raises(partita.PartitaError, match=r"chords: cannot be .*; expected rows of start, end and chord"):
        system.generate({"chords": [[(0, 1, "H:huge")]]})


def test_a_kind_of_stage_goes_through_everything(tmp_path):
    """Registered, put into a mixed chain by a recipe, trained, saved, loaded, over several windows, told a story."""
    define(example("python", "OnePass"))
    recipe = yaml.safe_load(next(block for block in blocks("yaml") if "one-pass" in block))
    few = {"steps": 3, "batch_size": 2, "crop": 0.6, "validation_examples": 2}
    recipe["tokenizers"] = {"acoustic": {"fit": few}, "semantic": {"fit": few}}
    recipe["stages"]["semantic"] = {"window": 1.2, "generator": {"fit": few}}
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
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    for _ in range(300):
        loss = stage.loss(codes, torch.ones(4, 16, dtype=torch.bool), {"semantic": condition})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampling = stage.changed_sampling({"temperature": 0.0, "guidance": 1.0})
    made = stage.generate({"semantic": (condition, condition.absent())}, 16, seeds=range(4), sampling=sampling).values
    assert (made == codes).float().mean() >= 0.99


@pytest.fixture
def forgotten():
    """Scores of the document are forgotten again, so that other tests do not measure them, too."""
    before = set(registry._classes)
    yield
    for key in set(registry._classes) - before:
        if registry._classes[key].__module__ == "example":
            del registry._classes[key]


@pytest.mark.usefixtures("forgotten")
def test_a_score(saved_toy, tmp_path, capsys):
    """One file, and it is listed, measured, kept, written to the page, left out and compared in ablations."""
    define(example("python", "Brightness"))
    show("score", out)
    assert "score/brightness" in capsys.readouterr().out
    show("score/brightness", out)
    assert "spectral centroids" in capsys.readouterr().out
    folder, few = tmp_path / "evaluation", Evaluation(clips=4, reference_clips=4, scores={"fad": False})
    evaluate(saved_toy, folder, options=few)
    row = json.loads((folder / "evaluation.json").read_text())["metrics"]["brightness difference"]
    assert row["low"] <= row["value"] <= row["high"]
    assert (row["score"], row["subject"], row["clips"]) == ("brightness", "system", 4)
    page = (folder / "evaluation.html").read_text()
    assert "brightness difference" in page
    assert "in octaves." in page
    other = replace(few, scores={"fad": False, "brightness": {"frame": 512}})
    assert evaluate(saved_toy, folder, options=other)["metrics"]["brightness difference"]["value"] != row["value"]
    without = replace(few, scores={"fad": False, "brightness": False})
    assert "brightness difference" not in evaluate(saved_toy, folder, options=without)["metrics"]
    with pytest.raises(partita.PartitaError, match="did you mean 'frame'"):
        Evaluation(scores={"brightness": {"frames": 512}})


@pytest.mark.usefixtures("forgotten")
def test_the_score_measures_octaves():
    """A sine an octave above another one."""
    score = define(example("python", "Brightness"))["Brightness"]()
    sine = torch.sin(2 * torch.pi * 0.05 * torch.arange(8000)[None, None] * torch.tensor([1.0, 2.0])[:, None, None])
    low, high = score.centroid(sine)
    assert (high / low).log2().item() == pytest.approx(1, abs=0.1)


def test_a_bottleneck_fits_into_a_codec_by_one_word(tmp_path):
    define(example("python", '"fsq"'))
    (tmp_path / "bottleneck").mkdir()
    (tmp_path / "bottleneck" / "fsq-tiny.yaml").write_text(example("yaml", "name: fsq"))
    few = {"steps": 2, "batch_size": 2, "crop": 0.4, "validation_examples": 2}
    sizes = {"encoder_width": 16, "decoder_width": 16, "encoder_depth": 1, "decoder_depth": 1}
    codec = {"preset": "spectral-tiny", "autoencoder": sizes, "adversarial_start": 1, "fit": few}
    recipe = {"tokenizers": {"acoustic": codec}, "data": "toy-sines", "trainer": {"logger": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = Part.load(_trained(tmp_path, "before"))
    assert before.spec.cardinality == 256
    folder = _trained(tmp_path, "run", "tokenizers.acoustic.bottleneck=fsq-tiny")
    codec = Part.load(folder)
    assert (codec.spec.num_codebooks, codec.spec.cardinality, codec.spec.frame_rate) == (1, 7 * 5 * 5, 25)
    audio = 0.5 * torch.randn(2, 1, 16000)
    codes = codec.encode(audio)
    assert codes.shape == (2, 1, 25)
    assert 0 <= codes.min() < codes.max() < 175
    assert codec.decode(codes).shape == audio.shape
    torch.manual_seed(1)
    fresh = type(codec).load(folder)
    assert torch.equal(fresh.encode(audio), codes)
    assert torch.equal(fresh.decode(codes), codec.decode(codes))


def _trained(folder, run, *overrides):
    train(load_recipe(folder / "recipe.yaml", list(overrides)), folder / run)
    return folder / run / "tokenizers" / "acoustic"


def block_of(path):
    """The block that stands for a file."""
    return next(block for part in ("python", "yaml") for block in blocks(part) if block.startswith(f"# {path}\n"))


FEW = {"steps": 3, "batch_size": 2, "validation_examples": 2}
SHORT = {"data": {"limit": 12}, "trainer": {"logger": False}, "tokenizers": {"acoustic": {"fit": FEW | {"crop": 0.6}}}}


def trained(folder, recipe, *overrides):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return train(load_recipe(folder / "recipe.yaml", overrides), folder / "run")


def preset_of(folder, path):
    """Put a preset of the document beside the recipe."""
    target = folder / path.removeprefix("recipes/")
    target.parent.mkdir()
    target.write_text(block_of(path))


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
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
    for _ in range(150):
        loss = stage.loss(codes, torch.ones(4, 12, dtype=torch.bool), {"text": text})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(stage.generate(pairs, 12, seeds=range(4), sampling=greedy).values, codes)


def test_a_denoiser(tmp_path):
    define(block_of("src/generators/denoisers/convolutional.py"))
    preset_of(tmp_path, "recipes/denoiser/convolutional.yaml")
    recipe = {"base": "chorales-flow-tiny", **SHORT, "stages": {"acoustic": {"window": 0.6, "generator": {"fit": FEW}}}}
    changes = ["stages.acoustic.generator.denoiser=convolutional", "stages.acoustic.generator.sampling.steps=4"]
    system = trained(tmp_path, recipe, *changes, "stages.acoustic.given={text: modulate}")
    audio = system.generate(["organ"], duration=1.4)
    assert audio.shape == (1, 1, 22400)
    assert torch.equal(partita.load(tmp_path / "run").generate(["organ"], duration=1.4), audio)


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

    optimizer = torch.optim.AdamW(stage.parameters(), lr=5e-3)
    for _ in range(200):
        latents, pairs = clips(16, 16)
        loss = stage.loss(latents, torch.ones(16, 16, dtype=torch.bool), {"chroma": pairs["chroma"][0]})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latents, pairs = clips(16, 14)
    made = stage.generate(pairs, 14, seeds=range(16), guidance=[Term(None, 1.0)]).values
    error = (made - latents).square().mean(-1) / latents.var()
    assert error.mean() < 0.3


def test_a_checkpoint_format(tmp_path):
    """The logits are those of transformers, under random weights."""
    import json

    from safetensors.torch import save_file

    from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
    from partita.generators.autoregressive import Autoregressive
    from partita.generators.backbones.transformer import Transformer

    transformers = pytest.importorskip("transformers")
    define(block_of("src/generators/checkpoints/musicgen_melody.py"))
    sizes = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128}
    sizes |= {"num_codebooks": 4, "pad_token_id": 24, "bos_token_id": 24}
    melody = transformers.MusicgenMelodyForCausalLM(transformers.MusicgenMelodyDecoderConfig(**sizes)).eval()
    state = {f"decoder.{name}": tensor.contiguous() for name, tensor in melody.state_dict().items()}
    state |= {"enc_to_dec_proj.weight": torch.randn(32, 20), "enc_to_dec_proj.bias": torch.randn(32)}
    state |= {"audio_enc_to_dec_proj.weight": torch.randn(32, 12), "audio_enc_to_dec_proj.bias": torch.randn(32)}
    save_file(state | {"text_encoder.shared.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "musicgen_melody"}))
    target = RepresentationSpec(32000, 1, 50.0, 4, 24)
    given = {name: Given(ConditionSpec(dim=dim), "prepend") for name, dim in (("melody", 12), ("text", 20))}
    stage = Autoregressive(target, given, backbone=Transformer(width=32, depth=2, num_heads=4)).eval()
    stage.load_weights(tmp_path)
    heard, text, codes = torch.randn(2, 3, 12), torch.randn(2, 5, 20), torch.randint(24, (2, 4, 9))
    before = torch.cat(
        [
            heard @ state["audio_enc_to_dec_proj.weight"].T + state["audio_enc_to_dec_proj.bias"],
            text @ state["enc_to_dec_proj.weight"].T + state["enc_to_dec_proj.bias"],
        ],
        dim=1,
    )
    with torch.no_grad():
        out = melody(
            input_ids=stage.pattern.layout(9).build(codes, 24).reshape(8, -1),
            encoder_hidden_states=before,
            encoder_attention_mask=torch.ones(2, 8, dtype=torch.long),
        )
        conditions = {"melody": Condition(heard, torch.ones(2, 3, dtype=torch.bool))}
        conditions["text"] = Condition(text, torch.ones(2, 5, dtype=torch.bool))
        logits, _ = stage.logits(codes, conditions)
    expected = out.logits.view(2, 4, -1, 24)[:, :, -13:]
    for k in range(4):
        torch.testing.assert_close(logits[:, k], expected[:, k, k : k + 9], rtol=0, atol=1e-4)
    with pytest.raises(partita.PartitaError, match="melody: prepend, text: prepend"):
        Autoregressive(target, {"text": given["text"]}).load_weights(tmp_path)


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
    optimizer = torch.optim.AdamW(stage.parameters(), lr=5e-3)
    for _ in range(150):
        loss = stage.loss(events, mask, {"text": text})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
