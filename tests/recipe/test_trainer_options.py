import inspect
import re

import lightning as L
import pytest

from partita.errors import PartitaError, RecipeError
from partita.recipe.plan import load_recipe
from partita.recipe.trainer_options import NOT_IN_RECIPES, TrainerOptions, check_trainer, trainer_options
from partita.training.training import train

ARGUMENTS = [name for name in inspect.signature(L.Trainer.__init__).parameters if name != "self"]
WRONG = ["abc", "-3", "1.5", "0", "true", "[1, x]", "{a: 1}", ".nan", "9999999999999"]


def test_every_argument_of_lightning_can_be_set_or_is_refused_with_a_reason():
    assert set(ARGUMENTS) == TrainerOptions.__dataclass_fields__.keys() | NOT_IN_RECIPES.keys()
    assert not TrainerOptions.__dataclass_fields__.keys() & NOT_IN_RECIPES.keys()


def said(action, *arguments):
    """What is said of a mistake of the user's; nothing where there is none."""
    try:
        action(*arguments)
    except PartitaError as error:
        return str(error)
    return ""


CODEC = """
tokenizers: {acoustic: {name: toy-codec, fit: {steps: 1, batch_size: 2, crop: 0.5}}}
data: toy-sines
trainer: {logger: csv}
"""


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_value_of_an_argument_leads_to_a_traceback(toy_recipe, tmp_path, name):
    """What the check lets pass trains, or is refused in one message."""
    toy_recipe.write_text(CODEC)
    keys = (f"trainer.{name}", f"tokenizers.acoustic.fit.trainer.{name}")
    for i, value in enumerate(WRONG):
        problems = said(load_recipe, toy_recipe, [f"{key}={value}" for key in keys])
        for key in keys:
            if not re.search(rf"(?<![\w.]){re.escape(key)}\b", problems):
                plan = load_recipe(toy_recipe, [f"{key}={value}"])  # is not refused for another reason
                if key.startswith("trainer"):
                    assert "\n" not in said(train, plan, tmp_path / str(i))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast_dev_run=true", "leave the part untrained"),
        ("max_time='00:00:00:01'", "finished after fit.steps"),
        ("overfit_batches=2", "train on a few batches"),
        ("min_steps=99", "exactly fit.steps"),
        ("accumulate_grad_batches=4", "set fit.accumulate"),
        ("callbacks=foo", "Python objects"),
        ("strategy=ddp_notebook", "use 'ddp'"),
        ("strategy=ddp_fork_find_unused_parameters_true", "use 'ddp_find_unused_parameters_true'"),
        ("strategy=dpp", "did you mean 'ddp'"),
        ("log_every_n_steps=abc", "expected int, got 'abc'"),
        ("precision=17-mixed", "16-mixed"),
        ("accelerator=abacus", "there is no accelerator"),
        ("devices=-2", "devices: must be"),
        ("devicse=2", "did you mean 'devices'"),
    ],
)
def test_what_a_recipe_cannot_set_is_refused_when_it_is_checked(toy_recipe, value, message):
    with pytest.raises(RecipeError) as refused:
        load_recipe(toy_recipe, [f"trainer.{value}"])
    assert f"trainer.{value.partition('=')[0]}" in str(refused.value)
    assert message in str(refused.value)


def test_values_have_their_types():
    given = {"log_every_n_steps": "5", "devices": [0, 1], "deterministic": "warn", "enable_progress_bar": "false"}
    expected = {"log_every_n_steps": 5, "devices": [0, 1], "deterministic": "warn", "enable_progress_bar": False}
    assert check_trainer(given, "trainer") == []
    assert trainer_options(given) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        "precision=17",
        "num_workers=-1",
        "betas=[2, 0]",
        "eps=-1",
        "lr=.nan",
        "ema=2",
        "validate_every=0",
        "accumulate=0",
    ],
)
def test_no_value_of_a_fit_block_leads_to_a_traceback(toy_recipe, wrong):
    with pytest.raises(RecipeError, match=wrong.partition("=")[0]):
        load_recipe(toy_recipe, [f"tokenizers.acoustic.fit.{wrong}"])


def test_several_machines_need_to_know_where_they_meet(lines, toy_recipe, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    plan = load_recipe(toy_recipe, ["trainer.num_nodes=2", "trainer.accelerator=cpu"])
    with pytest.raises(PartitaError, match="MASTER_ADDR, MASTER_PORT, NODE_RANK on each"):
        train(plan, tmp_path / "run")
    for name, value in (("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "1234"), ("NODE_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lightning.Trainer.fit", lambda *args, **options: (_ for _ in ()).throw(PartitaError("on")))
    with pytest.raises(PartitaError, match="on"):
        train(plan, tmp_path / "run")
    assert any("2 machines to connect at 10.0.0.1:1234; this is number 0" in line for line in lines)


def test_a_training_that_ends_early_saves_no_weights(toy_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "2")
    with pytest.raises(PartitaError, match=r"tokenizers/acoustic: the training ended after 2 of 6 steps"):
        train(load_recipe(toy_recipe), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    monkeypatch.undo()
    train(load_recipe(toy_recipe), tmp_path / "run")
