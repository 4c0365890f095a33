"""Chains of stages, windows, stories and what is given, on toy parts whose results are known."""

import shlex

import pytest
import torch

import partita
from chains import CHAIN
from partita.recipe.plan import load_recipe
from partita.system.system import System
from toys import TOY_RECIPE, told


@pytest.fixture
def make(tmp_path):
    def make(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return System(load_recipe(path, overrides))

    return make


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("heard", [0.0, 0.4, 2.2])
def test_windows_of_a_stage_that_looks_back_one_frame_are_one_long_window(make, overlap, heard):
    system, long = (
        make(TOY_RECIPE, "stages.main.window=" + window, f"stages.main.overlap={overlap}") for window in ("1.0", "9.0")
    )
    continuation = torch.sin(torch.arange(int(heard * 4000)) / 3)[None, None] if heard else None
    for made in (3.0, 5.52):
        options = {"prompts": ["tone 1", "tone 2"], "duration": made, "continuation": continuation}
        codes, at_once = (s.generate_representations(**options)["acoustic"].values for s in (system, long))
        assert codes.shape[-1] == round(made * 40)
        assert torch.equal(codes, at_once)


def test_stages_run_in_the_order_of_what_they_are_given(make):
    assert list(make(CHAIN).stages) == ["coarse", "fine"]


@pytest.mark.parametrize("duration", [0.4, 1.0, 7.0])
def test_what_is_given_stays_aligned_over_all_windows(make, duration):
    made = make(CHAIN).generate_representations(["a", "b"], duration=duration, seed=3)
    coarse, fine = made["coarse"].values, made["fine"].values
    assert coarse.shape == (2, 1, duration * 10)
    assert made["coarse"].lengths.tolist() == [duration * 10] * 2
    assert torch.equal(fine, coarse.repeat_interleave(4, -1))
    assert not torch.equal(coarse[0], coarse[1])


def test_of_what_is_not_decoded_the_last_codes_of_a_continuation_are_generated(make):
    """They depend on the silence after the cut."""
    system = make(CHAIN)
    heard = 0.9 * torch.sin(torch.arange(8000) / 900)[None, None]
    made = system.generate_representations(["a"], duration=3.0, seed=1, continuation=heard)
    coarse = system.tokenizers["coarse"].encode(heard)
    assert torch.equal(made["coarse"].values[..., :16], coarse[..., :16])
    assert not torch.equal(made["coarse"].values[..., 16:20], coarse[..., 16:])


def test_codes_are_continued_as_they_are(make):
    """Without encoding: no tokenizer hears silence after their end."""
    system = make(CHAIN)
    first = system.generate_representations(["a", "b"], duration=1.0)
    made = system.generate_representations(["a", "b"], duration=3.0, seed=7, continuation=first)
    before = {name: made.values for name, made in first.items()}
    for name, values in before.items():
        assert torch.equal(made[name].values[..., : values.shape[-1]], values)
    assert not torch.equal(made["coarse"].values[0, :, 10:], made["coarse"].values[1, :, 10:])
    one = system.generate_representations(["a", "b"], duration=3.0, continuation={n: v[:1] for n, v in before.items()})
    assert torch.equal(one["coarse"].values[1, :, :10], before["coarse"][0])
    for kind in (torch.uint8, torch.uint16, torch.int8):  # also where the cardinality exceeds their range
        same = {name: values.to(kind) for name, values in before.items()}
        again = system.generate_representations(["a", "b"], duration=3.0, seed=7, continuation=same)
        assert torch.equal(again["fine"].values, made["fine"].values)
    # there is no recording that the audio could start with
    assert torch.equal(system.decode(made), system.generate(["a", "b"], duration=3.0, seed=7, continuation=before))


def test_a_clip_depends_on_its_own_seed_and_prompt_alone(make):
    system = make(CHAIN)
    story = partita.Story([(0, "a"), (1.5, "b")])
    together = system.generate_representations(["a", story, "c"], duration=5, seed=[7, 8, 9])
    for i, prompt in enumerate(["a", story, "c"]):
        alone = system.generate_representations([prompt], duration=5, seed=[7 + i])
        assert all(torch.equal(alone[name].values[0], together[name].values[i]) for name in together)


def recorded(system, name):
    """Calls of a stage's generate: (frames, frames of the prompt, the conditions)."""
    calls, generate = [], system.stages[name].generate

    def record(conditions, frames, **options):
        prompt = options["prefix"]
        calls.append((frames, 0 if prompt is None else prompt.shape[-1], conditions))
        return generate(conditions, frames, **options)

    object.__setattr__(system.stages[name], "generate", record)
    return calls


@pytest.mark.parametrize("transition", [None, 0.0, 0.2])
def test_a_story_changes_what_is_given_where_it_says(make, transition):
    system = make(TOY_RECIPE)
    calls = recorded(system, "main")
    options = {"duration": 3.0, "transition": transition}
    story = partita.Story([(0, "tone 1"), (1.3, "tone 5")])
    codes = system.generate_representations([story], **options)["acoustic"].values
    assert codes.shape[-1] == 120
    first, second = (
        system.conditioners["text"](system.conditioners["text"].prepare(told([t]))).values for t in ("tone 1", "tone 5")
    )
    done, seen = 0, []
    for frames, prompted, conditions in calls:
        start = done - prompted
        assert torch.equal(conditions["text"][0].values, first if done < 52 else second)
        if done == 52:
            assert prompted == (20 if transition is None else round(transition * 40))
        done = start + frames
        seen.append(done)
    assert 52 in seen
    assert done == 120


def test_a_story_changes_all_stages_at_the_same_time(make):
    """The stage that is given frames of half a second can only change at half seconds."""
    system = make(
        """
tokenizers: {slow: {name: toy-codec, hop: 2000}, coarse: {name: toy-codec, hop: 400}, fine: {name: toy-codec}}
conditioners: {text: toy-letters}
stages:
  slow: {generator: toy-dice, target: slow, given: [text], window: 4.0}
  coarse: {generator: toy-dice, target: coarse, given: [slow, text], window: 2.0}
  fine: {generator: toy-dice, target: fine, given: [coarse, text], window: 1.0}
data: toy-sines
"""
    )
    calls = {name: recorded(system, name) for name in system.stages}
    system.generate_representations([partita.Story([(0, "a"), (1.3, "b")])], duration=3.0)
    for name, rate in (("slow", 2), ("coarse", 10), ("fine", 40)):
        first, done, changed = calls[name][0][2]["text"][0].values, 0, []
        for frames, prompted, conditions in calls[name]:
            if not torch.equal(conditions["text"][0].values, first):
                changed.append(done)
            done += frames - prompted
        assert changed[0] == 1.5 * rate


def test_what_is_given_has_as_many_frames_as_in_training(make):
    """Windows of 0.5 s that begin between two codes at 10 Hz are given five of them, too."""
    system = make(CHAIN, "stages.fine.window=0.5", "stages.fine.overlap=0.45", "stages.fine.generator=toy-dice")
    calls = recorded(system, "fine")
    system.generate_representations(["a"], duration=3.0)
    assert {conditions["coarse"][0].values.shape[-1] for _, _, conditions in calls} == {5}


def test_a_story_leaves_stages_alone_that_are_not_given_its_words(make):
    system = make(CHAIN)
    calls = recorded(system, "fine")
    system.generate_representations([partita.Story([(0, "a"), (0.5, "b")])], duration=3)
    plain = recorded(system, "fine")
    system.generate_representations(["a"], duration=3)
    assert [call[:2] for call in calls[: len(plain)]] == [call[:2] for call in plain]


def test_negative_prompts_take_the_place_of_the_null(make):
    system = make(TOY_RECIPE)
    calls = recorded(system, "main")
    system.generate(["tone 1", "tone 2"], negative=["tone 3", None])
    text = system.conditioners["text"]
    wanted, avoided = calls[0][2]["text"]
    for condition, words in ((wanted, ["tone 1", "tone 2"]), (avoided, ["tone 3", None])):
        expected = text(text.prepare(told(words)))
        assert torch.equal(condition.values, expected.values)
        assert torch.equal(condition.mask, expected.mask)


def test_slices_of_codebooks_are_generated_one_after_the_other(make):
    system = make(
        """
tokenizers: {acoustic: {preset: encodec-32khz, weights: none, autoencoder: {network: {width: 4}}}}
stages:
  late: {generator: toy-dice, target: "acoustic[2:]", window: 0.3}
  early: {generator: toy-dice, target: "acoustic[:2]", window: 0.2}
data: toy-sines
"""
    )
    made = system.generate_representations(duration=0.5, seed=1)
    assert list(system.stages) == ["early", "late"]
    assert made["acoustic"].values.shape == (1, 4, 25)
    assert system.decode(made).shape == (1, 1, 16000)


def test_options_reach_the_stages_that_know_them(make):
    system = make(CHAIN)
    with pytest.raises(partita.PartitaError, match="no stage has 'steps'"):
        system.generate(["a"], sampling={"steps": 3})
    with pytest.raises(partita.PartitaError, match="coarse is a stage"):
        system.generate(["a"], sampling={"coarse": 3})
    with pytest.raises(partita.PartitaError, match="names no stage 'corse': did you mean 'coarse'"):
        system.generate(["a"], guidance={"corse": 3.0})
    terms = [partita.Term(("text",), 2.0), partita.Term((), -1.0)]
    assert system.generate(["a"], guidance=terms).shape == system.generate(["a"], guidance={"coarse": 3.0}).shape
    with pytest.raises(partita.PartitaError, match=r"guidance keeps the condition 'txt'.*did you mean 'text'"):
        system.generate(["a"], guidance=[partita.Term(("txt",), 1.0)])
    for huge in (10**400, [partita.Term(None, 10**400)]):
        with pytest.raises(partita.PartitaError, match="guidance must be a number or a list"):
            system.generate(["a"], guidance=huge)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([], "list of pairs"),
        (["a", "b"], "list of pairs"),
        ([(1, "a")], "start at 0"),
        ([(0, "a"), (0, "b")], "increase"),
        ([(0, "a"), (float("inf"), "b")], "increase"),
    ],
)
def test_a_story_that_cannot_be_told_is_one_message(parts, word):
    with pytest.raises(partita.PartitaError, match=word):
        partita.Story(parts)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("stages.fine.given=[corse]", r"'corse' is neither a conditioner nor a tokenizer of this recipe.*'coarse'"),
        ("stages.fine.given=[fine]", "no other stage generates 'fine'"),
        ("stages.fine.window=0.01 stages.fine.overlap=0", "a frame of fine is longer than the window"),
        ("stages.fine.overlap=-1", "0 or more, and shorter than the window"),
        ("'stages.fine.given=[\"coarse[0]\"]'", r"write coarse\[:2\] or coarse\[2:\] for codebooks"),
        ("stages.fine.given=[coarse/latent]", "or coarse/latents"),
        (
            "stages.coarse=null tokenizers.rough=toy-codec stages.rough={generator:\\ toy-dice,target:\\ rough}",
            "no other stage generates 'coarse'",
        ),
        ("stages.coarse.given=[fine]", "in a circle"),
        ("'stages.fine.given=[\"coarse[2:]\"]'", "names codebooks that coarse"),
        ("stages.fine.target='fine[3:]'", "names codebooks that fine"),
        (
            r"tokenizers.fine=null stages.fine={generator:\ toy-dice,target:\ coarse,given:\ []}",
            "an earlier stage already generates coarse",
        ),
        ("stages.fine.target=fine/latents", "toy-codec has no latents before its codes"),
        ("stages.fine.overlap=1.0", "shorter than the window of 1 s"),
        ("'stages.fine.given={coarse: cross}'", "cannot enter by 'cross'"),
        ("conditioners.coarse=toy-letters", "both a conditioner and a tokenizer"),
        (
            "stages.fine.given=[] stages.fine.generator=toy-dice",
            "fine and coarse all end the chain",
        ),
    ],
)
def test_chains_that_do_not_fit_are_refused_with_the_reason(make, change, word):
    with pytest.raises(partita.PartitaError, match=word):
        make(CHAIN, *shlex.split(change))


def test_a_stage_is_not_given_what_it_generates_itself(make):
    recipe = """
tokenizers: {acoustic: {preset: encodec-32khz, weights: none, autoencoder: {network: {width: 4}}}}
stages:
  early: {generator: toy-dice, target: "acoustic[:2]"}
  late: {generator: toy-echo, target: "acoustic[2:]", given: [acoustic]}
data: toy-sines
"""
    with pytest.raises(
        partita.PartitaError,
        match=r"acoustic contains acoustic\[2:\], which the stage itself .*: give it acoustic\[:2\]",
    ):
        make(recipe)


def test_a_stage_of_the_base_is_taken_out(make, tmp_path):
    (tmp_path / "base.yaml").write_text(CHAIN)
    change = """
base: base.yaml
tokenizers: {coarse: null}
conditioners: {text: null}
stages:
  coarse: null
  fine: {generator: toy-dice, given: []}
"""
    assert list(make(change).stages) == ["fine"]
    with pytest.raises(partita.PartitaError, match=r"'fine' is .*: it is a stage; name its target 'slow' instead"):
        make(
            change.replace("generator: toy-dice, given: []", "target: slow, given: [fine]").replace(
                "coarse: null}", "slow: toy-codec, fine: null}"
            )
        )
