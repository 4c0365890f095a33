"""What the README and the guides say works: commands, recipes, code, names, tables, links and paths."""

import ast
import importlib
import inspect
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
import yaml
from markdown_pages import anchors, blocks, prose, spans
from rich.console import Console
from typer.exceptions import TyperException

import partita
from partita.cli.evaluate import ScoreOptions
from partita.cli.generate import SamplingOptions
from partita.cli.list_parts import show
from partita.cli.main import app
from partita.core.fit import Fit
from partita.core.registry import UnknownName
from partita.data.annotations import FILE_KEYS, parse_row, read_manifest
from partita.errors import PartitaError
from partita.evaluation.ablation_runs import make_runs
from partita.evaluation.embedders import of_system
from partita.evaluation.evaluation_options import Evaluation
from partita.generators.adapters.lora import LoRA
from partita.layers.noise_process import DiffusionSampling
from partita.layers.sampling import Sampling
from partita.recipe import logger_options
from partita.recipe.compose import compose
from partita.recipe.plan import check_recipe, load_recipe
from partita.recipe.recipe_files import recipes
from partita.system.adapters import save_adapter
from partita.system.system import System
from toys import TOY_RECIPE

ROOT = Path(partita.__file__).parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
SLIPS = (TyperException, PartitaError, UnknownName, AssertionError)
"""What is raised where a page says what is not so."""
OWN = {"mine.yaml", "study.yaml", "runs/mine", "models/musicgen-small/recipe.yaml"}
"""Files and systems that stand for the reader's own."""


@pytest.fixture(autouse=True)
def _every_tracker(monkeypatch):
    """Those that are not installed here can be named all the same."""
    monkeypatch.setattr(logger_options, "find_spec", lambda name: name)


def commands(path):
    """Every command in the blocks of a page, as words."""
    found = [
        (f"{path.name}:{number + i}", line)
        for language, number, text in blocks(path)
        if language in ("indented", "plain", "sh", "bash", "console")
        for i, line in enumerate(text.splitlines())
    ]
    return [pytest.param(words[1:], id=where) for where, line in found if (words := split(line))[:1] == ["partita"]]


def split(line):
    return shlex.split(line, comments=True)


@cache
def group_of():
    return typer.main.get_command(app)


def parsed(words):
    """Path and parameters of a command, as its own parser understands them; what it does not raises."""
    command, name = group_of(), "partita"
    context, path = command.make_context(name, list(words)), []
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
        path.append(name)
    return " ".join(path), context.params


def every_option(command):
    found = {"--help", *chain(*([*p.opts, *p.secondary_opts] for p in command.params))}
    return found.union(*(every_option(inner) for inner in getattr(command, "commands", {}).values()))


def check(recipe, overrides=()):
    """See that a recipe with these changes is one; the files that it names need not be there."""
    return check_recipe(compose(recipe, overrides))


@cache
def fit_together(recipe, *overrides):
    """See that its parts also fit together."""
    partita.System.outline(check(recipe, overrides))


def check_scores(wanted, left_out):
    """Scores as an evaluation takes them, with the tokenizers and conditioners in their options."""
    options = ScoreOptions(score=wanted, no_score=left_out)
    for choice in Evaluation(scores=options.chosen()).scores.values():
        values = choice.values() if isinstance(choice, Mapping) else ()
        for slot in chain(*(value for value in values if isinstance(value, list | tuple))):
            if not isinstance(slot, int | float) and not of_system(slot):
                check_slot(slot)


def check_slot(slot):
    """A tokenizer or conditioner."""
    wrong = []
    for where in ("tokenizers.acoustic", "conditioners.text"):
        try:
            check("chorales-tiny", [f"{where}={json.dumps(slot)}"])
            return
        except PartitaError as error:
            wrong.append(str(error))
    raise PartitaError("\n".join(wrong))


def check_ablation(recipe, changes=(), budget=()):
    ablation = partita.read_ablation(recipe, list(changes), list(budget))
    if "seed" in ablation.vary:
        ablation.vary["seed"] = [0]  # the others would be checked in the same way
    assert make_runs(ablation)


@pytest.mark.parametrize("words", chain(*map(commands, GUIDES)))
def test_command(words):
    """It is parsed by the command line, and what it says of recipes holds."""
    name, given = parsed(words)
    recipe = given.get("recipe")
    if name == "list":
        show(given["what"], Console(quiet=True))
    elif recipe in OWN:
        return
    elif name in ("check", "train"):
        fit_together(recipe, *(given["overrides"] or []))
    elif name == "ablate":
        check_ablation(recipe, given["changes"] or [], given["budget"] or [])
    elif name == "evaluate":
        check("chorales-tiny", given["data"] or [])
        check_scores(given["score"] or [], given["no_score"] or [])
    elif name == "generate":
        known = {field.name for kind in (Sampling, DiffusionSampling) for field in fields(kind)}
        settings = SamplingOptions(sampling=given["sampling"]).settings()
        stages = {stage for r in recipes() for stage in compose(r).values.get("stages", {})}
        for key, value in settings.items():
            assert set(value) <= known and key in stages if isinstance(value, Mapping) else key in known, key


def test_there_are_commands():
    """They are found where a reader sees them: in indented and in fenced blocks."""
    found = [parsed(parameter.values[0])[0] for page in GUIDES for parameter in commands(page)]
    assert {"list", "check", "train", "generate", "evaluate", "ablate", "push", "pull"} <= set(found)
    assert {"listen make", "listen results"} <= set(found)
    assert len(commands(ROOT / "README.md")) >= 8


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "runs/mine", "--guidence", "4"],
        ["generate"],
        ["trian", "chorales-tiny"],
        ["push", "runs/mine"],
        ["listen", "make", "runs/a"],
        ["generate", "runs/mine", "--seed", "first"],
        ["list", "tokenizer/soundstraem"],
        ["check", "chorales-tiny", "stages.acoustic.generator.widht=4"],
        ["train", "chorales-tony"],
        ["train", "chorales-tiny", "stages.acoustic.given={text: concat}"],
        ["train", "chorales-tiny", "tokenizers.acoustic=soundstream-tinny"],
        ["ablate", "chorales-tiny", "stages.acoustic.windows=4,5"],
        ["evaluate", "runs/mine", "--score", "fad={embeddings: [{preset: vggish, hops: 1}]}"],
        ["evaluate", "runs/mine", "--score", "fud"],
        ["generate", "runs/mine", "-s", "temprature=1"],
    ],
)
def test_a_slip_in_a_command_is_found(words):
    with pytest.raises(SLIPS):
        test_command(words)


@pytest.mark.parametrize(
    "code",
    [
        'partita.laod("runs/mine")',
        'partita.load("runs/mine", divice="cpu")',
        "from partita.metrics import FrechetDistanz",
        "partita.metrics.Kernel",
    ],
)
def test_a_slip_in_code_is_found(code):
    with pytest.raises((AttributeError, AssertionError)):
        names_in(code)


@pytest.mark.parametrize("change", ["trainer.device=4", "stages.acoustic.generator.sampling.topk=4", "data.limits=2"])
def test_a_slip_in_a_change_is_found(change):
    with pytest.raises(AssertionError):
        check_change(change)


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.name)
def test_inline_code(page):
    """Options, commands, changes to recipes and public names in running text are real ones."""
    options = every_option(group_of())
    for text in spans(page):
        code = " ".join(text.split())
        for option in re.findall(r"(?:^|\s)(--[a-z][\w-]*)", code):
            assert option in options | {"--logdir"}, code
        if code.startswith("partita ") and (words := split(code)[1:])[1:] and words[0] != "ablate":
            test_command(words)
        if re.match(r"(tokenizers|conditioners|stages|data|trainer)\.[\w.]+=", code):
            check_change(split(code)[0])
        if code.startswith("fit."):
            assert code.split(".")[1].split("=")[0] in {field.name for field in fields(Fit)}, code
        if code.startswith("partita."):
            names_in(code.replace("…", "..."))


def check_change(change):
    """It fits one of the packaged recipes, or one with a folder of audio."""
    wrong = []
    for recipe in recipes():
        try:
            return check(recipe, [change])
        except PartitaError as error:
            wrong.append(str(error))
    raise AssertionError("\n".join(wrong))


def names_in(code):
    """Look up what a piece of Python takes from the package, and the keywords it passes to it."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "partita":
            for alias in node.names:
                getattr(importlib.import_module(node.module), alias.name)
        dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"partita(\.\w+)+", dotted):
            found(dotted)
        if isinstance(node, ast.Call) and re.fullmatch(r"partita(\.\w+)+", ast.unparse(node.func)):
            accepted = inspect.signature(found(ast.unparse(node.func))).parameters
            anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
            for keyword in node.keywords:
                assert anything or keyword.arg in accepted, f"{ast.unparse(node.func)} takes no {keyword.arg}"


def found(dotted):
    value = partita
    for name in dotted.split(".")[1:]:
        value = importlib.import_module(f"partita.{name}") if name == "metrics" else getattr(value, name)
    return value


def of_language(*languages):
    return [
        pytest.param(text, id=f"{page.name}:{number}")
        for page in GUIDES
        for language, number, text in blocks(page)
        if language in languages
    ]


@pytest.mark.parametrize("text", of_language("yaml"))
def test_yaml(text, tmp_path, monkeypatch):
    """It is a recipe that composes, an ablation or a preset; under the name of a shipped file, it is that file."""
    path, values = tmp_path / "mine.yaml", yaml.safe_load(text)
    monkeypatch.chdir(tmp_path)
    if "finetune" in values:
        partita.System.outline(check(values["base"])).save_index("runs/mine")
    path.write_text(text)
    if preset := re.match(r"# tokenizer/(\w+)\.yaml", text):
        (tmp_path / "tokenizer").mkdir()
        path.rename(tmp_path / "tokenizer" / f"{preset[1]}.yaml")
        path.write_text(f"{{base: chorales-tiny, tokenizers: {{acoustic: {preset[1]}}}}}")
    (check_ablation if "recipe" in values else fit_together)(str(path))
    if title := re.match(r"# (recipes/\S+)", text):
        shipped = yaml.safe_load((ROOT / title[1]).read_text())
        shipped.pop("description", None)
        assert values == shipped


COMPILED = (
    "partita.invert(",
    "partita.ablate(",
)
"""What takes too long to be run."""


def save_adapter_of_toy():
    """A system, and an adapter of it that changes nothing."""
    Path("toy.yaml").write_text(TOY_RECIPE)
    small = "{name: autoregressive, backbone: {name: transformer, width: 8, depth: 1, num_heads: 2}}"
    system, adapter = partita.System(load_recipe("toy.yaml", [f"stages.main.generator={small}"])), LoRA(rank=1)
    system.save("runs/mine")
    stage = system.stages["main"]
    base = {"base": "runs/mine", "stage": "main", "fingerprint": stage.weights_fingerprint()}
    adapter.attach(stage)
    save_adapter(stage, adapter, Path("runs/folk/adapters/main"), base)


@pytest.mark.parametrize("text", of_language("python"))
def test_python(text, saved_toy, tmp_path, monkeypatch):
    """It runs, with a toy in the place of what takes long to train; the names it takes from the package are there."""
    names_in(text)
    monkeypatch.chdir(tmp_path)
    soundfile.write("song.flac", np.zeros(4000), 8000)
    if "partita.train(" in text:
        Path("chorales-tiny").write_text(TOY_RECIPE)  # a file counts over a packaged recipe
        monkeypatch.setattr("partita.training.runs.write_report", lambda *given, **options: "report.html")
    elif "runs/mulan-tiny" in text:
        partita.System(load_recipe("mulan-tiny")).save("runs/mulan-tiny")
    elif "runs/musicongen-tiny" in text:
        narrow = ["stages.acoustic.generator.backbone.width=32", "stages.acoustic.generator.backbone.depth=1"]
        partita.System(load_recipe("musicongen-tiny", narrow)).save("runs/musicongen-tiny")
    elif "runs/folk" in text:
        save_adapter_of_toy()
    else:
        shutil.copytree(saved_toy, "runs/mine")
    code = compile(text, "example.py", "exec")
    if not any(slow in text for slow in COMPILED):
        torch.manual_seed(0)
        exec(code, {"__name__": "example"})


@pytest.mark.parametrize("text", of_language("csv"))
def test_manifest(text, tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text(text)
    check_rows([row for _, row in read_manifest(path)])


def check_rows(manifest):
    assert manifest
    for row in manifest:
        assert not isinstance(row, PartitaError), row
        known, split_name = parse_row(row)
        unread = set(row) - set(known) - set(FILE_KEYS)
        assert unread <= ({"split"} if split_name else set()), row


@pytest.mark.parametrize("text", of_language("json"))
def test_json(text, saved_toy, tmp_path):
    """Rows are those of a manifest, or of a file of prompts."""
    path, lines = tmp_path / "rows.jsonl", [json.loads(line) for line in text.splitlines()]
    path.write_text(text)
    if "file" in lines[0]:
        check_rows(lines)
    else:
        assert len(partita.read_prompts(path, partita.load(saved_toy))) == len(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(page):
    text = prose(page).split("## Add a part")[0]  # from there on, CONTRIBUTING tells of files that are yet to be made
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
    for path in re.findall(r"`((?:src|recipes|docs|tests|benchmarks)/[^`\s]*)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_make_and_extras(page):
    """What ``make`` is asked for and what is installed with extras exist."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for asked in re.findall(r"(?:^    |`)make ([a-z ]+?)(?=`|\s{2,}|$)", text, flags=re.MULTILINE):
        assert set(asked.split()) <= set(targets), asked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"'\.\[(\w+)\]'", text)) <= set(project["optional-dependencies"])


def test_every_guide_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.relative_to(ROOT).as_posix()})" in text for page in GUIDES[1:])


def test_the_page_of_performance_shows_the_results_that_are_stored(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert importlib.import_module("render").page() == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_page_of_a_system_counts_the_parameters_of_parts_inside_others_once(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    system = System.outline(load_recipe("musiclm-tiny"))
    table = importlib.import_module("system_page").trained(system, tmp_path)
    distinct = {id(parameter): parameter.numel() for part in system.parts.values() for parameter in part.parameters()}
    total = re.search(r"\| all [| ]+([\d.]+) M", table)
    assert total
    assert float(total[1]) * 1e6 == pytest.approx(sum(distinct.values()), rel=0.01)
