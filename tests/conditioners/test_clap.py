import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from partita.conditioners.clap import CLAP, RobertaShape
from partita.core.part import Part
from partita.errors import PartitaError
from toys import told

transformers = pytest.importorskip("transformers")

SHAPE = {
    "width": 8,
    "depths": (1, 1, 2, 1),
    "dim": 8,
    "text": RobertaShape(width=16, feed_forward_width=24, depth=2, num_heads=2, vocabulary=300),
}
TEXTS = ["slow chorale for church organ", "flute", "a fast waltz"]
RATE = 48000


def text_tokenizer(folder):
    """A RoBERTa tokenizer of single bytes and a few merges, as its files are."""
    from tokenizers import ByteLevelBPETokenizer

    words = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words.train_from_iterator(TEXTS * 5, vocab_size=290, special_tokens=special, show_progress=False)
    words.save_model(str(folder))
    transformers.RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as transformers writes one: a whole tiny CLAP with its tokenizer and feature extractor."""
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    text = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 2, 1]}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    model = transformers.ClapModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.normal_(-40, 5)
        norm.running_var.uniform_(200, 400)
    model.save_pretrained(folder)
    text_tokenizer(folder)
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14000, truncation="rand_trunc")
    extractor.save_pretrained(folder)
    return folder


def load(folder, **options):
    conditioner = CLAP(**SHAPE | {"text": replace(SHAPE["text"], epsilon=1e-12)} | options)
    conditioner.load_weights(folder)
    return conditioner


def features(output):
    """What transformers' models return, which once was the tensor alone."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def expected_audio(folder, clips):
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    inputs = extractor([clip.numpy() for clip in clips], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        model = transformers.ClapModel.from_pretrained(folder).eval()
        return inputs["input_features"], features(model.get_audio_features(inputs["input_features"].float()))


def test_texts_are_embedded_as_transformers_embeds_them(checkpoint):
    conditioner = load(checkpoint)
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(
        TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = features(transformers.ClapModel.from_pretrained(checkpoint).eval().get_text_features(**tokens))
    embedded = conditioner.embed_text(TEXTS)
    assert (embedded[0] - embedded[1]).abs().max() > 0.01
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-5)
    condition = conditioner(conditioner.prepare(told(TEXTS)))
    assert condition.values.shape == (3, 1, conditioner.spec.dim)
    assert condition.mask.all()
    torch.testing.assert_close(condition.values[:, 0], embedded)


def test_audio_is_heard_and_embedded_as_transformers_does(checkpoint):
    conditioner = load(checkpoint)
    steady = 0.3 * torch.sin(torch.arange(10 * RATE) * 0.05)
    for clip in (torch.randn(10 * RATE) * 0.1, steady, torch.randn(7 * RATE) * 0.1, torch.randn(3 * RATE + 17) * 0.1):
        mel, expected = expected_audio(checkpoint, [clip])
        audible = mel[:, 0] > mel.max() - 90  # below that, single precision is noise
        found = conditioner.log_mel(clip[None])
        assert found.shape == mel[:, 0].shape
        torch.testing.assert_close(found[audible], mel[:, 0].float()[audible], rtol=0, atol=1e-2)
        embedded = conditioner.embed_audio(clip[None, None])
        assert embedded.shape == (1, 1, 8)
        torch.testing.assert_close(embedded[:, 0], expected, rtol=0, atol=1e-4)


def test_windows_cover_a_long_clip_and_the_last_ends_with_it(checkpoint):
    conditioner = load(checkpoint, stride=2.0)
    audio = torch.randn(2, 1, 15 * RATE) * 0.1
    embedded = conditioner.embed_audio(audio)
    assert embedded.shape == (2, 4, 8)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2, 4))
    for index, start in enumerate((0, 2, 4, 5)):
        alone = conditioner.embed_audio(audio[1:, :, start * RATE : (start + 10) * RATE])
        torch.testing.assert_close(embedded[1, index], alone[0, 0], rtol=0, atol=1e-5)
    assert conditioner.embed_audio(audio[:, :, : 12 * RATE]).shape == (2, 2, 8)


def test_a_missing_text_is_null(checkpoint):
    conditioner = load(checkpoint)
    condition = conditioner(conditioner.prepare(told(["flute", None, "  "])))
    assert condition.mask.tolist() == [[True], [False], [False]]
    assert condition.values.isfinite().all()
    assert (condition.values[1:] == 0).all()
    assert torch.equal(conditioner.null(condition).values[1:], condition.values[1:])
    nothing = CLAP(**SHAPE)
    assert not nothing(nothing.prepare(told([None, None]))).mask.any()
    with pytest.raises(PartitaError, match="no text tokenizer yet"):
        nothing.prepare(told(["flute"]))


def test_it_stays_frozen_and_in_float32(checkpoint):
    conditioner = load(checkpoint).train()
    audio, prepared = torch.randn(1, 1, RATE) * 0.1, conditioner.prepare(told(TEXTS))
    expected = conditioner.embed_audio(audio), conditioner(prepared).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conditioner.embed_audio(audio), conditioner(prepared).values
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not any(p.requires_grad for p in conditioner.parameters())


def test_saved_it_loads_alone_with_its_tokenizer(checkpoint, tmp_path):
    conditioner = load(checkpoint)
    conditioner.save(tmp_path / "text")
    loaded = Part.load(tmp_path / "text")
    audio = torch.randn(1, 1, RATE) * 0.1
    assert torch.equal(loaded.embed_text(TEXTS), conditioner.embed_text(TEXTS))
    assert torch.equal(loaded.embed_audio(audio), conditioner.embed_audio(audio))


def laions(conditioner):
    """The weights under the names of LAION's releases, with what else is in those files."""
    state = {}
    for name, tensor in conditioner.exported_state().items():
        side, name = name.split(".", 1)
        name = name.replace("audio_model.audio_encoder.", "audio_branch.").replace("text_model.", "text_branch.")
        name = name.replace("projection.linear1", "projection.0").replace("projection.linear2", "projection.2")
        if side == "audio":
            for new, old in (
                ("batch_norm", "bn0"),
                ("attention.output.dense", "attn.proj"),
                ("attention.self", "attn"),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
            ):
                name = name.replace(new, old)
        state[f"module.{name}"] = tensor
    for name in [n for n in state if ".attn.query." in n]:
        parts = [state.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        state[name.replace("query", "qkv")] = torch.cat(parts)
    for name in ("logit_scale_a", "text_transform.sequential.0.weight", "audio_branch.head.weight"):
        state[f"module.{name}"] = torch.ones(1)
    state["module.audio_branch.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64)
    state["module.text_branch.embeddings.position_ids"] = torch.zeros(1, 514)
    return state


def test_a_file_of_laions_is_the_same_model(checkpoint, tmp_path):
    conditioner = load(checkpoint)
    training = {"epoch": 15, "best": np.float64(0.9), "optimizer": {"param_groups": [{"lr": np.float32(0.1)}]}}
    torch.save({**training, "state_dict": laions(conditioner)}, tmp_path / "clap.pt")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    again = load(tmp_path / "clap.pt")
    expected = conditioner.exported_state()
    assert all(torch.equal(expected[name], tensor) for name, tensor in again.exported_state().items())
    assert torch.equal(again.embed_text(TEXTS), conditioner.embed_text(TEXTS))


def test_a_checkpoint_that_is_only_pickled(checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(transformers.ClapModel.from_pretrained(checkpoint).state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(load(tmp_path).embed_text(TEXTS), load(checkpoint).embed_text(TEXTS))


def test_fused_models_and_other_spectra_are_refused(checkpoint, tmp_path):
    state = laions(CLAP(**SHAPE)) | {"module.audio_branch.patch_embed.fusion_model.local_att.0.bias": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "fused.pt")
    with pytest.raises(PartitaError, match=r"fused\.pt is a fused CLAP.*without fusion"):
        load(tmp_path / "fused.pt")
    config = json.loads((checkpoint / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PartitaError, match="fused CLAP"):
        load(tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"frequency_min": 0}')
    with pytest.raises(PartitaError, match="frequency_min"):
        load(tmp_path)


def test_weights_that_do_not_fit_or_are_not_there(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(PartitaError, match="missing"):
        load(checkpoint, depths=(1, 1, 3, 1))
    with pytest.raises(PartitaError, match="no such file"):
        load(tmp_path / "clap.pt")
    torch.save({"state_dict": laions(CLAP(**SHAPE))}, tmp_path / "clap.pt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PartitaError, match=r"FacebookAI/roberta-base"):  # whose tokenizer is not here
        load(tmp_path / "clap.pt")

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Attack()}, tmp_path / "attack.pt")
    with pytest.raises(PartitaError, match="cannot be read as weights"):
        load(tmp_path / "attack.pt")
    assert not (tmp_path / "ran").exists()


def test_a_file_on_the_hub_is_named_after_its_repository(checkpoint, tmp_path, monkeypatch):
    asked = []

    def fetch(repo, patterns):
        asked.append((repo, tuple(patterns)))
        return tmp_path

    monkeypatch.setattr("partita.storage.pretrained.fetch", fetch)
    torch.save({"state_dict": laions(load(checkpoint))}, tmp_path / "music.pt")
    text_tokenizer(tmp_path)
    assert load("someone/clap/music.pt").tokenizer is not None
    assert asked == [("someone/clap", ("music.pt",))]


def test_sizes_are_those_of_the_published_model():
    """RoBERTa-base has 125 million parameters; HTSAT-base ends 1024 wide."""
    with torch.device("meta"):
        conditioner = CLAP()
    assert conditioner.audio.config.hidden_size == 1024
    text = 50265 * 768 + 514 * 768 + 768 + 2 * 768 + 12 * (12 * 768**2 + 13 * 768) + 768**2 + 768
    projection = 768 * 512 + 512 + 512**2 + 512
    assert sum(p.numel() for p in conditioner.text.parameters()) == text + projection


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="window"):
        CLAP(**SHAPE, window=11)
    with pytest.raises(ValueError, match="stride"):
        CLAP(**SHAPE, stride=0)
    with pytest.raises(ValueError, match="multiple of 4"):
        CLAP(**{**SHAPE, "width": 6})
    with pytest.raises(PartitaError, match="one channel"):
        CLAP(**SHAPE).embed_audio(torch.zeros(1, 2, 100))
