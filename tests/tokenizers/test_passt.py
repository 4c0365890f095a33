import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import save_file

from partita.core.part import Part
from partita.errors import PartitaError
from partita.tokenizers.passt import PaSST

transformers = pytest.importorskip("transformers")

WIDTH, DEPTH, HEADS, LABELS = 24, 2, 3, 7
SMALL = {"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "labels": LABELS}


def weights(places):
    """Under the names and shapes of the original release."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "dist_token": (1, 1, WIDTH),
        "new_pos_embed": (1, 2, WIDTH),
        "freq_new_pos_embed": (1, WIDTH, 12, 1),
        "time_new_pos_embed": (1, WIDTH, 1, places),
        "patch_embed.proj.weight": (WIDTH, 1, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "head.1.weight": (LABELS, WIDTH),
        "head.1.bias": (LABELS,),
        "head_dist.weight": (LABELS, WIDTH),
        "head_dist.bias": (LABELS,),
    }
    for name in ("norm", "head.0", *(f"blocks.{i}.norm{n}" for i in range(DEPTH) for n in (1, 2))):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for i in range(DEPTH):
        sizes = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (out, into) in sizes.items():
            shapes[f"blocks.{i}.{name}.weight"] = (out * WIDTH, into * WIDTH)
            shapes[f"blocks.{i}.{name}.bias"] = (out * WIDTH,)
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def spectrogram_transformer(state, frames):
    """transformers' AST, which has the same two tokens and patches, with one position per patch instead of two."""
    config = transformers.ASTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        layer_norm_eps=1e-6,
        patch_size=16,
        frequency_stride=10,
        time_stride=10,
        max_length=frames,
        num_mel_bins=128,
        num_labels=LABELS,
    )
    model = transformers.ASTForAudioClassification(config).eval()
    embeddings = model.audio_spectrogram_transformer.embeddings
    places = state["freq_new_pos_embed"] + state["time_new_pos_embed"][..., : (frames - 16) // 10 + 1]
    own = dict(model.named_parameters())

    def put(parameter, value):
        assert parameter.shape == value.shape
        parameter.data.copy_(value)

    put(embeddings.position_embeddings, torch.cat([state["new_pos_embed"], places.flatten(2).mT], 1))
    put(embeddings.cls_token, state["cls_token"])
    put(embeddings.distillation_token, state["dist_token"])
    renamed = {
        "patch_embed.proj": "audio_spectrogram_transformer.embeddings.patch_embeddings.projection",
        "norm": "audio_spectrogram_transformer.layernorm",
        "head.0": "classifier.layernorm",
        "head.1": "classifier.dense",
    }
    for theirs, name in renamed.items():
        for kind in ("weight", "bias"):
            put(own[f"{name}.{kind}"], state[f"{theirs}.{kind}"])
    for i in range(DEPTH):
        layer = next(m for n, m in model.named_modules() if n.endswith(f".{i}"))
        modules = list(layer.named_modules())
        linear = [m for _, m in modules if isinstance(m, torch.nn.Linear)]
        norms = dict(modules)
        for kind in ("weight", "bias"):
            queries_keys_values = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            rest = [state[f"blocks.{i}.{name}.{kind}"] for name in ("attn.proj", "mlp.fc1", "mlp.fc2")]
            for module, value in zip(linear, [*queries_keys_values, *rest], strict=True):
                put(getattr(module, kind), value)
            put(getattr(norms["layernorm_before"], kind), state[f"blocks.{i}.norm1.{kind}"])
            put(getattr(norms["layernorm_after"], kind), state[f"blocks.{i}.norm2.{kind}"])
    return model


def log_mel(clip):
    """Frame by frame in double precision, with Kaldi's bands."""
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 1024, 32000, 0, 15000, 100.0, -500.0, 1.0)
    emphasized = clip[1:] - 0.97 * clip[:-1]
    padded = np.pad(emphasized, 512, mode="reflect")
    window = np.pad(np.hanning(800), 112)
    frames = [padded[at : at + 1024] * window for at in range(0, len(emphasized) + 1, 320)]
    power = np.abs(np.fft.rfft(frames))[:, :-1] ** 2
    return (np.log(power @ bands.double().numpy().T + 1e-5) + 4.5) / 5


def clips(samples, batch=2):
    """Unlike each other: more and more of a tone, and less and less noise."""
    time, place = torch.arange(samples) / 32000, torch.arange(batch)[:, None, None]
    return 0.1**place * torch.randn(batch, 1, samples) + 0.3 * place * torch.sin(2 * torch.pi * 440 * time)


@pytest.mark.parametrize(("window", "places", "samples"), [(10, 99, 32000), (10, 99, 320000), (20, 200, 4802)])
def test_agrees_with_another_transformer(tmp_path, window, places, samples):
    state = weights(places)
    torch.save(state, tmp_path / "passt-s-f128.pt")
    logits, embedding = (PaSST(output=output, window=window, **SMALL) for output in ("logits", "embedding"))
    logits.load_weights(tmp_path / "passt-s-f128.pt")
    embedding.load_weights(tmp_path)
    assert (logits.logits, embedding.logits) == (True, False)
    audio = clips(samples)
    spectra = torch.stack([torch.as_tensor(log_mel(clip[0].double().numpy())).float() for clip in audio])
    model = spectrogram_transformer(state, spectra.shape[1])
    with torch.no_grad():
        expected = model.audio_spectrogram_transformer(spectra).pooler_output
        assert torch.allclose(embedding.encode(audio)[..., 0], expected, atol=1e-4)
        assert torch.allclose(logits.encode(audio)[..., 0], model(spectra).logits, atol=1e-4)
    assert expected.std(0).max() > 0.01


def test_a_frame_is_of_a_window():
    part, second = PaSST(window=10, **SMALL), 32000
    audio = clips(25 * second, 1)
    found = part.encode(audio)
    parts = [part.encode(audio[..., a * second : b * second]) for a, b in ((0, 10), (10, 20), (20, 25))]
    assert torch.allclose(found, torch.cat(parts, -1), atol=1e-5)


def test_a_rest_too_short_to_judge_is_judged_with_what_precedes_it():
    part = PaSST(window=10, **SMALL)
    audio = clips(320000 + 4000, 1)
    found = part.encode(audio)
    assert found.shape == (1, LABELS, 2)
    assert torch.allclose(found[..., 1:], part.encode(audio[..., 4000:]), atol=1e-5)


def test_saves_and_loads(tmp_path):
    part = PaSST(output="embedding", window=10, **SMALL)
    save_file(weights(99), tmp_path / "model.safetensors")
    part.load_weights(tmp_path)
    part.save(tmp_path / "own")
    loaded, audio = Part.load(tmp_path / "own"), clips(9000)
    assert loaded.spec.dim == WIDTH
    assert torch.equal(loaded.encode(audio), part.encode(audio))


def test_weights_for_other_windows_are_refused(tmp_path):
    torch.save(weights(99), tmp_path / "passt.pt")
    with pytest.raises(PartitaError, match=r"time_new_pos_embed \[1, 24, 1, 99\] instead of \[1, 24, 1, 200\]"):
        PaSST(window=20, **SMALL).load_weights(tmp_path / "passt.pt")


@pytest.mark.parametrize("option", [{"output": "labels"}, {"window": 15}, {"width": 25}, {"labels": 0}, {"depth": 0}])
def test_refuses_nonsense(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        PaSST(**SMALL | option)


def test_sizes_are_the_original_ones():
    with torch.device("meta"):
        part = PaSST()
    assert str(part.spec) == "527-d latents at 0.05 Hz, 32 kHz × 1 ch"
    assert len(part.blocks) == 12
    assert part.blocks[0].attn.qkv.weight.shape == (2304, 768)
