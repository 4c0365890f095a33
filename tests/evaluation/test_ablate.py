"""Ablations from beginning to end, in this process."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import partita
from ablation_toys import CODECS, FEW, LETTERS, Here, study
from partita.core.part import Part
from partita.errors import PartitaError
from partita.evaluation.ablate import ablate, plan_tasks
from partita.evaluation.ablation import read_ablation, variants
from partita.evaluation.ablation_runs import make_runs
from partita.evaluation.launch import run_tasks
from partita.evaluation.tasks import perform_task
from partita.recipe.plan import load_recipe
from partita.training.training import train
from saved_systems import same, weights
from toys import TOY_RECIPE, ToyBigram

PILOT = ("tokenizers.acoustic.cardinality=16", "seed=0")


def test_the_runs_of_an_ablation_are_those_that_train_makes(toy_recipe, tmp_path, lines):
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
    assert ablate(ablation, root, launcher=again) == {}
    assert again.begun == []


def test_interrupted_it_goes_on(toy_recipe, tmp_path):
    ablation, root = study(toy_recipe, CODECS), tmp_path / "out"
    first = Here(root, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        ablate(ablation, root, launcher=first)
    second = Here(root)
    assert ablate(ablation, root, launcher=second) == {}
    assert len(first.begun) + len(second.begun) == 6
    assert {t.key for t in first.begun}.isdisjoint(t.key for t in second.begun)


@pytest.fixture(scope="session")
def pilot(tmp_path_factory):
    """A finished ablation of one variant, and the tasks that it took."""
    folder = tmp_path_factory.mktemp("pilot")
    (folder / "toy.yaml").write_text(TOY_RECIPE)
    launcher = Here(folder / "out")
    assert ablate(study(folder / "toy.yaml", *PILOT), folder / "out", launcher=launcher) == {}
    return folder / "out", launcher.begun


def test_a_pilot_grows_into_a_study(toy_recipe, tmp_path, pilot):
    """First one codec with one seed, then with two, then two codecs: what is done is not done again."""
    root, first = Path(shutil.copytree(pilot[0], tmp_path / "out")), pilot[1]
    second = Here(root)
    assert ablate(study(toy_recipe, PILOT[0], "seed=0,1"), root, launcher=second) == {}
    assert [task.label.rpartition(" ")[2] for task in second.begun] == ["1"] * 3
    assert ablate(study(toy_recipe, "seed=0,1", CODECS), root, launcher=second) == {}
    trained = [task.part for task in (*first, *second.begun) if task.kind == "train"]
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
    task = plan_tasks(make_runs(study(toy_recipe))[0], study(toy_recipe))[-1]
    failed = run_tasks([replace(task, needs=())], root, Here(root))
    assert "tokenizers/acoustic is no longer in" in failed[task.key]
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
        perform_task(self.root, task.key)
        self.begun.remove(task)
        return True


def test_a_cluster_that_takes_no_more_is_asked_again_later(toy_recipe, tmp_path, lines):
    root = tmp_path / "out"
    ablation = study(toy_recipe, "tokenizers.acoustic.cardinality=16,8,4")
    assert ablate(ablation, root, launcher=Crowded(root)) == {}
    assert any("at most 2 jobs at once from now on: QOSMax" in line for line in lines)


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
    assert "No result for width=8, seed 0" in page
    assert page.count("<audio") == 2 * 3
    monkeypatch.setattr(ToyBigram, "loss", loss)
    assert ablate(ablation, root, launcher=Here(root)) == {}
    assert (root / "ablation.html").read_text().count("<audio") == 2 * 4


def test_parts_that_do_not_fit_are_refused_or_left_out(toy_recipe, tmp_path):
    swap, root = "stages.main.generator=toy-bigram,flow-tiny", tmp_path / "out"
    ablation = study(toy_recipe, swap, budget=["steps=4"])
    with pytest.raises(PartitaError, match=r"--skip-unfit[\s\S]*flow-tiny:[\s\S]*generates latents"):
        ablate(ablation, root, launcher=Here(root))
    problems = ablate(ablation, root, launcher=Here(root), skip_unfit=True)
    assert "generates latents" in problems["flow-tiny"]
    assert len(list(csv.DictReader((root / "ablation.csv").open()))) == 1


def test_what_is_there_stays_comparable(toy_recipe, tmp_path, pilot):
    root = Path(shutil.copytree(pilot[0], tmp_path / "out"))
    with pytest.raises(PartitaError, match=r"generated in another way[\s\S]*duration: 1.0 → 0.5"):
        ablate(read_ablation(str(toy_recipe), PILOT, [], {**FEW, "duration": 0.5}), root, launcher=Here(root))
    more = Here(root)
    assert ablate(read_ablation(str(toy_recipe), PILOT, [], {**FEW, "clips": 3}), root, launcher=more) == {}
    assert [task.kind for task in more.begun] == ["evaluate"]
    recipe = next((root / "variants").rglob("recipe.yaml"))
    written = recipe.read_bytes()
    recipe.write_bytes(b"\xff: [")
    with pytest.raises(PartitaError, match=r"variants/.*recipe\.yaml"):
        ablate(read_ablation(str(toy_recipe), PILOT, [], {**FEW, "clips": 3}), root, launcher=Here(root))
    recipe.write_bytes(written)
    toy_recipe.write_text(toy_recipe.read_text().replace("window: 1.0", "window: 0.5"))
    with pytest.raises(PartitaError, match="a run of another recipe"):
        ablate(study(toy_recipe, *PILOT), root, launcher=Here(root))
    for damaged in ("evaluation: 3", "[1, 2]", "a: b: c"):
        (root / "ablation.yaml").write_text(damaged)
        with pytest.raises(PartitaError, match=r"ablation.yaml"):
            ablate(study(toy_recipe, *PILOT), root, launcher=Here(root))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(PartitaError, match="not empty"):
        ablate(study(toy_recipe, *PILOT), tmp_path / "mine", launcher=Here(root))


def test_codecs_alone_are_compared_too(toy_recipe, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(Part, "doubt", lambda part: "too short" if part.fit_options.steps < 9999 else None)
    recipe = yaml.safe_load(toy_recipe.read_text())
    del recipe["stages"], recipe["conditioners"]
    toy_recipe.write_text(yaml.safe_dump(recipe))
    root = tmp_path / "out"
    assert ablate(study(toy_recipe, "tokenizers.acoustic.cardinality=256,2"), root, launcher=Here(root)) == {}
    fine, coarse = csv.DictReader((root / "ablation.csv").open())
    assert float(fine["tokenizers/acoustic: kbit/s"]) == 40 * 8 / 1000
    assert float(coarse["tokenizers/acoustic: kbit/s"]) == 40 / 1000
    assert float(fine["codec distance value"]) < float(coarse["codec distance value"])
    assert "- tokenizers/acoustic: too short\n" in (root / "ablation.md").read_text()


def test_adapters_are_compared_and_it_goes_on(toy_recipe, tmp_path, pictures):
    base, root = tmp_path / "base", tmp_path / "out"
    partita.System(load_recipe(toy_recipe)).save(base)
    ranks = ["stages.main.adapter={name: lora, layers: [head]}", "stages.main.adapter.rank=1,2"]
    changes = study(base / "recipe.yaml", f"finetune={base}", *ranks)
    assert ablate(changes, root, launcher=Here(root)) == {}
    again = Here(root)
    assert ablate(changes, root, launcher=again) == {}
    assert not again.begun
    head = partita.load(base).stages["main"].head
    one, two = csv.DictReader((root / "ablation.csv").open())
    assert float(one["stages/main: adapter parameters"]) == head.in_features + head.out_features
    assert float(two["stages/main: adapter parameters"]) == 2 * (head.in_features + head.out_features)
