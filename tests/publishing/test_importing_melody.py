"""Importing MusicGen-melody, against transformers under random weights."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import partita
from audiocraft_export import audiocraft_names, package_names
from partita.errors import PartitaError

transformers = pytest.importorskip("transformers")

CARDINALITY, BOOKS, SECONDS = 64, 4, 2.0
CHROMA = {"sampling_rate": 3200, "n_fft": 1024, "hop_length": 256, "feature_size": 12}
FRAMES = 25  # of 2 s at 3200 / 256 Hz


@pytest.fixture(scope="module")
def published(tmp_path_factory, t5_checkpoint):
    """A folder as transformers saves a small MusicGen-melody, with its tokenizer and feature extractor."""
    torch.manual_seed(0)
    decoder = transformers.MusicgenMelodyDecoderConfig(
        vocab_size=CARDINALITY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=96,
        num_codebooks=BOOKS,
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
    config = transformers.MusicgenMelodyConfig(
        **{name: part.to_dict() for name, part in parts.items()}, chroma_length=FRAMES
    )
    model = transformers.MusicgenMelodyForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("decoder.", "enc_to_dec_proj.", "audio_enc_to_dec_proj.")):
                parameter.normal_(std=0.2)
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config.update(
        decoder_start_token_id=CARDINALITY,
        pad_token_id=CARDINALITY,
        max_length=int(SECONDS * 40),
        guidance_scale=2.0,
        do_sample=True,
        top_k=17,
    )
    folder = tmp_path_factory.mktemp("musicgen") / "melody"
    model.save_pretrained(folder)
    transformers.MusicgenMelodyFeatureExtractor(**CHROMA).save_pretrained(folder)
    words = t5_checkpoint("relu", ["a slow chorale for flute and church organ"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(words / name, folder / name)
    return folder, model


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    folder, model = published
    return model, partita.load(partita.import_system(folder, tmp_path_factory.mktemp("imported") / "system"))


@pytest.fixture(scope="module")
def recording():
    """A melody of four tones with some noise, 1.2 s at the rate of the feature extractor."""
    torch.manual_seed(3)
    time = torch.arange(3840) / 3200
    pitch = 220 * 2 ** (torch.tensor([0, 4, 7, 2])[(time / 0.3).long()] / 12)
    return (0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.02 * torch.randn(3840))[None]


def features(recording):
    extractor = transformers.MusicgenMelodyFeatureExtractor(**CHROMA)
    return extractor(recording[0].numpy(), sampling_rate=3200, return_tensors="pt")["input_features"]


def text_of(system, text):
    tokens = system.conditioners["text"].tokenizer([text], return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


@torch.no_grad()
@pytest.mark.parametrize("sung", [True, False], ids=["melody", "text alone"])
def test_logits_are_those_of_transformers(imported, recording, sung):
    model, system = imported
    stage = system.stages["acoustic"]
    ids, mask = text_of(system, "slow church organ")
    ids, mask = (torch.nn.functional.pad(one, (0, 2)) for one in (ids, mask))  # padding is attended to
    codes = torch.randint(CARDINALITY, (1, BOOKS, 12))
    sequence = stage.pattern.layout(12).build(codes, CARDINALITY)
    given = {"input_features": features(recording)} if sung else {}
    theirs = model(input_ids=ids, attention_mask=mask, decoder_input_ids=sequence.reshape(BOOKS, -1), **given).logits
    theirs = theirs.view(1, BOOKS, -1, CARDINALITY)[:, :, -sequence.shape[-1] :]
    inputs = {"audio": partita.Excerpt(recording, sample_rate=3200)} if sung else {"audio": None}
    conditions = {
        "text": system.conditioners["text"]({"tokens": ids, "mask": mask.bool()}),
        "melody": partita.encode_inputs(system.conditioners["melody"], seconds=0.3, **inputs),
    }
    assert conditions["melody"].values.shape == (1, FRAMES, 12)
    ours, _ = stage.logits(codes, conditions)
    for k in range(BOOKS):
        torch.testing.assert_close(ours[:, k], theirs[:, k, k : k + 12], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sung", [True, False], ids=["melody", "text alone"])
def test_greedy_generation_is_that_of_transformers(imported, recording, sung):
    """Guided, at temperature 0: the same codes, of a clip shorter than the window and a melody shorter still."""
    model, system = imported
    ids, mask = text_of(system, "a chorale for flute")
    kept = []
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **more: kept.append(codes[0]) or decode(codes, **more)
    given = {"input_features": features(recording)} if sung else {}
    try:
        theirs = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, guidance_scale=2.0, max_length=60, **given
        )
    finally:
        model.audio_encoder.decode = decode
    codes = kept[0]
    melody = {"melody": partita.Excerpt(recording, sample_rate=3200)} if sung else {}
    options = {"duration": codes.shape[-1] / 40, "seed": 0, "sampling": {"temperature": 0}, "progress": False}
    made = system.generate_representations(["a chorale for flute"], **options, **melody)
    assert torch.equal(made["acoustic"].values, codes)
    assert len(codes.unique()) > 5
    torch.testing.assert_close(system.tokenizers["acoustic"].decode(codes), theirs, atol=1e-4, rtol=0)


def test_a_melody_goes_on_in_the_next_window(imported, recording, monkeypatch):
    """Each window has the frames of its own time; a melody that ends begins again."""
    _, system = imported
    stage, seen = system.stages["acoustic"], []
    generate = type(stage).generate

    def spied(self, conditions, frames, **options):
        seen.append(conditions["melody"][0].values.argmax(-1)[0])
        return generate(self, conditions, frames, **options)

    monkeypatch.setattr(type(stage), "generate", spied)
    melody = partita.Excerpt(recording, sample_rate=3200)
    system.generate(["flute"], melody=melody, duration=4.0, seed=0, progress=False)
    whole = features(recording).argmax(-1)[0].repeat(5)
    starts = [next(s for s in range(50) if torch.equal(whole[s : s + FRAMES], one)) for one in seen]
    assert starts[:2] == [0, 15]  # 0.6 of 2 s at 12.5 Hz
    assert [len(one) for one in seen] == [FRAMES] * len(seen)


def test_a_chroma_of_another_length_is_refused(published, tmp_path):
    copy = shutil.copytree(published[0], tmp_path / "copy")
    path = copy / "config.json"
    config = json.loads(path.read_text()) | {"chroma_length": 30}
    path.write_text(json.dumps(config))
    with pytest.raises(PartitaError, match=r"a melody of 2 s has 25 frames .*, but chroma_length is 30"):
        partita.import_system(copy, tmp_path / "out")


SETTINGS = {
    "sample_rate": 3200,
    "transformer_lm": {"dim": 32, "num_heads": 4, "num_layers": 2, "n_q": BOOKS},
    "codebooks_pattern": {"delay": {"delays": list(range(BOOKS))}},
    "fuser": {"cross": [], "prepend": ["self_wav", "description"]},
    "conditioners": {
        "self_wav": {"model": "chroma_stem", "chroma_stem": {"sample_rate": "${sample_rate}", "radix2_exp": 10}},
        "description": {"model": "t5", "t5": {"name": "t5-base"}},
    },
    "dataset": {"segment_duration": 2},
}


@pytest.fixture
def export(published, tmp_path, monkeypatch):
    """Writes the same system as audiocraft exports it, with further weights and other settings."""
    folder, _ = published
    state = load_file(folder / "model.safetensors")
    decoder = {
        k: v for k, v in state.items() if k.startswith(("decoder.", "enc_to_dec_proj.", "audio_enc_to_dec_proj."))
    }
    codec = {k.removeprefix("audio_encoder."): v for k, v in state.items() if k.startswith("audio_encoder.")}
    network = {
        "dimension": 16,
        "channels": "${channels}",
        "n_filters": 4,
        "ratios": [5, 4, 2, 2],
        "pad_mode": "reflect",
    }
    quantizer = {"sample_rate": 3200, "channels": 1, "seanet": network, "rvq": {"n_q": BOOKS, "bins": CARDINALITY}}
    text = tmp_path / "t5"
    text.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, text / name)
    (text / "config.json").write_text(json.dumps({"model_type": "t5"}))
    weights = {k.removeprefix("text_encoder."): v for k, v in state.items() if k.startswith("text_encoder.")}
    save_file(weights, text / "model.safetensors")
    shape = {"width": 16, "feed_forward_width": 24, "depth": 2, "num_heads": 2, "head_width": 8, "vocabulary": 64}
    small = {"name": "t5", "shape": shape}
    monkeypatch.setattr("partita.publishing.formats.audiocraft_musicgen._text", lambda settings: (small, str(text)))

    def write(**settings):
        made = tmp_path / "export"
        made.mkdir(exist_ok=True)
        more = settings.pop("weights", {})
        for name, kept, config in (
            ("state_dict.bin", audiocraft_names(decoder) | more, SETTINGS | settings),
            ("compression_state_dict.bin", package_names(codec), quantizer),
        ):
            torch.save({"best_state": kept, "xp.cfg": yaml.safe_dump(config)}, made / name)
        return made

    return write


def test_an_export_of_audiocraft_is_the_same_system(export, imported, tmp_path):
    ours, theirs = partita.load(partita.import_system(export(), tmp_path / "ours")), imported[1]
    for key, part in theirs.parts.items():
        for name, tensor in part.exported_state().items():
            torch.testing.assert_close(ours.parts[key].exported_state()[name], tensor)
    assert ours.plan.conditioners["melody"].arguments == theirs.plan.conditioners["melody"].arguments
    assert ours.plan.stages["acoustic"].given == theirs.plan.stages["acoustic"].given


WIDTH, STREAMS = 256, 3  # audiocraft's smallest transformer of a style
STYLE = {"transformer_scale": "xsmall", "n_q_out": STREAMS, "eval_q": 2, "bins": 8, "ds_factor": 4, "length": 0.5}


@pytest.fixture
def mert(tmp_path, monkeypatch):
    """A small model of MERT's kind that takes its place."""
    small = transformers.HubertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    model = transformers.HubertModel(small).eval()
    model.save_pretrained(tmp_path / "mert")
    shape = {"width": 16, "feed_forward_width": 24, "num_heads": 2, "convolution_width": 8}
    shape |= {"position_kernel": 16, "position_groups": 2}
    features = {"name": "hubert", "sample_rate": 24000, "layer": 2, "normalize": False, "pad": False, "network": shape}
    monkeypatch.setattr("partita.publishing.formats.audiocraft_prefix.FEATURES", features)
    monkeypatch.setattr("partita.conditioners.style_checkpoint.MERT", str(tmp_path / "mert"))
    return model


def published_style(mert):
    """The layers of audiocraft's ``StyleConditioner``, from torch, and their weights under audiocraft's names."""
    torch.manual_seed(5)
    embed, norm = torch.nn.Linear(16, WIDTH), torch.nn.BatchNorm1d(WIDTH, affine=False).eval()
    options = {"dim_feedforward": 4 * WIDTH, "activation": "gelu", "norm_first": True, "bias": False, "dropout": 0.0}
    blocks = [torch.nn.TransformerEncoderLayer(WIDTH, 8, batch_first=True, **options).eval() for _ in range(4)]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    books = torch.randn(STREAMS, 8, WIDTH)
    parts = {"embed": embed, "batch_norm": norm, "transformer.layers": torch.nn.ModuleList(blocks)}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for index in range(4):  # normalizations have biases in audiocraft
        for place in (1, 2):
            state[f"transformer.layers.{index}.norm{place}.bias"] = torch.zeros(WIDTH)
    for k, book in enumerate(books):
        own = {"inited": torch.ones(1), "cluster_size": torch.ones(8), "embed": book, "embed_avg": book.clone()}
        state |= {f"rvq.vq.layers.{k}._codebook.{key}": value for key, value in own.items()}

    def heard(audio):
        x = embed(mert(audio).last_hidden_state)
        angles = torch.arange(x.shape[1])[:, None] / 10_000 ** (torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
        x = x + torch.cat([angles.cos(), angles.sin()], dim=1)
        for block in blocks:
            x = block(x)
        rest = norm(x.mT).mT
        total = torch.zeros_like(rest)
        for book in books[: STYLE["eval_q"]]:
            entries = book[torch.cdist(rest, book[None]).argmin(-1)]
            rest, total = rest - entries, total + entries
        return total[:, :: STYLE["ds_factor"]]

    prefix = "condition_provider.conditioners.self_wav."
    state["output_proj.weight"], state["output_proj.bias"] = torch.randn(32, WIDTH) / 16, torch.randn(32)
    return heard, {prefix + name: value.detach() for name, value in state.items()}


@torch.no_grad()
def test_a_style_is_heard_as_by_audiocraft(export, mert, tmp_path):
    """From the export of a MusicGen-Style: the condition, its projection, and the options that audiocraft sets."""
    heard, weights = published_style(mert)
    conditioners = SETTINGS["conditioners"] | {"self_wav": {"model": "style", "style": STYLE}}
    system = partita.load(partita.import_system(export(conditioners=conditioners, weights=weights), tmp_path / "ours"))
    style, stage = system.conditioners["style"], system.plan.stages["acoustic"]
    audio = 0.1 * torch.randn(1, 12000)
    condition = partita.encode_inputs(style, seconds=2.0, excerpt=partita.Excerpt(audio, sample_rate=24000))
    expected = heard(audio)
    assert expected.shape == (1, 10, WIDTH)  # 37 frames of MERT, of which every fourth is kept
    torch.testing.assert_close(condition.values, expected, rtol=0, atol=1e-4)
    made = system.stages["acoustic"].conditioning.projections["style"]
    assert torch.equal(made.weight, weights["condition_provider.conditioners.self_wav.output_proj.weight"])
    assert list(stage.given) == ["style", "text"]
    assert system.stages["acoustic"].plain_prefix
    sampling = system.stages["acoustic"].sampling
    assert (sampling.guidance, tuple(sampling.inner), sampling.inner_guidance) == (3.0, ("style",), 5.0)
    clip = system.generate(["flute"], style=partita.Excerpt(audio, sample_rate=24000), duration=0.5, progress=False)
    assert torch.isfinite(clip).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fuser": {"prepend": ["description"]}}, r"a prefix of \['description'\] cannot be imported"),
        ({"conditioners": {"self_wav": {"model": "clap"}}}, "only text, a melody .* and a style"),
        ({"conditioners": {"self_wav": {"model": "chroma_stem", "chroma_stem": {"argmax": False}}}}, "strongest of 12"),
        ({"conditioners": {"self_wav": {"model": "style", "style": {"model_name": "encodec"}}}}, "that MERT hears"),
        ({"conditioners": {"self_wav": {"model": "style", "style": {"varying_lengths": []}}}}, "varying_lengths"),
    ],
)
def test_other_prefixes_are_refused(export, tmp_path, settings, message):
    with pytest.raises(PartitaError, match=message):
        partita.import_system(export(**settings), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
