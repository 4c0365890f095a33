import math

import lightning as L
import pytest
import torch
from joint_toys import NAMES, RATE, clips, minute, tone
from torch.nn import functional as F
from torch.utils.data import DataLoader

from partita.conditioners.mulan import LogMel
from partita.conditioners.text_towers.words_transformer import WordsTransformer
from partita.core.contracts import Clip
from partita.core.fit import Fit
from partita.core.part import Part
from partita.data.clips import clip_for
from partita.errors import PartitaError
from partita.layers.spec_augment import SpecAugment
from partita.metrics.retrieval import recall


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def loader(part, examples, batch_size):
    return DataLoader(examples, batch_size=batch_size, collate_fn=part.prepare)


@pytest.mark.parametrize(("loss", "steps"), [("softmax", 40), ("decoupled", 60), ("sigmoid", 110)])
def test_eight_pairs_are_learned_by_heart(loss, steps):
    part = minute(loss=loss, spec_augment=SpecAugment(0, 0, 0, 0))  # a mask could hide a tone, which has few bands
    part.log = lambda *args, **options: None
    prepared, optimizer = part.prepare(clips()), torch.optim.Adam(part.parameters(), 0.01)
    for _ in range(steps):
        part.training_step(prepared, 0).backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    part.eval()
    texts = part.embed_text([clip.fields["text"] for clip in clips()])
    audio = part.embed_audio(torch.stack([clip.audio for clip in clips()]))[:, 0]
    assert recall(audio, texts, 1) == recall(texts, audio, 1) == 1


def test_validation_does_not_depend_on_the_size_of_a_batch():
    found = []
    for batch_size in (3, 8):
        part = minute()
        (values,) = trainer().validate(part, loader(part, clips(), batch_size), verbose=False)
        found.append(values)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    audio, texts = (
        part.embed_audio(torch.stack([c.audio for c in clips()]))[:, 0],
        part.embed_text([c.fields["text"] for c in clips()]),
    )
    logits = 10 * audio @ texts.T  # the initial temperature is 0.1
    own = torch.arange(8)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert found[0]["val/loss"] == pytest.approx(expected.item(), abs=1e-4)
    assert found[0]["val/audio_to_text_recall_at_1"] == recall(audio, texts, 1)
    assert found[0]["val/text_to_audio_recall_at_10"] == 1


def test_equal_captions_are_not_each_others_negatives():
    part = minute(spec_augment=SpecAugment(0, 0, 0, 0))
    part.log = lambda *args, **options: None
    two = [Clip({"text": text}, 0.5, tone(i), RATE) for i, text in enumerate(["a slow flute", "A slow flute!"])]
    assert part.training_step(part.prepare(two), 0).item() == pytest.approx(0, abs=1e-6)
    two[1] = Clip({"text": "a slow harp"}, 0.5, tone(1), RATE)
    assert part.training_step(part.prepare(two), 0).item() > 0.1


def test_examples_without_audio_or_text_do_not_count():
    part = minute(spec_augment=SpecAugment(0, 0, 0, 0))
    part.log = lambda *args, **options: None
    whole = clips(count=3)
    more = [*whole, Clip({"text": "a harp"}, 0.5), Clip({"text": "  "}, 0.5, tone(5), RATE)]
    expected = part.training_step(part.prepare(whole), 0).item()
    assert part.training_step(part.prepare(more), 0).item() == pytest.approx(expected, abs=1e-5)
    nothing = part.training_step(part.prepare(more[3:]), 0)
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


def test_a_long_clip_is_cropped_at_random_within_its_own_length():
    part = minute()
    audio = torch.arange(3.0 * part.window).repeat(200, 1)
    samples = torch.full((200,), 2 * part.window)
    samples[0] = part.window // 2
    torch.manual_seed(0)
    crops = part._crop(audio, samples)
    assert crops.shape == (200, part.window)
    assert crops[0, 0] == 0
    assert torch.equal(crops - crops[:, :1], audio[:, : part.window])
    starts = crops[1:, 0]
    assert starts.min() < 0.1 * part.window
    assert 0.9 * part.window < starts.max() <= part.window


def test_the_scale_stays_at_most_a_hundred():
    part = minute()
    with torch.no_grad():
        part.log_temperature.fill_(-9.0)
    trainer(max_steps=1).fit(part, loader(part, clips(), 8), loader(part, clips(), 8))
    assert part.scale.item() == pytest.approx(100, rel=1e-5)
    assert minute().scale.item() == pytest.approx(10, rel=1e-5)


def test_the_spectra_of_training_are_masked_and_no_others():
    part = minute(spec_augment=SpecAugment(1, 0.9, 1, 0.9))
    part.log = lambda *args, **options: None
    prepared = part.prepare(clips())
    assert torch.equal(part(prepared).values, part(prepared).values)
    assert part.training_step(prepared, 0) != part.training_step(prepared, 0)
    part = minute(spec_augment=SpecAugment(0, 0, 0, 0))
    part.log = lambda *args, **options: None
    assert part.training_step(prepared, 0) == part.training_step(prepared, 0)


def test_the_order_of_inputs_decides_what_is_embedded():
    part = minute().eval()
    both, heard, read, neither = (
        Clip({"text": "a slow harp"}, 0.5, tone(1), RATE),
        Clip({}, 0.5, tone(1), RATE),
        Clip({"text": "a slow harp"}, 0.5),
        Clip({"text": " "}, 0.5),
    )
    audio, text = part.embed_audio(tone(1)[None])[0, 0], part.embed_text(["a slow harp"])[0]
    assert (audio - text).abs().max() > 0.01
    condition = part(part.prepare([both, heard, read, neither]))
    assert condition.mask.tolist() == [[True], [True], [True], [False]]
    assert condition.values.shape == (4, 1, 8)
    for found, expected in zip(condition.values[:, 0], (audio, audio, text, torch.zeros(8)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for inputs, expected in ((("text", "audio"), text), (("text",), text), (("audio",), audio)):
        other = minute(inputs=inputs).eval()
        torch.testing.assert_close(other(other.prepare([both])).values[0, 0], expected, rtol=0, atol=1e-5)
    assert minute(inputs=("text",)).audio_format is None
    assert part.audio_format == (RATE, 1)


def test_windows_of_a_long_clip_are_averaged():
    part = minute().eval()
    audio = torch.randn(2, 1, round(1.1 * RATE)) * 0.1
    embedded = part.embed_audio(audio)
    assert embedded.shape == (2, 4, 8)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2, 4))
    for index, start in enumerate((0, 2000, 4000, 4800)):  # the last ends with the clip
        alone = part.embed_audio(audio[1:, :, start : start + 4000])
        torch.testing.assert_close(embedded[1, index], alone[0, 0], rtol=0, atol=1e-5)
    short = Clip({}, 0.5, tone(2), RATE)
    condition = part(part.prepare([Clip({}, 1.1, audio[0], RATE), short, Clip({}, 1.1, audio[1], RATE)]))
    expected = F.normalize(embedded.mean(1), dim=-1)
    torch.testing.assert_close(condition.values[[0, 2], 0], expected, rtol=0, atol=1e-5)
    alone = part.embed_audio(tone(2)[None])[0, 0]  # what is longer beside it makes no difference
    torch.testing.assert_close(condition.values[1, 0], alone, rtol=0, atol=1e-5)


def test_odd_inputs_have_finite_embeddings():
    part = minute().eval()
    stereo = Clip({}, 1.0, torch.randn(2, 3 * RATE) * 0.1, 3 * RATE)  # at another rate, in two channels
    odd = [Clip({}, 0.1, tone(0, 0.1), RATE), Clip({}, 0.5, torch.zeros(1, RATE // 2), RATE), stereo]
    odd = [*(clip_for(part, clip) for clip in odd), Clip({}, 0.0, torch.zeros(1, 0), RATE)]
    odd.insert(3, Clip({}, 1 / RATE, torch.ones(1, 1), RATE))
    condition = part(part.prepare(odd))
    assert condition.mask[:, 0].tolist() == [True, True, True, True, False]
    torch.testing.assert_close(condition.values[:4, 0].norm(dim=-1), torch.ones(4))
    with pytest.raises(PartitaError, match="one channel"):
        part.prepare([stereo])
    with pytest.raises(PartitaError, match="one channel"):
        part.embed_audio(torch.zeros(1, 1, 0))


def test_long_empty_and_unknown_captions():
    part = minute().eval()
    long = "slow " * 1990 + "harp for ten flutes and one oboe in C major"
    embedded = part.embed_text([long, "", "?!", "flöte 笛"])
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(4))
    assert part.tokenize([long])[0].shape == (1, 512)
    torch.testing.assert_close(embedded[0], part.embed_text(["slow " * 512])[0], rtol=0, atol=1e-5)
    condition = part(part.prepare([Clip({"text": text}, 1.0) for text in (long, "", "?!", "flöte 笛")]))
    assert condition.mask[:, 0].tolist() == [True, False, False, True]
    assert condition.values.isfinite().all()
    alone = part(part.prepare([Clip({"text": "flöte 笛"}, 1.0)]))  # padding makes no difference
    torch.testing.assert_close(condition.values[3], alone.values[0], rtol=0, atol=1e-5)


def test_the_order_of_words_counts():
    part = minute(text_tower=WordsTransformer(width=16, depth=1, num_heads=2, num_embeddings=256, pooling="mean"))
    first, second = part.eval().embed_text(["flute then harp", "harp then flute"])
    assert (first - second).abs().max() > 1e-4


def test_saved_it_loads_alone(tmp_path):
    part = minute(loss="sigmoid", inputs=("text", "audio")).eval()
    with torch.no_grad():
        part.bias.fill_(-3.0)
    part.save(tmp_path / "mulan")
    again = Part.load(tmp_path / "mulan")
    assert again.fingerprint() == part.fingerprint()
    assert again.inputs == ("text", "audio")
    assert again.bias.item() == -3
    assert torch.equal(again.embed_text(NAMES), part.embed_text(NAMES))
    assert torch.equal(again.embed_audio(tone(3)[None]), part.embed_audio(tone(3)[None]))


def test_embeddings_are_the_same_under_autocast():
    part = minute().eval()
    prepared = part.prepare(clips(count=3))
    expected = part(prepared).values, part.embed_text(NAMES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = part(prepared).values, part.embed_text(NAMES)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_training_needs_audio_and_text():
    part = minute(inputs=("text",))
    with pytest.raises(PartitaError, match=r"inputs are text: add audio"):
        part.setup("fit")
    part.setup("validate")


def test_validation_needs_captions():
    part = minute()
    with pytest.raises(PartitaError, match="data with captions"):
        trainer().validate(part, loader(part, [Clip({}, 0.5, tone(0), RATE)], 1), verbose=False)


def test_mistakes_are_named():
    for options, message in (
        ({"window": 0.0}, "window"),
        ({"stride": math.inf}, "stride"),
        ({"dim": 0}, "dim"),
        ({"loss": "triplet"}, "loss"),
        ({"inputs": ("tempo",)}, "reads audio or text"),
    ):
        with pytest.raises(ValueError, match=message):
            minute(**options)
    with pytest.raises(ValueError, match="f_min"):
        LogMel(f_min=9000)
    tower = WordsTransformer(width=16, depth=1, num_heads=2)
    minute(text_tower=tower)
    with pytest.raises(ValueError, match="in a part already"):
        minute(text_tower=tower)


def test_training_warms_up_and_its_rate_falls():
    mulan = minute()
    mulan.fit_options = Fit(lr=0.1, steps=10, warmup_steps=4, schedule="linear")
    made = mulan.configure_optimizers()
    rates = []
    for _ in range(10):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[9] == pytest.approx(0.1 / 6)
