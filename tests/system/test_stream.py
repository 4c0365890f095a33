"""Windows of stages that end by themselves, put together; and chains with side outputs."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

import partita
import toys
from partita.core.contracts import Condition, Generated
from partita.core.registry import register
from partita.recipe.plan import load_recipe
from partita.system.stream import Stream
from partita.system.system import System
from partita.training.training import train
from toys import TOY_RECIPE


def window(values, lengths=None, hidden=None):
    values = torch.tensor(values)[:, None]
    outputs = {} if hidden is None else {"hidden": Condition(torch.tensor(hidden)[..., None], values[:, 0] >= 0)}
    return Generated(values, None if lengths is None else torch.tensor(lengths), outputs)


def test_windows_are_put_together_and_filled_up():
    stream = Stream(10, [])
    stream.extend(0, window([[1, 2, 3, 4], [5, 6, 7, 8]], [4, 2]))
    assert not stream.finished
    stream.extend(2, window([[3, 4, 9, 9], [7, 8, 9, 9]], [3, 4]))
    assert stream.finished  # what the second sample is given after its end does not count
    made = stream.result()
    assert made.values[0, 0].tolist() == [1, 2, 3, 4, 9, 9, 0, 0, 0, 0]
    assert made.lengths.tolist() == [5, 2]
    assert made.mask.sum(1).tolist() == [5, 2]


def test_side_outputs_keep_their_frames():
    stream = Stream(6, ["hidden"], known=torch.tensor([[[7, 7, 7, 7]]]))
    stream.extend(2, window([[7, 7, 1, 2]], hidden=[[0.3, 0.4, 0.5, 0.6]]))
    hidden = stream.result().outputs["hidden"]
    assert hidden.values[0, :, 0].tolist() == pytest.approx([0, 0, 0.3, 0.4, 0.5, 0.6])
    assert hidden.mask[0].tolist() == [False, False, True, True, True, True]
    stream = Stream(5, ["hidden"])
    stream.extend(0, window([[1, 2, 3]], hidden=[[0.1, 0.2, 0.3]]))
    stream.extend(2, window([[3, 4, 5]], hidden=[[0.7, 0.8, 0.9]]))
    assert stream.result().outputs["hidden"].values[0, :, 0].tolist() == pytest.approx([0.1, 0.2, 0.7, 0.8, 0.9])


@register("generator", "toy-short")
class ToyShort(toys.ToyDice):
    """Each sample ends by itself, after as many frames as its seed says."""

    def generate(self, conditions, frames, *, seeds, **how):
        made = super().generate(conditions, frames, seeds=seeds, prefix=how["prefix"])
        return Generated(made.values, torch.tensor([min(frames, 5 + seed % 7) for seed in seeds]))


@pytest.fixture
def make(tmp_path):
    def make(*overrides, recipe=TOY_RECIPE):
        (tmp_path / "recipe.yaml").write_text(recipe)
        return System(load_recipe(tmp_path / "recipe.yaml", overrides))

    return make


def test_a_clip_that_ends_early_ends_in_silence(make):
    system = make("stages.main.generator=toy-short", "stages.main.window=2.0")
    made = system.generate_representations(["a", "b", "c"], duration=2.0, seed=[1, 2, 3])["acoustic"]
    assert made.values.shape == (3, 1, 80)
    assert len(set(made.lengths.tolist())) > 1
    audio = system.decode({"acoustic": made})
    assert audio.shape[-1] == 100 * int(made.lengths.max())  # a frame of the toy codec is 100 samples
    for clip, codes, length in zip(audio, made.values, made.lengths.tolist(), strict=True):
        assert torch.equal(clip[:, : 100 * length], system.output.decode(codes[None, :, :length])[0])
        assert not clip[:, 100 * length :].any()


PLANNED = {
    "tokenizers": {"plan": {"name": "toy-codec", "hop": 400}, "acoustic": "toy-codec"},
    "conditioners": {"text": "toy-letters"},
    "stages": {
        "plan": {"generator": {"name": "autoregressive"}, "target": "plan", "given": ["text"], "window": 1.0},
        "main": {
            "generator": {"name": "autoregressive"},
            "target": "acoustic",
            "given": ["plan:hidden"],
            "window": 0.5,
        },
    },
    "data": "toy-sines",
}
for stage in PLANNED["stages"].values():
    stage["generator"] = {
        "name": "autoregressive",
        "backbone": {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2},
        "fit": {"steps": 2, "batch_size": 2, "validation_examples": 1},
    }
PLANNED["tokenizers"] = {name: {"name": "toy-codec", "fit": {"steps": 1}} for name in ("plan", "acoustic")}
PLANNED["tokenizers"]["plan"]["hop"] = 400


def test_a_stage_is_trained_on_the_states_of_an_earlier_one_which_stays_as_it_is(tmp_path):
    """Over several windows of either, from a run that was interrupted between the stages."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(PLANNED))
    plan = load_recipe(tmp_path / "recipe.yaml", ["trainer={logger: false}"])
    system = train(plan, tmp_path / "run")
    assert {n: (g.fusion, str(g.spec)) for n, g in system.stages["main"].given.items()} == {
        "plan:hidden": ("add", "16-d at 10 Hz")
    }
    options = {"duration": 2.2, "seed": 4}
    audio = system.generate(["tone 1", "tone 2"], **options)
    again = partita.load(tmp_path / "run")
    assert torch.equal(again.generate(["tone 1", "tone 2"], **options), audio)
    # trained after a restart, in which the plan's stage is loaded, the last stage comes out the same
    before = load_file(tmp_path / "run" / "stages" / "main" / "model.safetensors")
    for left in (tmp_path / "run" / "stages" / "main").iterdir():
        left.unlink()
    (tmp_path / "run" / "stages" / "main").rmdir()
    train(plan, tmp_path / "run")
    after = load_file(tmp_path / "run" / "stages" / "main" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("[plan:hiden]", "the stage plan has no 'hiden': did you mean 'hidden'"),
        ("[plann:hidden]", "'plann:hidden' is not an output of another stage: did you mean 'plan'"),
        ("[main:hidden]", "'main:hidden' is not an output of another stage"),
        ("{plan:hidden: modulate}", "cannot enter by 'modulate'"),
    ],
)
def test_side_outputs_that_are_not_there_are_refused(make, given, word):
    with pytest.raises(partita.PartitaError, match=word):
        make(f"stages.main.given={given}", recipe=yaml.safe_dump(PLANNED))
