"""Tables of the guides name the options, keys, parts and fusions there are, with their defaults."""

import ast
import inspect
import re
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from markdown_pages import rows, section
from typer.main import get_command

import partita
from partita.cli.main import app
from partita.core.contracts import ConditionSpec
from partita.core.fit import Fit
from partita.core.registry import COMPONENTS, lookup, names
from partita.data.corpus import Corpus
from partita.data.folder import Folder
from partita.evaluation.ablation import Ablation
from partita.evaluation.evaluation_options import Evaluation
from partita.layers.noise_process import DiffusionSampling
from partita.layers.sampling import Sampling
from partita.recipe import logger_options
from partita.recipe.chain import StageKeys
from partita.recipe.plan import RecipeKeys
from partita.recipe.recipe_files import presets, read_value, recipes
from partita.recipe.trainer_options import TrainerOptions

ROOT = Path(partita.__file__).parent.parent


def of_dataclass(kind):
    return {
        field.name: field.default_factory() if field.default is MISSING else field.default
        for field in fields(kind)
        if field.default is not MISSING or field.default_factory is not MISSING
    }


def of_constructor(kind):
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    groups = {name: value for name, value in defaults.items() if is_dataclass(value)}
    single = {name: value for name, value in defaults.items() if name not in groups}
    return single | {
        f"{name}.{f.name}": getattr(group, f.name) for name, group in groups.items() for f in fields(group)
    }


TABLES = [
    ("docs/training.md", "The fit block", of_dataclass(Fit), ()),
    ("docs/training.md", "Options of the trainer", of_dataclass(TrainerOptions), ()),
    ("docs/data.md", "Your own music", of_constructor(Folder), ("path",)),
    ("docs/data.md", "The corpus", of_constructor(Corpus), ()),
    ("docs/recipes.md", "Stages", of_dataclass(StageKeys), ("generator", "target")),
    (
        "docs/generation.md",
        "Sampling settings",
        of_dataclass(DiffusionSampling) | of_dataclass(Sampling),
        (),
    ),
]


@pytest.mark.parametrize(("page", "heading", "defaults", "required"), TABLES, ids=lambda value: str(value)[:30])
def test_table_of_options(page, heading, defaults, required):
    """It names all of them, and their defaults where these are values."""
    documented = {}
    for names_cell, default, *_ in rows(section(ROOT / page, heading)):
        documented |= dict.fromkeys(re.findall(r"`([^`]+)`", names_cell), default)
    named = {name for name in documented if re.fullmatch(r"[a-z_.]+", name)}
    assert named & {*defaults, *required} == {*defaults, *required}
    for name, default in documented.items():
        value = read_value(default.strip("`"))
        if name in defaults and not isinstance(value, str):
            expected = defaults[name]
            assert value == (list(expected) if isinstance(expected, tuple) else expected), name


@pytest.mark.parametrize(
    ("page", "heading", "allowed"),
    [
        ("docs/recipes.md", "A recipe in full", {"base", "finetune", *(field.name for field in fields(RecipeKeys))}),
        ("docs/training.md", "Loggers", set(logger_options.OPTIONS)),
        ("docs/ablation.md", "An ablation file", {field.name for field in fields(Ablation)}),
    ],
)
def test_table_of_keys(page, heading, allowed):
    assert {row[0].strip("`") for row in rows(section(ROOT / page, heading))} == allowed


def test_options_of_loggers_and_evaluations():
    for name, options, _ in rows(section(ROOT / "docs/training.md", "Loggers")):
        assert tuple(re.findall(r"`(\w+)`", options)) == logger_options.OPTIONS[name.strip("`")]
    named = next(
        row[1] for row in rows(section(ROOT / "docs/ablation.md", "An ablation file")) if row[0] == "`evaluation`"
    )
    assert re.findall(r"`(\w+)`", named) == [field.name for field in fields(Evaluation)]


def test_options_of_evaluate():
    """The table names all options of the command."""
    documented = " ".join(row[0] for row in rows(section(ROOT / "docs/evaluation.md", "Evaluation")))
    command = get_command(app).commands["evaluate"]
    options = {max(p.opts, key=len) for p in command.params if p.param_type_name == "option"}
    assert options - {"--help"} == set(re.findall(r"--[a-z-]+", documented))


def test_parts_and_presets_exist():
    families = {"Tokenizers": "tokenizer", "Conditioners": "conditioner", "Generators": "generator"}
    for heading, family in families.items():
        known = {*names(family), *presets(family), *COMPONENTS}
        for row in rows(section(ROOT / "docs/parts.md", heading)):
            assert set(re.findall(r"`([^`]+)`", row[0])) <= known
    listed = {row[0].strip("`") for row in rows(section(ROOT / "docs/recipes.md", "Recipes"))}
    assert listed == set(recipes())


def test_fusions_are_those_of_the_stages():
    """The table says which kind of stage has which, and which is the default."""
    table = {row[0].strip("`"): row[2:] for row in rows(section(ROOT / "docs/recipes.md", "Fusion of conditions"))}
    conditions = [ConditionSpec(dim=8), ConditionSpec(dim=8, frame_rate=50.0), ConditionSpec(None, 50.0, 2, 16)]
    for column, kind in enumerate(("autoregressive", "diffusion")):
        stage = lookup("generator", kind)
        assert {name for name, cells in table.items() if cells[column]} == set(stage.fusions)
        defaults = {name for name, cells in table.items() if cells[column].startswith("default")}
        assert defaults == {stage.default_fusion(condition) for condition in conditions}


def test_arguments_of_generate():
    """The table of what can be asked for uses the arguments of ``System.generate``."""
    accepted = set(inspect.signature(partita.System.generate).parameters)
    keywords = []
    for row in rows(section(ROOT / "docs/generation.md", "Inputs and options")):
        for code in re.findall(r"`([^`]+)`", row[1]):
            if re.match(r"[a-z]+=", code):
                keywords += [keyword.arg for keyword in ast.parse(f"f({code})").body[0].value.keywords]
    assert len(keywords) > 5
    assert set(keywords) <= accepted


def test_arguments_of_public_functions_are_public():
    """Whoever calls a function finds the classes of its options beside it."""
    missing = set()
    for name in partita.__all__:
        function = getattr(partita, name)
        if inspect.isfunction(function):
            home = sys.modules[function.__module__]
            for parameter in inspect.signature(function).parameters.values():
                words = re.findall(r"\b[A-Z]\w+", str(parameter.annotation))
                missing |= {word for word in words if is_dataclass(getattr(home, word, None))}
    returned = {"Plan", "Material"}  # by load_recipe and gather_clips
    assert missing <= {*partita.__all__, *returned}
