"""Importing published systems, against transformers under random weights."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import partita
from audiocraft_export import audiocraft_names, package_names
from partita.cli.main import app
from partita.core.contracts import Condition
from partita.errors import PartitaError

transformers = pytest.importorskip("transformers")

CARDINALITY, BOOKS = 64, 4


@pytest.fixture(scope="module")
def published(tmp_path_factory, t5_checkpoint):
    """Makes a folder as transformers saves a small MusicGen, with the text tokenizer of a T5 beside it."""
    made = {}

    def make(channels):
        if channels in made:
            return made[channels]
        torch.manual_seed(channels)
        decoder = transformers.MusicgenDecoderConfig(
            vocab_size=CARDINALITY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=96,
            num_codebooks=BOOKS * channels,
            audio_channels=channels,
            pad_token_id=CARDINALITY,
            bos_token_id=CARDINALITY,
        )
        text = transformers.T5Config(vocab_size=64, d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2)
        codec = transformers.EncodecConfig(
            sampling_rate=3200,
            target_bandwidths=[1.0],
            upsampling_ratios=[5, 4, 2, 2],
            num_filters=4,
            hidden_size=16,
            codebook_size=CARDINALITY,
            use_causal_conv=False,
            use_conv_shortcut=False,
        )
        parts = {"text_encoder": text, "audio_encoder": codec, "decoder": decoder}
        config = transformers.MusicgenConfig(**{name: part.to_dict() for name, part in parts.items()})
        model = transformers.MusicgenForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("decoder.", "enc_to_dec_proj.")):
                    parameter.normal_(std=0.2)
            for layer in model.audio_encoder.quantizer.layers:
                layer.codebook.embed.normal_()
        model.generation_config.update(
            decoder_start_token_id=CARDINALITY,
            pad_token_id=CARDINALITY,
            max_length=400,
            guidance_scale=2.0,
            do_sample=True,
            top_k=17,
        )
        folder = tmp_path_factory.mktemp("musicgen") / f"channels-{channels}"
        model.save_pretrained(folder)
        words = t5_checkpoint("relu", ["a slow chorale for flute and church organ"])
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(words / name, folder / name)
        made[channels] = folder, model
        return made[channels]

    return make


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def imported(request, published, tmp_path_factory):
    """The model of transformers, the system, and the folders of both."""
    folder, model = published(request.param)
    output = tmp_path_factory.mktemp("imported") / "system"
    partita.import_system(folder, output)
    return model, partita.load(output), folder, output


def encoded(model, system, text):
    """The text tokens of the imported tokenizer, their mask, and the condition of the imported conditioner."""
    tokenizer = system.conditioners["text"].tokenizer
    tokens = tokenizer([text], return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


@torch.no_grad()
def test_logits_are_those_of_transformers(imported):
    model, system, *_ = imported
    stage, books = system.stages["acoustic"], model.decoder.num_codebooks
    ids, mask = encoded(model, system, "slow church organ")
    values = system.conditioners["text"]({"tokens": ids, "mask": mask.bool()})
    codes = torch.randint(CARDINALITY, (1, books, 12))
    sequence = stage.pattern.layout(12).build(codes, CARDINALITY)
    theirs = model(input_ids=ids, attention_mask=mask, decoder_input_ids=sequence.reshape(books, -1)).logits
    theirs = theirs.view(1, books, -1, CARDINALITY)
    ours, _ = stage.logits(codes, {"text": Condition(values.values, values.mask)})
    channels = model.decoder.config.audio_channels
    for k in range(books):
        delay = k // channels
        torch.testing.assert_close(ours[:, k], theirs[:, k, delay : delay + 12], rtol=0, atol=1e-4)


@torch.no_grad()
def test_greedy_generation_is_that_of_transformers(imported):
    """Guided, at temperature 0: the same codes, and the same audio up to rounding."""
    model, system, *_ = imported
    ids, mask = encoded(model, system, "a chorale for flute")
    frames = 24
    length = frames + BOOKS
    kept = []
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **more: kept.append(codes[0]) or decode(codes, **more)
    try:
        theirs = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, guidance_scale=2.0, max_length=length, use_cache=True
        )
    finally:
        model.audio_encoder.decode = decode
    codes = torch.stack(kept, 2).flatten(1, 2) if len(kept) > 1 else kept[0]
    made = system.generate_representations(
        ["a chorale for flute"], duration=codes.shape[-1] / 40, seed=0, sampling={"temperature": 0}, progress=False
    )
    assert torch.equal(made["acoustic"].values, codes)
    assert len(codes.unique()) > 5
    torch.testing.assert_close(system.tokenizers["acoustic"].decode(codes), theirs, atol=1e-4, rtol=0)


def test_the_system_says_what_the_checkpoint_says(imported):
    model, system, folder, output = imported
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    stage = recipe["stages"]["acoustic"]
    assert stage["generator"]["sampling"] == {"temperature": 1.0, "top_k": 17, "guidance": 2.0}
    assert (stage["window"], stage["overlap"]) == (10.0, 4.0)  # 400 steps at 40 Hz, continued from 40 %
    assert recipe["imported"] == str(folder)
    spec = system.output.spec
    channels = model.decoder.config.audio_channels
    assert (spec.sample_rate, spec.channels, spec.num_codebooks) == (3200, channels, BOOKS * channels)
    assert system.generate(["flute"], duration=0.5, progress=False).shape == (1, channels, 1600)


def test_shards_are_read(published, tmp_path):
    folder, model = published(1)
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, sharded / name)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    whole, parts = (
        partita.load(partita.import_system(one, tmp_path / f"from-{one.name}")) for one in (folder, sharded)
    )
    for key, part in whole.parts.items():
        for name, tensor in part.exported_state().items():
            assert torch.equal(tensor, parts.parts[key].exported_state()[name])
    next(sharded.glob("*.safetensors")).unlink()
    with pytest.raises(PartitaError, match=r"is incomplete: it lacks model-0000.*\.safetensors, which .* names"):
        partita.import_system(sharded, tmp_path / "again")


@pytest.fixture
def copy(published, tmp_path):
    """A copy of the checkpoint to damage."""
    return shutil.copytree(published(1)[0], tmp_path / "copy")


def changed(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.update(model_type="llama"),
            r"a model of type llama, which cannot be imported. What can be: .*MusicGen",
        ),
        (lambda c: c.update(auto_map={"AutoModel": "evil.Model"}), r"needs code from its own repository \(auto_map"),
        (lambda c: c["decoder"].update(auto_map={"AutoModel": "evil.Model"}), "which is never run"),
        (lambda c: c.pop("decoder"), "does not describe its decoder"),
        (lambda c: c["decoder"].update(hidden_size="32"), "hidden_size is 32"),
        (lambda c: c["decoder"].update(hidden_size=-4), "hidden_size is -4"),
        (lambda c: c["decoder"].update(num_hidden_layers=3), r"(?s)not of this autoregressive.*missing: .*blocks\.2"),
        (lambda c: c["decoder"].update(hidden_size=1 << 20), "refused"),
        (lambda c: c["decoder"].update(activation_function="relu"), "activation_function is relu, not gelu"),
        (lambda c: c["decoder"].update(audio_channels=3), "1 or 2 channels"),
        (lambda c: c["text_encoder"].update(model_type="bert"), "model_type is bert, not t5"),
        (lambda c: c["audio_encoder"].update(model_type="dac"), "model_type is dac, not encodec"),
        (lambda c: c["audio_encoder"].update(upsampling_ratios=[2, 4, 5, 2]), "of another shape"),
        (lambda c: c["audio_encoder"].update(pad_mode="circular"), "pad_mode circular"),
    ],
)
def test_what_does_not_fit_is_said_once_and_leaves_nothing(copy, change, said, tmp_path):
    changed(copy, change)
    with pytest.raises(PartitaError, match=said):
        partita.import_system(copy, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_a_truncated_file_is_named(copy, tmp_path):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PartitaError, match=r"model\.safetensors is damaged"):
        partita.import_system(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prefix", "change"),
    [
        ("decoder.model.decoder.layers.0", lambda tensor: torch.zeros(())),
        ("audio_encoder.", lambda tensor: tensor.int()),
        ("audio_encoder.", lambda tensor: torch.zeros(())),
    ],
)
def test_tensors_that_cannot_be_converted_are_one_message(copy, prefix, change, tmp_path):
    path = copy / "model.safetensors"
    save_file({n: change(v) if n.startswith(prefix) else v for n, v in load_file(path).items()}, path)
    with pytest.raises(PartitaError, match="cannot be converted, because some have another shape or type"):
        partita.import_system(copy, tmp_path / "out")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["copy"]


def test_nothing_is_overwritten(copy, tmp_path):
    with pytest.raises(PartitaError, match="exists already"):
        partita.import_system(copy, copy)
    with pytest.raises(PartitaError, match="neither a folder nor a hub id"):
        partita.import_system("somewhere/else/entirely", tmp_path / "out")


@pytest.mark.parametrize("channels", [1, 2])
def test_exports_of_audiocraft_are_the_same_system(published, channels, tmp_path, monkeypatch):
    """Read as plain tensors; the text encoder comes from the Hub."""
    folder, _ = published(channels)
    state = load_file(folder / "model.safetensors")
    decoder = {k: v for k, v in state.items() if k.startswith(("decoder.", "enc_to_dec_proj."))}
    codec = {k.removeprefix("audio_encoder."): v for k, v in state.items() if k.startswith("audio_encoder.")}
    settings = {
        "transformer_lm": {"dim": 32, "num_heads": 4, "num_layers": 2, "n_q": BOOKS * channels},
        "codebooks_pattern": {"delay": {"delays": [k // channels for k in range(BOOKS * channels)]}},
        "conditioners": {"description": {"model": "t5", "t5": {"name": "t5-base"}}},
        "dataset": {"segment_duration": 10},
        "interleave_stereo_codebooks": {"use": channels == 2},
    }
    network = {"dimension": 16, "channels": 1, "n_filters": 4, "ratios": [5, 4, 2, 2], "pad_mode": "reflect"}
    quantizer = {"sample_rate": 3200, "seanet": network, "rvq": {"n_q": BOOKS, "bins": CARDINALITY}}
    export = tmp_path / "export"
    export.mkdir()
    for name, weights, config in (
        ("state_dict.bin", audiocraft_names(decoder), settings),
        ("compression_state_dict.bin", package_names(codec), quantizer),
    ):
        torch.save({"best_state": weights, "xp.cfg": yaml.safe_dump(config)}, export / name)
    text = tmp_path / "t5"
    text.mkdir()
    names = ("tokenizer.json", "tokenizer_config.json")
    for name in names:
        shutil.copyfile(folder / name, text / name)
    (text / "config.json").write_text(json.dumps({"model_type": "t5"}))
    save_file(
        {k.removeprefix("text_encoder."): v for k, v in state.items() if k.startswith("text_encoder.")},
        text / "model.safetensors",
    )
    small = {
        "name": "t5",
        "shape": {"width": 16, "feed_forward_width": 24, "depth": 2, "num_heads": 2, "head_width": 8, "vocabulary": 64},
    }
    monkeypatch.setattr("partita.publishing.formats.audiocraft_musicgen._text", lambda settings: (small, str(text)))
    ours = partita.load(partita.import_system(export, tmp_path / "ours"))
    theirs = partita.load(partita.import_system(folder, tmp_path / "theirs"))
    for key, part in theirs.parts.items():
        for name, tensor in part.exported_state().items():
            torch.testing.assert_close(ours.parts[key].exported_state()[name], tensor)
    assert (ours.plan.stages["acoustic"].window, ours.plan.stages["acoustic"].overlap) == (10, 4)
    torch.save(
        {"best_state": audiocraft_names(decoder), "xp.cfg": yaml.safe_dump(settings | {"solver": "audiogen"})},
        export / "state_dict.bin",
    )
    sounds = partita.load(partita.import_system(export, tmp_path / "sounds")).plan.stages["acoustic"]
    assert (sounds.window, sounds.overlap) == (10, 8)  # AudioGen's extend_stride of 2


def test_the_card_names_the_origin_and_its_license(published, tmp_path):
    system = partita.import_system(published(1)[0], tmp_path / "system")
    index = system / "recipe.yaml"
    index.write_text(index.read_text().replace(str(published(1)[0]), "facebook/musicgen-small"))
    partita.preview_push(system, "somebody/mine", tmp_path / "card", examples=0)
    card = (tmp_path / "card" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["license"], metadata["base_model"]) == ("cc-by-nc-4.0", "facebook/musicgen-small")
    assert "| stages/acoustic | pretrained |" in card
    assert "The weights of all parts are pretrained" in card


def test_the_command_prints_the_parts(published, tmp_path):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["import", str(published(1)[0]), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "stages/acoustic: " in result.output
    listed = CliRunner().invoke(app, ["list", "published"]).output
    assert "facebook/musicgen-stereo-large" in listed
    assert "CC-BY-NC-4.0" in listed
