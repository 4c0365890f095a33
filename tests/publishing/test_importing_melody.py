"""Importing MusicGen-melody, against transformers under random weights."""

import json
import shutil

import pytest
import torch

import partita
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
