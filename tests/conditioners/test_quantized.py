import itertools

import lightning as L
import pytest
import torch
from joint_toys import NAMES, RATE, clips, minute, tone
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from partita.conditioners.audio_towers.pitch_classes import PitchClasses
from partita.conditioners.clap import CLAP, RobertaShape
from partita.conditioners.lookup import Lookup
from partita.conditioners.melody_embedding import MelodyEmbedding, MelodySpectrum
from partita.conditioners.quantized import Quantized
from partita.core.contracts import Clip, Condition, Given
from partita.core.part import Part
from partita.core.registry import lookup
from partita.core.schema import build
from partita.errors import PartitaError
from partita.layers.conditioning import Conditioning


def quantized(**options):
    return Quantized(**{"embedding": minute(), "num_codebooks": 3, "cardinality": 4, "samples": 64} | options)


def fitted(part, examples, batch_size=8):
    loader = DataLoader(examples, batch_size=batch_size, collate_fn=part.prepare)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet)
    trainer.fit(part, loader, loader)
    return trainer


def noises(count):
    draw = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        noise = torch.randn(1, RATE // 2, generator=draw) * 0.01 + tone(i % 8) * float(torch.rand(1, generator=draw))
        found.append(Clip({"text": f"a slow {NAMES[i % 8]}"}, 0.5, noise, RATE))
    return found


@pytest.fixture(scope="module")
def part():
    torch.manual_seed(0)
    made = quantized()
    fitted(made, noises(64))
    return made.eval()


def embeddings(part, examples):
    return part.embedding.embed_audio(torch.stack([clip.audio for clip in examples]))


def test_each_codebook_holds_the_means_of_what_is_left(part):
    """Lloyd's algorithm has converged: each entry is the mean of the residuals that are nearest to it."""
    rest = embeddings(part, noises(64))[:, 0]
    errors = [rest.square().sum(1).mean()]
    codes = part.encode(rest[:, None])
    assert codes.shape == (64, 3, 1)
    for codebook, code in zip(part.codebooks, codes[..., 0].unbind(1), strict=True):
        assert torch.equal(code, torch.cdist(rest, codebook).argmin(1))
        for entry in code.unique():
            torch.testing.assert_close(codebook[entry], rest[code == entry].mean(0), rtol=0, atol=1e-4)
        rest = rest - codebook[code]
        errors.append(rest.square().sum(1).mean())
    assert all(after < 0.8 * before for before, after in itertools.pairwise(errors))
    expected = F.normalize(embeddings(part, noises(64)) - rest[:, None], dim=-1)
    torch.testing.assert_close(part.decode(codes), expected, rtol=0, atol=1e-5)


def test_audio_and_texts_pass_through_the_same_quantizer(part):
    both, heard, read, neither = (
        Clip({"text": "a slow harp"}, 0.5, tone(1), RATE),
        Clip({}, 0.5, tone(1), RATE),
        Clip({"text": "a slow harp"}, 0.5),
        Clip({}, 0.5),
    )
    condition = part(part.prepare([both, heard, read, neither]))
    assert condition.values.shape == (4, 3, 1)
    assert condition.values.dtype == torch.int64
    assert condition.mask.tolist() == [[True], [True], [True], [False]]
    audio = part.encode(part.embedding.embed_audio(tone(1)[None]))[0]
    text = part.encode(part.embedding.embed_text(["a slow harp"])[None])[0]
    assert torch.equal(condition.values[:3], torch.stack([audio, audio, text]))
    assert not condition.values[3].any()
    null = part.null(condition)
    assert not null.mask.any()
    assert null.values.shape == condition.values.shape
    assert part.spec.cardinalities == (4, 4, 4)
    assert part.spec.frame_rate is None


def test_only_the_codebooks_change_in_training_and_only_once():
    torch.manual_seed(0)
    made = quantized(samples=16)
    before = {name: tensor.clone() for name, tensor in made.embedding.state_dict().items()}
    books = []
    made.on_train_batch_end = lambda *args: books.append(made.codebooks.detach().clone())
    assert fitted(made, noises(40)).global_step == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.embedding.state_dict().items())
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(books)]
    assert changes == [True, False, False, False]  # after 16 clips


def test_a_short_training_fits_what_there_is():
    torch.manual_seed(0)
    made = quantized()
    trainer = fitted(made, noises(8), batch_size=4)
    assert made.fitted
    audio = embeddings(made, noises(8))
    assert (made.decode(made.encode(audio)) * audio).sum(-1).min() > 0.99
    assert "val/audio_to_text_recall_at_10" in trainer.callback_metrics


def test_validation_logs_usage_and_the_recall_through_the_quantizer(part):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    loader = DataLoader(clips(), batch_size=3, collate_fn=part.prepare)
    (values,) = trainer.validate(part, loader, verbose=False)
    codes = part.encode(embeddings(part, clips()))
    used = sum(len(codes[:, k].unique()) for k in range(3)) / 12
    assert values["val/usage"] == pytest.approx(used)
    assert values["val/text_to_audio_recall_at_10"] == 1
    audio = embeddings(part, clips())
    error = 1 - (part.decode(codes) * audio).sum(-1).mean().item()
    assert values["val/loss"] == pytest.approx(error, abs=1e-5)


def test_saved_it_loads_alone(part, tmp_path):
    part.save(tmp_path / "codes")
    again = Part.load(tmp_path / "codes")
    assert again.fingerprint() == part.fingerprint()
    prepared = part.prepare(clips())
    assert torch.equal(again(prepared).values, part(prepared).values)
    assert "collected" not in again.exported_state()


def test_a_melody_has_a_column_of_codes_for_each_window(tmp_path):
    """MusicLM, appendix C: each window of a clip, or of its cover, is quantized by the same codebooks."""
    torch.manual_seed(0)
    tower = PitchClasses(width=4, hidden=8, bands_per_semitone=1)
    spectrum = MelodySpectrum(sample_rate=RATE, bands=36, window=512, hop=256, f_min=110.0, per_octave=12)
    sizes = {"dim": 8, "window": 0.5, "stride": 0.25, "seconds": 1.0, "inputs": ("cover", "audio")}
    made = quantized(embedding=MelodyEmbedding(audio_tower=tower, spectrum=spectrum, **sizes))
    assert (made.inputs, made.audio_format) == (("cover", "audio"), (RATE, 1))
    scales = [torch.cat([tone(i % 5, 0.4), tone(i % 3 + 1, 0.6)], 1) for i in range(24)]
    examples = [Clip({"cover": audio.flip(1)}, 1.0, audio, RATE) for audio in scales]
    trainer = fitted(made, examples, batch_size=4)
    assert made.filled == 64  # of the 72 windows of the covers, as many as `samples`
    assert "val/recall_at_10" in trainer.callback_metrics  # of clips and covers, through the codes
    made.eval()
    half = Clip({"cover": scales[1][:, : RATE // 2]}, 0.5)
    condition = made(made.prepare([examples[0], half, Clip({}, 1.0)]))
    assert condition.values.shape == (3, 3, 3)
    assert condition.mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    windows = made.embedding.embed_audio(examples[0].fields["cover"][None])
    assert torch.equal(condition.values[:1], made.encode(windows))
    # one batch of three windows, one of one window, and one without any
    loader = DataLoader([examples[0], half, Clip({}, 1.0)], batch_size=1, collate_fn=made.prepare)
    (values,) = trainer.validate(made, loader, verbose=False)
    heard = made.embedding(made.prepare([examples[0], half]))
    each = heard.values[heard.mask][:, None]
    errors = 1 - (each * made.decode(made.encode(each))).sum(-1)
    assert len(errors) == 4
    assert values["val/loss"] == pytest.approx(float(errors.mean()), abs=1e-5)
    made.eval()
    assert not condition.values[2].any()
    context = Conditioning({"melody": Given(made.spec, "prepend")}, 16, 50.0)({"melody": condition}, 5)
    assert context.prefix.shape == (3, 9, 16)  # all codes of the first window, then of the second
    assert context.prefix_mask.sum(1).tolist() == [9, 3, 0]
    made.save(tmp_path / "codes")
    again = Part.load(tmp_path / "codes")
    assert torch.equal(again(again.prepare(examples)).values, made(made.prepare(examples)).values)


def test_codes_of_clap_by_one_word(t5_checkpoint, tmp_path):
    words = RobertaShape(width=16, feed_forward_width=24, depth=1, num_heads=2, vocabulary=64)
    clap = CLAP(width=8, depths=(1, 1, 1, 1), dim=8, text=words, inputs=("audio", "text"))
    clap.tokenizer = AutoTokenizer.from_pretrained(t5_checkpoint("relu", NAMES))
    part = quantized(embedding=clap)
    assert part.audio_format == (48000, 1)
    sound, read = Clip({"text": "flute"}, 0.5, torch.randn(1, 24000) * 0.1, 48000), Clip({"text": "flute"}, 0.5)
    condition = part(part.prepare([sound, read]))
    audio, text = clap.embed_audio(sound.audio[None])[0], clap.embed_text(["flute"])
    assert torch.equal(condition.values, part.encode(torch.stack([audio, text])))
    part.save(tmp_path / "codes")  # with the text tokenizer of what is inside
    again = Part.load(tmp_path / "codes")
    assert torch.equal(again.embedding.embed_text(["flute"]), text)
    assert again.fingerprint() == part.fingerprint()
    part.embedding.tokenizer.add_tokens(["oboe"])
    assert again.fingerprint() != part.fingerprint()


def test_a_stage_can_be_given_the_codes_as_a_prefix(part):
    condition = part(part.prepare([*clips(count=2), Clip({}, 0.5)]))
    context = Conditioning({"joint": Given(part.spec, "prepend")}, 16, 50.0)({"joint": condition}, 5)
    assert context.prefix.shape == (3, 3, 16)
    assert context.prefix_mask.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert context.prefix_frames is None


def test_an_autoregressive_stage_is_trained_with_the_codes_and_generates(part):
    from partita.core.contracts import RepresentationSpec, StageBatch

    cls = lookup("generator", "autoregressive")
    backbone = {"family": "backbone", "name": "transformer", "arguments": {"width": 16, "depth": 1, "num_heads": 2}}
    target = RepresentationSpec(16000, 1, 50.0, 2, 7)
    stage = build(cls, {"backbone": backbone, "target": target, "given": {"joint": Given(part.spec, "prepend")}})
    condition = part(part.prepare(clips(count=2)))
    pair = (condition, part.null(condition))
    batch = StageBatch(torch.randint(7, (2, 2, 6)), torch.ones(2, 6, dtype=torch.bool), {"joint": pair})
    loss = stage.loss(batch.target, batch.mask, {"joint": condition})["loss"]
    loss.backward()
    assert loss.isfinite()
    generated = stage.eval().generate({"joint": pair}, 6, seeds=[0, 1]).values
    assert generated.shape == (2, 2, 6)
    with torch.no_grad():  # the codes count
        other = Condition((condition.values + 1) % 4, condition.mask)
        conditioned = stage.loss(batch.target, batch.mask, {"joint": other})["loss"]
    assert conditioned.item() != loss.item()


def test_mistakes_are_named():
    for options, message in (
        ({"num_codebooks": 0}, "num_codebooks"),
        ({"cardinality": 1}, "cardinality"),
        ({"samples": 3}, "samples"),
        ({"embedding": Lookup()}, "unlike lookup"),
    ):
        with pytest.raises(ValueError, match=message):
            quantized(**options)
    with pytest.raises(PartitaError, match=r"set `inputs: \[audio, text\]` of the embedding"):
        quantized(embedding=minute(inputs=("text",))).setup("fit")
    few = quantized()
    few.fit_options.steps, few.fit_options.batch_size = 1, 4
    assert "4 entries are fitted to 4 clips" in few.doubt()
    few.fit_options.batch_size = 8
    assert few.doubt() is None
