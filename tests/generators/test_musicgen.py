"""Parity with the decoders of transformers under random weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from partita.core.contracts import Condition, ConditionSpec, Given, RepresentationSpec
from partita.errors import PartitaError
from partita.generators.autoregressive import Autoregressive
from partita.generators.backbones.transformer import Transformer
from partita.generators.checkpoints.musicgen import convert
from partita.layers.conditioning import Prefix
from partita.layers.guidance import classifier_free

transformers = pytest.importorskip("transformers")

TARGET = RepresentationSpec(sample_rate=32000, channels=1, frame_rate=50.0, num_codebooks=4, cardinality=24)
WIDTH, DEPTH, HEADS, TEXT = 32, 3, 4, 20
SIZES = {
    "vocab_size": 24,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "ffn_dim": 4 * WIDTH,
    "num_codebooks": 4,
    "pad_token_id": 24,
    "bos_token_id": 24,
}


@pytest.fixture
def reference():
    torch.manual_seed(0)
    model = transformers.MusicgenForCausalLM(transformers.MusicgenDecoderConfig(**SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # biases and norms too
    return model


@pytest.fixture
def checkpoint(reference, tmp_path):
    """A folder as transformers writes one of the whole system: decoder, projection, and what is not of the stage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    torch.manual_seed(1)
    state = {f"decoder.{name}": tensor.contiguous() for name, tensor in reference.state_dict().items()}
    state |= {"enc_to_dec_proj.weight": torch.randn(WIDTH, TEXT), "enc_to_dec_proj.bias": torch.randn(WIDTH)}
    state |= {
        "text_encoder.shared.weight": torch.randn(3, 3),
        "audio_encoder.encoder.layers.0.conv.bias": torch.randn(3),
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "musicgen"}))
    return folder


def stage(**options):
    given = {"text": Given(ConditionSpec(dim=TEXT), "cross")}
    return Autoregressive(TARGET, given, backbone=backbone(**options)).eval()


def backbone(**options):
    return Transformer(**{"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, **options})


def text(batch=3, length=5):
    torch.manual_seed(2)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])[:batch, :length]
    return Condition(torch.randn(batch, length, TEXT), mask)


def reference_logits(reference, checkpoint, codes, condition):
    """Logits ``[B, K, S, cardinality]`` of transformers for the delayed codes, with its own projection and masks."""
    from safetensors.torch import load_file

    state = load_file(checkpoint / "model.safetensors")
    encoded = condition.values @ state["enc_to_dec_proj.weight"].T + state["enc_to_dec_proj.bias"]
    encoded = encoded * condition.mask[..., None]
    batch, codebooks, frames = codes.shape
    delayed = torch.full((batch, codebooks, frames + codebooks), 24)
    for k in range(codebooks):
        delayed[:, k, 1 + k : 1 + k + frames] = codes[:, k]
    out = reference(
        input_ids=delayed.reshape(batch * codebooks, -1),
        encoder_hidden_states=encoded,
        encoder_attention_mask=condition.mask.long(),
    )
    return out.logits.view(batch, codebooks, -1, 24)


@torch.no_grad()
def test_logits_are_those_of_transformers(reference, checkpoint):
    """With a whole, a padded and a null condition in one batch."""
    model = stage()
    model.load_weights(checkpoint)
    codes, condition = torch.randint(24, (3, 4, 11)), text()
    expected = reference_logits(reference, checkpoint, codes, condition)
    logits, _ = model.logits(codes, {"text": condition})
    for k in range(4):
        torch.testing.assert_close(logits[:, k], expected[:, k, k : k + 11], rtol=0, atol=1e-4)


@torch.no_grad()
def test_cached_guided_steps_are_those_of_transformers(reference, checkpoint, monkeypatch):
    from partita.layers.sampling import Sampling

    model = stage()
    model.load_weights(checkpoint)
    seen = []
    draw = Sampling.draw
    monkeypatch.setattr(Sampling, "draw", lambda self, logits, noise: seen.append(logits) or draw(self, logits, noise))
    condition = text(1)
    null = Condition(torch.zeros_like(condition.values), torch.zeros_like(condition.mask))
    codes = model.generate({"text": (condition, null)}, 7, seeds=[0], guidance=classifier_free(3.0)).values
    with_text = reference_logits(reference, checkpoint, codes, condition)
    without = reference_logits(reference, checkpoint, codes, null)
    expected = without + 3 * (with_text - without)
    guided = torch.stack(seen, dim=2)
    for k in range(4):
        torch.testing.assert_close(guided[:, k, k : k + 7], expected[:, k, k : k + 7], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prefix_is_that_of_transformers():
    """MusicGen-melody prepends its conditions; positions count from the start of the prefix."""
    torch.manual_seed(0)
    melody = transformers.MusicgenMelodyForCausalLM(transformers.MusicgenMelodyDecoderConfig(**SIZES)).eval()
    given = {"melody": Given(ConditionSpec(dim=WIDTH), "prepend")}
    model = Autoregressive(TARGET, given, backbone=backbone()).eval()
    state = convert(melody.state_dict(), {})
    state |= {"conditioning.projections.melody.weight": torch.eye(WIDTH)}
    state |= {"conditioning.projections.melody.bias": torch.zeros(WIDTH)}
    model.load_exported_state(state, "a test")
    prefix, codes = torch.randn(2, 6, WIDTH), torch.randint(24, (2, 4, 9))
    sequence = model.pattern.layout(9).build(codes, 24)
    out = melody(
        input_ids=sequence.reshape(8, -1),
        encoder_hidden_states=prefix,
        encoder_attention_mask=torch.ones(2, 6, dtype=torch.long),
    )
    expected = out.logits.view(2, 4, -1, 24)[:, :, -sequence.shape[2] :]
    logits, _ = model.logits(codes, {"melody": Condition(prefix, torch.ones(2, 6, dtype=torch.bool))})
    for k in range(4):
        torch.testing.assert_close(logits[:, k], expected[:, k, k : k + 9], rtol=0, atol=1e-4)


def test_other_sizes_are_refused_with_the_difference(checkpoint):
    with pytest.raises(PartitaError, match=r"missing.*backbone\.layers\.blocks\.3"):
        stage(depth=4).load_weights(checkpoint)
    with pytest.raises(PartitaError, match="sinusoidal positions and GELU"):
        stage(positions="rotary").load_weights(checkpoint)


def test_other_models_are_refused(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(PartitaError, match="holds a model of type t5"):
        stage().load_weights(checkpoint)


def test_pickles_are_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(PartitaError, match=r"pickled weights .* are not read"):
        stage().load_weights(checkpoint)


def test_a_damaged_file_is_named(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(PartitaError, match=r"model\.safetensors is no safetensors file"):
        stage().load_weights(checkpoint)


@torch.no_grad()
def test_musicongen_starts_from_the_melody(reference, checkpoint):
    """Chords take the projection of the melody's pitch classes, and beats that are added change nothing yet."""
    from safetensors.torch import load_file

    torch.manual_seed(3)
    decoder = {name: t for name, t in load_file(checkpoint / "model.safetensors").items() if "encoder_attn" not in name}
    melody = {"audio_enc_to_dec_proj.weight": torch.randn(WIDTH, 12), "audio_enc_to_dec_proj.bias": torch.randn(WIDTH)}
    save_file(decoder | melody, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "musicgen_melody"}))
    chords, beats = ConditionSpec(dim=12, frame_rate=50.0), ConditionSpec(dim=1, frame_rate=50.0)
    given = {"chords": Given(chords, "prepend+add"), "text": Given(ConditionSpec(dim=TEXT), "prepend")}
    options = {"plain_prefix": True, "prefix": Prefix({"chords": 5})}
    network = backbone(again_every=2)
    with_beats = Autoregressive(TARGET, given | {"beats": Given(beats, "add")}, backbone=network, **options).eval()
    without = Autoregressive(TARGET, given, backbone=backbone(again_every=2), **options).eval()
    for model in (with_beats, without):
        model.load_weights(checkpoint)
    projection = with_beats.conditioning.projections["chords"]
    assert torch.equal(projection.weight, melody["audio_enc_to_dec_proj.weight"])
    assert torch.equal(projection.bias, melody["audio_enc_to_dec_proj.bias"])
    codes, every = torch.randint(24, (3, 4, 11)), torch.ones(3, 11, dtype=torch.bool)
    conditions = {"text": text(), "chords": Condition(torch.randn(3, 11, 12), every)}
    expected, _ = without.logits(codes, conditions)
    logits, _ = with_beats.logits(codes, conditions | {"beats": Condition(torch.randn(3, 11, 1), every)})
    torch.testing.assert_close(logits, expected)
