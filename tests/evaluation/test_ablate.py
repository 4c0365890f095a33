import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from scipy import stats

import partita
from partita.errors import PartitaError, RecipeError
from partita.evaluation import ablate as ablating
from partita.evaluation import tasks
from partita.evaluation.ablate import ablate, work
from partita.evaluation.ablation import read_ablation, variants
from partita.evaluation.ablation_results import compare
from partita.evaluation.ablation_runs import fingerprint, recipe_of, runs, tokens_per_step
from partita.evaluation.launch import Cluster, Processes, run_tasks
from partita.evaluation.tasks import Task, perform
from partita.pages.tables import fitted
from partita.recipe.plan import load_recipe
from partita.training import callbacks
from partita.training.training import seconds_per_step, train
from toys import ToyBigram

FEW = {"clips": 2, "reference_clips": 3, "duration": 1.0}


class Here:
    """Does tasks in this process, as the command `task` would."""

    jobs = measuring = 1
    pause = patience = 0.0

    def __init__(self, root, stop_after=None):
        self.root, self.begun, self.stop_after = Path(root), [], stop_after

    def start(self, task):
        if len(self.begun) == self.stop_after:
            raise KeyboardInterrupt
        self.begun.append(task)
        with suppress(PartitaError):
            perform(self.root, task.key)
        return self

    def done(self):
        return True

    def failure(self):
        return None

    def stop(self):
        raise AssertionError("nothing is running")


def weights(folder):
    paths = Path(folder).rglob("*.safetensors")
    return {(str(p.relative_to(folder)), k): v for p in paths for k, v in load_file(p).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def study(recipe, *changes, budget=()):
    return read_ablation(str(recipe), changes, budget, FEW)


CODECS = "tokenizers.acoustic.cardinality=16,8"
LETTERS = "conditioners.text=toy-letters,{name: toy-letters, dim: 4}"


def test_every_combination_is_a_variant_and_the_first_is_the_baseline(toy_recipe):
    found = variants(study(toy_recipe, CODECS, LETTERS, "seed=0,1"))
    assert [v.title for v in found] == [
        "cardinality=16 + toy-letters",
        "cardinality=16 + text=toy-letters dim=4",
        "cardinality=8 + toy-letters",
        "cardinality=8 + text=toy-letters dim=4",
    ]
    assert [v.name for v in found][::2] == ["cardinality=16+toy-letters", "cardinality=8+toy-letters"]
    assert len({v.name for v in found}) == 4
    assert found[3].changes == {
        "tokenizers.acoustic.cardinality": 8,
        "conditioners.text": {"name": "toy-letters", "dim": 4},
    }


def test_a_changed_part_is_called_by_its_name_where_that_is_enough(toy_recipe):
    found = variants(study(toy_recipe, "tokenizers.acoustic=toy-codec,{name: toy-other, weights: /some/where}"))
    assert [v.title for v in found] == ["toy-codec", "toy-other"]


@pytest.mark.parametrize(
    "values",
    [
        [{"name": "toy-codec", "weights": "/runs/a/acoustic"}, {"name": "toy-codec", "weights": "/runs/b/acoustic"}],
        [4, "4", 4.0, True, None, 1e-4, 1e-5],
        ["a-2", "a", "a/", "A", "..", "-a", "x" * 200, "x" * 201, "ü", "음악", "🎵"],
    ],
)
def test_whatever_the_values_variants_are_told_apart(toy_recipe, values):
    """By people, and by folders that are the same whatever else is varied, and safe everywhere."""
    ablation = study(toy_recipe)
    ablation.vary["tokenizers.acoustic.thing"] = values
    found = variants(ablation)
    assert [v.changes["tokenizers.acoustic.thing"] for v in found] == values
    assert len({v.title for v in found}) == len({v.name.casefold() for v in found}) == len(values)
    for variant, value in zip(found, values, strict=True):
        ablation.vary["tokenizers.acoustic.thing"] = [value]
        assert variants(ablation)[0].name == variant.name
        assert re.fullmatch(r"\w[\w.=+-]{0,99}|-[0-9a-f]{8}", variant.name, re.ASCII)


def test_changes_inside_a_slot_outlast_a_change_of_the_slot(toy_recipe):
    """In whatever order they are said."""
    inside = "tokenizers.acoustic.fit.steps=3"
    slots = "tokenizers.acoustic=toy-codec,{name: toy-codec, hop: 50}"
    for changes in ([inside, slots], [slots, inside]):
        found, _ = runs(study(toy_recipe, *changes))
        assert [run.outline.tokenizers["acoustic"].fit_options.steps for run in found] == [3, 3]
        assert [run.outline.tokenizers["acoustic"].hop for run in found] == [100, 50]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"vary": {"stages.main.window": [1, 2]}, "variants": {"a": {"stages.main.window": 3}}}, "varied by itself"),
        ({"variants": {"a": {"seed": 3}}}, "varied by itself"),
        ({"vary": {"seed": [1, 2]}, "set": {"seed": 0}}, "both set and varied"),
        ({"vary": {"seed": []}}, "list of values"),
        ({"vary": {"seed": [0]}, "budget": {"conditioners": {"steps": 3}}}, "nothing is trained"),
        ({"vary": {"seed": [0]}, "evaluation": {"embeddings": ["log-mol"]}}, "did you mean 'log-mel'"),
        ({"vary": {"seed": [0]}, "evaluation": {"clip": 3}}, "did you mean 'clips'"),
        ({"vory": {}}, "did you mean 'vary'"),
        ({"variants": {"a": {"tokenizers.acoustic.hob": 3}}}, "what this ablation sets: .*hob.*'hop'"),
    ],
)
def test_files_that_contradict_themselves_are_refused_before_anything_is_done(toy_recipe, tmp_path, keys, word):
    file = toy_recipe.with_name("study.yaml")
    file.write_text(yaml.safe_dump({"recipe": toy_recipe.name, **keys}))
    with pytest.raises(PartitaError, match=word):
        ablate(read_ablation(str(file)), tmp_path / "out", launcher=Here(tmp_path))
    assert not (tmp_path / "out").exists()


def test_an_ablation_file_is_no_recipe(toy_recipe):
    file = toy_recipe.with_name("study.yaml")
    file.write_text(yaml.safe_dump({"recipe": toy_recipe.name}))
    with pytest.raises(PartitaError, match=r"run `partita ablate .*study\.yaml`"):
        load_recipe(file)


def test_an_ablation_file_says_the_same_as_the_command_line(toy_recipe):
    file = toy_recipe.with_name("study.yaml")
    file.write_text(
        yaml.safe_dump(
            {
                "recipe": toy_recipe.name,
                "vary": {"tokenizers.acoustic.cardinality": [16, 8], "seed": [0, 1]},
                "set": {"stages.main.window": 0.5},
                "budget": {"stages": {"steps": 5}},
                "evaluation": FEW,
            }
        )
    )
    slot_name = study(toy_recipe, CODECS, "seed=0,1", "stages.main.window=0.5", budget=["steps=5"])
    assert read_ablation(str(file)) == slot_name
    assert read_ablation(str(file), ["seed=3"]).seeds == (3,)


def test_changes_that_go_together_are_one_choice(toy_recipe):
    file = toy_recipe.with_name("study.yaml")
    together = {"small": {"tokenizers.acoustic.hop": 200, "stages.main.generator.width": 8}, "large": {}}
    file.write_text(
        yaml.safe_dump(
            {"recipe": toy_recipe.name, "variants": together, "vary": {"stages.main.window": [1.0, 2.0]}},
            sort_keys=False,
        )
    )
    found = variants(read_ablation(str(file)))
    assert [v.name for v in found] == ["window=1.0+small", "window=1.0+large", "window=2.0+small", "window=2.0+large"]
    assert found[0].changes == {"stages.main.window": 1.0, **together["small"]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (["tokenizers.acoustic"], "expected key=value or key=a,b"),
        (["tokenizers.acoustic=[a"], "not a list of YAML values"),
        (["tokenizers.acoustic="], "no value"),
        (["seed=0,a"], "whole numbers"),
        (["seed=0,0"], "twice"),
        (["tokenizers.acoustic=toy-codec,toy-codex"], "did you mean 'toy-codec'"),
        (["tokenizers.acoustic.hob=100,200"], "did you mean 'hop'"),
    ],
)
def test_what_cannot_be_compared_is_one_message(toy_recipe, tmp_path, change, word):
    with pytest.raises((PartitaError, RecipeError), match=word):
        ablate(study(toy_recipe, *change), tmp_path / "out", launcher=Here(tmp_path))
    assert not (tmp_path / "out").exists()


def test_two_budgets_for_one_group_are_one_too_many(toy_recipe):
    with pytest.raises(PartitaError, match="two budgets for stages"):
        study(toy_recipe, budget=["steps=5", "stages.minutes=3"])


@pytest.mark.parametrize("budget", ["hours=3", "steps=0", "steps=many", "3", "stage.steps=3"])
def test_a_budget_that_is_none(toy_recipe, budget):
    with pytest.raises(PartitaError, match=r"--budget takes|no such group.*'stages'"):
        study(toy_recipe, budget=[budget])


def test_what_variants_have_in_common_is_trained_once():
    """Another codec leaves the semantic tokens and the stage that makes them alone; another seed does not."""
    ablation = read_ablation(
        "chorales-hierarchical-tiny", ["tokenizers.acoustic=spectral-tiny,soundstream-tiny", "seed=0,1"]
    )
    found, _ = runs(ablation)
    trainings = [task.part for task in work(found, ablation) if task.kind == "train"]
    counts = {part: trainings.count(part) for part in trainings}
    assert counts["tokenizers/semantic"] == counts["stages/semantic"] == 2
    assert counts["tokenizers/acoustic"] == 4
    assert {n for part, n in counts.items() if part.startswith("stages/") and part != "stages/semantic"} == {4}


def test_the_recipe_of_a_part_holds_what_it_depends_on():
    run = runs(read_ablation("chorales-hierarchical-tiny"))[0][0]
    assert set(recipe_of(run, "tokenizers/acoustic")["tokenizers"]) == {"acoustic"}
    assert not recipe_of(run, "tokenizers/acoustic")["stages"]
    first, *_, last = run.plan.stages
    assert list(recipe_of(run, f"stages/{first}")["stages"]) == [first]
    assert set(recipe_of(run, f"stages/{last}")["stages"]) == set(run.plan.stages)


def test_how_a_recipe_is_put_makes_no_difference_to_what_is_shared(toy_recipe):
    one, other = (
        runs(study(toy_recipe, *changes))[0][0]
        for changes in (
            ["tokenizers.acoustic.fit.lr=0.01", "tokenizers.acoustic.fit.eps=1e-7"],
            ["tokenizers.acoustic.fit.eps=1e-7", "tokenizers.acoustic.fit.lr=0.01"],
        )
    )
    assert fingerprint(recipe_of(one, "stages/main")) == fingerprint(recipe_of(other, "stages/main"))


def test_what_matters_only_in_generation_is_not_trained_twice():
    """Overlap of windows, and how a stage draws; each run keeps its own."""
    changes = ["stages.acoustic.generator.sampling.temperature=0.5,1.0", "stages.acoustic.overlap=0,1"]
    ablation = read_ablation("chorales-tiny", changes)
    tasks_ = work(runs(ablation)[0], ablation)
    assert [task.kind for task in tasks_ if task.kind == "train"] == ["train"] * 2
    drawn = {yaml.safe_load(t.recipe)["stages"]["acoustic"]["generator"]["sampling"]["temperature"] for t in tasks_[2:]}
    assert drawn == {0.5, 1.0}


def test_the_runs_of_an_ablation_are_those_that_train_makes(toy_recipe, tmp_path):
    ablation = study(toy_recipe, CODECS, LETTERS, "seed=0,1")
    launcher, root = Here(tmp_path / "out"), tmp_path / "out"
    assert ablate(ablation, root, launcher=launcher) == {}
    codecs = [task for task in launcher.begun if task.part == "tokenizers/acoustic"]
    assert len(codecs) == 2 * 2
    assert len([task for task in launcher.begun if task.part == "stages/main"]) == 2 * 2 * 2
    overrides = ["tokenizers.acoustic.cardinality=8", "conditioners.text={name: toy-letters, dim: 4}", "seed=1"]
    train(load_recipe(toy_recipe, overrides), tmp_path / "alone")
    title = "cardinality=8 + text=toy-letters dim=4"
    place = root / "variants" / next(v.name for v in variants(ablation) if v.title == title) / "seed-1"
    assert same(weights(place), weights(tmp_path / "alone"))
    made = partita.load(place).generate(["tone 1"], seed=0)
    assert torch.equal(made, partita.load(tmp_path / "alone").generate(["tone 1"], seed=0))

    rows = list(csv.DictReader((root / "ablation.csv").open()))
    assert len(rows) == 8
    found = json.loads((place / "evaluation" / "evaluation.json").read_text())["metrics"]["FAD (log-mel-16khz)"]
    row = next(row for row in rows if row["folder"] == str(place.relative_to(root)))
    assert float(row["FAD (log-mel-16khz) value"]) == found["value"]
    page = (root / "ablation.html").read_text()
    assert page.count("<audio") == 2 * (4 + 1)  # two clips of four variants and the real piece
    text = (root / "ablation.md").read_text()
    assert re.search(r"^\| cardinality=8.* \| 2 \|", text, re.MULTILINE)
    assert "## Scores of the codec" in text
    assert "- FAD (log-mel-16khz): Fréchet audio distance" in text
    assert all(line.count(" | ") <= 6 for line in text.splitlines() if line.startswith("| "))

    again = Here(root)
    lines = []
    assert ablate(ablation, root, launcher=again, say=lines.append) == {}
    assert again.begun == []
    more = study(toy_recipe, CODECS, LETTERS, "seed=0,1,2")
    assert ablate(more, root, launcher=again) == {}
    assert {task.label.rpartition(" ")[2] for task in again.begun} == {"2"}


def test_interrupted_it_goes_on(toy_recipe, tmp_path):
    ablation, root = study(toy_recipe, CODECS), tmp_path / "out"
    first = Here(root, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        ablate(ablation, root, launcher=first)
    second = Here(root)
    assert ablate(ablation, root, launcher=second) == {}
    assert len(first.begun) + len(second.begun) == 6
    assert {t.key for t in first.begun}.isdisjoint(t.key for t in second.begun)


def test_a_pilot_grows_into_a_study(toy_recipe, tmp_path):
    """First one codec with one seed, then two with two: what is trained is not trained again."""
    root, first, second = tmp_path / "out", Here(tmp_path / "out"), Here(tmp_path / "out")
    ablate(study(toy_recipe, "tokenizers.acoustic.cardinality=16", "seed=0"), root, launcher=first)
    ablate(study(toy_recipe, "seed=0,1", CODECS), root, launcher=second)
    trained = [task.part for task in (*first.begun, *second.begun) if task.kind == "train"]
    assert sorted(trained) == ["stages/main"] * 4 + ["tokenizers/acoustic"] * 4


def test_stopped_half_way_it_shows_what_is_done(toy_recipe, tmp_path):
    root = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        ablate(study(toy_recipe, CODECS), root, launcher=Here(root, stop_after=4))
    assert "1 of 2 runs are evaluated" in (root / "ablation.md").read_text()


def test_a_part_that_is_gone_is_not_trained_in_passing(toy_recipe, tmp_path):
    root = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        ablate(study(toy_recipe), root, launcher=Here(root, stop_after=2))
    next(root.glob("parts/tokenizers-*/tokenizers/acoustic/model.safetensors")).unlink()
    task = work(runs(study(toy_recipe))[0], study(toy_recipe))[-1]
    failed = run_tasks([replace(task, needs=())], root, Here(root), lambda line: None)
    assert "tokenizers/acoustic is not in" in failed[task.key]
    assert ablate(study(toy_recipe), root, launcher=Here(root)) == {}


class Crowded(Here):
    """Takes two tasks at once, and does them when it is asked whether they are done."""

    jobs = 9

    def start(self, task):
        if len(self.begun) == 2:
            raise RuntimeError("QOSMaxSubmitJobPerUserLimit")
        self.begun.append(task)
        return SimpleNamespace(done=lambda: self.finish(task), failure=lambda: None, stop=lambda: None)

    def finish(self, task):
        perform(self.root, task.key)
        self.begun.remove(task)
        return True


def test_a_cluster_that_takes_no_more_is_asked_again_later(toy_recipe, tmp_path):
    root, lines = tmp_path / "out", []
    ablation = study(toy_recipe, "tokenizers.acoustic.cardinality=16,8,4")
    assert ablate(ablation, root, launcher=Crowded(root), say=lines.append) == {}
    assert any("not more than 2 at once: QOSMax" in line for line in lines)


def test_a_variant_that_fails_does_not_stop_the_others_and_is_tried_again(toy_recipe, tmp_path, monkeypatch):
    ablation, root = study(toy_recipe, "stages.main.generator.width=16,8,4"), tmp_path / "out"
    loss = ToyBigram.loss

    def broken(self, target, mask, conditions):
        if self.embedding.embedding_dim == 8:
            raise PartitaError("the cat sat on it")
        return loss(self, target, mask, conditions)

    monkeypatch.setattr(ToyBigram, "loss", broken)
    problems = ablate(ablation, root, launcher=Here(root))
    assert list(problems) == ["width=8, seed 0"]
    assert "the cat sat on it" in problems["width=8, seed 0"]
    page = (root / "ablation.html").read_text()
    assert "No result of width=8, seed 0" in page
    assert page.count("<audio") == 2 * 3
    monkeypatch.setattr(ToyBigram, "loss", loss)
    assert ablate(ablation, root, launcher=Here(root)) == {}
    assert (root / "ablation.html").read_text().count("<audio") == 2 * 4


def test_parts_that_do_not_fit_are_refused_or_left_out(toy_recipe, tmp_path):
    ablation, root = study(toy_recipe, "stages.main.generator=toy-bigram,flow-tiny"), tmp_path / "out"
    with pytest.raises(PartitaError, match=r"--skip-unfit[\s\S]*flow-tiny:[\s\S]*generates latents"):
        ablate(ablation, root, launcher=Here(root))
    problems = ablate(ablation, root, launcher=Here(root), skip_unfit=True)
    assert "generates latents" in problems["flow-tiny"]
    assert len(list(csv.DictReader((root / "ablation.csv").open()))) == 1


def test_what_is_there_stays_comparable(toy_recipe, tmp_path):
    root = tmp_path / "out"
    ablate(study(toy_recipe), root, launcher=Here(root))
    with pytest.raises(PartitaError, match=r"generated in another way[\s\S]*duration: 1.0 → 0.5"):
        ablate(read_ablation(str(toy_recipe), [], [], {**FEW, "duration": 0.5}), root, launcher=Here(root))
    more = Here(root)
    assert ablate(read_ablation(str(toy_recipe), [], [], {**FEW, "clips": 3}), root, launcher=more) == {}
    assert [task.kind for task in more.begun] == ["evaluate"]
    toy_recipe.write_text(toy_recipe.read_text().replace("window: 1.0", "window: 0.5"))
    with pytest.raises(PartitaError, match="a run of another recipe"):
        ablate(study(toy_recipe), root, launcher=Here(root))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(PartitaError, match="not empty"):
        ablate(study(toy_recipe), tmp_path / "mine", launcher=Here(root))


def test_equal_budgets_in_tokens_are_unequal_in_steps(toy_recipe):
    """Two clips of a second, at 40 and at 20 codes a second: 80 and 40 a step."""
    found, _ = runs(study(toy_recipe, "tokenizers.acoustic.hop=100,200", budget=["tokens=800"]))
    assert [tokens_per_step(run.outline, "stages/main") for run in found] == [80, 40]
    assert [run.outline.stages["main"].fit_options.steps for run in found] == [10, 20]
    assert [run.outline.tokenizers["acoustic"].fit_options.steps for run in found] == [6, 6]


def test_equal_budgets_in_minutes_are_as_many_steps_as_fit(toy_recipe, tmp_path, monkeypatch):
    speeds = iter([0.5, 0.25])
    monkeypatch.setattr(tasks, "seconds_per_step", lambda plan, folder: next(speeds))
    ablation = study(toy_recipe, "stages.main.generator.width=16,8", "seed=0,1", budget=["minutes=0.05"])
    root = tmp_path / "out"
    assert ablate(ablation, root, launcher=Here(root)) == {}
    steps = {}
    for path in root.glob("variants/*/*/recipe.yaml"):
        steps[path.parent.parent.name, path.parent.name] = yaml.safe_load(path.read_text())["stages"]["main"][
            "generator"
        ]["fit"]["steps"]
    assert steps == {("width=16", s): 6 for s in ("seed-0", "seed-1")} | {
        ("width=8", s): 12 for s in ("seed-0", "seed-1")
    }


def test_a_step_is_timed(toy_recipe, monkeypatch):
    steps, loss = 0, ToyBigram.loss

    def counted(self, *args):
        nonlocal steps
        steps += 1
        return loss(self, *args)

    monkeypatch.setattr(ToyBigram, "loss", counted)
    clock = SimpleNamespace(perf_counter=lambda: steps * 0.5, monotonic=time.monotonic)
    monkeypatch.setattr(callbacks, "time", clock)
    assert seconds_per_step(load_recipe(toy_recipe), "stages/main") == 0.5


def test_differences_from_the_baseline_as_scipy_has_them():
    baseline, first, second = {0: 1.0, 1: 1.3, 2: 0.9}, {0: 0.7, 1: 0.9, 2: 0.55}, {0: 1.1, 1: 1.1, 2: 1.1, 3: 9.0}
    cells = compare([baseline, first, second, {}, {0: -5.0, 1: -5.0}], "lower")
    ps = [
        stats.ttest_rel([0.7, 0.9, 0.55], [1.0, 1.3, 0.9]).pvalue,
        stats.ttest_rel([1.1, 1.1, 1.1], [1.0, 1.3, 0.9]).pvalue,
    ]
    assert cells[1].p == pytest.approx(min(1, 2 * ps[0]))
    assert cells[2].p == pytest.approx(ps[1])
    assert not any(cell.best for cell in cells)  # the second has a seed more than others
    known = compare([baseline, first, {0: -5.0}], "lower")
    assert [cell.best for cell in known] == [False, bool(ps[0] < 0.05), False]
    assert ps[0] < 0.05
    assert not any(cell.best for cell in compare([baseline, first], "lower", [False, True]))  # no better than chance
    assert math.isnan(cells[4].p)  # two seeds: anything may be chance
    assert (cells[0].mean, cells[0].deviation) == pytest.approx((3.2 / 3, stats.tstd([1.0, 1.3, 0.9])))
    assert str(cells[3]) == "–"
    assert cells[1].marked.endswith("*") == (2 * ps[0] < 0.05)
    same = compare([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5, 2: 3.5}], "lower")
    assert math.isnan(same[1].p)  # differences without any spread


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_chance_is_hardly_ever_marked_as_best(seeds):
    """Of variants that do not differ, one is marked at most as often as the level says."""
    draws = np.random.default_rng(seeds).normal(size=(60, 4, seeds))
    marked = sum(
        any(cell.best for cell in compare([dict(enumerate(variant)) for variant in study], "higher")) for study in draws
    )
    assert marked <= 0.05 * len(draws)
    draws[:, 2] += 30
    marked = [compare([dict(enumerate(variant)) for variant in study], "higher")[2].best for study in draws[:20]]
    assert np.mean(marked) == 0 if seeds < 3 else np.mean(marked) > 0.9


@pytest.mark.parametrize(("variants", "scores"), [(2, 3), (3, 20), (20, 3), (30, 30)])
def test_tables_fit_a_screen_and_lose_nothing(variants, scores):
    rows = [[f"v{i}", *(f"{i}/{j}" for j in range(scores))] for i in range(variants)]
    made = fitted("Scores", ["variant", *(f"s{j}" for j in range(scores))], rows)
    assert all(2 <= len(columns) <= 7 and all(len(row) == len(columns) for row in rows) for _, columns, rows in made)
    cells = {
        frozenset((row[0], column)): cell
        for _, columns, rows in made
        for row in rows
        for column, cell in zip(columns[1:], row[1:], strict=True)
    }
    wanted = {frozenset((f"v{i}", f"s{j}")): f"{i}/{j}" for i in range(variants) for j in range(scores)}
    assert cells == wanted


@pytest.fixture
def toy_package(tmp_path):
    """Environment of a process in which the toys are an installed package."""
    info = tmp_path / "site" / "toys-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    names = {
        "data": {"toy-sines": "ToySines"},
        "tokenizer": {"toy-codec": "ToyCodec"},
        "conditioner": {"toy-letters": "ToyLetters"},
        "generator": {"toy-bigram": "ToyBigram"},
    }
    lines = [
        f"[partita.{family}]\n" + "".join(f"{name} = toys:{cls}\n" for name, cls in of.items())
        for family, of in names.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[1])])}


def long_training(recipe, root, steps):
    run = runs(
        study(recipe, f"tokenizers.acoustic.fit.steps={steps}", "tokenizers.acoustic.fit.checkpoint_every=100000")
    )[0][0]
    task = next(t for t in work([run], study(recipe)) if t.part == "tokenizers/acoustic")
    task.write(root)
    return task


def test_processes_end_with_the_one_that_started_them_and_keep_what_they_did(toy_recipe, tmp_path, toy_package):
    root = tmp_path / "out"
    task = long_training(toy_recipe, root, 100_000)
    script = (
        "import json, time; from pathlib import Path; from partita.evaluation.launch import Processes; "
        f"from partita.evaluation.tasks import Task; root = Path({str(root)!r}); "
        f"task = Task(**json.loads((root / 'tasks' / {task.key + '.json'!r}).read_text())); "
        "job = Processes(root).start(task); print(job._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, **toy_package}
    )
    parent.stdout.readline()
    for _ in range(1200):
        if list((root / task.folder).glob("logs/**/metrics.csv")):
            break
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with FileLock(root / "tasks" / f"{task.key}.lock", timeout=120):  # the worker holds it as long as it lives
        pass
    assert (root / task.folder / "checkpoints" / "tokenizers-acoustic.ckpt").is_file()


def test_what_processes_say_when_they_fail(toy_recipe, tmp_path, toy_package, monkeypatch):
    for name, value in toy_package.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "out"
    good = long_training(toy_recipe, root, 3)
    bad = Task(
        "bad",
        "train",
        "bad",
        "parts/bad",
        "tokenizers: {acoustic: {name: toy-codex}}\ndata: {name: toy-sines}",
        "tokenizers/acoustic",
    )
    later = Task("later", "train", "later", "parts/later", good.recipe, "tokenizers/acoustic", needs=("bad",))
    lines = []
    failed = run_tasks([bad, later, good], root, Processes(root, jobs=2), lines.append)
    assert set(failed) == {"bad", "later"}
    assert "did you mean 'toy-codec'" in failed["bad"]
    assert failed["later"].startswith("what it needs was not done: ")
    assert good.done(root)


def test_a_cluster_does_the_same(toy_recipe, tmp_path, toy_package, monkeypatch):
    for name, value in toy_package.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "out"
    task = long_training(toy_recipe, root, 3)
    bad = Task("bad", "train", "bad", "parts/bad", "data: {name: toy-sines}", "tokenizers/acoustic")
    failed = run_tasks([task, bad], root, Cluster(root, "local", {"timeout_min": 5}), lambda line: None)
    assert list(failed) == ["bad"]
    assert "tokenizers: must be given" in failed["bad"]
    assert task.done(root)
    with pytest.raises(PartitaError, match="did you mean 'slurm'"):
        Cluster(root, "slum", {})
    with pytest.raises(PartitaError, match="cannot use the cluster"):
        Cluster(root, "local", {"partition_of_slurm": "gpu"})
    with pytest.raises(PartitaError, match="cannot use the cluster 'slurm'"):
        Cluster(root, "slurm", {})


def test_codecs_alone_are_compared_too(toy_recipe, tmp_path):
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"], recipe["conditioners"]
    toy_recipe.write_text(yaml.safe_dump(recipe))
    root = tmp_path / "out"
    assert ablate(study(toy_recipe, "tokenizers.acoustic.cardinality=256,2"), root, launcher=Here(root)) == {}
    fine, coarse = csv.DictReader((root / "ablation.csv").open())
    assert float(fine["tokenizers/acoustic: kbit/s"]) == 40 * 8 / 1000
    assert float(coarse["tokenizers/acoustic: kbit/s"]) == 40 / 1000
    assert float(fine["codec distance value"]) < float(coarse["codec distance value"])


def test_a_preview_does_nothing(toy_recipe, tmp_path):
    lines = ablating.preview(study(toy_recipe, CODECS), tmp_path / "out")
    assert lines[0].startswith("2 variants, 2 runs: 4 parts to train")
    assert "to do: stages/main of cardinality=16, seed 0: 8 steps of 2" in lines
    assert not (tmp_path / "out").exists()
