"""Systems that are known to have memorized their training clips, and others."""

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import t as student
from torch.nn import functional as F

import partita
from evaluation_toys import ToyJoint, scored, timeless
from partita.core.progress import reporting
from partita.core.registry import lookup, register
from partita.errors import PartitaError
from partita.evaluation.continuations import Continuations
from partita.evaluation.evaluate import evaluate
from partita.evaluation.evaluation_options import Evaluation
from partita.evaluation.scoring import chosen_scores
from partita.evaluation.training_clips import training_clips
from partita.system.system import System
from toys import ToyCodec


@register("conditioner", "toy-hearing")
class ToyHearing(ToyJoint):
    """Audio rather than a text."""

    inputs = ("audio", "text")


def test_memorized_training_clips_are_found(other):
    """A stage that goes on with the prompt again does what the clips do; one that rolls dice does not."""
    options, rows = (
        Evaluation(clips=8, reference_clips=2, batch_size=3, scores={"fad": False, "memorization": True}),
        {},
    )
    for name in ("toy-loop", "toy-dice"):
        made = other("data={name: toy-loops, pieces: 8}", f"stages.main.generator={{name: {name}}}")
        rows[name] = evaluate(made, options=options)["metrics"]
        folder = made / "evaluation" / "memorization"
        assert len(list(folder.glob("*.safetensors"))) == 8
        # each clip and its continuation
        assert len(list(folder.glob("*.flac"))) == 2 * 8
        page = (made / "evaluation" / "evaluation.html").read_text()
        assert page.count("<figcaption>training clip") == page.count("<figcaption>its continuation") == 4
    for figure in ("memorized exactly", "memorized approximately"):
        loop, dice = rows["toy-loop"][figure], rows["toy-dice"][figure]
        assert (loop["value"], loop["high"], loop["chance"]) == (1, 1, 0)
        # Wilson's bound for 8 of 8, n / (n + q²), with Student's quantile
        assert loop["low"] == pytest.approx(8 / (8 + student.ppf(0.975, 7) ** 2))
        assert dice["value"] == 0
        assert (loop["clips"], loop["prompt_seconds"], loop["embedding"]) == (8, 0.5, "codes of toy-codec")


@register("tokenizer", "toy-look-ahead")
class ToyLookAhead(ToyCodec):
    """Codes of the next frame: the last code of audio is that of the silence after it."""

    def encode(self, audio):
        return super().encode(F.pad(audio, (0, self.hop)))[..., 1:]

    def encoding_steps(self, latents=False):
        return None


def test_prompts_are_the_codes_of_whole_clips(other):
    """A prompt that ends in the code of silence goes on otherwise than the clip."""
    changes = ["data={name: toy-loops, pieces: 8}", "stages.main.generator={name: toy-loop}"]
    made = other("tokenizers.acoustic={name: toy-look-ahead}", *changes)
    scores = {"fad": False, "memorization": {"prompts": [0.5], "continued": 0.45}}
    rows = evaluate(made, options=Evaluation(clips=8, reference_clips=2, scores=scores))["metrics"]
    assert rows["memorized exactly (after 0.5 s)"]["value"] == 1


def test_a_curve_over_the_lengths_of_prompts(other):
    """The loops are half a second long: a prompt of half a second says how they go on, and none says nothing."""
    made = other("data={name: toy-loops, pieces: 8}", "stages.main.generator={name: toy-loop}")
    scores = {"fad": False, "memorization": {"prompts": [0.5, 0, 0.25], "continued": 0.25}}
    rows = evaluate(made, options=Evaluation(clips=8, reference_clips=2, scores=scores))["metrics"]
    found = {name: row["value"] for name, row in rows.items() if name.startswith("memorized exactly")}
    assert list(found) == [
        "memorized exactly (after 0 s)",
        "memorized exactly (after 0.25 s)",
        "memorized exactly (after 0.5 s)",
    ]
    assert list(found.values()) == [0, 0, 1]
    folder = made / "evaluation" / "memorization"
    assert sorted(path.name for path in folder.iterdir()) == ["0.25s-0.25s", "0.5s-0.25s", "0s-0.25s"]
    assert {len(load_file(path)["codes"]) for path in folder.rglob("*.safetensors")} == {10}
    page = (made / "evaluation" / "evaluation.html").read_text()
    assert page.count('alt="memorized training clips over the length of the prompt"') == 1
    assert "first 0, 0.25, 0.5 s of training clips" in page
    with pytest.raises(PartitaError, match=r"prompts of 0.9 s with continuations of 0.25 s are longer .* 1 s: shorten"):
        evaluate(made, made.parent / "long", options=scored(memorization={"prompts": [0.9], "continued": 0.25}))


def test_as_many_codes_are_compared_after_prompts_of_any_length(other):
    """Frames of 25 ms: 0.31 and 0.32 s begin in different ones, and 0.26 s are ten whole ones."""
    made = other("data={name: toy-loops, pieces: 8}", "stages.main.generator={name: toy-loop}")
    system = partita.load(made)
    for prompt in (0.0, 0.31, 0.32, 0.5):
        continued = Continuations.of(system).after(prompt, 0.26).generate(made / f"{prompt}", 4)
        assert continued.generated.shape == continued.target.shape == (4, 10)


def test_lengths_that_are_nearly_equal_are_told_apart(other):
    made = other("data={name: toy-loops, pieces: 8}", "stages.main.generator={name: toy-loop}")
    options = scored(memorization={"prompts": [0.2500001, 0.2500002], "continued": 0.25})
    rows = evaluate(made, options=options)["metrics"]
    assert len([name for name in rows if name.startswith("memorized exactly")]) == 2
    assert len(list((made / "evaluation" / "memorization").iterdir())) == 2


@pytest.mark.parametrize("options", [{"prompts": []}, {"prompts": [1, 1]}, {"prompts": [-1]}, {"continued": 0}])
def test_impossible_lengths_are_refused(options):
    with pytest.raises((PartitaError, ValueError), match=r"prompts|continued"):
        lookup("score", "memorization")(**options)


@pytest.mark.parametrize("prompts", [[-1], [0.5, 0.5], ["nan"], [[1]]])
def test_lengths_that_the_score_refuses_are_a_mistake_of_the_user(prompts):
    with pytest.raises(PartitaError, match=r"scores\.memorization(\.prompts)?: "):
        chosen_scores(scored(memorization={"prompts": prompts}))


def test_memorization_goes_on_and_its_clips_are_those_of_training(other):
    made = other("data={name: toy-loops}", "stages.main.generator={name: toy-dice}")
    options = Evaluation(clips=5, reference_clips=2, batch_size=2, scores={"fad": False, "memorization": True})
    calls = []

    def interrupt(name, done, total):
        calls.append(done)
        if len(calls) > 4:  # three batches of clips, and two of continuations
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), reporting(interrupt):
        evaluate(made, options=options)
    folder = made / "evaluation" / "memorization"
    codes = {path.name: load_file(path)["codes"] for path in folder.glob("*.safetensors")}
    assert len(codes) == 4
    resumed = evaluate(made, options=options)
    assert all(torch.equal(load_file(folder / name)["codes"], value) for name, value in codes.items())
    whole = evaluate(made, made.parent / "whole", options=options)
    assert timeless(resumed) == timeless(whole)
    # of the clip, what follows the prompt is left to the stage: 20 of 40 frames
    assert {len(value) for value in codes.values()} == {20}


def test_training_clips_are_continued_without_guidance(other):
    """As in MusicLM's study: guidance leads away from what was learned, and hides what is known by heart."""
    made = other("data={name: toy-loops, pieces: 8}", "stages.main.generator={name: toy-misled}")
    options = Evaluation(clips=8, reference_clips=2, scores={"fad": False, "memorization": True})
    assert evaluate(made, options=options)["metrics"]["memorized exactly"]["value"] == 1


def test_silence_cannot_tell_memorization(other, lines):
    """What remembers nothing but silence does not remember; where all is silence, nobody can say."""
    options = scored(memorization=True)
    made = other("data={name: toy-loops, pauses: 2}", "stages.main.generator={name: toy-loop}")
    row = evaluate(made, options=options)["metrics"]["memorized exactly"]
    assert (row["value"], row["clips"], row["left_out"]) == (1, 3, pytest.approx(0.4))
    mute = other("data={name: toy-loops, pauses: 4}", "stages.main.generator={name: toy-loop}")
    assert "memorized exactly" not in evaluate(mute, options=options)["metrics"]
    assert any("memorization is not measured: 1 of 5 training clips" in line for line in lines)


def test_a_stage_that_falls_silent_remembers_nothing(other):
    made = other("data={name: toy-loops}", "stages.main.generator={name: toy-mute}")
    rows = evaluate(made, options=scored(memorization=True))["metrics"]
    assert rows["memorized exactly"]["value"] == rows["memorized approximately"]["value"] == 0
    assert rows["memorized exactly"]["clips"] == 5


def test_what_reads_audio_hears_the_training_clip_whatever_its_caption(other, tmp_path, monkeypatch):
    ToyHearing().save(tmp_path / "hearing")
    hearing = f"{{name: toy-hearing, weights: {tmp_path / 'hearing'}}}"
    made = other(
        "tokenizers.acoustic.hop=1", f"conditioners.text={hearing}", "stages.main.generator={name: toy-singer}"
    )
    heard, generate = [], System.generate_representations
    monkeypatch.setattr(
        System,
        "generate_representations",
        lambda system, prompts, **how: heard.extend(prompts["audio"]) or generate(system, prompts, **how),
    )
    evaluate(made, options=Evaluation(clips=4, reference_clips=2, scores={"fad": False, "memorization": True}))
    clips = training_clips(partita.load(made), "main", 4)
    assert len(heard) == 4
    assert all(torch.equal(heard[i], clips[i].audio) for i in range(4))
